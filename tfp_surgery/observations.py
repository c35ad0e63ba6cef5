"""Observations: a data set in memory, as one array or as a structure of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import scipy.sparse
import tensorflow as tf

from tfp_surgery import seeds
from tfp_surgery.checks import arrays
from tfp_surgery.checks.arguments import check_observations
from tfp_surgery.datasets import Dataset
from tfp_surgery.pipelines import collected


@dataclasses.dataclass(frozen=True, eq=False)
class Observations:
    """N observations, or N conditions of observations.

    Attributes:
      parts: A `tf.nest` structure whose leaves are NumPy arrays or `Tensor`s of shape `[N, ...]`,
        `tf.RaggedTensor`s of N rows, or `scipy.sparse` matrices of shape `[N, D]`.
      num_observations: N.
      data: Description of the data set: its name, N and binarization.
    """

    parts: Any
    num_observations: int
    data: str = ""

    def __len__(self) -> int:
        """Returns N."""
        return self.num_observations

    @property
    def is_structure(self) -> bool:
        """Whether an observation has several parts or a name for its one part."""
        return bool(tf.nest.is_nested(self.parts))

    @property
    def array(self) -> np.ndarray | None:
        """The observations, shape `[N, *event_shape]`; None if they are not one dense array."""
        is_eager = isinstance(self.parts, tf.Tensor) and not tf.is_symbolic_tensor(self.parts)
        return np.asarray(self.parts) if is_eager or isinstance(self.parts, np.ndarray) else None

    @property
    def event_shape(self) -> Any:
        """The `tf.TensorShape` of one observation, in the structure of `parts`."""
        return event_shape_of(self.parts)

    def densified(self) -> Observations:
        """Returns the same observations with dense arrays in place of sparse matrices."""
        dense = tf.nest.map_structure(
            lambda leaf: leaf.toarray() if scipy.sparse.issparse(leaf) else leaf, self.parts
        )
        return dataclasses.replace(self, parts=dense)

    def rows(self, rows: Any) -> Any:
        """Returns some of the observations.

        Args:
          rows: A slice, or indices as an integer array or `Tensor`, shape `[B]`.

        Returns:
          `Tensor`s of shape `[B, ...]` in the structure of `parts`; `tf.RaggedTensor`s of B rows.
          Sparse matrices become dense.
        """
        return tf.nest.map_structure(lambda leaf: _rows(leaf, rows), self.parts)


def read_observations(x: Any, seed: seeds.Seed | None = None, name: str = "x") -> Observations:
    """Reads and checks a data set.

    Args:
      x: An array-like of shape `[N, *event_shape]`, for instance a NumPy array, an eager `Tensor`,
        a pandas frame or nested lists of numbers; a sparse matrix of `scipy.sparse` or a
        `tf.SparseTensor` of shape `[N, D]`; a `tf.RaggedTensor` of N rows; a dict, tuple or named
        tuple of these with one N, which is a structured observation; a `tf.data.Dataset` (see
        `pipelines.collected`); a `tfp_surgery.datasets.Dataset`; or `Observations`.
      seed: Seed of the draw of a stochastic binarization.
      name: Name of the argument, for error messages.

    Returns:
      The observations.

    Raises:
      TypeError: If x or a part of it is not an array of numbers.
      ValueError: If x is empty, masked or not finite, if its parts differ in N, or if it is a
        stochastic `Dataset` and there is no seed.
    """
    if isinstance(x, Observations):
        return x
    if isinstance(x, Dataset):
        draw_seed = seed if x.binarization == "stochastic" else None
        array = x.observations(draw_seed=draw_seed)
        return Observations(array, len(array), x.describe(draw_seed=draw_seed))
    what = "an array"
    if isinstance(x, tf.data.Dataset):
        x, left_out = collected(name, x)
        what = f"a tf.data.Dataset{left_out}"
    parts = _parts(name, x)
    paths = _paths(name, parts)
    sizes = dict(zip(paths, map(_num_rows, tf.nest.flatten(parts)), strict=True))
    if not sizes:
        raise ValueError(f"{name} holds no arrays: it is the empty structure {x!r}.")
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{path} has {size}" for path, size in sizes.items())
        raise ValueError(
            f"the parts of {name} must have one row an observation each, as many in all of them, "
            f"but {found}."
        )
    num_observations = next(iter(sizes.values()))
    if tf.nest.is_nested(parts):
        shapes = zip(_paths("", parts), tf.nest.flatten(parts), strict=True)
        inner = ", ".join(f"{path} {_shape_of(leaf)}" for path, leaf in shapes)
        what = f"{what.replace('an array', 'a structure')} of {inner}"
    stated = f"{what}, N = {num_observations}{_levels(parts)}, binarization not stated"
    return Observations(parts, num_observations, stated)


def read_array(x: Any, name: str = "x") -> np.ndarray:
    """Reads a data set that is one array.

    Args:
      x: See `read_observations`.
      name: Name of the argument, for error messages.

    Returns:
      An array of shape `[N, *event_shape]`.

    Raises:
      TypeError: See `read_observations`; or if x is a structure or ragged.
      ValueError: See `read_observations`.
    """
    array = read_observations(x, name=name).densified().array
    if array is None:
        raise TypeError(
            f"{name} must be one array of shape [N, ...], got a {type(x).__name__}, a structure or "
            f"ragged: hand in the observations alone ({name}[0] of a pair)."
        )
    return array


def _parts(name: str, value: Any) -> Any:
    """Returns the checked leaves of a structure."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"the names in {name} must be strings; got {list(value)[:6]}.")
        return {key: _parts(f"{name}[{key!r}]", part) for key, part in value.items()}
    if _is_tuple_of_arrays(value):
        parts = [_parts(f"{name}[{number}]", part) for number, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if scipy.sparse.issparse(value):
        return _sparse(name, scipy.sparse.csr_matrix(value))
    if isinstance(value, tf.SparseTensor):
        if value.shape.rank != 2:
            raise ValueError(
                f"{name} must be sparse in two dimensions, [N, D], got {value.shape}: "
                f"tf.sparse.reshape({name}, [N, D]) makes it so."
            )
        rows, columns = value.indices.numpy().T
        entries = (value.values.numpy(), (rows, columns))
        return _sparse(name, scipy.sparse.csr_matrix(entries, shape=tuple(value.shape)))
    if isinstance(value, tf.RaggedTensor):
        if not value.nrows():
            raise ValueError(f"{name} holds no observations: it has no rows.")
        if tf.size(value.flat_values):
            check_observations(value.flat_values, f"the values of {name}")
        return value
    if isinstance(value, tf.Variable | keras.Variable):
        value = tf.convert_to_tensor(value)
    if not tf.is_tensor(value):
        return check_observations(value, name)
    if not tf.is_symbolic_tensor(value):
        check_observations(value, name)
    elif not value.shape.rank or not value.shape[0]:
        raise ValueError(f"{name} must have a static number of observations; got {value.shape}.")
    return value


def _is_tuple_of_arrays(value: Any) -> bool:
    """Returns whether a tuple is a structure, and not one of nested numbers."""
    if not isinstance(value, tuple):
        return False
    return hasattr(value, "_fields") or any(
        isinstance(part, Mapping | tf.RaggedTensor | tf.SparseTensor)
        or arrays.is_array(part)
        or _is_tuple_of_arrays(part)
        for part in value
    )


def _sparse(name: str, matrix: Any) -> Any:
    if 0 in matrix.shape:
        raise ValueError(f"{name} holds no observations: its shape is {list(matrix.shape)}.")
    if matrix.nnz:
        check_observations(matrix.data, f"the values of {name}")
    return matrix


def _paths(name: str, parts: Any) -> list[str]:
    """Returns the place of each leaf, in the order of `tf.nest`."""
    if isinstance(parts, Mapping):
        nested = [
            _paths(f"{name}[{key!r}]" if name else str(key), parts[key]) for key in sorted(parts)
        ]
    elif isinstance(parts, tuple):
        names = getattr(parts, "_fields", range(len(parts)))
        nested = [
            _paths(f"{name}[{key}]" if name else str(key), part)
            for key, part in zip(names, parts, strict=True)
        ]
    else:
        return [name]
    return [path for paths in nested for path in paths]


def _num_rows(leaf: Any) -> int:
    return int(leaf.nrows()) if isinstance(leaf, tf.RaggedTensor) else int(leaf.shape[0])


def _shape_of(leaf: Any) -> str:
    if isinstance(leaf, tf.RaggedTensor):
        return f"{leaf.dtype.name} ragged"
    kind = leaf.dtype.name
    return f"{kind} {list(leaf.shape[1:])}{' sparse' if scipy.sparse.issparse(leaf) else ''}"


def _levels(parts: Any) -> str:
    if isinstance(parts, np.ndarray | tf.Tensor) and not tf.is_symbolic_tensor(parts):
        values = np.asarray(parts)
        if np.issubdtype(values.dtype, np.integer):
            return f", {values.dtype} from {values.min()} to {values.max()} taken as they are"
    return ""


def _rows(leaf: Any, rows: Any) -> Any:
    if isinstance(rows, slice):
        part = leaf[rows]
        if isinstance(part, tf.RaggedTensor):
            return part
        return tf.convert_to_tensor(part.toarray() if scipy.sparse.issparse(part) else part)
    if scipy.sparse.issparse(leaf):
        return tf.convert_to_tensor(leaf[np.asarray(rows)].toarray())
    if isinstance(leaf, np.ndarray) and not tf.is_tensor(rows):
        return tf.convert_to_tensor(leaf[rows])
    return tf.gather(leaf, rows)


def event_shape_of(x: Any) -> Any:
    """Returns the `tf.TensorShape`s of one observation of a batch, in the structure of x."""
    return tf.nest.map_structure(lambda leaf: tf.TensorShape(leaf.shape[1:]), x)


def repeated(x: Any, num_samples: int) -> Any:
    """Repeats a batch of observations in step with the flat batch of their codes.

    Args:
      x: `Tensor`s of shape `[B, ...]`, or `tf.RaggedTensor`s of B rows, in any structure.
      num_samples: S.

    Returns:
      The same structure with batch `[S * B]`, the batch following the draws.
    """
    return tf.nest.map_structure(lambda leaf: _tiled(leaf, num_samples), x)


def _tiled(leaf: Any, num_samples: int) -> Any:
    if isinstance(leaf, tf.RaggedTensor):
        return tf.concat([leaf] * num_samples, axis=0)
    return tf.tile(leaf, [num_samples, *[1] * (leaf.shape.rank - 1)])  # [S B, ...]
