"""Log densities of the draws that estimates are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_surgery import arrays


def checked_draws(name: str, values: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Returns log densities as float64, once they are known to be finite.

    Args:
      name: What they are, for the message.
      values: Array-like of floats, shape `[S, Q, ...]`.
      shape: The shape that is expected, if there is one.

    Returns:
      The values, float64.

    Raises:
      ValueError: If the shape is another, or a value is masked or not finite.
    """
    arrays.reject_missing(name, values)
    draws: np.ndarray = np.asarray(values, np.float64)
    if shape is not None and draws.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}; got {list(draws.shape)}.")
    finite = np.isfinite(draws)
    if not finite.all():
        raise ValueError(
            f"{name} is not finite in {np.sum(~finite)} of {draws.size} draws: the model gives no "
            "density there."
        )
    return draws
