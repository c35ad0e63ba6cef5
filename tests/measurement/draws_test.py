from __future__ import annotations

import numpy as np
import pytest

from tfp_surgery.measurement.draws import checked_draws


def test_draws_keep_the_dtype_they_were_computed_in() -> None:
    draws = checked_draws("log q(z)", np.ones([2, 3], np.float32), (2, 3))
    assert draws.dtype == np.float32
    np.testing.assert_array_equal(draws, np.ones([2, 3]))


def test_other_shapes_and_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"log q\(z\) must have shape \[3, 2\]; got \[2, 3\]"):
        checked_draws("log q(z)", np.ones([2, 3]), (3, 2))
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="not finite in 1 of 3 draws"):
            checked_draws("log q(z)", [[0.0, bad, 1.0]])
