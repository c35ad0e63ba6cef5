from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement.bound import Bound, batch_estimate


def _bound(value: float, error: float, ceiling: float | None) -> Bound:
    return Bound(Estimate(value, error, 10), "lower", "I", "none", ceiling)


@pytest.mark.parametrize(
    ("value", "error", "ceiling", "reached"),
    [
        (4.0, 0.0, None, False),
        (4.0, 0.0, 4.0, True),
        (3.961, 0.0, 4.0, True),  # within one per cent
        (3.959, 0.0, 4.0, False),
        (3.81, 0.1, 4.0, True),  # within two standard errors
        (3.79, 0.1, 4.0, False),
        (3.97, math.nan, 4.0, True),
        (3.95, math.nan, 4.0, False),
        (4.3, 0.01, 4.0, True),  # above it, as a mean of few draws can be
    ],
)
def test_the_rule_of_the_ceiling(
    value: float, error: float, ceiling: float | None, reached: bool
) -> None:
    bound = _bound(value, error, ceiling)
    assert bound.at_ceiling is reached
    assert bound.to_dict()["at_ceiling"] is reached
    assert ("REACHED" in str(bound)) is reached


def test_to_dict_is_strict_json() -> None:
    text = json.dumps(_bound(1.0, math.nan, 2.0).to_dict(), allow_nan=False)
    assert json.loads(text) == {
        "value": 1.0,
        "standard_error": None,
        "side": "lower",
        "quantity": "I",
        "bias": "none",
        "ceiling": 2.0,
        "at_ceiling": False,
    }


def test_one_batch_leaves_the_error_unknown() -> None:
    estimate = batch_estimate(np.array([2.0]), 7)
    assert estimate.value == 2.0
    assert estimate.num_draws == 7
    assert math.isnan(estimate.standard_error)


def test_error_of_dependent_draws_is_the_spread_over_repetitions() -> None:
    rng = np.random.default_rng(1)
    repetitions, num_batches, batch_size = 4000, 30, 4
    # Draws of one batch share half of their variance.
    draws = rng.normal(size=(repetitions, num_batches, 1)) + rng.normal(
        size=(repetitions, num_batches, batch_size)
    )
    estimates = [batch_estimate(means, batch_size) for means in draws.mean(axis=2)]
    assert estimates[0].num_draws == num_batches * batch_size
    assert estimates[0].value == pytest.approx(draws[0].mean(), abs=1e-12)
    variance = (1 + 1 / batch_size) / num_batches
    claimed = [estimate.standard_error**2 for estimate in estimates]
    # A variance from K means has a relative error of sqrt(2 / (K - 1)).
    error = math.sqrt(2 / (num_batches - 1) / repetitions)
    assert np.mean(claimed) == pytest.approx(variance, rel=4.5 * error)
