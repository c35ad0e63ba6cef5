"""The log evidence of models with conditions, structured observations and structured codes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats
from scipy.special import gammaln, logsumexp

from tfp_surgery.evidence.annealed_importance_sampling import (
    log_evidence_by_annealed_importance_sampling,
)
from tfp_surgery.evidence.bidirectional_monte_carlo import bidirectional_monte_carlo
from tfp_surgery.evidence.importance_sampling import log_evidence_by_importance_sampling
from tfp_surgery.evidence.importance_weighted_elbo import importance_weighted_elbo
from tfp_surgery.evidence.inference_gaps import inference_gaps
from tfp_surgery.evidence.log_evidence import LogEvidence
from tfp_surgery.evidence.refined_posteriors import refined_posteriors

tfd = tfp.distributions

STANDARD_ERRORS = 4.5
# What the optimiser may leave of a gap, in nats.
UNFOUND = 2e-3
CASES = ("collapsed", "overlapping", "separated")
ANNEALED = (
    pytest.param("collapsed", marks=pytest.mark.slow),
    "overlapping",
    pytest.param("separated", marks=pytest.mark.slow),
)


class ConditionalModel:
    """z|c ~ N(a.c, exp(0.6 c_0)), x|z,c ~ N(w z + c V, noise^2 I), in float64."""

    def __init__(self, case: str) -> None:
        factor, self.noise = {
            "collapsed": (0.05, 1.0),
            "overlapping": (1.0, 0.8),
            "separated": (1.0, 0.05),
        }[case]
        self.weights = factor * np.array([[1.0], [-0.3], [0.5]])
        self.to_code = np.array([[1.0], [-2.0]])
        self.to_mean = np.array([[1.0, 0.0, 2.0], [-1.0, 3.0, 0.5]])

    def simulate(self, num: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        c = rng.normal(size=(num, 2))
        z = c @ self.to_code + np.exp(0.3 * c[:, :1]) * rng.normal(size=(num, 1))
        mean = z @ self.weights.T + c @ self.to_mean
        return mean + self.noise * rng.normal(size=(num, 3)), c

    def log_evidence(self, x: np.ndarray, c: np.ndarray) -> np.ndarray:
        values = []
        for n in range(len(x)):
            mean = (c[n] @ self.to_code) @ self.weights.T + c[n] @ self.to_mean
            covariance = np.exp(0.6 * c[n, 0]) * self.weights @ self.weights.T
            covariance += self.noise**2 * np.eye(3)
            values.append(stats.multivariate_normal(mean, covariance).logpdf(x[n]))
        return np.array(values)

    def prior(self, condition: Any) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(condition @ self.to_code, tf.exp(0.3 * condition[:, :1]))

    def decoder(self, z: tf.Tensor, condition: Any) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(
            z @ self.weights.T + condition @ self.to_mean, self.noise * np.ones(3)
        )

    def encoder(self, shift: float, factor: float) -> Any:
        """Exact posteriors, off by `shift` deviations and with scale `factor`."""

        def encode(x: tf.Tensor, condition: tf.Tensor) -> tfd.Distribution:
            precision = tf.exp(-0.6 * condition[:, :1])
            variance = 1 / (precision + np.sum(self.weights**2) / self.noise**2)
            seen = (x - condition @ self.to_mean) @ self.weights / self.noise**2
            mean = variance * (precision * (condition @ self.to_code) + seen)
            deviation = tf.sqrt(variance)
            return tfd.MultivariateNormalDiag(mean + shift * deviation, factor * deviation)

        return encode


def _check(result: LogEvidence, truth: np.ndarray, largest_error: float) -> None:
    scores = (result.per_observation - truth) / result.standard_errors
    assert np.all(np.abs(scores) < STANDARD_ERRORS)
    estimate = result.estimate
    assert abs(estimate.value - truth.mean()) < STANDARD_ERRORS * estimate.standard_error
    assert estimate.standard_error < largest_error


def _annealed(*model: Any, **settings: Any) -> LogEvidence:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the effective sample size")
        return log_evidence_by_annealed_importance_sampling(
            *model, num_leapfrog_steps=5, **settings
        )


@pytest.mark.parametrize("case", CASES)
def test_importance_sampling_of_conditional_models(case: str) -> None:
    """Batches of 7 of 20 observations, the last of which repeats some, and of their conditions."""
    model = ConditionalModel(case)
    x, c = model.simulate(20)
    parts = (x, model.encoder(0.3, 1.4), model.decoder, model.prior)
    truth = model.log_evidence(x, c)
    result = log_evidence_by_importance_sampling(
        *parts, condition=c, num_importance_samples=1000, batch_size=7 * 500
    )
    _check(result, truth, 0.02)
    assert result.data.endswith("condition given to encoder, decoder and prior")
    tight = importance_weighted_elbo(
        *parts, condition=c, num_importance_samples=1000, num_samples=3, batch_size=20_000
    )
    estimate = tight.estimate
    assert abs(estimate.value - truth.mean()) < STANDARD_ERRORS * estimate.standard_error + 2e-3
    again = log_evidence_by_importance_sampling(
        *parts, condition=c, num_importance_samples=1000, batch_size=7 * 500, reencode=True
    )
    np.testing.assert_allclose(again.per_observation, result.per_observation, rtol=1e-9)


def test_exact_posteriors_of_conditional_models_have_equal_weights() -> None:
    model = ConditionalModel("overlapping")
    x, c = model.simulate(8)
    truth = model.log_evidence(x, c)
    parts = (x, model.encoder(0.0, 1.0), model.decoder, model.prior)
    for condition in (c, scipy.sparse.csr_matrix(c)):
        result = log_evidence_by_importance_sampling(
            *parts, condition=condition, num_importance_samples=12, batch_size=9
        )
        np.testing.assert_allclose(result.per_observation, truth, atol=1e-10)
    elbo = importance_weighted_elbo(*parts, condition=c, num_importance_samples=1, num_samples=2)
    np.testing.assert_allclose(elbo.per_observation, truth, atol=1e-10)


@pytest.mark.parametrize("case", ANNEALED)
def test_annealing_of_conditional_models(case: str) -> None:
    model = ConditionalModel(case)
    x, c = model.simulate(14)
    result = _annealed(
        x,
        model.decoder,
        model.prior,
        condition=c,
        num_temperatures=150,
        num_chains=32,
        batch_size=5 * 32,
    )
    _check(result, model.log_evidence(x, c), 0.15)
    assert result.data.endswith("condition given to decoder and prior")


def test_conditions_of_any_structure_reach_networks_that_take_them() -> None:
    """The decoder alone takes them here: z ~ N(0, 1) and x ~ N(z + c_n, 1)."""
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(5, 1)), rng.normal(size=5) * 3
    condition = {"shift": c, "unused": np.arange(5)}
    prior = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))

    def decoder(z: tf.Tensor, condition: Any) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(z + condition["shift"][:, tf.newaxis], np.ones(1))

    truth = stats.norm(c, np.sqrt(2)).logpdf(x[:, 0])
    result = _annealed(x, decoder, prior, condition=condition, num_temperatures=100)
    _check(result, truth, 0.1)

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.zeros_like(x), 2 * np.ones(1))

    result = log_evidence_by_importance_sampling(x, encoder, decoder, prior, condition=condition)
    _check(result, truth, 0.05)
    assert result.data.endswith("condition given to decoder")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shift", "factor"), [pytest.param(1.5, 0.6, marks=pytest.mark.slow), (-0.7, 1.6)]
)
def test_gaps_of_conditional_models(shift: float, factor: float) -> None:
    model = ConditionalModel("overlapping")
    x, c = model.simulate(20)
    parts = (x, model.encoder(shift, factor), model.decoder, model.prior)
    truth = model.log_evidence(x, c)
    gaps = inference_gaps(*parts, condition=c, log_evidence=truth, num_steps=300, batch_size=4 * 9)
    # The family contains the posterior, from which the encoder has this KL.
    amortization = 0.5 * (factor**2 + shift**2 - 1 - 2 * np.log(factor))
    found = gaps.amortization_gap
    assert abs(found.value - amortization) < STANDARD_ERRORS * found.standard_error + UNFOUND
    assert abs(gaps.approximation_gap.value) < UNFOUND
    total = gaps.approximation_gap.value + gaps.amortization_gap.value
    assert total == pytest.approx(gaps.log_evidence.value - gaps.elbo.value)
    refined = refined_posteriors(*parts, condition=c, num_steps=300)
    exact = model.encoder(0.0, 1.0)(tf.constant(x), tf.constant(c))
    np.testing.assert_allclose(refined.mean(), exact.mean(), atol=0.02)
    np.testing.assert_allclose(refined.stddev(), exact.stddev(), rtol=0.03)


class CountsAndMeasures:
    """z ~ N(0, 1), u|z ~ N(slope z, noise^2 I_2), k|z ~ Poisson(exp(rate z))."""

    prior = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))

    def __init__(self, case: str) -> None:
        self.slope, self.noise, self.rate = {
            "collapsed": (0.05, 1.0, 0.05),
            "overlapping": (1.0, 0.8, 0.5),
            "separated": (1.0, 0.05, 1.0),
        }[case]

    def simulate(self, num: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        z = rng.normal(size=(num, 1))
        u = self.slope * z + self.noise * rng.normal(size=(num, 2))
        return {"u": u, "k": rng.poisson(np.exp(self.rate * z[:, 0])).astype(np.float64)}

    def decoder(self, z: tf.Tensor) -> tfd.Distribution:
        mean = self.slope * tf.tile(z, [1, 2])
        u = tfd.Independent(tfd.Normal(mean, np.float64(self.noise)), 1)
        return tfd.JointDistributionNamed({"u": u, "k": tfd.Poisson(log_rate=self.rate * z[:, 0])})

    def encoder(self, x: dict[str, tf.Tensor]) -> tfd.Distribution:
        """The posterior given u, moved by one step of Newton's for k, and wider."""
        precision = 1 + 2 * self.slope**2 / self.noise**2
        mean = self.slope * tf.reduce_sum(x["u"], axis=-1) / self.noise**2 / precision
        rate = tf.exp(self.rate * mean)
        mean += self.rate * (x["k"] - rate) / (precision + self.rate**2 * rate)
        deviation = 1.3 / np.sqrt(precision)
        return tfd.MultivariateNormalDiag(mean[:, tf.newaxis], [np.float64(deviation)])

    def log_evidence(self, x: dict[str, np.ndarray]) -> np.ndarray:
        """By quadrature over z, in steps of a thirtieth of the narrowest posterior."""
        z, step = np.linspace(-8, 8, 80_001, retstep=True)
        values = []
        for u, k in zip(x["u"], x["k"], strict=True):
            log_joint = -0.5 * z**2 + k * self.rate * z - np.exp(self.rate * z)
            log_joint -= 0.5 * ((u[:, np.newaxis] - self.slope * z) ** 2).sum(0) / self.noise**2
            constant = -1.5 * np.log(2 * np.pi) - 2 * np.log(self.noise) - gammaln(k + 1)
            values.append(logsumexp(log_joint) + np.log(step) + constant)
        return np.array(values)


