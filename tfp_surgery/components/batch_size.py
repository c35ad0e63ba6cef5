"""How many observations or codes a step takes, by what one of them costs in memory.

Where a measurement is given no batch size, a step takes as many rows as fit in 32 MiB. A row is
counted with what it brings in and what comes out (its observation, condition and code, the
parameters of its distributions), and with 2 KiB for what networks hold in between, a layer of 512
values in float32. The rule reads shapes and dtypes alone, so that it gives the same on any machine,
and so do the draws that depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.arguments import checked_integer

tfb = tfp.bijectors
tfd = tfp.distributions

_BUDGET = 2**25  # bytes
_BETWEEN = 2**11  # bytes of a row in the hidden layers of a network
GRADIENT_PASSES = 4  # how many times over a row is held where a gradient goes through a network
_WITH_PARAMETERS = (tfd.Distribution, tfb.Bijector, tf.linalg.LinearOperator)


def checked_batch_size(batch_size: Any) -> int | None:
    """Checks a batch size given by a caller.

    Args:
      batch_size: The argument.

    Returns:
      The number; None if it is left to `rows_of_a_step`.

    Raises:
      TypeError: If it is neither None nor an integer.
      ValueError: If it is less than 1.
    """
    return None if batch_size is None else checked_integer("batch_size", batch_size, 1)


def rows_of_a_step(*parts: float, passes: int = 1) -> int:
    """Returns how many rows a step takes.

    Args:
      *parts: What one row holds, in bytes: its observation, its code, parameters.
      passes: How many times over a row is held: `GRADIENT_PASSES`, or 1.

    Returns:
      A number of rows, at least 1.
    """
    return max(1, int(_BUDGET // (passes * (_BETWEEN + sum(parts)))))


def equal_steps(total: int, limit: int) -> int:
    """Returns the size of parts when a total is split into the fewest equal parts up to a limit."""
    return -(-total // -(-total // limit))


def bytes_of_row(parts: Any) -> float:
    """Returns the bytes of one row, with sparse rows dense and ragged ones of mean length.

    Args:
      parts: Structure of arrays, `Tensor`s, sparse matrices or `tf.RaggedTensor`s with leading
        dimension N; None for nothing. Unknown sizes count as 1.
    """
    return sum(map(_bytes_of_row, tf.nest.flatten(parts)))


def bytes_of_parameters(distribution: Any) -> float:
    """Returns the bytes of all parameters of a distribution, as far as it declares them as such.

    A mixture of TFP scores a code under all its components at once, so that this is what a code
    costs there. One that streams over its components (`AggregatePosterior`) counts as one of them.

    Args:
      distribution: The distribution, or a bijector or linear operator; None for none.
    """
    return _bytes_of_parameters(distribution, set())


def _bytes_of_row(leaf: Any) -> float:
    if leaf is None:
        return 0.0
    if isinstance(leaf, tf.RaggedTensor):
        sizes = leaf.flat_values.shape.num_elements(), leaf.shape[0]
        return 0.0 if None in sizes else leaf.dtype.size * sizes[0] / max(1, sizes[1])
    itemsize = tf.as_dtype(leaf.dtype).size
    if scipy.sparse.issparse(leaf):
        return float(itemsize * leaf.shape[1])
    return float(itemsize * _num_elements(leaf.shape[1:]))


def _num_elements(shape: Any) -> int:
    return int(np.prod([size or 1 for size in tf.TensorShape(shape).as_list()], dtype=np.int64))


def _bytes_of_parameters(node: Any, seen: set[int]) -> float:
    if node is None or id(node) in seen:
        return 0.0
    seen.add(id(node))
    if isinstance(node, _WITH_PARAMETERS):
        found = sum(_bytes_of_parameters(part, seen) for part in node.parameters.values())
        if getattr(node, "is_streamed", False):
            return found / max(1, _num_elements([node.num_components]))
        return found
    if isinstance(node, Mapping):
        return sum(_bytes_of_parameters(part, seen) for part in node.values())
    if isinstance(node, list | tuple):
        return sum(_bytes_of_parameters(part, seen) for part in node)
    if hasattr(node, "shape") and hasattr(node, "dtype"):  # an array, or what TFP defers
        return float(tf.as_dtype(node.dtype).size * _num_elements(node.shape))
    return 0.0
