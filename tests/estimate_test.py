from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tfp_surgery.estimate import Estimate, exact_strata_estimate, stratified_estimate


def test_interval_is_that_of_student() -> None:
    """The quantiles of tables: 1.96 for a normal distribution, 2.228 for ten degrees of freedom."""
    low, high = Estimate(1.0, 0.5, 12, degrees_of_freedom=10.0).interval()
    assert low == pytest.approx(1.0 - 2.228139 * 0.5, abs=1e-6)
    assert high == pytest.approx(1.0 + 2.228139 * 0.5, abs=1e-6)
    low, high = Estimate(1.0, 0.5, 10).interval()
    assert low == pytest.approx(1.0 - 1.959964 * 0.5, abs=1e-6)
    assert high == pytest.approx(1.0 + 1.959964 * 0.5, abs=1e-6)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_level_outside_the_unit_interval_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        Estimate(1.0, 0.5, 10).interval(level)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-129.63456, 0.0123, "-129.635 ± 0.012"),
        (7.4, 2.5, "7.4 ± 2.5"),
        (1234.5, 40.0, "1234 ± 40"),
        (1.5, 0.0, "1.5000 ± 0"),
        (1.5, 3e-16, "1.500000 ± 3e-16"),
        (1.5, math.nan, "1.5000 ± unknown"),
        (-1.23456e36, 2.5e35, "-1.235e+36 ± 2.5e+35"),
        (3.0, math.inf, "3 ± inf"),
    ],
)
def test_str_shows_as_many_digits_as_the_error_allows(
    value: float, error: float, text: str
) -> None:
    assert str(Estimate(value, error, 10)) == text


def test_to_dict_is_strict_json() -> None:
    text = json.dumps(Estimate(1.0, math.nan, 1).to_dict(), allow_nan=False)
    assert json.loads(text) == {"value": 1.0, "standard_error": None}


def test_one_draw_leaves_the_error_unknown() -> None:
    assert math.isnan(stratified_estimate(np.zeros([1, 5]), 5).standard_error)


def test_stratified_error_ignores_the_spread_between_strata() -> None:
    values = np.array([[0.0, 100.0], [2.0, 102.0]])  # within-stratum variance 2 in both
    estimate = stratified_estimate(values, 2)
    assert estimate.value == 51.0
    assert estimate.num_draws == 4
    assert estimate.standard_error == pytest.approx(math.sqrt(2.0 / (2 * 2)))


@pytest.mark.parametrize("num_query", [30, 120, 300])
@pytest.mark.parametrize("num_samples", [2, 7])
def test_standard_error_is_the_spread_over_repetitions(num_query: int, num_samples: int) -> None:
    """Squared errors average to the estimator's variance, for subsets and for the whole."""
    rng = np.random.default_rng(num_query + num_samples)
    population = rng.normal(size=300)
    spread = rng.uniform(0.2, 3.0, size=300)
    repetitions = 4000
    estimates, squared_errors = np.empty(repetitions), np.empty(repetitions)
    for repetition in range(repetitions):
        chosen = rng.choice(300, size=num_query, replace=False)
        draws = rng.normal(size=(num_samples, num_query)) * spread[chosen] + population[chosen]
        estimate = stratified_estimate(draws, 300)
        estimates[repetition] = estimate.value
        squared_errors[repetition] = estimate.standard_error**2
    # The sample variance of 4000 normal values has relative standard error sqrt(2 / 4000).
    assert squared_errors.mean() == pytest.approx(
        estimates.var(ddof=1), rel=5 * math.sqrt(2 / repetitions)
    )
    assert abs(estimates.mean() - population.mean()) < 5 * estimates.std() / math.sqrt(repetitions)


def test_exact_strata_have_an_error_as_a_subset_only() -> None:
    values = np.array([1.0, 2.0, 6.0])
    whole = exact_strata_estimate(values, 3)
    assert (whole.value, whole.num_draws) == (3.0, 0)
    assert whole.standard_error == 3.0 * np.finfo(np.float64).eps  # of rounding alone
    single = exact_strata_estimate(values.astype(np.float32), 3)
    assert single.standard_error == pytest.approx(3.0 * np.finfo(np.float32).eps)
    assert math.isnan(exact_strata_estimate(values[:1], 3).standard_error)
    subset = exact_strata_estimate(values, 12)
    assert subset.standard_error == pytest.approx(math.sqrt(0.75 * 7.0 / 3))


def test_zero_is_printed_without_a_sign() -> None:
    assert str(Estimate(-1e-9, 0.0, 0)) == "0.0000 ± 0"
    assert str(Estimate(-1e-9, 3e-5, 9)) == "0.000000 ± 0.000030"
    assert str(Estimate(-1e-9, 3e-9, 9)) == "0.000000 ± 3e-09"
    assert str(Estimate(-1e-9, math.nan, 1)) == "0.0000 ± unknown"
    assert str(Estimate(-0.5, 0.1, 1)) == "-0.50 ± 0.10"
