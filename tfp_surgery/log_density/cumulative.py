"""Distribution and survival functions of mixtures over scalars, streamed over the components.

A sum of weighted probabilities near 1 has lost what is missing from 1. There the logarithm of the
complement is streamed instead, where the family computes it as such.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.log_density import streamed_pass
from tfp_surgery.log_density.queries import flattened

tfd = tfp.distributions

_LOG_HALF = math.log(0.5)


def log_cdf(components: tfd.Distribution, log_weights: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Returns log F(z) = log sum_n w_n F_n(z), exact in both tails if F_n and 1 - F_n are.

    Args:
      components: Components with batch shape `[B..., N]` and scalar events, every parameter
        broadcast to the batch shape.
      log_weights: Floating `Tensor`, shape `[B..., N]`: normalised log weights.
      z: `Tensor`, shape broadcastable to `[S..., B...]`.

    Returns:
      Floating `Tensor`, shape `[S..., B...]`, at most 0.

    Raises:
      NotImplementedError: If the events are not scalars, or the components have no `cdf`.
    """
    return _both(components, log_weights, z)[0]


def log_survival_function(
    components: tfd.Distribution, log_weights: tf.Tensor, z: tf.Tensor
) -> tf.Tensor:
    """Returns log(1 - F(z)); see `log_cdf`.

    Args:
      components: See `log_cdf`, as for the other arguments.
      log_weights: Likewise.
      z: Likewise.

    Returns:
      Floating `Tensor`, shape `[S..., B...]`, at most 0.

    Raises:
      NotImplementedError: As for `log_cdf`.
    """
    return _both(components, log_weights, z)[1]


def _both(
    components: tfd.Distribution, log_weights: tf.Tensor, z: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    if components_lib.event_rank(components) != 0:
        raise NotImplementedError(
            "the distribution function is that of scalar codes, but the event shape is "
            f"{components.event_shape}; marginals() gives the one-dimensional aggregate posteriors."
        )
    queries, shape = flattened(z, components)
    if queries.shape[0] == 0:
        nothing = tf.zeros(shape, log_weights.dtype)
        return nothing, nothing
    below = streamed_pass.log_weighted_sum(components, log_weights, queries, _log_cdf)
    if not _has(components, "_log_survival_function", "_survival_function"):
        below = tf.minimum(below, 0.0)
        return tf.reshape(below, shape), tf.reshape(tfp.math.log1mexp(below), shape)
    above = streamed_pass.log_weighted_sum(components, log_weights, queries, _log_survival)
    log_below = tf.where(below > _LOG_HALF, _log_complement(above), below)
    log_above = tf.where(below > _LOG_HALF, above, _log_complement(below))
    return tf.reshape(log_below, shape), tf.reshape(log_above, shape)


def _log_complement(log_probability: tf.Tensor) -> tf.Tensor:
    """Returns log(1 - p) for p up to one half; a number without gradient for larger p."""
    small = log_probability <= _LOG_HALF + 0.1
    return tfp.math.log1mexp(tf.where(small, log_probability, _LOG_HALF))


def _log_cdf(components: tfd.Distribution, z: tf.Tensor) -> tf.Tensor:
    if _has(components, "_log_cdf"):
        return components.log_cdf(z)
    return _log(components.cdf(z))


def _log_survival(components: tfd.Distribution, z: tf.Tensor) -> tf.Tensor:
    if _has(components, "_log_survival_function"):
        return components.log_survival_function(z)
    return _log(components.survival_function(z))


def _has(components: tfd.Distribution, *methods: str) -> bool:
    """Whether a family has one of the methods itself, rather than TFP's way around it."""
    kind: Any = type(components)
    return any(
        getattr(kind, method, None) is not getattr(tfd.Distribution, method, None)
        for method in methods
    )


def _log(probability: tf.Tensor) -> tf.Tensor:
    """Returns log p, -inf with gradient zero at p = 0, where that of `tf.math.log` is NaN."""
    positive = probability > 0
    logarithm = tf.math.log(tf.where(positive, probability, tf.ones_like(probability)))
    return tf.where(positive, logarithm, tf.constant(-math.inf, probability.dtype))
