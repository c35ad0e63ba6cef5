"""log_likelihood: log p(x|z) of observations at their codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import check_decoder_output, unwrap_output

tfd = tfp.distributions


def log_likelihood(
    decoder: Callable[[Any], tfd.Distribution], z: tf.Tensor, x: tf.Tensor
) -> tf.Tensor:
    """Returns log p(x_b|z_sb) of observations given their codes.

    Args:
      decoder: Callable from codes to p(x|z); called once, on the flat batch
        `[S * B, *code_shape]`.
      z: Codes, shape `[S, B, *code_shape]`; B may be unknown in a graph.
      x: Observations, shape `[B, *event_shape]`.

    Returns:
      Floating `Tensor`, shape `[S, B]`, in nats.
    """
    num_samples, batch_size = z.shape[:2]
    event_shape = tuple(x.shape[1:])
    codes = tf.reshape(z, [-1, *z.shape[2:]])  # [S, B, *code] -> [S B, *code]
    likelihood = unwrap_output(decoder(codes), "decoder")
    if batch_size is not None and likelihood.batch_shape.is_fully_defined():
        likelihood = check_decoder_output(likelihood, num_samples * batch_size, event_shape)
    if likelihood.dtype.is_floating:
        x = tf.cast(x, likelihood.dtype)
    repeated = tf.tile(x, [num_samples, *[1] * len(event_shape)])  # [S B, *event]
    return tf.reshape(likelihood.log_prob(repeated), [num_samples, -1])  # [S B] -> [S, B]
