"""log p(x|z) of observations given codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import check_decoder_output

tfd = tfp.distributions


def reconstruction_log_prob(
    decoder: Callable[[Any], tfd.Distribution], z: tf.Tensor, observations: tf.Tensor
) -> tf.Tensor:
    """Returns log p(x_b|z_sb) of observations given their codes.

    Args:
      decoder: Callable from codes `[B, *code_shape]` to p(x|z) with batch shape `[B]`.
      z: Codes, shape `[S, B, *code_shape]`.
      observations: Shape `[B, *event_shape]`.

    Returns:
      Floating `Tensor`, shape `[S, B]`, in nats.
    """
    num_samples, num_queries = z.shape[:2]
    codes = tf.reshape(z, [num_samples * num_queries, *z.shape[2:]])  # [S, B, ...] -> [S B, ...]
    event_shape = tuple(observations.shape[1:])
    repeated = tf.tile(observations, [num_samples, *[1] * len(event_shape)])  # [S B, *event]
    likelihood = check_decoder_output(decoder(codes), num_samples * num_queries, event_shape)
    if likelihood.dtype.is_floating:
        repeated = tf.cast(repeated, likelihood.dtype)
    return tf.reshape(likelihood.log_prob(repeated), [num_samples, num_queries])  # [S B] -> [S, B]
