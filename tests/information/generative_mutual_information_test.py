from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

from tfp_surgery.estimate import Estimate
from tfp_surgery.information.generative_mutual_information import generative_mutual_information

tfd = tfp.distributions

_STANDARD_ERRORS = 4.5
_PRIOR = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))


def _assert_near(estimate: Estimate, truth: float) -> None:
    tolerance = _STANDARD_ERRORS * estimate.standard_error + 1e-9
    assert abs(estimate.value - truth) <= tolerance, (estimate, truth)


def _scalar_decoder(noise: float) -> Any:
    return lambda z: tfd.MultivariateNormalDiag(z, [np.float64(noise)])


def _expected_bounds(noise: float, num_importance_samples: int) -> tuple[float, float]:
    """Lower and upper bound of z ~ N(0, 1), x|z ~ N(z, noise^2) in expectation, by quadrature.

    For independent weights w_j, E log sum_j w_j = int (exp(-t) - prod_j E exp(-t w_j)) / t dt.
    """
    nodes, node_weights = special.roots_hermitenorm(24)
    node_weights = node_weights / node_weights.sum()
    total = math.hypot(1.0, noise)
    x = total * nodes
    z = np.linspace(-9, 9, 401)
    step = z[1] - z[0]
    prior = stats.norm.pdf(z) * step
    log_w = stats.norm.logpdf(x[:, None], z, noise) - stats.norm.logpdf(x, 0, total)[:, None]
    w = np.exp(log_w)  # p(x|z) / p(x) = p(z|x) / p(z), [X, Z]
    posterior = prior * w
    u = np.linspace(-40, 60, 401)  # t = exp(u)

    def transform(size: int) -> tuple[np.ndarray, np.ndarray]:
        fresh, own = np.empty([2, x.size, u.size])
        for k in range(x.size):
            kernel = np.exp(-np.exp(u)[:, None] * w[k] / size)  # [U, Z]
            fresh[k], own[k] = kernel @ prior, kernel @ posterior[k]
        return fresh, own

    information = -math.log(noise) + math.log(total)
    fresh = transform(num_importance_samples)[0]
    upper = np.trapezoid(np.exp(-np.exp(u)) - fresh**num_importance_samples, u) @ node_weights
    fresh, own = transform(num_importance_samples + 1)
    lower = np.trapezoid(np.exp(-np.exp(u)) - own * fresh**num_importance_samples, u) @ node_weights
    return information - lower, information - upper


@pytest.mark.parametrize("num_importance_samples", [1, 60])
def test_both_bounds_have_the_expectation_that_quadrature_gives(
    num_importance_samples: int,
) -> None:
    noise = 1.0
    information = 0.5 * math.log1p(1 / noise**2)
    lower, upper = _expected_bounds(noise, num_importance_samples)
    assert lower < information < upper
    bounds = generative_mutual_information(
        _scalar_decoder(noise),
        _PRIOR,
        num_observations=8000,
        num_importance_samples=num_importance_samples,
        seed=1,
    )
    assert bounds.upper is not None
    _assert_near(bounds.lower.estimate, lower)
    _assert_near(bounds.upper.estimate, upper)
    assert bounds.lower.ceiling == pytest.approx(math.log(num_importance_samples + 1))
    assert not bounds.lower.at_ceiling
    assert bounds.upper.ceiling is None


def test_bias_is_the_one_that_the_docstring_names() -> None:
    # E_p(x) Var_p(z)[p(x|z) / p(x)] of a bivariate normal is r^2 / (1 - r^2), 1 here.
    lower, upper = _expected_bounds(1.0, 400)
    information = 0.5 * math.log(2.0)
    assert upper - information == pytest.approx(1 / 800, rel=0.05)
    assert information - lower == pytest.approx(1 / 800, rel=0.05)
    bounds = generative_mutual_information(
        _scalar_decoder(1.0), _PRIOR, num_observations=4000, num_importance_samples=400, seed=2
    )
    assert bounds.upper is not None
    _assert_near(bounds.lower.estimate, lower)
    _assert_near(bounds.upper.estimate, upper)


