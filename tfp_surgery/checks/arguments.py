"""Checks of arguments: data sets given as one array, and integers."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from tfp_surgery.checks.arrays import checked_numbers


def check_observations(x: Any, name: str = "x") -> np.ndarray:
    """Checks that `x` is one non-empty array of finite numbers.

    Args:
      x: Array-like of shape `[N, *event_shape]` (NumPy array, eager Tensor, nested lists).
      name: Name of the argument, for error messages.

    Returns:
      `x` as a NumPy array, without a copy if it already is one.

    Raises:
      TypeError: If `x` is not an array of numbers; see `arrays.checked_numbers`.
      ValueError: If `x` is a scalar, is empty, or contains masked, missing, NaN or infinite values.
    """
    array = checked_numbers(name, x)
    if array.ndim == 0:
        raise ValueError(
            f"{name} must have shape [N, ...] with one row an observation, got a scalar."
        )
    if array.size == 0:
        raise ValueError(f"{name} holds no observations: its shape is {list(array.shape)}.")
    # min and max propagate NaN and infinity, and need no mask of the size of x.
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        finite = np.isfinite(array)
        bad = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))  # [N, size of event]
        raise ValueError(
            f"{name} must be finite, but {np.sum(~finite)} of its values are NaN or infinite, in "
            f"{bad.size} of {len(array)} observations (the first at index {bad[0]}). Values that "
            "are missing, of a model that leaves them out, are filled with any number, and the "
            "mask of what was seen is a condition."
        )
    return array


def checked_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Checks that a value is an integer within bounds.

    Args:
      name: Name of the argument, for error messages.
      value: The value.
      minimum: Smallest value allowed.
      maximum: Largest value allowed; None for no upper bound.

    Returns:
      The value as a Python int.

    Raises:
      TypeError: If `value` is not an integer.
      ValueError: If `value` is out of bounds.
    """
    try:
        integer = operator.index(value)
    except TypeError:
        integer = None
    if integer is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if integer < minimum or (maximum is not None and integer > maximum):
        bound = f"at least {minimum}" + ("" if maximum is None else f" and at most {maximum}")
        raise ValueError(f"{name} must be {bound}, got {integer}.")
    return integer
