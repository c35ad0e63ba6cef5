"""Tests of the importance-weighted bounds against closed forms and quadrature."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

from tests.testing.coverage import check_coverage, covered, estimates_of_groups
from tests.testing.importance_weights import ScalarModel, case
from tests.testing.linear_gaussian import Network, ProbabilisticPCA
from tests.testing.oracles import CASES
from tfp_surgery.datasets import Dataset
from tfp_surgery.evidence.importance_weighted_elbo import importance_weighted_elbo
from tfp_surgery.surgery.elbo_surgery import elbo_surgery
from tfp_surgery.surgery.scored_draws import scored_draws

tfd = tfp.distributions

# An estimate is allowed this many standard errors.
STANDARD_ERRORS = 4.5

PRIOR = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))
X = np.array([[-1.0], [0.3], [2.5]])


def scalar_decoder(z: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(ScalarModel.slope * z, [np.float64(ScalarModel.noise)])


def scalar_encoder(name: str) -> Network:
    def encoder(x: tf.Tensor) -> tfd.Distribution:
        models = [case(name, value) for value in x.numpy()[:, 0]]
        loc, log_scale = (
            np.array([[getattr(model, field)] for model in models])
            for field in ("loc", "log_scale")
        )
        return tfd.MultivariateNormalDiag(loc, np.exp(log_scale))

    return encoder


def scalar_bound(name: str, x: np.ndarray, m: int, k: int, **kwargs: Any) -> Any:
    return importance_weighted_elbo(
        x,
        scalar_encoder(name),
        scalar_decoder,
        PRIOR,
        num_importance_samples=m,
        num_samples=k,
        **kwargs,
    )


class Recorder:
    """A decoder that keeps the codes it was given."""

    def __init__(self, decoder: Callable[[tf.Tensor], tfd.Distribution]) -> None:
        self.codes: list[np.ndarray] = []
        self.decoder = decoder

    def __call__(self, z: tf.Tensor) -> tfd.Distribution:
        self.codes.append(z.numpy())
        return self.decoder(z)


@pytest.mark.parametrize("name", CASES)
def test_the_quadrature_itself(name: str) -> None:
    """Its ends are closed forms: the ELBO at m = 1, the log evidence far beyond."""
    model = case(name, 2.5)
    assert model.bound(1) == pytest.approx(model.elbo(), abs=1e-9)
    bounds = [model.bound(m) for m in (1, 2, 5, 50)]
    assert np.all(np.diff([*bounds, model.log_evidence]) > 1e-3)
    # What is missing tends to Var(w) / 2 m with w of mean 1 (finite for the overlapping case).
    if name == "overlapping":
        missing = model.log_evidence - model.bound(10_000)
        noise = np.linspace(-10, 10, 1201)
        log_squares = 2 * (model.log_weights() - model.log_evidence) + stats.norm.logpdf(noise)
        variance = np.exp(special.logsumexp(log_squares)) * (noise[1] - noise[0]) - 1.0
        assert missing == pytest.approx(variance / 20_000, rel=0.01)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("m", [1, 2, 5, 50])
def test_against_quadrature(name: str, m: int) -> None:
    result = scalar_bound(name, X, m, k=3000, batch_size=50_000)
    expected = np.array([case(name, x).bound(m) for x in X[:, 0]])
    assert result.values.shape == (3000, 3)
    assert result.values.dtype == np.float64
    errors = result.standard_errors
    assert np.all(errors > 0)
    assert np.all(np.abs(result.per_observation - expected) < STANDARD_ERRORS * errors)
    estimate = result.estimate
    assert abs(estimate.value - expected.mean()) < STANDARD_ERRORS * estimate.standard_error
    np.testing.assert_allclose(estimate.standard_error, np.sqrt((errors**2).sum()) / 3, rtol=1e-12)
    assert estimate.num_draws == 9000 * m


@pytest.mark.parametrize("k", [1, 2, 16])
def test_the_mean_does_not_depend_on_the_repetitions(k: int) -> None:
    """E[MC_k-IW_m] = IW_m for every k: here over 20000 values, whatever k is."""
    copies = 20_000 // k
    result = scalar_bound("overlapping", np.full([copies, 1], 0.3), 5, k, batch_size=50_000)
    means = result.values.mean(axis=0)
    error = means.std(ddof=1) / math.sqrt(copies)
    assert abs(means.mean() - case("overlapping", 0.3).bound(5)) < STANDARD_ERRORS * error
    # Averaging k values takes the variance to 1/k; a variance of 20000 / k is right to this much.
    variance = result.values.var(ddof=1) / k
    assert means.var(ddof=1) == pytest.approx(variance, rel=STANDARD_ERRORS * math.sqrt(4 / copies))


def test_one_importance_sample_is_the_elbo() -> None:
    model = ProbabilisticPCA(num=50)
    result = importance_weighted_elbo(
        model.x, wide(model), model.decoder, model.prior, num_importance_samples=1, num_samples=100
    )
    surgery = elbo_surgery(model.x, wide(model), model.decoder, model.prior, num_samples=100)
    difference = result.estimate.value - surgery.elbo.value
    error = math.hypot(result.estimate.standard_error, surgery.elbo.standard_error)
    assert 0 < abs(difference) < STANDARD_ERRORS * error
    draws = scored_draws(model.x, wide(model), model.decoder, model.prior, num_samples=100)
    log_weights = draws.reconstruction + draws.log_prior - draws.log_posterior  # [S, N]
    plain = math.sqrt(log_weights.var(axis=0, ddof=1).mean() / log_weights.size)
    assert result.estimate.standard_error == pytest.approx(plain, rel=0.1)
    np.testing.assert_allclose(result.effective_sample_sizes, 1.0, rtol=1e-12)


RATIO = 1.5


def wide(model: ProbabilisticPCA) -> Network:
    """The exact posteriors with RATIO times their standard deviation."""

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        exact = model.encoder(x)
        return tfd.MultivariateNormalTriL(exact.loc, RATIO * exact.scale_tril)

    return encoder


def test_the_ladder_of_inequalities() -> None:
    """ELBO = IW_1 < IW_2 < ... < log p(x), each step seen, and the gaps of a 2-d Gaussian."""
    model = ProbabilisticPCA(num=50)
    estimates = {
        m: importance_weighted_elbo(
            model.x,
            wide(model),
            model.decoder,
            model.prior,
            num_importance_samples=m,
            num_samples=k,
            batch_size=20_000,
        ).estimate
        for m, k in ((1, 800), (2, 800), (5, 400), (20, 250), (1000, 8))
    }
    for lower, upper in itertools.pairwise(estimates):
        step = estimates[upper].value - estimates[lower].value
        error = math.hypot(estimates[upper].standard_error, estimates[lower].standard_error)
        assert step > STANDARD_ERRORS * error
    # At m = 1 the gap is KL(q || p(z|x)) in 2 dimensions; later Var(w) / 2 m with E[w^2] =
    # (r^2 / sqrt(2 r^2 - 1))^2 for weights of mean 1. The next order is about 1 / m of that.
    kl = 2 * (0.5 * (RATIO**2 - 1) - math.log(RATIO))
    variance = RATIO**4 / (2 * RATIO**2 - 1) - 1
    for m, gap in ((1, kl), (20, variance / 40), (1000, variance / 2000)):
        allowed = STANDARD_ERRORS * estimates[m].standard_error + (2 * gap / m if m > 1 else 0.0)
        assert abs(model.average_log_evidence - gap - estimates[m].value) < allowed
    assert variance / 2000 < 3e-4  # converged


def test_exact_posteriors_make_every_bound_tight() -> None:
    model = ProbabilisticPCA(num=40)
    result = importance_weighted_elbo(
        model.x, model.encoder, model.decoder, model.prior, num_importance_samples=7
    )
    assert result.estimate.value == pytest.approx(model.average_log_evidence, abs=1e-9)
    assert result.estimate.standard_error < 1e-9
    np.testing.assert_allclose(result.effective_sample_sizes, 7.0, rtol=1e-9)


def log_weights_of(codes: np.ndarray, x: float, name: str) -> np.ndarray:
    model = case(name, x)
    log_weights: np.ndarray = (
        stats.norm.logpdf(codes)
        + stats.norm.logpdf(x, model.slope * codes, model.noise)
        - stats.norm.logpdf(codes, model.loc, math.exp(model.log_scale))
    )
    return log_weights


@pytest.mark.parametrize(("m", "k", "limit"), [(1, 3, 4), (4, 3, 4), (7, 3, 8), (5000, 1, 300)])
def test_the_streamed_sum_is_that_of_all_weights(m: int, k: int, limit: int) -> None:
    """Chunks change nothing but rounding, and hold no more codes than they are allowed to."""
    x = X[:2]
    recorder = Recorder(scalar_decoder)
    result = importance_weighted_elbo(
        x,
        scalar_encoder("separated"),
        recorder,
        PRIOR,
        num_importance_samples=m,
        num_samples=k,
        batch_size=limit,
    )
    num_chunks = -(-m * k // (limit // 2))
    chunks = recorder.codes[-num_chunks:]  # the first calls are checks of the model, of a few codes
    assert sum(map(len, recorder.codes[:-num_chunks])) <= 16
    assert len({len(codes) for codes in chunks}) == 1
    assert len(chunks[0]) <= limit
    # Both observations in a row for each draw; the last chunk draws more than it needs.
    codes = np.concatenate(chunks).reshape(-1, 2)[: m * k].reshape(k, m, 2)  # [S N, 1] -> [k, m, N]
    for n, observation in enumerate(x[:, 0]):
        sizes = []
        for s in range(k):
            log_weights = log_weights_of(codes[s, :, n], observation, "separated")
            np.testing.assert_allclose(
                result.values[s, n], special.logsumexp(log_weights) - math.log(m), rtol=1e-10
            )
            sizes.append(1 / (special.softmax(log_weights) ** 2).sum())
        np.testing.assert_allclose(result.effective_sample_sizes[n], np.mean(sizes), rtol=1e-9)


@pytest.mark.parametrize(("m", "k", "batch_size"), [(3, 5, 7), (2, 3, 100), (1, 5, 4), (9, 2, 4)])
def test_windows_fill_every_value(m: int, k: int, batch_size: int) -> None:
    """Uneven repetitions, observations and chunks: each value is that of its own observation."""
    x = np.linspace(10.0, 210.0, 5)[:, None]  # log evidences far apart
    result = scalar_bound("overlapping", x, m, k, batch_size=batch_size)
    expected = np.array([case("overlapping", value).log_evidence for value in x[:, 0]])
    assert np.all(np.abs(result.values - expected) < 20)
    assert np.min(np.abs(np.diff(expected))) > 40
    assert len(np.unique(result.values)) == result.values.size  # no draw is used twice


def test_weights_of_zero_count() -> None:
    """A uniform prior that misses half of the proposal: log mean weight by counting."""
    prior = tfd.Independent(tfd.Uniform(np.zeros(1), np.ones(1)), 1)
    encoder = lambda x: tfd.Independent(tfd.Uniform(-tf.ones_like(x), tf.ones_like(x)), 1)  # noqa: E731

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.zeros_like(z), [np.float64(1.0)])

    result = importance_weighted_elbo(
        np.tile(X, [4, 1]),
        encoder,
        decoder,
        prior,
        num_importance_samples=60,
        num_samples=1,
        batch_size=50,
    )
    # Weights are 0 or 2 p(x): the values are log p(x) + log(2 count / 60), with ESS = count.
    count = result.effective_sample_sizes
    np.testing.assert_allclose(count, np.round(count), rtol=1e-9)
    assert 10 < count.min() < 30 < count.max() < 50
    np.testing.assert_allclose(
        result.values[0], stats.norm.logpdf(np.tile(X[:, 0], 4)) + np.log(count / 30), rtol=1e-9
    )
    with pytest.raises(ValueError, match="all 1 weights are zero for"):
        importance_weighted_elbo(
            X, encoder, decoder, prior, num_importance_samples=1, num_samples=30
        )


def test_intervals_cover_the_bound() -> None:
    """Of 1000 data sets of 5 observations about 95% have IW_m, not log p(x), in the interval."""
    result = scalar_bound("separated", np.full([5000, 1], 0.3), 5, 40, batch_size=100_000)
    bound, log_evidence = case("separated", 0.3).bound(5), case("separated", 0.3).log_evidence
    estimates = estimates_of_groups(result, 5)
    check_coverage(covered(estimates, bound), 1000)
    assert covered(estimates, log_evidence) < 0.1


def test_the_seed_decides() -> None:
    def values(seed: int = 1, m: int = 5, k: int = 2) -> np.ndarray:
        found: np.ndarray = scalar_bound("overlapping", X, m, k, seed=seed).values
        return found

    np.testing.assert_array_equal(values(), values())
    assert np.all(values() != values(seed=2))
    assert np.all(values(m=1) != values(m=1, k=3)[:2])


def test_float32_models_and_image_data() -> None:
    """A tfp_surgery Dataset, Bernoulli pixels, and a float32 model: values are still float64."""
    rng = np.random.default_rng(0)
    dataset = Dataset("noise", "test", rng.random((6, 4, 4, 1)), "stochastic", 0)

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(x[:, :2, 0, 0], tf.ones([2]))

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        logits = tf.tile(z[:, :1, None, None], [1, 4, 4, 1])
        return tfd.Independent(tfd.Bernoulli(logits=logits), 3)

    prior = tfd.MultivariateNormalDiag(tf.zeros([2]))
    result = importance_weighted_elbo(
        dataset, encoder, decoder, lambda: prior, num_importance_samples=20, seed=3
    )
    assert result.values.shape == (2, 6)
    assert result.values.dtype == np.float64
    assert result.data == dataset.describe(draw_seed=3)
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["estimate"]["value"] == result.estimate.value
    assert written["num_importance_samples"] == 20
    assert len(written["per_observation"]) == 6
    assert all(1 <= size <= 20 for size in written["effective_sample_sizes"])
    assert "MC_2-IW_20" in str(result)
    assert str(result.estimate) in str(result)
    assert "noise/test" in str(result)


def test_a_single_weight_has_no_standard_error() -> None:
    with pytest.warns(UserWarning, match=r"num_importance_samples = 1 .*NaN"):
        result = scalar_bound("overlapping", X, 1, 1)
    assert math.isnan(result.estimate.standard_error)
    assert np.all(np.isnan(result.standard_errors))
    assert result.to_dict()["estimate"]["standard_error"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scalar_bound("overlapping", X, 5, 1)
        scalar_bound("overlapping", X, 1, 2)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"num_importance_samples": 0}, ValueError, "num_importance_samples must be at least 1"),
        ({"num_importance_samples": 2.5}, TypeError, "num_importance_samples must be an integer"),
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1"),
        ({"num_samples": True}, TypeError, "num_samples must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 2**31}, ValueError, "seed must be .* at most"),
        ({"x": np.array([[0.0], [np.nan]])}, ValueError, "x must be finite"),
        ({"x": np.zeros([0, 1])}, ValueError, "no observations"),
        ({"x": np.zeros([3, 2])}, ValueError, "event shape"),
        ({"encoder": lambda x: x}, TypeError, "the encoder must return a distribution"),
        ({"decoder": lambda z: z}, TypeError, "the decoder must return a distribution"),
        ({"encoder": 3}, TypeError, "encoder must be a callable"),
        ({"prior": 3}, TypeError, "prior"),
        (
            {"prior": tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))},
            ValueError,
            "the prior must be one distribution over codes of shape",
        ),
        (
            {"decoder": lambda z: scalar_decoder(z * np.nan)},
            ValueError,
            r"18 of 18 log weights are NaN or \+inf",
        ),
        (
            {"encoder": lambda x: tfd.MultivariateNormalDiag(x * np.nan, np.ones(1))},
            ValueError,
            "NaN",
        ),
    ],
)
def test_bad_input(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {
        "x": X,
        "encoder": lambda x: tfd.MultivariateNormalDiag(x[:, :1], np.ones(1)),
        "decoder": scalar_decoder,
        "prior": PRIOR,
        "num_importance_samples": 3,
    }
    with pytest.raises(error, match=message):
        importance_weighted_elbo(**{**arguments, **changed})


def test_the_default_batch_size_estimates_the_same_as_small_and_large_ones() -> None:
    chosen, small, large = (
        scalar_bound("overlapping", X, 50, 100, seed=3, batch_size=size)
        for size in (None, 500, 10**6)
    )
    assert (small.decoding, large.decoding) == ("by a graph", "eagerly")
    assert scalar_bound("overlapping", X, 50, 100, seed=3).to_dict() == chosen.to_dict()
    for one, other in itertools.combinations((chosen, small, large), 2):
        error = math.hypot(one.estimate.standard_error, other.estimate.standard_error)
        assert abs(one.estimate.value - other.estimate.value) <= STANDARD_ERRORS * error
