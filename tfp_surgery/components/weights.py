"""Weights of mixture components: checks, normalised logarithms and draws of an index."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.arrays import checked_numbers
from tfp_surgery.components import components as components_lib
from tfp_surgery.components import named_component
from tfp_surgery.tfp_internals import prefer_static as ps
from tfp_surgery.tfp_internals import samplers

tfd = tfp.distributions

_LARGEST_LOGIT_GAP = 60.0


def weights_from_array(weights: Any, num_components: int) -> np.ndarray:
    """Checks the weights of N components, one for each.

    Args:
      weights: Array of any library, shape `[N]`: non-negative, with a positive sum.
      num_components: N.

    Returns:
      The weights.

    Raises:
      TypeError: If they are not one array of floating numbers.
      ValueError: If they have another shape, are not finite, negative, or all zero.
    """
    check_dtype(weights)
    array = checked_numbers("weights", weights, "[N]")
    if array.shape != (num_components,):
        raise ValueError(
            f"weights must have shape [{num_components}], one for each observation, got "
            f"{list(array.shape)}."
        )
    bad = ~np.isfinite(array) | (array < 0)
    if bad.any() or not array.any():
        found = f"that at index {bad.argmax()} is {array[bad.argmax()]}"
        raise ValueError(
            "weights must be finite and non-negative, with a positive sum, but "
            f"{found if bad.any() else 'all are zero'}."
        )
    return array


def check_dtype(weights: Any) -> None:
    """Checks that weights are no integers, which labels in their place would be.

    Args:
      weights: Weights as they were given, or None. Lists of Python numbers are taken as they are.

    Raises:
      TypeError: If they are an array or `Tensor` of integers or booleans.
    """
    dtype = getattr(weights, "dtype", None)
    if dtype is None:
        return
    kind = tf.as_dtype(dtype)
    if kind.is_integer or kind.is_bool:
        raise TypeError(
            f"weights must be floating, got {kind.name}: labels are no weights. Whole numbers that "
            "are, such as counts, go in as weights.astype('float32')."
        )


def check_shape(shape: tf.TensorShape, batch_shape: tf.TensorShape) -> None:
    """Checks that weights broadcast with the components' batch shape to one of N components.

    Weights that add batch dimensions must have one entry for each component: a column of N weights
    or labels must not become N mixtures.

    Args:
      shape: Shape of the weights.
      batch_shape: Batch shape of the components, `[..., N]`.

    Raises:
      ValueError: If they do not.
    """
    try:
        joint = tf.broadcast_static_shape(shape, batch_shape)
        fits = joint.is_compatible_with(batch_shape) or shape[-1:].is_compatible_with(
            batch_shape[-1:]
        )
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"weights of shape {shape} do not broadcast to the components' batch shape "
            f"{batch_shape}; weights that add batch dimensions must be of shape [..., N], "
            "with one entry for each component."
        )


def batch_shape(weights: tf.Tensor | None, components: tfd.Distribution) -> Any:
    """Returns the shape `[B..., N]` that weights and components have together.

    Args:
      weights: Weights; see `check_shape`. None for 1/N.
      components: Distribution with batch shape `[..., N]`.

    Returns:
      int32 `np.ndarray` if it is known statically, else a `Tensor`.
    """
    shape = components_lib.batch_shape_tensor(components)
    if weights is None or weights.shape.rank is None:
        return shape
    return ps.broadcast_shape(ps.shape(weights), shape)


def assertions(weights: tf.Tensor) -> list[Any]:
    """Returns run-time checks that weights are non-negative and have a positive sum."""
    return [
        tf.debugging.assert_non_negative(weights, "weights must be non-negative."),
        tf.debugging.assert_positive(
            tf.reduce_sum(weights, axis=-1), "weights must have a positive sum."
        ),
    ]


def log_weights(weights: tf.Tensor | None, components: tfd.Distribution) -> tf.Tensor:
    """Returns normalised log weights.

    Args:
      weights: Non-negative floating `Tensor`; see `check_shape`. None for 1/N.
      components: Distribution with batch shape `[..., N]`.

    Returns:
      Floating `Tensor`, shape `[B..., N]`; see `batch_shape`.
    """
    shape = batch_shape(weights, components)
    dtype = components_lib.dtype_of(components)
    if weights is None:
        return -tf.math.log(tf.fill(shape, tf.cast(shape[-1], dtype)))
    weights = tf.broadcast_to(tf.convert_to_tensor(weights), shape)
    return tf.math.log(weights) - tf.math.log(tf.reduce_sum(weights, axis=-1, keepdims=True))


def weights_from_logits(logits: tf.Tensor) -> tf.Tensor:
    """Returns the softmax of logits, bounded away from zero so that its logarithm has a gradient.

    The logarithm of a weight that underflows to zero is infinite, and its gradient NaN. Therefore
    logits more than 60 below the largest are raised to 60 below it, and get no gradient. Their
    relative weight, e^-60, is below the rounding error of float64.

    Args:
      logits: Floating `Tensor`, shape `[..., N]`, in float32 or wider.

    Returns:
      Positive `Tensor`, shape `[..., N]`, whose last axis sums to one.
    """
    top = tf.stop_gradient(tf.reduce_max(logits, axis=-1, keepdims=True))
    return tf.nn.softmax(tf.maximum(logits, top - _LARGEST_LOGIT_GAP), axis=-1)


def log_remaining(log_weights: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns log(1 - w_i), the log weight of all components except i.

    Args:
      log_weights: Normalised log weights, floating `Tensor`, shape `[B..., N]`.
      index: The indices i, int32 `Tensor`, shape `[S..., B...]`. A negative index excludes no
        component.

    Returns:
      Floating `Tensor`, shape `[S..., B...]`; 0 where the index is negative.
    """
    log_weight = named_component.gather(log_weights, tf.maximum(index, 0))
    return tf.where(index < 0, tf.zeros_like(log_weight), tf.math.log1p(-tf.exp(log_weight)))


def sample_index(
    weights: tf.Tensor | None, components: tfd.Distribution, n: tf.Tensor, seed: Any
) -> tf.Tensor:
    """Draws indices of components.

    Args:
      weights: See `log_weights`.
      components: Distribution with batch shape `[B..., N]`.
      n: Number of draws.
      seed: TFP seed.

    Returns:
      int32 `Tensor`, shape `[B..., n]`.
    """
    shape = batch_shape(weights, components)
    index_shape = ps.concat([shape[:-1], [n]], axis=0)
    if weights is None:
        return samplers.uniform(index_shape, minval=0, maxval=shape[-1], dtype=tf.int32, seed=seed)
    # Inverts the cumulative weights in float64: float32 loses the small ones.
    probs = tf.cast(tf.exp(log_weights(weights, components)), tf.float64)
    cumulative = tf.cumsum(probs, axis=-1)
    uniforms = samplers.uniform(index_shape, dtype=tf.float64, seed=seed)
    # u < 1, hence u * total < total: the component drawn has a positive weight.
    return tf.searchsorted(cumulative, uniforms * cumulative[..., -1:], side="right")
