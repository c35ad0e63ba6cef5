"""Traces the functions of a model as graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_EAGER_CALLS = 4  # up to this many calls, tracing costs more than it saves


def traced(function: Callable[..., Any], *arguments: tf.TensorSpec) -> Callable[..., Any]:
    """Traces a function as one graph.

    TFP's Python code takes longer than the operations that it calls. A concrete function avoids
    TensorFlow's retracing warning for a new `tf.function` per model.

    Args:
      function: Callable with `Tensor` arguments.
      *arguments: Shapes and dtypes of the arguments.

    Returns:
      The graph, a callable with the same arguments.
    """
    graph: Callable[..., Any] = tf.function(function, autograph=False).get_concrete_function(
        *arguments
    )
    return graph


def traced_for_many(
    num_calls: int, function: Callable[..., Any], *arguments: tf.TensorSpec
) -> Callable[..., Any]:
    """Traces a function as `traced` does, if it is called often enough to pay.

    Args:
      num_calls: Number of calls to come.
      function: See `traced`.
      *arguments: See `traced`.

    Returns:
      The graph; `function` itself for at most 4 calls.
    """
    return traced(function, *arguments) if pays(num_calls) else function


def pays(num_calls: int) -> bool:
    """Returns whether a function that is called so often is worth tracing."""
    return num_calls > _EAGER_CALLS
