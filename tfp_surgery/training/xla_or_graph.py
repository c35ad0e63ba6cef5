"""XlaOrGraph: a function compiled by XLA, or without it where XLA cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfp_surgery.measurement.traced import traced


class XlaOrGraph:
    """A function compiled by XLA; without it, and with a warning, where XLA cannot compile it."""

    def __init__(self, function: Callable[..., Any], *arguments: tf.TensorSpec) -> None:
        """Takes the function.

        Args:
          function: Of Tensors.
          *arguments: Their shapes and dtypes.
        """
        self._function = function
        self._arguments = arguments
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        tensors = [
            tf.convert_to_tensor(value, spec.dtype)
            for value, spec in zip(arguments, self._arguments, strict=True)
        ]
        if self._compiled is not None:
            return self._compiled(*tensors)
        compiled = tf.function(
            self._function, autograph=False, jit_compile=True
        ).get_concrete_function(*self._arguments)
        try:
            result = compiled(*tensors)  # compiles the whole before it runs any
        except (
            tf.errors.InvalidArgumentError,
            tf.errors.UnimplementedError,
            tf.errors.InternalError,
            tf.errors.NotFoundError,
        ) as error:
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"XLA cannot compile this prior, which is fitted without it: {reason}", stacklevel=2
            )
            compiled = traced(self._function, *self._arguments)
            result = compiled(*tensors)
        self._compiled = compiled
        return result
