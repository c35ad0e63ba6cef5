"""Log densities of blocks of Gaussian components, and their parameters in the form for that.

Components lie on the major axis and queries on the minor one. The difference z - mu is scaled
afterwards: the product form cancels in float32 if sigma is small against |z - mu|.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions


def diagonal_parameters(distribution: tfd.Distribution) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Returns location and scale of Gaussians with independent dimensions.

    Args:
      distribution: Components with batch shape `[B..., N]`, every parameter broadcast to it.

    Returns:
      Two `Tensor`s, shape `[B..., N, D]` (D = 1 for scalars), the scale not negative; None for
      other distributions.
    """
    leaves = diagonal_leaves(distribution)
    return None if leaves is None else (leaves[0], tf.abs(leaves[1]))


def diagonal_leaves(distribution: tfd.Distribution) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Returns the parameters of Gaussians with independent dimensions as the kernels use them.

    The kernels take reciprocals block by block, so that no copy of the parameters is kept.

    Args:
      distribution: Components with batch shape `[B..., N]`, every parameter broadcast to it.

    Returns:
      Location and scale (of any sign), each `[B..., N, D]` (D = 1 for scalars); None for other
      distributions.
    """
    if type(distribution) is tfd.MultivariateNormalDiag:
        scale = distribution.scale.diag_part()
        loc = tf.zeros_like(scale) if distribution.loc is None else distribution.loc
    elif type(distribution) is tfd.Normal:
        loc, scale = distribution.loc[..., tf.newaxis], distribution.scale[..., tf.newaxis]
    elif (
        type(distribution) is tfd.Independent
        and type(distribution.distribution) is tfd.Normal
        and components_lib.event_rank(distribution) == 1
    ):
        loc, scale = distribution.distribution.loc, distribution.distribution.scale
    else:
        return None
    shape = ps.broadcast_shape(ps.shape(loc), ps.shape(scale))
    return tf.broadcast_to(loc, shape), tf.broadcast_to(scale, shape)


def diagonal_score(leaves: Sequence[tf.Tensor], z: tf.Tensor) -> tf.Tensor:
    """Returns log N(z_m; mu_n, diag(sigma_n^2)), `[B..., n, m]`, for queries `[B..., m, D]`."""
    loc, scale = leaves
    z = tf.linalg.matrix_transpose(z)[..., tf.newaxis, :, :]  # [B..., 1, D, m]
    inverse_scale = (1.0 / scale)[..., tf.newaxis]  # [B..., n, D, 1]
    standardised = (z - loc[..., tf.newaxis]) * inverse_scale  # [B..., n, D, m]
    squares = tf.reduce_sum(standardised**2, axis=-2)
    return log_normaliser(scale)[..., tf.newaxis] - 0.5 * squares


def full_covariance_leaves(
    distribution: tfd.Distribution,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor] | None:
    """Returns the parameters of Gaussians given by the Cholesky factors L of their covariances.

    L is inverted in float64, so that its inverse has only the rounding of its own dtype.

    Args:
      distribution: Components with batch shape `[B..., N]`, every parameter broadcast to it.

    Returns:
      Location `[B..., N, D]`, inverse of L `[B..., N, D, D]` and log normaliser `[B..., N]`; None
      for other distributions.
    """
    if type(distribution) is not tfd.MultivariateNormalTriL:
        return None
    scale_tril = distribution.scale.to_dense()
    wide = tf.cast(scale_tril, tf.float64)
    identity = tf.eye(ps.shape(wide)[-1], batch_shape=ps.shape(wide)[:-2], dtype=tf.float64)
    inverse = tf.linalg.triangular_solve(wide, identity, lower=True)
    return (
        distribution.mean(),
        tf.cast(inverse, scale_tril.dtype),
        log_normaliser(tf.linalg.diag_part(scale_tril)),
    )


def full_covariance_score(leaves: Sequence[tf.Tensor], z: tf.Tensor) -> tf.Tensor:
    """Returns log N(z_m; mu_n, L_n L_n^T), `[B..., n, m]`, for queries `[B..., m, D]`."""
    loc, inverse_scale_tril, log_normaliser = leaves
    z = tf.linalg.matrix_transpose(z)[..., tf.newaxis, :, :]  # [B..., 1, D, m]
    standardised = _product(inverse_scale_tril, z - loc[..., tf.newaxis])  # [B..., n, D, m]
    return log_normaliser[..., tf.newaxis] - 0.5 * tf.reduce_sum(standardised**2, axis=-2)


def _product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns the matrix product `[..., D, m]`, never in the 10 bits of TensorFloat-32.

    On GPUs TensorFlow multiplies float32 matrices in TensorFloat-32 by default, and a library does
    not change the settings of the user's process. The sum is written out there; XLA fuses it.
    """
    if tf.config.list_physical_devices("GPU") and (
        tf.config.experimental.tensor_float_32_execution_enabled()
    ):
        # [..., D, K, 1] * [..., 1, K, m] -> [..., D, m]
        return tf.reduce_sum(a[..., tf.newaxis] * b[..., tf.newaxis, :, :], axis=-2)
    return tf.matmul(a, b)


def log_normaliser(scale: tf.Tensor) -> tf.Tensor:
    """Returns -sum_d log(|sigma_d| sqrt(2 pi)), `[B..., N]`, for scales `[B..., N, D]`."""
    half_log_two_pi = tf.constant(0.5 * math.log(2.0 * math.pi), scale.dtype)
    return -tf.reduce_sum(tf.math.log(tf.abs(scale)) + half_log_two_pi, axis=-1)