def test_linear_gaussian_model_lies_between_the_bounds() -> None:
    weights = np.random.default_rng(0).normal(size=(2, 4))
    noise = 0.8
    information = 0.5 * np.linalg.slogdet(np.eye(4) + weights.T @ weights / noise**2)[1]
    bounds = generative_mutual_information(
        lambda z: tfd.MultivariateNormalDiag(z @ weights, noise * np.ones(4)),
        lambda: tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2)),
        num_observations=2000,
        num_importance_samples=5000,
        seed=3,
    )
    assert bounds.upper is not None
    lower, upper = bounds.lower.estimate, bounds.upper.estimate
    assert lower.value - _STANDARD_ERRORS * lower.standard_error <= information
    assert upper.value + _STANDARD_ERRORS * upper.standard_error >= information
    # c / m of the docstring, c = prod_i (1 + l_i) - 1 over the eigenvalues l of W W^T / noise^2.
    chi_square = math.exp(2 * information) - 1
    assert 0 <= upper.value - lower.value <= 2 * chi_square / 5000


def test_binary_likelihood_agrees_with_the_sum_over_all_observations() -> None:
    slopes, offsets = np.array([2.0, -1.0, 0.5]), np.array([0.3, 0.0, -1.0])
    grid = np.linspace(-9, 9, 4001)
    prior = stats.norm.pdf(grid) * (grid[1] - grid[0])
    p = special.expit(slopes[:, None] * grid + offsets[:, None])  # [3, Z]
    information, chi_square = 0.0, -1.0
    for x in itertools.product([0, 1], repeat=3):
        likelihood = np.prod([p[d] if x[d] else 1 - p[d] for d in range(3)], axis=0)
        evidence = likelihood @ prior
        information += special.rel_entr(likelihood, evidence) @ prior
        chi_square += likelihood**2 @ prior / evidence

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Bernoulli(logits=z * slopes + offsets), 1)

    bounds = generative_mutual_information(
        decoder, _PRIOR, num_observations=6000, num_importance_samples=500, seed=4
    )
    assert bounds.upper is not None
    for bound, sign in ((bounds.lower, -1), (bounds.upper, 1)):
        expected = information + sign * chi_square / (2 * 500)
        _assert_near(bound.estimate, expected)
    assert bounds.upper.estimate.value > bounds.lower.estimate.value


def test_a_decoder_that_ignores_the_code_has_no_information() -> None:
    bounds = generative_mutual_information(
        lambda z: tfd.MultivariateNormalDiag(tf.zeros_like(z), [1.0]),
        _PRIOR,
        num_observations=100,
        num_importance_samples=20,
    )
    assert bounds.upper is not None
    assert bounds.lower.estimate.value == pytest.approx(0.0, abs=1e-12)
    assert bounds.upper.estimate.value == pytest.approx(0.0, abs=1e-12)
    assert not bounds.lower.at_ceiling


def test_a_precise_decoder_reaches_the_ceiling_of_the_lower_bound() -> None:
    noise = 1e-6
    information = 0.5 * math.log1p(1 / noise**2)
    bounds = generative_mutual_information(
        _scalar_decoder(noise), _PRIOR, num_observations=200, num_importance_samples=30
    )
    assert bounds.upper is not None
    assert bounds.lower.estimate.value == pytest.approx(math.log(31), rel=1e-3)
    assert bounds.lower.at_ceiling
    assert "REACHED" in str(bounds)
    assert bounds.upper.estimate.value > information


def test_bounds_equal_brute_force_on_the_same_draws() -> None:
    """So many observations and codes that neither are taken at once."""
    codes: list[np.ndarray] = []
    observations: list[np.ndarray] = []

    class Recorded(tfd.MultivariateNormalDiag):
        def sample(self, *args: Any, **kwargs: Any) -> tf.Tensor:
            drawn = super().sample(*args, **kwargs)
            observations.append(drawn.numpy())
            return drawn

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        codes.append(z.numpy())
        return Recorded(tf.concat([z, -z], axis=-1), [0.7, 1.3])

    groups, size, m = 50, 21, 2000
    bounds = generative_mutual_information(
        decoder, _PRIOR, num_observations=1010, num_importance_samples=m, seed=6
    )
    # Rounded up to groups of one size.
    assert bounds.num_observations == bounds.lower.estimate.num_draws == groups * size
    assert len(observations) == 2
    assert len(codes) == 4
    x = np.concatenate(observations).reshape(groups, size, 1, 2)
    z = np.concatenate(codes[:2]).reshape(groups, size, 1)
    fresh = np.concatenate(codes[2:]).reshape(groups, 1, m)
    assert np.unique(np.concatenate([np.ravel(z), np.ravel(fresh)])).size == groups * (size + m)

    def log_prob(z: np.ndarray) -> np.ndarray:
        loc = np.stack([z, -z], axis=-1)
        densities: np.ndarray = stats.norm.logpdf(x, loc, [0.7, 1.3]).sum(axis=-1)
        return densities  # [groups, size, codes]

    own, inner = log_prob(z), log_prob(fresh)
    upper = own[..., 0] - special.logsumexp(inner, axis=-1) + math.log(m)
    every = np.concatenate([own, inner], axis=-1)
    lower = own[..., 0] - special.logsumexp(every, axis=-1) + math.log(m + 1)
    assert bounds.upper is not None
    for bound, values in ((bounds.lower, lower), (bounds.upper, upper)):
        means = values.mean(axis=1)
        assert bound.estimate.value == pytest.approx(means.mean(), rel=1e-10)
        assert bound.estimate.standard_error == pytest.approx(
            means.std(ddof=1) / math.sqrt(groups), rel=1e-10
        )


