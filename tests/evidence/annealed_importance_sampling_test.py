from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tests.testing.coverage import check_coverage, covered, estimates_of_groups
from tests.testing.linear_gaussian import LinearGaussianModel
from tfp_surgery.evidence.annealed_chains import inverse_temperatures
from tfp_surgery.evidence.annealed_importance_sampling import (
    log_evidence_by_annealed_importance_sampling,
)
from tfp_surgery.evidence.importance_sampling import log_evidence_by_importance_sampling
from tfp_surgery.evidence.log_evidence import LogEvidence

tfd = tfp.distributions

STANDARD_ERRORS = 4.5
WEIGHTS = np.array([[1.0, 0.4], [-0.3, 0.8], [0.5, 0.5]])


def _run(model: LinearGaussianModel, x: np.ndarray, **settings: Any) -> LogEvidence:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the effective sample size")
        return log_evidence_by_annealed_importance_sampling(
            x, model.decoder, model.prior, **settings
        )


def test_weights_are_unbiased() -> None:
    """E[w] = p(x) at few temperatures, where the chains lag far behind."""
    model = LinearGaussianModel(np.array([[1.0]]), 0.5)
    x = np.array([[0.8]])
    result = _run(
        model,
        np.repeat(x, 2000, axis=0),
        num_temperatures=4,
        num_chains=8,
        num_leapfrog_steps=2,
        batch_size=16000,
    )
    ratios = np.exp(result.per_observation - model.log_evidence(x))
    error = ratios.std(ddof=1) / math.sqrt(len(ratios))
    assert error < 0.01
    assert abs(ratios.mean() - 1) < STANDARD_ERRORS * error
    # Their logarithm is not.
    gaps = result.per_observation - model.log_evidence(x)
    assert gaps.mean() < -STANDARD_ERRORS * gaps.std(ddof=1) / math.sqrt(len(gaps))


def test_kernel_of_tfp_is_biased_at_few_temperatures() -> None:
    """Why the chains here have fresh kernel results at every temperature."""
    model = LinearGaussianModel(np.array([[1.0]]), 0.5)
    x = np.array([[0.8]])
    num_chains = 16000
    _, log_weights, _ = tfp.mcmc.sample_annealed_importance_chain(
        num_steps=4,
        proposal_log_prob_fn=model.prior.log_prob,
        target_log_prob_fn=lambda z: model.prior.log_prob(z) + model.decoder(z).log_prob(x),
        current_state=model.prior.sample(num_chains, seed=(1, 2)),
        make_kernel_fn=lambda log_prob: tfp.mcmc.HamiltonianMonteCarlo(
            log_prob, step_size=np.float64(0.7), num_leapfrog_steps=2
        ),
        seed=(3, 4),
    )
    ratios = np.exp(log_weights.numpy() - model.log_evidence(x))
    error = ratios.std(ddof=1) / math.sqrt(num_chains)
    assert abs(ratios.mean() - 1) > STANDARD_ERRORS * error


@pytest.mark.parametrize(
    ("case", "scale", "noise"),
    [
        pytest.param("collapsed", 0.05, 1.0, marks=pytest.mark.slow),
        ("overlapping", 1.0, 0.8),
        pytest.param("separated", 1.0, 0.05, marks=pytest.mark.slow),
    ],
)
def test_agrees_with_the_closed_form(case: str, scale: float, noise: float) -> None:
    model = LinearGaussianModel(scale * WEIGHTS, noise)
    x = model.simulate(30)
    # Batches of 11 observations, the last of which repeats some.
    result = _run(
        model, x, num_temperatures=200, num_chains=32, num_leapfrog_steps=5, batch_size=11 * 32
    )
    truth = model.log_evidence(x)
    assert np.all(np.abs(result.per_observation - truth) < STANDARD_ERRORS * result.standard_errors)
    estimate = result.estimate
    assert abs(estimate.value - truth.mean()) < STANDARD_ERRORS * estimate.standard_error
    assert estimate.standard_error < 0.1
    least = {"collapsed": 31.9, "overlapping": 25.0, "separated": 1.5}[case]
    assert result.effective_sample_sizes.min() > least
    assert result.acceptance_rates is not None
    assert result.acceptance_rates.shape == (200, 30)
    assert result.acceptance_rates.mean() == pytest.approx(0.65, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_temperatures", "num_chains", "least", "most"),
    [(5, 4, 0.91, 0.95), (20, 4, 0.91, 0.95), (20, 16, 0.91, 0.95)],
)
def test_intervals_cover_the_expectation_of_the_bound(
    num_temperatures: int, num_chains: int, least: float, most: float
) -> None:
    """8000 results of one observation each, or 400 of twenty: what the docstring says of both.

    The expectation is the mean of all 8000, whose error is a twentieth of that of one result of
    twenty observations: it moves the coverage by less than 0.001.
    """
    model = LinearGaussianModel(np.array([[1.0]]), 0.5)
    x = np.array([[0.8]])
    result = _run(
        model,
        np.repeat(x, 8000, axis=0),
        num_temperatures=num_temperatures,
        num_chains=num_chains,
        num_leapfrog_steps=2,
        batch_size=8000 * num_chains,
    )
    expectation = result.per_observation.mean()
    alone = covered(estimates_of_groups(result, 1), expectation)
    together = covered(estimates_of_groups(result, 20), expectation)
    check_coverage(alone, 8000, least, most)
    check_coverage(together, 400, 0.93, 0.97)


