"""Encodes a data set as one batch of N posteriors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import check_encoder_output
from tfp_surgery.checks.takes_condition import call, check_condition_is_taken
from tfp_surgery.checks.tried import tried
from tfp_surgery.components import components as components_lib
from tfp_surgery.components import fidelity
from tfp_surgery.components.batch_size import (
    bytes_of_row,
    checked_batch_size,
    rows_of_a_step,
)
from tfp_surgery.components.flat_joint import flattened
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors
from tfp_surgery.observations import Observations, read_observations

tfd = tfp.distributions

Network = Callable[..., tfd.Distribution]
RowsEncoder = Callable[[Any], tfd.Distribution]


def encode(
    encoder: Network,
    x: Any,
    batch_size: int | None = None,
    condition: Any = None,
    reencode: bool = False,
) -> tfd.Distribution:
    """Encodes a data set batch by batch and joins the N posteriors.

    Args:
      encoder: Callable from observations `[B, ...]` to a `tfd.Distribution` with batch shape `[B]`.
      x: The observations; see `read_observations`.
      batch_size: Number of observations encoded at a time; None for as many as fit in memory (see
        `rows_encoded_at_a_time`).
      condition: Conditions of the observations, likewise; None for none.
      reencode: Whether to call the encoder again whenever a posterior is needed, in place of
        joining parameters.

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
    batch_size = checked_batch_size(batch_size)
    observations = read_observations(x)
    conditions = read_condition(condition, len(observations))
    check_condition_is_taken(conditions, encoder=encoder)
    batch_size = batch_size or rows_encoded_at_a_time(observations, conditions)
    encode_rows = rows_encoder(encoder, observations, conditions, reencode)
    return encode_observations(encode_rows, observations, batch_size, reencode)


def rows_encoded_at_a_time(observations: Observations, conditions: Observations | None) -> int:
    """Returns how many observations a step encodes, by their size in memory.

    Args:
      observations: x.
      conditions: Their conditions, or None.

    Returns:
      The number; see `batch_size.rows_of_a_step`.
    """
    given = () if conditions is None else conditions.parts
    return rows_of_a_step(bytes_of_row((observations.parts, given)))


def read_condition(condition: Any, num_observations: int) -> Observations | None:
    """Reads conditions of observations.

    Args:
      condition: See `read_observations`; None for none.
      num_observations: N.

    Returns:
      The conditions, or None.

    Raises:
      TypeError: See `read_observations`.
      ValueError: See `read_observations`; or if there are not N.
    """
    if condition is None:
        return None
    conditions = read_observations(condition, name="condition").densified()
    if len(conditions) != num_observations:
        raise ValueError(
            f"condition must have one row an observation, {num_observations}, but it has "
            f"{len(conditions)}."
        )
    return conditions


def rows_encoder(
    encoder: Network,
    observations: Observations,
    conditions: Observations | None,
    reencode: bool = False,
) -> RowsEncoder:
    """Returns a function that encodes some of the observations.

    Args:
      encoder: See `encode`.
      observations: x.
      conditions: Conditions of the observations, or None.
      reencode: Whether the posteriors need not be joined by their parameters.

    Returns:
      A callable from rows (a slice or indices, B of them) to q(z|x), checked to have batch shape
      `[B]`, with densities of at least 32 bits.
    """

    def encode_rows(rows: Any) -> tfd.Distribution:
        batch = observations.rows(rows)
        condition = None if conditions is None else conditions.rows(rows)
        posterior = tried("encoder", lambda x: call(encoder, x, condition=condition), batch)
        first = tf.nest.flatten(batch)[0]
        size = int(first.nrows()) if isinstance(first, tf.RaggedTensor) else first.shape[0]
        posterior = check_encoder_output(posterior, size)
        if reencode:
            return flattened(posterior) if tf.nest.is_nested(posterior.dtype) else posterior
        return components_lib.prepare(posterior, "The encoder's posterior")

    return encode_rows


def encode_observations(
    encode_rows: RowsEncoder, observations: Observations, batch_size: int, reencode: bool = False
) -> tfd.Distribution:
    """Encodes observations that are already checked; see `encode`.

    Args:
      encode_rows: From `rows_encoder`.
      observations: x.
      batch_size: See `encode`.
      reencode: See `encode`.

    Returns:
      A distribution with batch shape `[N]`, every parameter broadcast to it.
    """
    num_observations = len(observations)
    has_values = tf.executing_eagerly() and not any(
        map(tf.is_symbolic_tensor, tf.nest.flatten(observations.parts))
    )
    if reencode:
        posteriors = ReencodedPosteriors(
            tf.range(num_observations), encode_rows=encode_rows, batch_size=batch_size
        )
        if has_values:
            fidelity.check_densities_repeat(encode_rows, num_observations)
        return posteriors
    starts = range(0, num_observations, batch_size)
    check = fidelity.EncodingCheck(len(starts))
    parts = []
    for number, start in enumerate(starts):
        posterior = encode_rows(slice(start, min(start + batch_size, num_observations)))
        if has_values:
            with tf.init_scope():  # outside of gradient tapes
                check.note(number, start, posterior)
        parts.append(posterior)
    joined = components_lib.concatenate(parts)
    if has_values:
        with tf.init_scope():
            check.compare(joined)
            fidelity.check_encoder_repeats(encode_rows, joined)
    return joined
