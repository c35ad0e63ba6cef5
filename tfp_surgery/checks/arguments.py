"""Checks of arguments: a data set as one array, numbers of things, seeds."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from tfp_surgery.checks.arrays import checked_numbers


def check_observations(x: Any, name: str = "x") -> np.ndarray:
    """Checks that `x` can be a data set: one array of numbers, whole, not empty, finite.

    Args:
      x: Array-like of shape `[N, *event_shape]` (NumPy array, eager Tensor, nested lists).
      name: What it is called, for the message.

    Returns:
      `x` as a NumPy array, not copied where it already is one.

    Raises:
      TypeError: If `x` is no array of numbers; see `arrays.checked_numbers`.
      ValueError: If `x` is a scalar, has no elements, has masked or missing values, or holds NaN
        or infinity.
    """
    array = checked_numbers(name, x)
    if array.ndim == 0:
        raise ValueError(
            f"{name} must have shape [N, ...] with one row an observation, got a scalar."
        )
    if array.size == 0:
        raise ValueError(f"{name} holds no observations: its shape is {list(array.shape)}.")
    # The extremes carry NaN and infinity, and cost no mask of the size of x.
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        finite = np.isfinite(array)
        bad = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))  # [N, size of event]
        raise ValueError(
            f"{name} must be finite, but {np.sum(~finite)} of its values are NaN or infinite, in "
            f"{bad.size} of {len(array)} observations (the first at index {bad[0]})."
        )
    return array


def checked_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Checks that a number of things, or a seed, is an integer within its bounds.

    Args:
      name: What the number is, for the message.
      value: The number.
      minimum: The least that is allowed.
      maximum: The most that is allowed, if there is such a bound.

    Returns:
      The number as a Python int.

    Raises:
      TypeError: If `value` is no integer.
      ValueError: If it is out of bounds.
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