@pytest.mark.parametrize("case", CASES)
def test_structured_observations(case: str) -> None:
    model = CountsAndMeasures(case)
    x = model.simulate(12)
    truth = model.log_evidence(x)
    result = log_evidence_by_importance_sampling(
        x, model.encoder, model.decoder, model.prior, num_importance_samples=4000, batch_size=7000
    )
    _check(result, truth, 0.02)
    tight = importance_weighted_elbo(
        x, model.encoder, model.decoder, model.prior, num_importance_samples=2000, num_samples=3
    )
    error = tight.estimate.standard_error
    assert abs(tight.estimate.value - truth.mean()) < STANDARD_ERRORS * error + 2e-3


@pytest.mark.parametrize("case", ANNEALED)
def test_annealing_of_structured_observations(case: str) -> None:
    model = CountsAndMeasures(case)
    x = model.simulate(12)
    result = _annealed(
        x, model.decoder, model.prior, num_temperatures=150, num_chains=32, batch_size=5 * 32
    )
    _check(result, model.log_evidence(x), 0.15)


def test_gaps_of_structured_observations() -> None:
    model = CountsAndMeasures("overlapping")
    x = model.simulate(8)
    gaps = inference_gaps(
        x,
        model.encoder,
        model.decoder,
        model.prior,
        log_evidence=model.log_evidence(x),
        num_steps=200,
    )
    total = gaps.approximation_gap.value + gaps.amortization_gap.value
    assert total == pytest.approx(gaps.log_evidence.value - gaps.elbo.value)
    # Almost Gaussian posteriors; the encoder's are 1.3 times as wide.
    assert 0 < gaps.approximation_gap.value + UNFOUND < 0.02
    assert gaps.amortization_gap.value > 0.02


