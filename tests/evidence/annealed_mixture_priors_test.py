"""Annealing under mixture priors, against log evidence in closed form or by quadrature."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.evidence.annealed_importance_sampling import (
    log_evidence_by_annealed_importance_sampling,
)
from tfp_surgery.evidence.bidirectional_monte_carlo import bidirectional_monte_carlo

tfb = tfp.bijectors
tfd = tfp.distributions

STANDARD_ERRORS = 4.5
WEIGHTS = np.array([0.3, 0.7])
CATEGORICAL = tfd.Categorical(probs=WEIGHTS)
# Of the Gaussian model: p(x|z) = N(LOADINGS z, NOISE^2 I), components N(LOC_k, I).
LOADINGS = np.array([[1.0, 0.4], [-0.3, 0.8], [0.5, 0.5]])
NOISE = 0.7
LOC = np.array([[-2.0, 0.0], [1.5, 1.0]])
CONCENTRATIONS = np.array([[0.8, 2.0, 3.0], [4.0, 1.0, 0.9]])
SHAPES = np.array([0.8, 6.0])


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, observations, and their log p(x)."""

    prior: tfd.Distribution | Callable[[], tfd.Distribution]
    decoder: Callable[[tf.Tensor], tfd.Distribution]
    x: np.ndarray
    log_evidence: Callable[[np.ndarray], np.ndarray]


def _mixed(*log_densities: np.ndarray) -> np.ndarray:
    mixed: np.ndarray = special.logsumexp(np.stack(log_densities), axis=0, b=WEIGHTS[:, None])
    return mixed


def _gaussian_decoder(z: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(z @ LOADINGS.T, NOISE * np.ones(3))


def _gaussian_evidence(x: np.ndarray) -> np.ndarray:
    covariance = LOADINGS @ LOADINGS.T + NOISE**2 * np.eye(3)
    parts = [stats.multivariate_normal(LOADINGS @ m, covariance).logpdf(x) for m in LOC]
    return _mixed(*parts)


def _poisson(z: tf.Tensor) -> tfd.Distribution:
    return tfd.Independent(tfd.Poisson(z), 1)


def _counts(x: np.ndarray) -> np.ndarray:
    """log p of each count under a Poisson with a rate of Gamma(SHAPES, 1)."""
    negative_binomials = [stats.nbinom(shape, 0.5).logpmf(x.ravel()) for shape in SHAPES]
    return _mixed(*negative_binomials).reshape(x.shape)


def _gammas() -> tfd.Distribution:
    return tfd.MixtureSameFamily(CATEGORICAL, tfd.Gamma(SHAPES, np.float64(1)))


def _two_families_evidence(x: np.ndarray) -> np.ndarray:
    """By the trapezoidal rule."""
    z = np.linspace(0, 60, 60001)
    prior = WEIGHTS @ np.stack([stats.gamma(2.0).pdf(z), stats.lognorm(0.5, scale=4.0).pdf(z)])
    values = [np.trapezoid(prior * stats.norm(z, 0.6).pdf(value), z) for value in x[:, 0]]
    return np.log(values)


CASES = {
    "gaussians": Case(
        # In a closure, as a layer is.
        lambda: tfd.MixtureSameFamily(
            CATEGORICAL, tfd.MultivariateNormalDiag(LOC, np.ones([2, 2]))
        ),
        _gaussian_decoder,
        np.array([[0.5, 0.2, -0.4], [-2.0, 1.0, 0.0], [2.5, 0.5, 1.0]]),
        _gaussian_evidence,
    ),
    "shifts": Case(  # every component has a map of its own, onto one space
        AggregatePosterior(
            tfd.TransformedDistribution(
                tfd.MultivariateNormalDiag(np.zeros([2, 2]), np.ones([2, 2])), tfb.Shift(LOC)
            ),
            weights=WEIGHTS,
        ),
        _gaussian_decoder,
        np.array([[0.5, 0.2, -0.4], [-2.0, 1.0, 0.0]]),
        _gaussian_evidence,
    ),
    "dirichlets": Case(
        tfd.MixtureSameFamily(CATEGORICAL, tfd.Dirichlet(CONCENTRATIONS)),
        lambda z: tfd.Multinomial(np.float64(6), probs=z),
        np.array([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0], [2.0, 2.0, 2.0]]),
        lambda x: _mixed(
            *(stats.dirichlet_multinomial(a, 6).logpmf(x.astype(int)) for a in CONCENTRATIONS)
        ),
    ),
    "gamma and log normal": Case(
        tfd.Sample(
            tfd.Mixture(
                CATEGORICAL,
                [
                    tfd.Gamma(np.float64(2), np.float64(1)),
                    tfd.LogNormal(np.log(np.float64(4)), np.float64(0.5)),
                ],
            ),
            1,
        ),
        lambda z: tfd.Independent(tfd.Normal(z, np.float64(0.6)), 1),
        np.array([[0.4], [3.0], [9.0]]),
        _two_families_evidence,
    ),
    "independent gammas": Case(
        tfd.Independent(
            tfd.MixtureSameFamily(
                tfd.Categorical(probs=np.stack([WEIGHTS, WEIGHTS])),
                tfd.Gamma(np.stack([SHAPES, SHAPES]), np.float64(1)),
            ),
            1,
        ),
        _poisson,
        np.array([[0.0, 3.0], [11.0, 1.0]]),
        lambda x: _counts(x).sum(axis=1),
    ),
    "sampled gammas": Case(
        tfd.Sample(_gammas(), 2), _poisson, np.array([[0.0, 3.0]]), lambda x: _counts(x).sum(axis=1)
    ),
    "transformed": Case(  # z = w^3 of a mixture of Gammas w
        tfd.TransformedDistribution(tfd.Sample(_gammas(), 1), tfb.Power(np.float64(3))),
        lambda z: _poisson(z ** (1 / 3)),
        np.array([[0.0], [4.0], [11.0]]),
        lambda x: _counts(x)[:, 0],
    ),
}


