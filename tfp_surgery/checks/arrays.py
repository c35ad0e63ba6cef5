"""Checks of input arrays: a single array of numbers, with no missing entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import scipy.sparse
import tensorflow as tf


def checked_numbers(name: str, value: Any, shape: str = "[N, ...]") -> np.ndarray:
    """Checks that `value` is one array of numbers without masked or missing entries.

    Accepts nested lists and tuples of Python numbers. Rejects a list or tuple of arrays, which is
    ambiguous: it may hold data and labels, or observations that are not stacked yet.

    Args:
      name: Name of the argument, for error messages.
      value: Array-like (NumPy array, eager Tensor, nested lists, objects with `__array__`).
      shape: Expected shape, for error messages.

    Returns:
      A NumPy array of floats, integers or booleans: `value` itself if it is one, a float32 array
      for nested lists.

    Raises:
      TypeError: If `value` is not one array of real numbers, for example several arrays, a
        `tf.data.Dataset`, a sparse or ragged matrix, text, dates, complex numbers, records or
        Python objects.
      ValueError: If an entry is masked or missing.
    """
    expected = f"{name} must be an array of numbers of shape {shape}, got a {type(value).__name__}"
    hint = way_out(name, value)
    if hint:
        raise TypeError(f"{expected}. {hint}")
    reject_missing(name, value)
    is_list = isinstance(value, list | tuple)
    if is_list and any(entry is np.ma.masked for entry in _entries(value)):
        raise ValueError(_missing(name, "some"))
    try:
        # __array__ may return a masked array, and np.asarray would drop the mask.
        array: np.ndarray = np.asanyarray(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise TypeError(f"{expected}: {error}") from error
    if not _are_numbers(array.dtype):
        raise TypeError(f"{expected} of dtype {array.dtype}.{_as_numbers(name, value, array)}")
    reject_missing(name, array)
    if is_list:  # TensorFlow's default dtype for lists
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    return np.asarray(array)


def reject_missing(name: str, value: Any) -> None:
    """Checks that an array has no masked entries and a pandas object has no missing ones.

    NumPy and TensorFlow drop masks silently, so that masked entries would count as data.

    Args:
      name: Name of the argument, for error messages.
      value: Any object.

    Raises:
      ValueError: If an entry is masked or missing.
    """
    if isinstance(value, np.ma.MaskedArray):
        mask = np.broadcast_to(value.mask, value.shape)
    elif callable(getattr(value, "isna", None)):
        mask = np.asarray(value.isna(), bool)
    else:
        return
    if not mask.dtype.names and mask.any():
        rows = mask.reshape(len(mask), -1).any(axis=1) if mask.ndim else mask[np.newaxis]
        raise ValueError(
            _missing(
                name,
                f"{mask.sum()} of {mask.size}",
                f", in {rows.sum()} of {rows.size} rows (the first at index {rows.argmax()})",
            )
        )


def way_out(name: str, value: Any) -> str:
    """Suggests a replacement for an argument that is not a single array.

    Args:
      name: Name of the argument.
      value: Any object.

    Returns:
      A suggestion for an error message; an empty string if there is none to make.
    """
    if isinstance(value, tf.data.Dataset):
        labels = (
            ""
            if isinstance(value.element_spec, tf.TensorSpec)
            else f"Map it to the observations alone, as in {name}.map(lambda x, y: x), and collect "
            "them. "
        )
        return (
            f"{labels}A pipeline has no fixed number and order of observations: collect it, by "
            f"np.concatenate(list({name}.as_numpy_iterator())) if its elements are batches, by "
            "np.stack of the same list if they are single observations."
        )
    if isinstance(value, Iterator):
        return (
            "It gives its elements once and has no order to come back to: "
            f"np.stack(list({name})) of single observations, np.concatenate(list({name})) of "
            "batches."
        )
    if isinstance(value, keras.utils.PyDataset):
        return (
            f"Its batches are np.concatenate([{name}[i][0] for i in range(len({name}))]) as one "
            f"array where they are pairs of data and labels; without labels leave [0] out."
        )
    if scipy.sparse.issparse(value):
        return f"It is sparse: hand in {name}.toarray()."
    if isinstance(value, tf.SparseTensor):
        return f"It is sparse: hand in tf.sparse.to_dense({name})."
    if isinstance(value, tf.RaggedTensor):
        return "Its rows differ in length: all observations must have one shape."
    if isinstance(value, Mapping):
        return f"Hand in the one array of observations that it holds (it has {list(value)[:6]})."
    if isinstance(value, list | tuple) and any(is_array(entry) for entry in _entries(value)):
        return (
            "It holds arrays of its own. Of observations with labels or targets hand in the "
            f"observations alone ({name}[0] of a pair); arrays that are one observation each are "
            f"np.stack({name}), and batches np.concatenate({name})."
        )
    return ""


def _entries(value: Any) -> Iterator[Any]:
    """Yields the entries of nested lists that are not Python numbers."""
    for entry in value:
        if isinstance(entry, list | tuple):
            yield from _entries(entry)
        elif not isinstance(entry, float | int):
            yield entry


def is_array(value: Any) -> bool:
    """Returns whether a value is one array or matrix, and no number or list."""
    return scipy.sparse.issparse(value) or len(getattr(value, "shape", ())) > 0


def _are_numbers(dtype: np.dtype) -> bool:
    try:
        kind = tf.as_dtype(dtype)
    except TypeError:
        return False
    return bool(kind.is_floating or kind.is_integer or kind.is_bool)


def _as_numbers(name: str, value: Any, array: np.ndarray) -> str:
    """Suggests how to convert an array of another dtype to numbers; may be empty."""
    if array.dtype.names:
        function = "np.lib.recfunctions.structured_to_unstructured"
        return f" Records whose fields are numbers become an array by {function}({name})."
    if hasattr(value, "to_numpy"):  # pandas, polars
        return f" Where all columns are numbers and none is missing: {name}.to_numpy('float32')."
    if array is value and array.dtype == object:
        return f" Where all entries are numbers and none is None: {name}.astype('float32')."
    return ""


def _missing(name: str, number: str, place: str = "") -> str:
    return (
        f"{name} must be complete, but {number} of its values are masked or missing{place}. What "
        "lies under a mask would be taken for data: leave these rows out, or fill the values in."
    )
