"""Diagnosis of networks that fail because of the dtype of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_FLOATS = (tf.float32, tf.float64, tf.float16, tf.bfloat16)


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