@pytest.mark.slow
def test_more_temperatures_tighten_the_bound() -> None:
    model = LinearGaussianModel(WEIGHTS, 0.1)
    x = model.simulate(200)
    truth = model.log_evidence(x)
    gaps = []
    for num_temperatures in (1, 10, 100):
        result = _run(
            model, x, num_temperatures=num_temperatures, num_chains=4, num_leapfrog_steps=3
        )
        gaps.append(truth - result.per_observation)
    for loose, tight in itertools.pairwise(gaps):
        difference = loose - tight
        error = difference.std(ddof=1) / math.sqrt(len(difference))
        assert difference.mean() > STANDARD_ERRORS * error
    assert 0 < gaps[-1].mean() < 0.6


def test_codes_on_a_constrained_space() -> None:
    """Gamma prior and Poisson likelihood: the evidence is negative binomial."""
    concentration, rate = 2.5, 0.7
    x = np.array([[0.0], [3.0], [11.0]])
    result = log_evidence_by_annealed_importance_sampling(
        x,
        lambda z: tfd.Independent(tfd.Poisson(z), 1),
        tfd.Independent(tfd.Gamma(np.array([concentration]), np.array([rate])), 1),
        num_temperatures=50,
        num_chains=64,
        num_leapfrog_steps=3,
        seed=1,
    )
    truth = stats.nbinom(concentration, rate / (1 + rate)).logpmf(x[:, 0])
    assert np.all(np.abs(result.per_observation - truth) < STANDARD_ERRORS * result.standard_errors)
    assert result.standard_errors.max() < 0.1


def test_spheres_are_refused_and_importance_sampling_takes_them() -> None:
    x = np.array([[0.3, 0.9], [1.2, -0.4]])
    prior = tfd.SphericalUniform(2, dtype=tf.float64)

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(z, np.array([0.5, 0.5]))

    message = r"SphericalUniform .*does not reach its whole support.*log_evidence_by_importance"
    with pytest.raises(TypeError, match=message):
        log_evidence_by_annealed_importance_sampling(x, decoder, prior)
    proposals = tfd.VonMisesFisher(np.array([[1.0, 0.0]] * 2), np.array([0.01] * 2))
    result = log_evidence_by_importance_sampling(x, proposals, decoder, prior)
    angles = np.linspace(0, 2 * np.pi, 1001)[:-1]
    on_circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    densities = stats.norm(on_circle, 0.5).pdf(x[:, np.newaxis]).prod(axis=2)
    truth = np.log(densities.mean(axis=1))
    assert np.all(np.abs(result.per_observation - truth) < STANDARD_ERRORS * result.standard_errors)


def test_a_decoder_that_does_not_look_at_the_code_has_its_own_density() -> None:
    model = LinearGaussianModel(WEIGHTS, 0.8)
    x = model.simulate(2)
    likelihood = tfd.MultivariateNormalDiag(np.zeros([1, 3]), np.ones(3))
    result = log_evidence_by_annealed_importance_sampling(
        x,
        lambda z: tfd.BatchBroadcast(likelihood, z.shape[:1]),
        lambda: model.prior,
        num_temperatures=2,
        num_chains=4,
    )
    np.testing.assert_allclose(result.per_observation, likelihood.log_prob(x))


@pytest.mark.filterwarnings("ignore:the effective sample size")
def test_chains_that_start_on_the_border_have_acceptance_rates() -> None:
    """At a rate of NaN the step size of an observation was NaN, and none of its chains moved."""
    with pytest.warns(UserWarning, match="onto the border"):
        result = log_evidence_by_annealed_importance_sampling(
            np.full([20, 1], 2.0, np.float32),
            lambda z: tfd.Independent(tfd.Binomial(np.float32(5), probs=z[:, None]), 1),
            tfd.Beta(np.float32(0.15), np.float32(0.15)),
            num_temperatures=10,
            num_chains=16,
            num_leapfrog_steps=2,
        )
    assert result.acceptance_rates is not None
    assert np.all(result.acceptance_rates > 0)  # nor NaN
    assert result.acceptance_rates.mean() > 0.5
    truth = stats.betabinom(5, 0.15, 0.15).logpmf(2)
    ratios = np.exp(result.per_observation - truth)
    error = ratios.std(ddof=1) / math.sqrt(20)
    assert abs(ratios.mean() - 1) < STANDARD_ERRORS * error


