"""Marginals q(z_g|x_n) over groups of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import plain_class
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.marginals import is_factorised

tfd = tfp.distributions

_INDEPENDENT = plain_class(tfd.Independent)
_GAUSSIANS = (
    tfd.MultivariateNormalLinearOperator,  # Diag, TriL and the like
    tfd.MultivariateNormalDiagPlusLowRankCovariance,
)


def has_group_marginals(distribution: tfd.Distribution) -> bool:
    """Returns whether `group_marginal` supports the family: Gaussians, or independent scalars."""
    return isinstance(distribution, _GAUSSIANS) or is_factorised(distribution)


def group_marginal(components: tfd.Distribution, dimensions: Sequence[int]) -> tfd.Distribution:
    """Returns the marginals q(z_g|x_n) over a group of dimensions.

    Args:
      components: Distribution with batch shape `[B..., N]` and event shape `[D]`, every parameter
        broadcast to the batch shape.
      dimensions: The G dimensions of the group, each in [0, D).

    Returns:
      Distribution with batch shape `[B..., N]` and event shape `[G]`.

    Raises:
      NotImplementedError: If the family is not supported.
    """
    if not has_group_marginals(components):
        raise NotImplementedError(
            f"The marginals of {type(components).__name__} over groups of dimensions are not known "
            "here; they are for Gaussians and tfd.Independent over one dimension."
        )
    if isinstance(components, _INDEPENDENT):
        scalar = components_lib.broadcast(components.distribution)  # batch [B..., N, D]
        axis = components_lib.batch_rank(components)
        return tfd.Independent(components_lib.gather(scalar, dimensions, axis=axis), 1)
    loc = tf.gather(components.mean(), dimensions, axis=-1)
    if isinstance(components, tfd.MultivariateNormalDiag):
        return tfd.MultivariateNormalDiag(loc, tf.gather(components.stddev(), dimensions, axis=-1))
    if isinstance(components, tfd.MultivariateNormalLinearOperator):
        rows = tf.gather(components.scale.to_dense(), dimensions, axis=-2)  # [B..., N, G, D]
        # The covariance of the rows S is S S^T = R^T R with S^T = Q R. QR avoids the product S S^T,
        # which squares the condition number.
        _, upper = tf.linalg.qr(tf.linalg.matrix_transpose(rows))  # [B..., N, G, G]
        upper *= tf.sign(tf.linalg.diag_part(upper))[..., tf.newaxis]
        return tfd.MultivariateNormalTriL(loc, tf.linalg.matrix_transpose(upper))
    covariance = tf.gather(components.covariance(), dimensions, axis=-1)
    covariance = tf.gather(covariance, dimensions, axis=-2)
    return tfd.MultivariateNormalTriL(loc, tf.linalg.cholesky(covariance))
