"""Closed-form moments of a mixture from those of its components."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.components import marginals as marginals_lib
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions

_BLOCK_ELEMENTS = 2**22  # size of the [n, D, D] covariances held at a time


def mean(components: tfd.Distribution, log_weights: tf.Tensor) -> tf.Tensor:
    """Returns E z = sum_n w_n E[z|x_n].

    Args:
      components: Distribution with batch shape `[B..., N]`, every parameter broadcast to it.
      log_weights: Normalised log weights, shape `[B..., N]`.

    Returns:
      Floating `Tensor`, shape `[B..., E...]`.
    """
    return _weighted_mean(components.mean(), log_weights)


def variance(components: tfd.Distribution, log_weights: tf.Tensor) -> tf.Tensor:
    """Returns Var z = sum_n w_n (Var[z|x_n] + (E[z|x_n] - E z)^2), elementwise.

    Args:
      components: As for `mean`.
      log_weights: As for `mean`.

    Returns:
      Floating `Tensor`, shape `[B..., E...]`.
    """
    means = components.mean()
    centred = means - tf.expand_dims(_weighted_mean(means, log_weights), log_weights.shape.rank - 1)
    try:
        within = components.variance()
    except NotImplementedError:  # TFP's spherical families implement the covariance only
        within = tf.linalg.diag_part(components.covariance())
    return _weighted_mean(within + centred**2, log_weights)


def covariance(components: tfd.Distribution, log_weights: tf.Tensor) -> tf.Tensor:
    """Returns Cov z = sum_n w_n (Cov[z|x_n] + (E[z|x_n] - E z)(E[z|x_n] - E z)^T).

    Args:
      components: As for `mean`, with vector events.
      log_weights: As for `mean`.

    Returns:
      Floating `Tensor`, shape `[B..., D, D]`.
    """
    means = components.mean()  # [B..., N, D]
    centred = means - _weighted_mean(means, log_weights)[..., tf.newaxis, :]
    between = tf.einsum("...n,...ni,...nj->...ij", tf.exp(log_weights), centred, centred)
    if marginals_lib.is_factorised(components):
        return tf.linalg.diag(_weighted_mean(components.variance(), log_weights)) + between
    return _mean_covariance(components, log_weights) + between


def _weighted_mean(values: tf.Tensor, log_weights: tf.Tensor) -> tf.Tensor:
    """Returns sum_n w_n values_n for values `[B..., N, E...]`."""
    event_ndims = values.shape.rank - log_weights.shape.rank
    weights = tf.reshape(
        tf.exp(log_weights), ps.concat([ps.shape(log_weights), [1] * event_ndims], axis=0)
    )
    return tf.reduce_sum(weights * values, axis=log_weights.shape.rank - 1)


def _mean_covariance(components: tfd.Distribution, log_weights: tf.Tensor) -> tf.Tensor:
    """Returns sum_n w_n Cov[z|x_n], block by block so that `[N, D, D]` is never built."""
    axis = log_weights.shape.rank - 1
    weights = tf.exp(log_weights)
    num_components = ps.shape(weights)[-1]
    event_size = components.event_shape_tensor()[-1]
    block = ps.maximum(1, _BLOCK_ELEMENTS // ps.maximum(event_size**2, 1))

    def step(start: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        positions = start + tf.range(block)
        inside = tf.cast(positions < num_components, weights.dtype)
        indices = tf.minimum(positions, num_components - 1)
        part = components_lib.gather(components, indices, axis=axis).covariance()
        part_weights = tf.gather(weights, indices, axis=axis) * inside
        return start + block, total + tf.einsum("...n,...nij->...ij", part_weights, part)

    shape = ps.concat([ps.shape(weights)[:-1], [event_size, event_size]], axis=0)
    _, total = tf.while_loop(
        lambda start, _: start < num_components,
        step,
        (0, tf.zeros(shape, weights.dtype)),
        parallel_iterations=1,
    )
    return total
