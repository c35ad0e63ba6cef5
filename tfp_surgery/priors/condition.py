"""Checks of what a learned prior is given: the code it is conditional on, codes to start from."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfp_surgery.checks import arrays
from tfp_surgery.tfp_internals import prefer_static as ps


def check_condition(condition: Any, condition_size: int | None) -> tf.Tensor | None:
    """Checks the condition of a prior.

    Args:
      condition: Floating Tensor `[..., C]`, or None.
      condition_size: C, or None for a prior that is not conditional.

    Returns:
      The condition as a Tensor, or None.

    Raises:
      ValueError: If there is a condition and should not be, or the other way round, or its last
        dimension is not C.
    """
    if condition_size is None:
        if condition is not None:
            raise ValueError(
                "the prior was made without a condition_size and takes no condition; got one of "
                f"shape {list(condition.shape)}."
            )
        return None
    if condition is None:
        raise ValueError(
            f"the prior is conditional: call it with a condition of shape [B, {condition_size}]."
        )
    condition = tf.convert_to_tensor(condition)
    if condition.shape.rank == 0 or condition.shape[-1] != condition_size:
        raise ValueError(
            f"the condition must have shape [B, {condition_size}], got {list(condition.shape)}."
        )
    return condition


def batch_shape_of(condition: tf.Tensor | None) -> Any:
    """The batch shape of a prior with this condition, int32, static where it is known."""
    if condition is None:
        return np.zeros([0], np.int32)
    return ps.shape(condition)[:-1]


def check_codes(codes: Any, event_size: int, minimum: int = 2) -> np.ndarray:
    """Checks codes to initialize a prior from.

    Args:
      codes: Array-like `[M, D]`.
      event_size: D.
      minimum: The least M.

    Returns:
      The codes as a float64 array.

    Raises:
      TypeError: If they are no array of numbers.
      ValueError: If the shape is another, M is too small, or a value is masked or not finite.
    """
    array = arrays.checked_numbers("codes", codes, f"[M, {event_size}]").astype(np.float64)
    if array.ndim != 2 or array.shape[1] != event_size or len(array) < minimum:
        raise ValueError(
            f"codes must have shape [M, {event_size}] with M at least {minimum}, got "
            f"{list(array.shape)}; {event_size} is the event_size, the first argument of the prior."
        )
    if not np.all(np.isfinite(array)):
        raise ValueError("codes must be finite, and some are NaN or infinite.")
    return array