def _parameters(fast: set[str]) -> list[object]:
    return [
        pytest.param(name, marks=() if name in fast else pytest.mark.slow, id=name)
        for name in CASES
    ]


@pytest.mark.parametrize("name", _parameters({"gaussians", "dirichlets"}))
def test_lower_bounds_reach_the_log_evidence(name: str) -> None:
    """50 equal observations each: E[w] = p(x) whatever the chains, and the logarithm below it."""
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the effective sample size")
        result = log_evidence_by_annealed_importance_sampling(
            np.repeat(case.x, 50, axis=0),
            case.decoder,
            case.prior,
            num_temperatures=30,
            num_chains=16,
            num_leapfrog_steps=3,
            batch_size=50 * 16 * len(case.x),
        )
    truth = case.log_evidence(case.x)
    gaps = result.per_observation.reshape(len(case.x), 50) - truth[:, np.newaxis]
    for values in (np.exp(gaps) - 1, gaps):
        error = values.std(axis=1, ddof=1) / math.sqrt(50)
        assert np.all(error < 0.08)
        assert np.all(values.mean(axis=1) < STANDARD_ERRORS * error)
        if values is not gaps:
            assert np.all(values.mean(axis=1) > -STANDARD_ERRORS * error)
    assert result.acceptance_rates is not None
    assert result.acceptance_rates.mean() == pytest.approx(0.65, abs=0.1)


@pytest.mark.parametrize("name", _parameters({"gamma and log normal"}))
def test_bounds_from_both_sides_hold_the_log_evidence(name: str) -> None:
    case = CASES[name]
    result = bidirectional_monte_carlo(
        case.decoder,
        case.prior,
        num_observations=300,
        num_temperatures=30,
        num_chains=8,
        num_leapfrog_steps=3,
    )
    truth = case.log_evidence(result.x)
    for gap in (truth - result.forward.per_observation, result.reverse.per_observation - truth):
        error = gap.std(ddof=1) / math.sqrt(len(gap))
        assert error < 0.05
        assert gap.mean() > -STANDARD_ERRORS * error
        assert gap.mean() < 0.25 + STANDARD_ERRORS * error
    assert result.gap.value == pytest.approx(result.upper.value - result.lower.value)
