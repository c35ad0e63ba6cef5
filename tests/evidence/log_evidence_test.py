"""Tests of the sums behind the bounds on the log evidence, and of their standard errors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tfp_surgery.evidence.log_evidence import RunningWeights

STANDARD_ERRORS = 4.5
_FIELDS = {"method": "", "data": "", "seed": 0}


def _running(num_observations: int, m: int, k: int = 1) -> RunningWeights:
    return RunningWeights(num_observations, m, k, tf.float64)


def test_running_weights_are_the_sums_of_all() -> None:
    rng = np.random.default_rng(0)
    log_weights = rng.normal(size=(60, 4)) * 3 + [-5000.0, -700.0, 0.0, 5000.0]
    log_weights[10:20, 1] = -np.inf
    running = _running(4, 60)
    for start, stop in ((0, 1), (1, 17), (17, 60)):
        for rows in (slice(0, 3), slice(3, 4)):
            running.add(slice(start, stop), rows, log_weights[start:stop, rows])
    result = running.log_evidence("lower", **_FIELDS)
    np.testing.assert_allclose(
        result.per_observation, special.logsumexp(log_weights, axis=0) - math.log(60), rtol=1e-13
    )
    w = np.exp(log_weights - log_weights.max(axis=0))
    np.testing.assert_allclose(
        result.effective_sample_sizes, w.sum(axis=0) ** 2 / (w**2).sum(axis=0), rtol=1e-9
    )
    np.testing.assert_allclose(
        result.standard_errors, _jackknife(w, np.arange(60)), rtol=1e-9, atol=1e-12
    )


def _jackknife(w: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Standard errors of log means `[N]`, leaving out one group of the weights `[S, N]` each."""
    num_groups = group.max() + 1
    left = np.array([np.log(w[group != g].mean(axis=0)) for g in range(num_groups)])
    errors: np.ndarray = np.sqrt((num_groups - 1) * left.var(axis=0))
    return errors


def test_more_weights_than_groups_are_dealt_out_in_turn() -> None:
    log_weights = np.random.default_rng(1).normal(size=(730, 3)) * [0.1, 1.0, 2.0]
    running = _running(3, 730)
    for start, stop in ((0, 40), (40, 555), (555, 730)):
        running.add(slice(start, stop), slice(0, 3), log_weights[start:stop])
    result = running.log_evidence("upper", **_FIELDS)
    w = np.exp(log_weights)
    np.testing.assert_allclose(result.per_observation, -np.log(w.mean(axis=0)), rtol=1e-12)
    np.testing.assert_allclose(
        result.standard_errors, _jackknife(w, np.arange(730) % 100), rtol=1e-9
    )
    # Where weights are many and their tails light it is the delta method.
    delta = w.std(axis=0, ddof=1) / math.sqrt(730) / w.mean(axis=0)
    np.testing.assert_allclose(
        result.standard_errors, delta, rtol=STANDARD_ERRORS * math.sqrt(1 / (2 * 99))
    )


def test_a_weight_that_outweighs_all_others_has_a_large_error() -> None:
    """The delta method says 1 nat at most; without the largest weight 30 or 800 nats are gone."""
    log_weights = np.zeros([10, 3])
    log_weights[4] = [30.0, 800.0, 0.0]
    log_weights[:, 2] = [*[-np.inf] * 9, 0.0]
    running = _running(3, 10)
    running.add(slice(0, 10), slice(0, 3), log_weights)
    errors = running.log_evidence("lower", **_FIELDS).standard_errors
    expected = np.array([30.0, 800.0]) * math.sqrt(9 * (0.1 - 0.01))
    np.testing.assert_allclose(errors[:2], expected, rtol=0.1)
    assert math.isnan(errors[2])


def test_weights_that_say_nothing_are_refused() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"1 of 6 log weights are NaN or \+inf"):
            _running(2, 3).add(
                slice(0, 3), slice(0, 2), np.array([[0.0, bad], [0, 0], [0, -np.inf]])
            )
    running = _running(2, 2)
    running.add(slice(0, 2), slice(0, 2), np.array([[0.0, -np.inf], [0.0, -np.inf]]))
    with pytest.raises(ValueError, match="all 2 weights are zero for 1 of 2 observations"):
        running.log_evidence("lower", **_FIELDS)


@pytest.mark.parametrize(("m", "k"), [(1, 7), (2, 3), (5, 2), (7, 60), (60, 3), (130, 2)])
def test_repetitions_are_averaged(m: int, k: int) -> None:
    """Against sums over each repetition, however the draws are cut into chunks."""
    log_weights = np.random.default_rng(m).normal(size=(k * m, 3)) * [0.1, 1.0, 3.0]
    running = _running(3, m, k)
    cuts = [0, 1, k * m // 3 + 1, k * m - 1, k * m]
    for start, stop in itertools.pairwise(cuts):
        for rows in (slice(0, 2), slice(2, 3)):
            running.add(slice(start, stop), rows, log_weights[start:stop, rows])
    result = running.log_evidence("lower", **_FIELDS)
    w = np.exp(log_weights).reshape(k, m, 3)
    np.testing.assert_allclose(result.values, np.log(w.mean(axis=1)), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(result.per_observation, result.values.mean(axis=0), rtol=1e-14)
    sizes = w.sum(axis=1) ** 2 / (w**2).sum(axis=1)
    np.testing.assert_allclose(result.effective_sample_sizes, sizes.mean(axis=0), rtol=1e-9)
    expected = np.log(w.mean(axis=1)).std(axis=0, ddof=1) / math.sqrt(k)
    np.testing.assert_allclose(result.standard_errors, expected, rtol=1e-9)
    error = math.sqrt((expected**2).sum()) / 3
    assert result.estimate.standard_error == pytest.approx(error, rel=1e-12)
    assert result.estimate.num_draws == 3 * k * m


def test_one_weight_leaves_the_error_unknown() -> None:
    running = _running(2, 1)
    running.add(slice(0, 1), slice(0, 2), np.zeros([1, 2]))
    result = running.log_evidence("lower", **_FIELDS)
    assert np.isnan(result.standard_errors).all()
    assert math.isnan(result.estimate.standard_error)
    record = result.to_dict()
    assert record["estimate"]["standard_error"] is None
    assert record["standard_errors"] == [None, None]
    assert record["per_observation"] == [0.0, 0.0]
