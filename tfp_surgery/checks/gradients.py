"""Checks that log densities can be traced, compiled and differentiated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

_PYTHON_OPERATIONS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})


def check_graph(message: str, log_prob: Callable[[tf.Tensor], tf.Tensor], z: tf.Tensor) -> None:
    """Checks that a log density consists of TensorFlow operations.

    The graph is traced, but neither compiled nor run.

    Args:
      message: Start of the error message: which method needs the graph of which function, and
        the alternatives, without a final period.
      log_prob: Callable from codes `[B, *code_shape]` to log densities.
      z: Codes of shape `[B, *code_shape]`.

    Raises:
      TypeError: If `log_prob` cannot be traced (`z.numpy()`) or runs Python code
        (`tf.numpy_function`).
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
    # Python code is looked for first: it often is why a shape was missing and tracing failed.
    found = sorted({name for graph in graphs for name in python_operations(graph)})
    if found:
        raise TypeError(
            f"{message}. It runs Python code ({', '.join(found)}: tf.numpy_function, "
            "tf.py_function or the like), which no compiled gradient goes through."
        ) from failure
    if failure is not None:
        raise TypeError(
            f"{message}. TensorFlow cannot trace it: {_first_line(failure)}"
        ) from failure


def python_operations(graph: tf.Graph) -> set[str]:
    """Returns the types of the operations that run Python code in a graph and in what it calls."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    return {node.op for node in nodes} & _PYTHON_OPERATIONS


def check_gradient(message: str, log_prob: Callable[[tf.Tensor], tf.Tensor], z: tf.Tensor) -> None:
    """Checks that a log density that depends on the codes has a gradient with respect to them.

    A log density whose value is the same for all codes needs no gradient.

    Args:
      message: Start of the error message: which method needs the gradient of which function, and
        the alternatives, without a final period.
      log_prob: Callable from codes `[S, *shape]` to log densities `[S, ...]`. Entries that differ
        in the first axis alone must differ through the codes alone.
      z: Distinct codes of shape `[S, *shape]`, S at least 2.

    Raises:
      TypeError: If the value changes with the codes and there is no gradient.
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
    """Explains why a compiled program with gradients fails on its first run.

    Args:
      message: Start of the error message: which method needs the program of which function, and
        the alternatives, without a final period.

    Yields:
      Nothing.

    Raises:
      TypeError: If XLA cannot compile the body of the context, or an operation has no gradient.
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
