"""Checks that log densities have what optimisers and chains ask of them: a graph and gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

_PYTHON_OPERATIONS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})


def check_graph(message: str, log_prob: Callable[[tf.Tensor], tf.Tensor], z: tf.Tensor) -> None:
    """Checks that a log density is a graph of TensorFlow operations.

    The graph is traced, neither compiled nor run.

    Args:
      message: What needs the graph, of what, and the way out, without a full stop.
      log_prob: From codes `[B, *code_shape]` to log densities.
      z: Codes `[B, *code_shape]`.

    Raises:
      TypeError: If it cannot be traced (`z.numpy()`), or runs Python code (`tf.numpy_function`).
    """
    graphs = []

    def seen(z: tf.Tensor) -> tf.Tensor:
        graphs.append(tf.compat.v1.get_default_graph())
        return log_prob(z)

    failure = None
    try:
        tf.function(seen, autograph=False).get_concrete_function(tf.TensorSpec(z.shape, z.dtype))
    except Exception as error:
        failure = error
    # Where tracing failed for want of a shape, Python code is often the reason of that.
    found = sorted({name for graph in graphs for name in _operations(graph)} & _PYTHON_OPERATIONS)
    if found:
        raise TypeError(
            f"{message}. It runs Python code ({', '.join(found)}: tf.numpy_function, "
            "tf.py_function or the like), which no compiled gradient goes through."
        ) from failure
    if failure is not None:
        raise TypeError(
            f"{message}. TensorFlow cannot trace it: {_first_line(failure)}"
        ) from failure


def _operations(graph: tf.Graph) -> set[str]:
    """The kinds of operations in a graph and in the functions that it calls."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    return {node.op for node in nodes}


def check_gradient(message: str, log_prob: Callable[[tf.Tensor], tf.Tensor], z: tf.Tensor) -> None:
    """Checks that a log density that changes with the codes has a gradient to them.

    One that does not look at the codes needs none: what counts is whether its value changes.

    Args:
      message: What needs the gradient, of what, and the way out, without a full stop.
      log_prob: From codes `[S, *shape]` to log densities `[S, ...]`; those of one place along the
        other dimensions differ by the codes alone.
      z: Codes `[S, *shape]` that differ, S at least 2.

    Raises:
      TypeError: If its value changes, and there is no gradient.
    """
    with tf.GradientTape() as tape, compiled(message):
        tape.watch(z)
        value = log_prob(z)
        gradient = tape.gradient(value, z)
    if gradient is not None:
        return
    values = np.float64(value.numpy())
    rounding = 8 * np.finfo(value.dtype.as_numpy_dtype).eps * np.abs(values).max()
    if np.ptp(values, axis=0).max() > rounding:
        raise TypeError(
            f"{message}. Its log density changes with the codes, but TensorFlow finds no gradient "
            "to them (NumPy, tf.stop_gradient, tf.round or the like lies between)."
        )


@contextlib.contextmanager
def compiled(message: str) -> Iterator[None]:
    """Says what it is about that a program with gradients cannot be made, where it first runs.

    Args:
      message: What needs the program, of what, and the way out, without a full stop.

    Raises:
      TypeError: If XLA cannot compile what runs inside, or an operation has no gradient.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
        if "XLA" not in str(error):
            raise
        raise TypeError(f"{message}. XLA cannot compile it: {_first_line(error)}") from error
    except LookupError as error:
        if "gradient" not in str(error).lower():
            raise
        raise TypeError(f"{message}. TensorFlow has no gradient: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(getattr(error, "message", error)).strip().partition("\n")[0][:300]