class TwoParts:
    """a ~ N(0, 1), b|a ~ N(slope a, I_2), x|a,b ~ N(U (a, b), noise^2 I_3)."""

    def __init__(self, case: str, slope: float) -> None:
        factor, self.noise = {
            "collapsed": (0.05, 1.0),
            "overlapping": (1.0, 0.8),
            "separated": (1.0, 0.05),
        }[case]
        self.slope = slope
        self.weights = factor * np.array([[1.0, 0.4, 0.1], [-0.3, 0.8, 0.5], [0.5, 0.5, -1.0]])
        mixing = np.eye(3) + slope * np.array([[0.0, 0, 0], [1, 0, 0], [1, 0, 0]])
        self.covariance = mixing @ mixing.T
        precision = np.linalg.inv(self.covariance) + self.weights.T @ self.weights / self.noise**2
        self.posterior = np.linalg.inv(precision)
        self.to_code = self.weights @ self.posterior / self.noise**2

    @property
    def prior(self) -> tfd.Distribution:
        b: Any = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
        if self.slope:

            def b(a: tf.Tensor) -> tfd.Distribution:
                mean = self.slope * tf.stack([a, a], axis=-1)
                return tfd.MultivariateNormalDiag(mean, np.ones(2))

        return tfd.JointDistributionNamed({"a": tfd.Normal(np.float64(0), np.float64(1)), "b": b})

    def simulate(self, num: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        code = rng.normal(size=(num, 3)) @ np.linalg.cholesky(self.covariance).T
        return code @ self.weights.T + self.noise * rng.normal(size=(num, 3))

    def log_evidence(self, x: np.ndarray) -> np.ndarray:
        covariance = self.weights @ self.covariance @ self.weights.T + self.noise**2 * np.eye(3)
        values: np.ndarray = stats.multivariate_normal(np.zeros(3), covariance).logpdf(x)
        return values

    def decoder(self, z: dict[str, tf.Tensor]) -> tfd.Distribution:
        code = tf.concat([z["a"][:, tf.newaxis], z["b"]], axis=-1)
        return tfd.MultivariateNormalDiag(code @ self.weights.T, self.noise * np.ones(3))

    def encoder(self, x: tf.Tensor) -> tfd.Distribution:
        """Independent parts, each with its exact marginal but for the scale of a."""
        mean, tril = x @ self.to_code, np.linalg.cholesky(self.posterior[1:, 1:])
        a = tfd.Normal(mean[:, 0], 1.2 * np.sqrt(self.posterior[0, 0]))
        return tfd.JointDistributionNamed(
            {"a": a, "b": tfd.MultivariateNormalTriL(mean[:, 1:], tril)}
        )

    def exact_encoder(self, x: tf.Tensor) -> tfd.Distribution:
        """q(b|x) q(a|b, x), which is the posterior."""
        mean, inner = x @ self.to_code, self.posterior[1:, 1:]
        slopes = np.linalg.solve(inner, self.posterior[1:, 0])
        deviation = np.sqrt(self.posterior[0, 0] - self.posterior[0, 1:] @ slopes)

        def a(b: tf.Tensor) -> tfd.Distribution:
            return tfd.Normal(
                mean[:, 0] + tf.linalg.matvec(b - mean[:, 1:], slopes), np.float64(deviation)
            )

        b = tfd.MultivariateNormalTriL(mean[:, 1:], np.linalg.cholesky(inner))
        return tfd.JointDistributionNamed({"b": b, "a": a})


@pytest.mark.parametrize("case", ["collapsed", "overlapping"])
@pytest.mark.parametrize("slope", [0.0, 0.7])
def test_structured_codes(case: str, slope: float) -> None:
    model = TwoParts(case, slope)
    x = model.simulate(10)
    truth = model.log_evidence(x)
    result = log_evidence_by_importance_sampling(
        x, model.encoder, model.decoder, model.prior, num_importance_samples=4000, batch_size=7000
    )
    _check(result, truth, 0.05)
    bound = importance_weighted_elbo(
        x, model.encoder, model.decoder, model.prior, num_importance_samples=5000, num_samples=2
    ).estimate
    assert abs(bound.value - truth.mean()) < STANDARD_ERRORS * bound.standard_error + 5e-3


@pytest.mark.parametrize("case", CASES)
def test_parts_that_depend_on_each_other_have_equal_weights_if_exact(case: str) -> None:
    model = TwoParts(case, 0.7)
    x = model.simulate(5)
    parts = (x, model.exact_encoder, model.decoder, model.prior)
    result = log_evidence_by_importance_sampling(
        *parts, num_importance_samples=6, batch_size=8, reencode=True
    )
    np.testing.assert_allclose(result.per_observation, model.log_evidence(x), atol=1e-8)
    np.testing.assert_allclose(result.effective_sample_sizes, 6, rtol=1e-8)
    bound = importance_weighted_elbo(*parts, num_importance_samples=3, reencode=True)
    np.testing.assert_allclose(bound.per_observation, model.log_evidence(x), atol=1e-8)
    with pytest.raises(TypeError, match=r"parts depend on each other.* reencode=True"):
        log_evidence_by_importance_sampling(*parts)


@pytest.mark.parametrize("case", ANNEALED)
def test_annealing_of_structured_codes(case: str) -> None:
    model = TwoParts(case, 0.0)
    x = model.simulate(8)
    result = _annealed(
        x, model.decoder, model.prior, num_temperatures=300, num_chains=32, batch_size=3 * 32
    )
    _check(result, model.log_evidence(x), 0.25)


def test_a_cluster_beside_a_continuous_code() -> None:
    """k ~ U{0, 1, 2}, z|k ~ N(k, 1), x|z ~ N(z, 1): a mixture of Gaussians of variance 2."""
    x = np.random.default_rng(0).normal(size=(6, 1)) + 1

    def of_k(k: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.cast(k, tf.float64)[..., tf.newaxis], np.ones(1))

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        k = tfd.Categorical(logits=tf.concat([-x, x, 0.5 * x], axis=-1))
        return tfd.JointDistributionNamed({"k": k, "z": tfd.MultivariateNormalDiag(x, np.ones(1))})

    def decoder(code: dict[str, tf.Tensor]) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(code["z"], np.ones(1))

    k = tfd.Categorical(logits=np.zeros(3))
    prior = tfd.JointDistributionNamed({"k": k, "z": of_k})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = log_evidence_by_importance_sampling(x, encoder, decoder, prior)
    truth = logsumexp(stats.norm(np.arange(3), np.sqrt(2)).logpdf(x), axis=1) - np.log(3)
    _check(result, truth, 0.05)
    with pytest.raises(TypeError, match=r"part k .* dtype int32; log_evidence_by_importance_samp"):
        log_evidence_by_annealed_importance_sampling(x, decoder, prior)


class EverythingAtOnce:
    """Two bounded parts, one with limits that depend on c, and observations of two parts."""

    condition = np.linspace(-1, 1, 6)

    @staticmethod
    def prior(condition: tf.Tensor) -> tfd.Distribution:
        return tfd.JointDistributionSequential(
            [
                tfd.Uniform(condition - 1, condition + 1),
                tfd.Dirichlet(tf.exp(tf.stack([condition, -condition, 0 * condition], axis=-1))),
            ]
        )

    @staticmethod
    def decoder(z: Any, condition: tf.Tensor) -> tfd.Distribution:
        mean = z[0][:, tf.newaxis] * z[1] + condition[:, tf.newaxis]
        return tfd.JointDistributionSequential(
            [
                tfd.MultivariateNormalDiag(mean, 0.5 * np.ones(3)),
                tfd.Normal(z[0] - condition, np.float64(0.5)),
            ]
        )

    def log_evidence(self, x: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """By importance sampling from the prior in NumPy; returns values and standard errors."""
        rng, num = np.random.default_rng(1), 100_000
        values, errors = [], []
        for c, first, second in zip(self.condition, *x, strict=True):
            position = rng.uniform(c - 1, c + 1, size=num)
            shares = rng.dirichlet(np.exp([c, -c, 0.0]), size=num)
            log_w = stats.norm(position[:, None] * shares + c, 0.5).logpdf(first).sum(axis=1)
            w = np.exp(log_w + stats.norm(position - c, 0.5).logpdf(second))
            values.append(np.log(w.mean()))
            errors.append(w.std() / w.mean() / np.sqrt(num))
        return np.array(values), np.array(errors)


@pytest.mark.slow
def test_bounds_of_both_sides_with_all_of_it() -> None:
    model = EverythingAtOnce()
    settings: dict[str, Any] = {
        "condition": model.condition,
        "num_temperatures": 40,
        "num_leapfrog_steps": 5,
        "num_chains": 32,
        "seed": 3,
    }
    result = bidirectional_monte_carlo(model.decoder, model.prior, batch_size=4 * 32, **settings)
    assert [part.shape for part in result.x] == [(6, 3), (6,)]
    assert result.z.shape == (6, 4)
    assert np.all(np.abs(result.z[:, 0] - model.condition) < 1)
    np.testing.assert_allclose(result.z[:, 1:].sum(axis=1), 1)
    truth, noise = model.log_evidence(result.x)
    for bound in (result.forward, result.reverse):
        errors = np.hypot(bound.standard_errors, noise)
        assert np.all(np.abs(bound.per_observation - truth) < STANDARD_ERRORS * errors + 0.05)
    assert abs(result.gap.value) < STANDARD_ERRORS * result.gap.standard_error + 0.05
    # The forward chains are those of the observations, handed in as the structure that came out.
    again = log_evidence_by_annealed_importance_sampling(
        result.x, model.decoder, model.prior, batch_size=4 * 32, **settings
    )
    np.testing.assert_allclose(again.values, result.forward.values, rtol=1e-12)


def test_numbers_of_pairs_and_conditions_agree() -> None:
    model = EverythingAtOnce()
    with pytest.raises(ValueError, match="condition, which has 6, but num_observations is 7"):
        bidirectional_monte_carlo(
            model.decoder, model.prior, condition=model.condition, num_observations=7
        )
    with pytest.raises(ValueError, match="at least 2 rows"):
        bidirectional_monte_carlo(model.decoder, model.prior, condition=model.condition[:1])


def _raises_in_all(match: str, kind: Any, *model: Any, **settings: Any) -> None:
    x, encoder, decoder, prior = model
    for estimate in (log_evidence_by_importance_sampling, refined_posteriors):
        with pytest.raises(kind, match=match):
            estimate(x, encoder, decoder, prior, **settings)
    with pytest.raises(kind, match=match):
        log_evidence_by_annealed_importance_sampling(x, decoder, prior, **settings)


def test_what_cannot_be_taken_is_refused_before_the_work() -> None:
    model = ConditionalModel("overlapping")
    x, c = model.simulate(4)
    one = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))
    parts = (x, model.encoder(0.0, 1.0), model.decoder, model.prior)
    _raises_in_all("one row an observation, 4, but it has 3", ValueError, *parts, condition=c[:3])
    _raises_in_all(
        r"must give one distribution for each, with batch shape \[[23]\]",
        ValueError,
        *parts[:3],
        lambda condition: one,  # noqa: ARG005
        condition=c,
    )
    deaf = (
        lambda x: tfd.MultivariateNormalDiag(x[:, :1], np.ones(1)),
        lambda z: model.decoder(z, c),
    )
    _raises_in_all("none of .* takes it", TypeError, x, *deaf, one, condition=c)
    joint = TwoParts("overlapping", 0.7)
    with pytest.raises(TypeError, match="depend on others; log_evidence_by_importance_sampling"):
        log_evidence_by_annealed_importance_sampling(x, joint.decoder, joint.prior)
    with pytest.raises(TypeError, match=r"got a joint distribution of a \[\], b \[2\]"):
        refined_posteriors(x, joint.encoder, joint.decoder, joint.prior)


