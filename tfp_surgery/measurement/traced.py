"""Functions of one call's own model as graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_EAGER_CALLS = 4  # up to which a graph costs more than it saves


def traced(function: Callable[..., Any], *arguments: tf.TensorSpec) -> Callable[..., Any]:
    """Makes one graph of a function.

    TFP takes longer to assemble its ops than they take to run. TensorFlow would warn of retracing
    where a `tf.function` of the same name is made anew for every model.

    Args:
      function: Of tensors.
      *arguments: Their shapes and dtypes.

    Returns:
      The graph, a function of such tensors.
    """
    graph: Callable[..., Any] = tf.function(function, autograph=False).get_concrete_function(
        *arguments
    )
    return graph


def traced_for_many(
    num_calls: int, function: Callable[..., Any], *arguments: tf.TensorSpec
) -> Callable[..., Any]:
    """Makes a graph of a function where it is called often enough to pay; see `traced`.

    Args:
      num_calls: How often it will be called.
      function: See `traced`.
      *arguments: See `traced`.

    Returns:
      The graph, or the function itself.
    """
    return traced(function, *arguments) if num_calls > _EAGER_CALLS else function
