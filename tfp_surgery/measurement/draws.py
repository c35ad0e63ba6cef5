"""Log densities of the draws that estimates are made of."""

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
    """Returns log densities as an array, once they are known to be finite.

    Args:
      name: What they are, for the message.
      values: Array-like of floats, shape `[S, Q, ...]`.
      shape: The shape that is expected, if there is one.
      cause: Tells, for a mask of the values that are not finite, why they are not; or nothing.

    Returns:
      The values in the dtype they were computed in, which tells their rounding.

    Raises:
      ValueError: If the shape is another, or a value is masked or not finite.
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
