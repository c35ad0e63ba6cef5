from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import tensorflow_probability as tfp

from tests.testing.coverage import check_coverage, covered
from tests.testing.linear_gaussian import LinearGaussianModel
from tfp_surgery.evidence.annealed_chains import AnnealedChains, WeighedChains
from tfp_surgery.evidence.bidirectional_monte_carlo import (
    BidirectionalMonteCarlo,
    bidirectional_monte_carlo,
    pair_average,
)

tfd = tfp.distributions

STANDARD_ERRORS = 4.5
WEIGHTS = np.array([[1.0, 0.4], [-0.3, 0.8], [0.5, 0.5]])
MODEL = LinearGaussianModel(WEIGHTS, 0.5)
# One whose weights have light tails: their mean can be told from 1.
NOISY_MODEL = LinearGaussianModel(WEIGHTS, 1.0)


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))


@pytest.fixture(scope="module")
def coarse() -> BidirectionalMonteCarlo:
    # Batches of 750 pairs, the last of which repeats some.
    return bidirectional_monte_carlo(
        NOISY_MODEL.decoder,
        NOISY_MODEL.prior,
        num_observations=2000,
        num_temperatures=8,
        num_chains=4,
        num_leapfrog_steps=3,
        batch_size=3000,
    )


@pytest.fixture(scope="module")
def fine() -> BidirectionalMonteCarlo:
    return bidirectional_monte_carlo(
        MODEL.decoder,
        MODEL.prior,
        num_observations=100,
        num_temperatures=200,
        num_chains=8,
        num_leapfrog_steps=3,
    )


def test_bounds_bracket_the_truth(coarse: BidirectionalMonteCarlo) -> None:
    truth = NOISY_MODEL.log_evidence(coarse.x)
    for gap in (truth - coarse.forward.per_observation, coarse.reverse.per_observation - truth):
        mean, error = _mean_and_error(gap)
        assert mean > STANDARD_ERRORS * error
    assert coarse.lower.value < truth.mean() < coarse.upper.value


def test_weights_are_unbiased_in_both_directions(coarse: BidirectionalMonteCarlo) -> None:
    """E[w] = p(x) of each x, and E[1/w] = 1 / p(x) over z of each x."""
    truth = NOISY_MODEL.log_evidence(coarse.x)
    for ratios in (
        np.exp(coarse.forward.per_observation - truth),
        np.exp(truth - coarse.reverse.per_observation),
    ):
        mean, error = _mean_and_error(ratios)
        assert error < 0.03
        assert abs(mean - 1) < STANDARD_ERRORS * error


def test_bounds_meet_at_many_temperatures(fine: BidirectionalMonteCarlo) -> None:
    truth = MODEL.log_evidence(fine.x)
    for gap in (truth - fine.forward.per_observation, fine.reverse.per_observation - truth):
        mean, error = _mean_and_error(gap)
        assert mean > -STANDARD_ERRORS * error
        assert mean + STANDARD_ERRORS * error < 0.15
    assert fine.gap.value < 0.15
    for bounds in (fine.forward, fine.reverse):
        assert bounds.acceptance_rates is not None
        assert bounds.acceptance_rates.mean() == pytest.approx(0.65, abs=0.1)


def test_estimates_are_averages_over_the_simulated_pairs(fine: BidirectionalMonteCarlo) -> None:
    lower, upper = fine.forward.per_observation, fine.reverse.per_observation
    for estimate, values in (
        (fine.lower, lower),
        (fine.upper, upper),
        (fine.gap, upper - lower),
    ):
        assert (estimate.value, estimate.standard_error) == pytest.approx(_mean_and_error(values))
    # The model's differential entropy is known: what the bounds are about.
    entropy = -MODEL.log_evidence(MODEL.simulate(200000, seed=5)).mean()
    assert fine.lower.value - STANDARD_ERRORS * fine.lower.standard_error < -entropy
    assert fine.upper.value + STANDARD_ERRORS * fine.upper.standard_error > -entropy


@pytest.mark.slow
def test_intervals_cover_the_expectations_of_the_bounds() -> None:
    """400 results of 40 pairs each; their expectation is the mean of all 16000 pairs."""
    size, num_results = 40, 400
    result = bidirectional_monte_carlo(
        NOISY_MODEL.decoder,
        NOISY_MODEL.prior,
        num_observations=size * num_results,
        num_temperatures=8,
        num_chains=4,
        num_leapfrog_steps=3,
        seed=1,
        batch_size=4 * size * num_results,
    )
    lower, upper = result.forward.per_observation, result.reverse.per_observation
    for values in (lower, upper, upper - lower):
        estimates = [pair_average(part, 4) for part in values.reshape(num_results, size)]
        found = covered(estimates, values.mean())
        # Of an interval for the mean of 40 values, which are skewed.
        check_coverage(found, num_results, 0.93, 0.95)
    # Given z_n the reverse chains' own errors are too small, as the docstring says.
    truth = NOISY_MODEL.log_evidence(result.x)
    spread = np.std(upper - truth, ddof=1)
    assert np.sqrt(np.mean(result.reverse.standard_errors**2)) < 0.95 * spread


def test_simulated_pairs_are_of_the_model(coarse: BidirectionalMonteCarlo) -> None:
    assert coarse.x.shape == (2000, 3)
    assert coarse.z.shape == (2000, 2)
    assert coarse.x.dtype == coarse.z.dtype == np.float64
    residuals = coarse.x - NOISY_MODEL.decoder(coarse.z).mean().numpy()
    for standard in (coarse.z, residuals):
        assert abs(np.mean(standard**2) - 1) < STANDARD_ERRORS * math.sqrt(2 / standard.size)


def test_the_result_prints_and_serialises(fine: BidirectionalMonteCarlo) -> None:
    content = json.loads(json.dumps(fine.to_dict(), allow_nan=False))
    assert content["gap"] == fine.gap.to_dict()
    assert content["reverse"]["bound"] == "upper"
    text = str(fine)
    for part in ("100 observations simulated", "200 temperatures", "lower bound", "difference"):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_observations": 1}, ValueError, "num_observations must be at least 2"),
        ({"num_chains": 0}, ValueError, "num_chains must be at least 1"),
        ({"decoder": 3}, TypeError, "decoder must be a callable"),
        ({"prior": tfd.OneHotCategorical(probs=[0.5, 0.5])}, TypeError, "HMC moves codes"),
        ({"prior": tfd.PowerSpherical([0.6, 0.8], 3.0)}, TypeError, "whole support"),
        ({"decoder": lambda z: MODEL.decoder(z.numpy())}, TypeError, "gradients of the decoder"),
        ({"prior": tfd.Normal([0.0, 1.0], 1.0)}, ValueError, "prior must be one distribution"),
    ],
)
def test_wrong_input_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bidirectional_monte_carlo(**{"decoder": MODEL.decoder, "prior": MODEL.prior, **changes})


def test_an_upper_bound_below_the_lower_one_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    run_reverse = AnnealedChains.run_reverse

    def wrong(*args: Any) -> WeighedChains:
        weighed = run_reverse(*args)
        return weighed._replace(log_weights=weighed.log_weights - 5.0)

    monkeypatch.setattr(AnnealedChains, "run_reverse", wrong)
    with pytest.warns(UserWarning, match="upper bound less the lower bound .* is never negative"):
        result = bidirectional_monte_carlo(
            MODEL.decoder, MODEL.prior, num_observations=30, num_temperatures=50, num_chains=4
        )
    assert "WARNING: The upper bound less" in str(result)
    assert result.to_dict()["warnings"] == list(result.warnings)
