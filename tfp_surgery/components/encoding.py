"""Encodes a data set as one batch of N posteriors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import arrays
from tfp_surgery.checks.arguments import check_observations, checked_integer
from tfp_surgery.checks.network_dtypes import dtype_hint
from tfp_surgery.checks.networks import check_encoder_output
from tfp_surgery.components import components as components_lib
from tfp_surgery.components import fidelity
from tfp_surgery.datasets import Dataset

tfd = tfp.distributions


def encode(encoder: Callable[[Any], tfd.Distribution], x: Any, batch_size: int) -> tfd.Distribution:
    """Encodes a data set batch by batch and joins the N posteriors.

    Args:
      encoder: Callable from observations `[B, ...]` to a `tfd.Distribution` with batch shape `[B]`.
      x: The observations; see `AggregatePosterior.from_encoder`.
      batch_size: Number of observations encoded at a time.

    Returns:
      A distribution with batch shape `[N]`, every parameter broadcast to it.

    Raises:
      ValueError: If x is empty or not finite, if `batch_size` is not positive, if the posteriors do
        not have batch shape `[B]`, or if a second call gives an observation another posterior.
      TypeError: If the encoder does not return distributions of one kind, or if they hold
        parameters that they do not declare (see `fidelity`).
    """
    if not callable(encoder):
        raise TypeError(f"encoder must be callable; got {type(encoder).__name__}.")
    checked_integer("batch_size", batch_size, 1)
    return encode_observations(encoder, _observations(x), batch_size)


def encode_observations(
    encoder: Callable[[Any], tfd.Distribution], x: Any, batch_size: int
) -> tfd.Distribution:
    """Encodes observations that are already checked; see `encode`.

    Args:
      encoder: See `encode`.
      x: Non-empty, finite array or `Tensor`, shape `[N, *event_shape]`.
      batch_size: See `encode`.

    Returns:
      A distribution with batch shape `[N]`, every parameter broadcast to it.
    """
    has_values = tf.executing_eagerly() and not tf.is_symbolic_tensor(x)
    starts = range(0, x.shape[0], batch_size)
    check = fidelity.EncodingCheck(len(starts))
    parts = []
    for number, start in enumerate(starts):
        batch = tf.convert_to_tensor(x[start : start + batch_size])
        posterior = check_encoder_output(_encoded(encoder, batch), batch.shape[0])
        posterior = components_lib.prepare(posterior, "The encoder's posterior")
        if has_values:
            with tf.init_scope():  # outside of gradient tapes
                check.note(number, start, posterior)
        parts.append(posterior)
    joined = components_lib.concatenate(parts)
    if has_values:
        with tf.init_scope():
            check.compare(joined)
            fidelity.check_encoder_repeats(encoder, x, joined)
    return joined


def _encoded(encoder: Callable[[Any], tfd.Distribution], batch: tf.Tensor) -> Any:
    try:
        return encoder(batch)
    except Exception as error:
        hint = dtype_hint("encoder", encoder, batch)
        if not hint:
            raise
        raise ValueError(f"the encoder failed ({hint}): {error}") from error


def _observations(x: Any) -> Any:
    """Returns the observations as an array or `Tensor`, with their values checked if known."""
    if isinstance(x, Dataset):
        return x.observations()
    if not (tf.is_tensor(x) or isinstance(x, (tf.Variable, keras.Variable))):
        return check_observations(x)
    hint = arrays.way_out("x", x)
    if hint:  # sparse or ragged
        raise TypeError(f"x must be a dense Tensor, got a {type(x).__name__}. {hint}")
    x = tf.convert_to_tensor(x)
    if not tf.is_symbolic_tensor(x):
        check_observations(x)
    elif not x.shape.rank or not x.shape[0]:
        raise ValueError(f"x must have a static number of observations; got shape {x.shape}.")
    return x
