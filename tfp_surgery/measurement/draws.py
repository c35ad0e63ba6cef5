"""Checks of the log densities that estimates average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tfp_surgery.checks import arrays


def checked_draws(
    name: str,
    values: Any,
    shape: tuple[int, ...] | None = None,
    cause: Callable[[np.ndarray], str] | None = None,
) -> np.ndarray:
    """Checks that log densities are finite and returns them as an array.

    Args:
      name: Name of the values, for error messages.
      values: Array-like of floats, shape `[S, Q, ...]`, in nats.
      shape: Expected shape; None to accept any.
      cause: Callable from a mask of the values that are not finite to an explanation, which may be
        empty.

    Returns:
      The values in the floating dtype in which they were computed.

    Raises:
      ValueError: If the shape differs, or a value is masked or not finite.
    """
    arrays.reject_missing(name, values)
    draws: np.ndarray = np.asarray(values)
    if not np.issubdtype(draws.dtype, np.floating):
        draws = draws.astype(np.float64)
    if shape is not None and draws.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}; got {list(draws.shape)}.")
    finite = np.isfinite(draws)
    if not finite.all():
        found = cause(~finite) if cause is not None else ""
        raise ValueError(
            f"{name} is not finite in {np.sum(~finite)} of {draws.size} draws: "
            f"{found or 'the model gives no density there.'}"
        )
    return draws