def test_seeds_repeat_dtypes_stay_and_few_effective_samples_are_warned_of() -> None:
    model = LinearGaussianModel(WEIGHTS, 0.01)
    dtypes = set()

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        dtypes.add(z.dtype)
        return model.decoder(z)

    def values(seed: int) -> np.ndarray:
        with pytest.warns(UserWarning, match="size of annealed importance .* for 3 of 3"):
            return log_evidence_by_annealed_importance_sampling(
                model.simulate(3), decoder, model.prior, num_temperatures=2, seed=seed
            ).per_observation

    first, again, other = (values(seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)
    assert dtypes == {tf.float64}


def test_inverse_temperatures_rise_from_0_to_1() -> None:
    betas = inverse_temperatures(50)
    assert betas[0] == 0
    assert betas[-1] == 1
    steps = np.diff(betas)
    assert np.all(steps > 0)
    assert steps[0] == pytest.approx(steps[-1])
    assert steps[25] > 5 * steps[0]
    np.testing.assert_array_equal(inverse_temperatures(1), [0, 1])


def _through_numpy(z: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(tf.constant(z.numpy() @ WEIGHTS.T), np.ones(3))


def _numpy_function(z: tf.Tensor) -> tfd.Distribution:
    loc = tf.numpy_function(lambda codes: codes @ WEIGHTS.T, [z], tf.float64)
    return tfd.MultivariateNormalDiag(tf.ensure_shape(loc, [None, 3]), np.ones(3))


def _numpy_prior() -> tfd.Distribution:
    stretch = tfp.bijectors.Inline(
        forward_fn=lambda u: u + 1,
        inverse_fn=lambda z: tf.constant(z.numpy()) - 1,
        forward_log_det_jacobian_fn=tf.zeros_like,
        forward_min_event_ndims=0,
    )
    return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2)), stretch)


def _strings(z: tf.Tensor) -> tfd.Distribution:
    loc = tf.strings.to_number(tf.strings.as_string(tf.stop_gradient(z)), tf.float64)
    return tfd.MultivariateNormalDiag((loc + z) @ WEIGHTS.T, np.ones(3))


def _unique(z: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(
        z @ WEIGHTS.T + tf.reduce_sum(tf.unique(z[:, 0])[0]), np.ones(3)
    )


def _discrete() -> tfd.Distribution:
    return tfd.OneHotCategorical(probs=[0.5, 0.5])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_temperatures": 0}, ValueError, "num_temperatures must be at least 1"),
        ({"num_chains": 0}, ValueError, "num_chains must be at least 1"),
        ({"num_leapfrog_steps": 1.5}, TypeError, "num_leapfrog_steps must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"seed": 2**31}, ValueError, "seed must be at least 0"),
        ({"x": np.zeros([0, 3])}, ValueError, "holds no observations"),
        ({"x": np.zeros([2, 4])}, ValueError, "observations of shape"),
        ({"decoder": None}, TypeError, "decoder must be a callable"),
        ({"decoder": lambda z: z}, TypeError, "decoder must return a distribution"),
        ({"prior": _discrete}, TypeError, "HMC moves codes"),
        ({"decoder": _through_numpy}, TypeError, "gradients of the decoder.*cannot trace it"),
        ({"decoder": _numpy_function}, TypeError, "of TensorFlow operations; importance sampling"),
        ({"decoder": _strings}, TypeError, "gradients of the model.*XLA cannot compile it"),
        ({"decoder": _unique}, TypeError, "gradients of the model.*has no gradient.*Unique"),
        ({"prior": _numpy_prior}, TypeError, "gradients of the prior.*cannot trace it"),
        ({"prior": tfd.Normal([0.0, 1.0], 1.0)}, ValueError, "prior must be one distribution"),
        (
            {"decoder": lambda z: tfd.MultivariateNormalDiag(z * np.nan @ WEIGHTS.T, np.ones(3))},
            ValueError,
            "NaN",
        ),
    ],
)
def test_wrong_input_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = LinearGaussianModel(WEIGHTS, 0.8)
    arguments = {"x": model.simulate(2), "decoder": model.decoder, "prior": model.prior, **changes}
    with pytest.raises(error, match=message):
        log_evidence_by_annealed_importance_sampling(
            **{"num_temperatures": 2, "num_chains": 2, **arguments}
        )


class _Wide(tfd.MultivariateNormalDiag):
    """Three times as wide as its base class, in draws and density alike."""

    def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
        return super()._log_prob(z / 3.0) - 2 * np.log(3.0).astype(z.dtype.as_numpy_dtype)

    def _call_sample_n(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        return 3.0 * super()._call_sample_n(*args, **kwargs)


def test_a_prior_is_scored_by_its_own_density_and_not_that_of_its_base_class() -> None:
    x = np.array([[1.0, 5.0], [-4.0, 2.0]], np.float32)
    result = log_evidence_by_annealed_importance_sampling(
        x,
        lambda z: tfd.MultivariateNormalDiag(z, [1.0, 1.0]),
        _Wide(np.zeros(2, np.float32), np.ones(2, np.float32)),
        num_temperatures=200,
    )
    truth = stats.multivariate_normal(np.zeros(2), 10.0 * np.eye(2)).logpdf(x)
    # The bound lies below by half its variance, and the standard error is around it.
    error = 4.5 * result.standard_errors + result.standard_errors**2
    np.testing.assert_array_less(np.abs(result.per_observation - truth), error)
