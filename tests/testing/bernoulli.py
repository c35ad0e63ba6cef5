"""A test of Bernoulli draws."""

from __future__ import annotations

import numpy as np

# A mean of Bernoulli draws is allowed this many standard errors.
STANDARD_ERRORS = 4.5


def assert_bernoulli(draws: np.ndarray, p: np.ndarray) -> None:
    """Per-observation and total means of 0/1 draws lie around those of p."""
    assert set(np.unique(draws)) <= {0.0, 1.0}
    for axes in (tuple(range(1, p.ndim)), None):
        error = np.sqrt(np.sum(p * (1 - p), axis=axes))
        difference = np.abs(np.sum(draws - p, axis=axes, dtype=np.float64))
        assert np.all(difference <= STANDARD_ERRORS * error)
