"""minibatch_mutual_information against exact expectations: enumeration and quadrature."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import tensorflow_probability as tfp

from tests.testing.minibatches import NUM, expected_information
from tests.testing.oracles import CASES, gaussian_case
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate
from tfp_surgery.information.minibatch_log_prob import METHODS, mutual_information_ceiling
from tfp_surgery.information.minibatch_mutual_information import (
    MinibatchInformation,
    minibatch_mutual_information,
)

tfd = tfp.distributions


def posteriors(loc: np.ndarray, scale: np.ndarray) -> AggregatePosterior:
    return AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_information_and_entropy_have_their_expectation(method: str, case: str) -> None:
    size = NUM if method == "full" else 3
    expected, exact, entropy = expected_information(method, case, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = minibatch_mutual_information(
            posteriors(*gaussian_case(case, NUM, 1)),
            batch_size=size,
            method=method,
            num_batches=100,
            num_samples=20,
            seed=3,
        )
    if method == "full":
        assert expected == pytest.approx(exact, abs=1e-9)
    for estimate, value in (
        (found.mutual_information, expected),
        (found.aggregate_entropy, expected + entropy),
        (found.bias, expected - exact),
    ):
        assert estimate.num_draws == 100 * 20 * size
        assert abs(estimate.value - value) < 4.5 * estimate.standard_error + 1e-9
    assert found.ceiling == mutual_information_ceiling(method, size, NUM)
    assert "bias of both" in str(found)


@pytest.mark.parametrize("method", ["batch", "mws", "mss", "partially_stratified"])
def test_the_bias_is_that_of_paired_differences(method: str) -> None:
    """A difference from the exact value of other draws has the variance of both."""
    aggregate = posteriors(*gaussian_case("overlapping", 200, 5))
    found = minibatch_mutual_information(aggregate, batch_size=50, method=method, seed=1)
    exact = minibatch_mutual_information(aggregate, batch_size=200, method="full", seed=2)
    assert exact.bias.value == pytest.approx(0.0, abs=1e-9)
    unpaired = math.hypot(
        found.mutual_information.standard_error, exact.mutual_information.standard_error
    )
    gap = found.mutual_information.value - exact.mutual_information.value
    assert abs(gap - found.bias.value) < 4.0 * unpaired
    assert 0.0 < found.bias.standard_error < 0.8 * unpaired


def test_it_warns_at_the_ceiling_and_not_below() -> None:
    separated = posteriors(*gaussian_case("separated", 40, 2))
    for method, ceiling in (("batch", "2.0794"), ("mws", "5.7683"), ("mss", "3.6889")):
        with pytest.warns(UserWarning, match=f"sits at its ceiling of {ceiling}"):
            found = minibatch_mutual_information(
                separated, batch_size=8, method=method, num_batches=5
            )
        assert found.at_ceiling
        assert found.to_dict()["at_ceiling"] is True
        assert "REACHED" in str(found)
    wide = posteriors(*gaussian_case("overlapping", 40, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("batch", "mws", "mss", "partially_stratified"):
            found = minibatch_mutual_information(wide, batch_size=8, method=method, num_batches=30)
            assert not found.at_ceiling
            assert "REACHED" not in str(found)
        # The ceiling of the exact value is that of the quantity.
        full = minibatch_mutual_information(separated, batch_size=40, method="full", num_batches=2)
    assert full.mutual_information.value == pytest.approx(math.log(40))


def test_the_rule_of_the_ceiling() -> None:
    def at(value: float, error: float) -> bool:
        estimate = Estimate(value, error, 10)
        return MinibatchInformation(
            estimate, estimate, estimate, 4.0, "batch", 99, 9, 2, 0
        ).at_ceiling

    assert at(3.961, 0.0)
    assert not at(3.959, 0.0)
    assert at(3.81, 0.1)
    assert not at(3.79, 0.1)


def test_the_same_seed_gives_the_same_estimate() -> None:
    components = posteriors(*gaussian_case("overlapping", 30, 2))
    first, second, other = (
        minibatch_mutual_information(components, batch_size=6, num_batches=4, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first.mutual_information != other.mutual_information


@pytest.mark.slow
def test_intervals_cover_the_expectation() -> None:
    """Coverage is of the estimate's own expectation, not of the quantity: it is biased."""
    expected, exact, _ = expected_information("mss", "overlapping", 3)
    components = posteriors(*gaussian_case("overlapping", NUM, 1))
    num, covered, covered_exact = 60, 0, 0
    for seed in range(num):
        found = minibatch_mutual_information(
            components, batch_size=3, num_batches=60, num_samples=10, seed=seed
        ).mutual_information
        low, high = found.interval()
        covered += low < expected < high
        covered_exact += low < exact < high
    # 4.5 standard errors of a binomial share of 0.95.
    assert abs(covered / num - 0.95) < 4.5 * math.sqrt(0.95 * 0.05 / num)
    assert covered_exact < covered


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 41}, ValueError, "minibatch of 41 exceeds num_observations = 40"),
        ({"batch_size": 1}, ValueError, "larger minibatch"),
        ({"num_batches": 1}, ValueError, "num_batches must be at least 2"),
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"method": "other"}, ValueError, "method must be one of"),
    ],
)
def test_wrong_numbers_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"batch_size": 8, "num_batches": 2}
    with pytest.raises(error, match=message):
        minibatch_mutual_information(
            posteriors(*gaussian_case("overlapping", 40, 2)), **{**arguments, **change}
        )


def test_nan_is_refused() -> None:
    loc, scale = gaussian_case("overlapping", 6, 2)
    loc[3] = np.nan
    with pytest.raises(ValueError, match="has training diverged"):
        minibatch_mutual_information(posteriors(loc, scale), batch_size=6, num_batches=2)
