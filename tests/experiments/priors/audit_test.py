"""Tests of what is measured of a model with one prior, against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

from experiments.priors import audit
from tests.testing.oracles import CASES
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.distributions.leave_one_out import LeaveOneOut
from tfp_surgery.distributions.resampled import Resampled

tfd = tfp.distributions

STANDARD_ERRORS = 4.5
NUM_OBSERVATIONS = 200
SCALES = {"collapsed": (0.0, 1.0), "overlapping": (1.0, 0.7), "separated": (40.0, 0.05)}


def means_of(case: str) -> np.ndarray:
    """The means of the posteriors of a case, `[N, 2]`."""
    x = np.random.default_rng(0).uniform(size=(NUM_OBSERVATIONS, 2)).astype("float32")
    means: np.ndarray = SCALES[case][0] * (x.astype(np.float64) - 0.5)
    return means


def aggregate_of(case: str) -> AggregatePosterior:
    """q(z) of the posteriors N(mean_n, scale^2 I) of a case."""
    means = tf.constant(means_of(case), tf.float32)
    return AggregatePosterior(
        tfd.MultivariateNormalDiag(means, SCALES[case][1] * tf.ones_like(means))
    )


def test_the_cases_are_those_of_the_other_tests() -> None:
    assert set(SCALES) == set(CASES)


@pytest.mark.parametrize("case", list(SCALES))
def test_gain_of_a_gaussian_prior_is_the_closed_form(case: str) -> None:
    means, scale = means_of(case), SCALES[case][1]
    loc, variance = np.array([0.3, -0.2]), np.array([1.5, 0.8]) ** 2
    prior = tfd.MultivariateNormalDiag(
        tf.constant(loc, tf.float32), tf.constant(variance**0.5, tf.float32)
    )
    squares = ((means - loc) ** 2 + scale**2) / variance
    of_prior = -0.5 * (squares + np.log(2 * np.pi * variance)).sum(axis=1).mean()
    of_standard = -0.5 * (means**2 + scale**2 + np.log(2 * np.pi)).sum(axis=1).mean()
    gain = audit.gain(prior, audit.codes(aggregate_of(case), "train", seed=3))
    rounding = 1e-5 * abs(of_standard)
    assert (
        abs(gain.value - (of_prior - of_standard))
        < STANDARD_ERRORS * gain.standard_error + rounding
    )


@pytest.mark.parametrize("case", list(SCALES))
def test_leaving_out_agrees_with_brute_force(case: str) -> None:
    aggregate = aggregate_of(case)
    codes = audit.codes(aggregate, "train", seed=3)
    left_out = LeaveOneOut(aggregate, np.arange(NUM_OBSERVATIONS))
    estimate = audit.leave_one_out_marginal_kl(aggregate, left_out, codes)
    z = np.asarray(codes, np.float64)  # [S, N, 2]
    means, scale = means_of(case), SCALES[case][1]
    scores = scipy.stats.norm.logpdf(z[:, :, None], means, scale).sum(axis=-1)  # [S, N, N]
    log_q = scipy.special.logsumexp(scores, axis=-1) - np.log(NUM_OBSERVATIONS)
    own = np.eye(NUM_OBSERVATIONS, dtype=bool)
    others = scipy.special.logsumexp(np.where(own, -np.inf, scores), axis=-1)
    expected = (log_q - others + np.log(NUM_OBSERVATIONS - 1)).mean()
    np.testing.assert_allclose(estimate.value, expected, rtol=1e-4, atol=1e-4)


def test_the_draws_of_two_splits_are_independent() -> None:
    aggregate = aggregate_of("collapsed")
    train, test = (np.ravel(audit.codes(aggregate, split, seed=3)) for split in audit.SPLITS)
    assert abs(np.corrcoef(train, test)[0, 1]) < STANDARD_ERRORS / np.sqrt(len(train))


def test_the_error_of_an_estimated_normaliser_is_that_of_another_estimate() -> None:
    z = audit.codes(aggregate_of("overlapping"), "train", seed=3)

    def prior(seed: int) -> Resampled:
        return Resampled.with_estimated_normalizer(
            tfd.MultivariateNormalDiag(tf.zeros(2)),
            lambda z: -0.5 * tf.reduce_sum(z**2, axis=-1),
            truncation=5,
            num_samples=200,
            seed=(seed, 0),
        )

    means = [audit.gain(prior(seed), z).value for seed in range(60)]
    errors = [audit.normalizer_error(prior(seed), z) for seed in range(10)]
    # The spread of 60 values is known to within 1 / sqrt(2 * 59).
    assert np.mean(errors) == pytest.approx(np.std(means), rel=STANDARD_ERRORS / np.sqrt(2 * 59))
    gaussian = tfd.MultivariateNormalDiag(tf.zeros(2))
    assert audit.normalizer_error(gaussian, z) == 0.0


def test_evidence_is_compared_image_by_image() -> None:
    one, other = (
        {"log_evidence": {"per_observation": values}}
        for values in ([-1.0, -2.0, -6.0], [-2.0, -2.0, -8.0])
    )
    compared = audit.compare_evidence(one, other)
    assert compared["value"] == pytest.approx(1.0)
    assert compared["standard_error"] == pytest.approx(1.0 / np.sqrt(3.0))