def test_an_observation_that_no_fresh_code_can_give_leaves_no_upper_bound() -> None:
    bounds = generative_mutual_information(
        lambda z: tfd.Independent(tfd.Uniform(z, z + 1e-6), 1),
        _PRIOR,
        num_observations=10,
        num_importance_samples=4,
    )
    assert bounds.upper is None
    record = json.loads(json.dumps(bounds.to_dict(), allow_nan=False))
    assert record["upper"] is None
    assert "infinite" in record["absent"]["upper"]
    assert record["lower"]["value"] == pytest.approx(math.log(5))
    assert "absent: infinite" in str(bounds)


def test_the_same_seed_gives_the_same_result() -> None:
    first, second, other = (
        generative_mutual_information(
            _scalar_decoder(1.0), _PRIOR, num_observations=10, num_importance_samples=5, seed=seed
        ).to_dict()
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first["lower"]["value"] != other["lower"]["value"]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"decoder": 3}, TypeError, "decoder must be callable"),
        ({"decoder": lambda z: z}, TypeError, "decoder must return"),
        (
            {"decoder": lambda z: tfd.Normal(z, np.float64(1.0))},
            ValueError,
            "one distribution for each",
        ),
        (
            {"decoder": lambda z: tfd.MultivariateNormalDiag(z * np.nan, [1.0])},
            ValueError,
            "NaN or infinite at a code",
        ),
        ({"prior": 3}, TypeError, "prior must be"),
        ({"prior": tfd.Normal(np.zeros(2), np.ones(2))}, ValueError, "batch shape"),
        (
            {"prior": tfd.JointDistributionSequential([_PRIOR, _PRIOR])},
            TypeError,
            "single tensors",
        ),
        ({"num_observations": 1}, ValueError, "num_observations must be"),
        ({"num_importance_samples": 0}, ValueError, "num_importance_samples must be"),
        ({"num_importance_samples": 1.5}, TypeError, "num_importance_samples must be"),
        ({"seed": 2**31}, ValueError, "seed must be"),
    ],
)
def test_bad_input_is_refused(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {
        "decoder": _scalar_decoder(1.0),
        "prior": _PRIOR,
        "num_observations": 4,
        "num_importance_samples": 2,
        **changed,
    }
    decoder, prior = given.pop("decoder"), given.pop("prior")
    with pytest.raises(error, match=message):
        generative_mutual_information(decoder, prior, **given)


@pytest.mark.slow
def test_intervals_cover_the_expectations_of_the_bounds() -> None:
    """300 results; a coverage has a standard error of 1.3 per cent."""
    results, num_importance_samples = 300, 5
    expected = dict(
        zip(("lower", "upper"), _expected_bounds(1.0, num_importance_samples), strict=True)
    )
    covered: dict[str, list[bool]] = {"lower": [], "upper": []}
    for seed in range(results):
        bounds = generative_mutual_information(
            _scalar_decoder(1.0),
            _PRIOR,
            num_observations=200,
            num_importance_samples=num_importance_samples,
            seed=seed,
        )
        for name, hits in covered.items():
            low, high = getattr(bounds, name).estimate.interval()
            hits.append(low <= expected[name] <= high)
    tolerance = _STANDARD_ERRORS * math.sqrt(0.95 * 0.05 / results)
    for name, hits in covered.items():
        assert abs(np.mean(hits) - 0.95) <= tolerance, (name, np.mean(hits))