def test_a_log_evidence_needs_a_normalised_likelihood() -> None:
    """There is no way to score grey pixels as they are, and none is offered."""
    x = np.full([4, 3], 0.5)
    prior = tfd.MultivariateNormalDiag(np.zeros(3), np.ones(3))
    parts = (lambda x: tfd.MultivariateNormalDiag(x, np.ones(3)), _bernoulli, prior)
    message = r"outside the support of the likelihood .* discretized logistic\)\.$"
    _raises_in_all(message, ValueError, x, *parts)


def _bernoulli(z: tf.Tensor) -> tfd.Distribution:
    return tfd.Independent(tfd.Bernoulli(logits=z), 1)


@pytest.mark.parametrize(
    ("to_array", "why"),
    [(lambda z: z.numpy(), "no attribute 'numpy'"), (np.asarray, "symbolic tf.Tensor .* to a num")],
    ids=["numpy()", "asarray"],
)
def test_decoders_of_another_library_are_told_what_takes_them(to_array: Any, why: str) -> None:
    """NumPy stands in for PyTorch, JAX and scikit-learn."""
    weights = np.array([[1.0, 0.4, 0.1], [-0.3, 0.8, 0.5]])

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Normal(to_array(z) @ weights, np.float64(1)), 1)

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(x @ weights.T, np.ones(2))

    prior = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    x = np.random.default_rng(0).normal(size=(4, 3))
    message = (
        "gradients of the decoder, which must be made of TensorFlow operations; importance "
        rf"sampling \(log_evidence_by_importance_sampling\) takes it as it is.* trace it: .*{why}"
    )
    with pytest.raises(TypeError, match=message):
        log_evidence_by_annealed_importance_sampling(x, decoder, prior)
    with pytest.raises(TypeError, match=message):
        bidirectional_monte_carlo(decoder, prior, num_observations=2)
    with pytest.raises(TypeError, match=message):
        refined_posteriors(x, encoder, decoder, prior)
    with pytest.raises(TypeError, match=message):
        inference_gaps(x, encoder, decoder, prior, log_evidence=np.zeros(4))
    result = log_evidence_by_importance_sampling(x, encoder, decoder, prior)
    covariance = weights.T @ weights + np.eye(3)
    _check(result, stats.multivariate_normal(np.zeros(3), covariance).logpdf(x), 0.1)
