"""log_likelihood: log p(x|z) of observations at their codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import check_decoder_output, unwrap_output
from tfp_surgery.checks.parts_given import items
from tfp_surgery.checks.takes_condition import call
from tfp_surgery.observations import event_shape_of, repeated

tfd = tfp.distributions


def log_likelihood(
    decoder: Callable[..., tfd.Distribution],
    z: tf.Tensor,
    x: Any,
    condition: Any = None,
) -> tf.Tensor:
    """Returns log p(x_b|z_sb) of observations given their codes.

    Args:
      decoder: Callable from codes to p(x|z); called once, on the flat batch
        `[S * B, *code_shape]`.
      z: Codes, shape `[S, B, *code_shape]`; B may be unknown in a graph.
      x: Observations, shape `[B, *event_shape]`, or a structure of such `Tensor`s.
      condition: Their conditions, leading dimension `[B]`, repeated in step with the codes; None
        for none.

    Returns:
      Floating `Tensor`, shape `[S, B]`, in nats.
    """
    num_samples, batch_size = z.shape[:2]
    codes = tf.reshape(z, [-1, *z.shape[2:]])  # [S, B, *code] -> [S B, *code]
    if condition is not None:
        condition = repeated(condition, num_samples)
    likelihood = unwrap_output(call(decoder, codes, condition=condition), "decoder")
    if batch_size is not None and _has_static_batch(likelihood):
        likelihood = check_decoder_output(likelihood, num_samples * batch_size, event_shape_of(x))
    x = repeated(as_value(likelihood, x), num_samples)  # [S B, *event]
    return tf.reshape(likelihood.log_prob(x), [num_samples, -1])  # [S B] -> [S, B]


def as_value(likelihood: tfd.Distribution, x: Any) -> Any:
    """Returns observations in the structure and the floating dtypes of their likelihood.

    Parts that have names go by these: the fields of a named tuple keep their order where the keys
    of a dict are sorted.
    """
    dtypes = map(tf.as_dtype, tf.nest.flatten(likelihood.dtype))  # TFP keeps "float32" as given
    leaves = zip(dtypes, _leaves(likelihood.dtype, x), strict=True)
    cast = [tf.cast(leaf, dtype) if dtype.is_floating else leaf for dtype, leaf in leaves]
    return tf.nest.pack_sequence_as(likelihood.dtype, cast)


def _leaves(dtype: Any, x: Any) -> list[Any]:
    """Returns the leaves of x in the order in which `tf.nest` flattens `dtype`."""
    if not tf.nest.is_nested(dtype):
        return [x]
    parts = dict(items(x))
    return [leaf for name, part in items(dtype) for leaf in _leaves(part, parts[name])]


def _has_static_batch(likelihood: tfd.Distribution) -> bool:
    return all(shape.is_fully_defined() for shape in tf.nest.flatten(likelihood.batch_shape))
