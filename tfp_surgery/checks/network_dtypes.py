"""Why a network failed: it computes in another dtype than that of what it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_FLOATS = (tf.float32, tf.float64, tf.float16, tf.bfloat16)


def other_dtype(network: Callable[[Any], Any], inputs: tf.Tensor) -> tf.DType | None:
    """The first floating dtype in which a network takes inputs on which it has failed.

    Args:
      network: The encoder or decoder.
      inputs: Eager, `[B, ...]`.

    Returns:
      The dtype; None where the dtype was not what it failed of.
    """
    if tf.is_symbolic_tensor(inputs):
        return None
    for dtype in _FLOATS:
        if dtype != inputs.dtype:
            try:
                network(tf.cast(inputs, dtype))
            except Exception:  # whatever a network of the user's own raises
                continue
            return dtype
    return None


def dtype_hint(name: str, network: Callable[[Any], Any], inputs: tf.Tensor) -> str:
    """What to do where a network that failed takes other floats; an empty string elsewhere.

    Args:
      name: "encoder" or "decoder".
      network: The network.
      inputs: Eager, `[B, ...]`.

    Returns:
      A sentence, or an empty string.
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
