"""Diagnosis of networks that fail because of the dtype of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_FLOATS = (tf.float32, tf.float64, tf.float16, tf.bfloat16)


class ConditionDtypeError(ValueError):
    """A network failed because of the floating dtype of its condition."""


def other_dtype(network: Callable[[Any], Any], inputs: tf.Tensor) -> tf.DType | None:
    """Finds a floating dtype that a failed network accepts.

    Args:
      network: The encoder or decoder.
      inputs: Inputs on which the network failed, shape `[B, ...]`.

    Returns:
      The first dtype in which the network accepts the inputs; None if there is none or the inputs
      are symbolic or a structure.
    """
    if not tf.is_tensor(inputs) or tf.is_symbolic_tensor(inputs):
        return None
    for dtype in _FLOATS:
        if dtype != inputs.dtype:
            try:
                network(tf.cast(inputs, dtype))
            except Exception:  # a user's network may raise anything
                continue
            return dtype
    return None


def dtype_hint(name: str, network: Callable[[Any], Any], inputs: tf.Tensor) -> str:
    """Suggests a cast if a failed network accepts inputs of another floating dtype.

    Args:
      name: "encoder" or "decoder".
      network: The network.
      inputs: Inputs on which the network failed, shape `[B, ...]`.

    Returns:
      A suggestion for an error message; an empty string if no other dtype works.
    """
    dtype = other_dtype(network, inputs)
    if dtype is None:
        return ""
    if name == "encoder":
        return f"it takes {dtype.name} and x is {inputs.dtype.name}: x.astype({dtype.name!r}) works"
    return (
        f"it takes {dtype.name} and the codes are {inputs.dtype.name}, as the parameters of the "
        f"posterior in float32 or wider: tf.cast(z, {dtype.name!r}) inside the decoder works"
    )


def condition_dtype_hint(network: Callable[[Any], Any], condition: Any) -> str:
    """Suggests a cast if a failed network accepts conditions of another floating dtype.

    Args:
      network: The network as a function of the condition.
      condition: Conditions on which it failed: a `Tensor` of shape `[B, ...]`, or a structure of
        these.

    Returns:
      A suggestion for an error message; an empty string if no other dtype works, or the conditions
      are symbolic, ragged or not floating.
    """
    leaves = tf.nest.flatten(condition)
    if not all(isinstance(leaf, tf.Tensor) and not tf.is_symbolic_tensor(leaf) for leaf in leaves):
        return ""
    given = {leaf.dtype for leaf in leaves if leaf.dtype.is_floating}
    for dtype in _FLOATS:
        others = [each.name for each in _FLOATS if each in given - {dtype}]
        if not others:
            continue

        def cast(leaf: Any, dtype: tf.DType = dtype) -> Any:
            return tf.cast(leaf, dtype) if leaf.dtype.is_floating else leaf

        try:
            network(tf.nest.map_structure(cast, condition))
        except Exception:  # a user's network may raise anything
            continue
        if tf.is_tensor(condition):
            return f"condition is {others[0]}: condition.astype({dtype.name!r}) works"
        return f"condition has parts in {' and '.join(others)}: their .astype({dtype.name!r}) works"
    return ""
