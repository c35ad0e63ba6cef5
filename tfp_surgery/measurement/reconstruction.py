"""log p(x|z) of observations at codes."""

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
    """Scores each observation at its codes.

    Args:
      decoder: Callable from codes `[B, *code_shape]` to p(x|z), batch `[B]`.
      z: Codes `[S, B, *code_shape]`.
      observations: `[B, *event_shape]`.

    Returns:
      log p(x_b|z_sb) in nats, `[S, B]`.
    """
    num_samples, num_queries = z.shape[:2]
    codes = tf.reshape(z, [num_samples * num_queries, *z.shape[2:]])  # [S, B, ...] -> [S B, ...]
    event_shape = tuple(observations.shape[1:])
    repeated = tf.tile(observations, [num_samples, *[1] * len(event_shape)])  # [S B, *event]
    likelihood = check_decoder_output(decoder(codes), num_samples * num_queries, event_shape)
    if likelihood.dtype.is_floating:
        repeated = tf.cast(repeated, likelihood.dtype)
    return tf.reshape(likelihood.log_prob(repeated), [num_samples, num_queries])  # [S B] -> [S, B]
