"""Selects one component per query by index."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import arrays
from tfp_surgery.components import components as components_lib
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions


def checked_index(index: Any, num_components: Any) -> tf.Tensor:
    """Checks indices of components and casts them to int32.

    Args:
      index: Integer `Tensor`.
      num_components: N, as an `int` if it is known statically.

    Returns:
      The indices as an int32 `Tensor`.

    Raises:
      TypeError: If `index` does not have an integer dtype.
      ValueError: If static values are not in [0, N), or entries are masked or missing.
    """
    arrays.reject_missing("index", index)
    index = tf.convert_to_tensor(index)
    if not index.dtype.is_integer:
        raise TypeError(f"index must have an integer dtype; got {index.dtype.name}.")
    values = tf.get_static_value(index)
    if (
        values is not None
        and values.size
        and isinstance(num_components, int)
        and (values.min() < 0 or values.max() >= num_components)
    ):
        raise ValueError(
            f"index must lie in [0, {num_components}); got values from {values.min()} to "
            f"{values.max()}."
        )
    return tf.cast(index, tf.int32)


def assertions(index: tf.Tensor, num_components: Any) -> list[Any]:
    """Returns run-time assertions that an int32 index lies in [0, N)."""
    return [
        tf.debugging.assert_non_negative(index, "index must be >= 0."),
        tf.debugging.assert_less(index, tf.cast(num_components, tf.int32), "index must be < N."),
    ]


def log_prob(components: tfd.Distribution, z: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns log q(z|x_i) for the component i selected by each query.

    Args:
      components: Components with batch shape `[B..., N]`, every parameter broadcast to it.
      z: `Tensor`, shape broadcastable to `[S..., B..., E...]`.
      index: int32 `Tensor`, shape `[S..., B...]`.

    Returns:
      Floating `Tensor`, shape `[S..., B...]`, in nats.
    """
    batch_ndims = components_lib.batch_rank(components) - 1
    to_batch_first, to_sample_first = _transpositions(index, batch_ndims)
    chosen = components_lib.gather(
        components,
        tf.transpose(index, to_batch_first),  # [B..., S...]
        axis=batch_ndims,
        batch_dims=batch_ndims,
    )
    event_shape = ps.shape(z)[ps.rank(z) - components_lib.event_rank(components) :]
    z = tf.broadcast_to(z, ps.concat([ps.shape(index), event_shape], axis=0))
    event_axes = ps.range(ps.rank(index), ps.rank(z))
    z = tf.transpose(z, ps.concat([to_batch_first, event_axes], axis=0))  # [B..., S..., E...]
    return tf.transpose(chosen.log_prob(z), to_sample_first)


def gather(values: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns the value selected by each query.

    Args:
      values: `Tensor`, shape `[B..., N]`.
      index: int32 `Tensor`, shape `[S..., B...]`.

    Returns:
      `Tensor`, shape `[S..., B...]`.
    """
    batch_ndims = values.shape.rank - 1
    to_batch_first, to_sample_first = _transpositions(index, batch_ndims)
    gathered = tf.gather(
        values, tf.transpose(index, to_batch_first), axis=batch_ndims, batch_dims=batch_ndims
    )
    return tf.transpose(gathered, to_sample_first)


def _transpositions(index: tf.Tensor, batch_ndims: int) -> tuple[Any, Any]:
    """Returns the axis orders from `[S..., B...]` to `[B..., S...]` (batched gather) and back."""
    ndims = ps.rank(index)
    sample_ndims = ndims - batch_ndims
    return (
        ps.concat([ps.range(sample_ndims, ndims), ps.range(sample_ndims)], axis=0),
        ps.concat([ps.range(batch_ndims, ndims), ps.range(batch_ndims)], axis=0),
    )
