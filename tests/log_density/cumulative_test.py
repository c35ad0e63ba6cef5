from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

from tests.testing import oracles
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.log_density import generic_scores

tfd = tfp.distributions

N = 9
UNEVEN = np.arange(N, dtype=np.float64)
_SHIFT = np.linspace(-1.0, 1.0, N)

# Components, and the same in scipy: [M, 1] -> [M, N], (log F_n, log(1 - F_n)).
Oracle = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _of(frozen: Any) -> Oracle:
    return lambda z: (frozen.logcdf(z), frozen.logsf(z))


def _uniform(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    below = np.clip((z - _SHIFT + 1.0) / 2.0, 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return np.log(below), np.log1p(-below)


FAMILIES: dict[str, tuple[tfd.Distribution, Oracle]] = {
    "normal": (tfd.Normal(_SHIFT, np.float64(0.5)), _of(stats.norm(_SHIFT, 0.5))),
    "laplace": (tfd.Laplace(_SHIFT, np.float64(0.5)), _of(stats.laplace(_SHIFT, 0.5))),
    "student t": (tfd.StudentT(5.0, _SHIFT, np.float64(1.0)), _of(stats.t(5.0, _SHIFT))),
    "log-normal": (
        tfd.LogNormal(_SHIFT, np.float64(1.0)),
        _of(stats.lognorm(1, 0, np.exp(_SHIFT))),
    ),
    "uniform": (tfd.Uniform(_SHIFT - 1.0, _SHIFT + 1.0), _uniform),
    "beta": (tfd.Beta(np.exp(_SHIFT), np.float64(2.0)), _of(stats.beta(np.exp(_SHIFT), 2.0))),
    "poisson": (tfd.Poisson(np.exp(_SHIFT)), _of(stats.poisson(np.exp(_SHIFT)))),
}
_QUERIES = {
    "poisson": np.arange(9.0),
    "log-normal": np.linspace(0.05, 9, 9),
    "beta": np.linspace(0.05, 0.95, 9),
}


def _mixture(
    terms: tuple[np.ndarray, np.ndarray], weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """log F and log(1 - F), each as the complement of the other where that is the smaller one."""
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.ones(N) if weights is None else weights)
    below, above = (
        special.logsumexp(part + log_weights, axis=-1) - special.logsumexp(log_weights)
        for part in terms
    )
    with np.errstate(divide="ignore"):
        return (
            np.where(above < below, np.log1p(-np.exp(above)), below),
            np.where(above < below, above, np.log1p(-np.exp(below))),
        )


@pytest.mark.parametrize("weights", [None, UNEVEN], ids=["uniform", "weighted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_mixture_of_the_distribution_functions(
    family: str, weights: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of a few components and queries, against scipy in float64."""
    monkeypatch.setattr(generic_scores, "_BLOCK_ELEMENTS", 8)
    monkeypatch.setattr(generic_scores, "_BLOCK_QUERIES", 4)
    components, oracle = FAMILIES[family]
    q_z = AggregatePosterior(components, weights=weights)
    z = _QUERIES.get(family, np.linspace(-3.0, 3.0, 9))
    log_below, log_above = _mixture(oracle(z[:, None]), weights)
    np.testing.assert_allclose(q_z.log_cdf(z), log_below, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(q_z.log_survival_function(z), log_above, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(q_z.cdf(z), np.exp(log_below), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(q_z.survival_function(z), np.exp(log_above), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", oracles.CASES)
def test_both_tails_keep_their_digits(case: str, dtype: type) -> None:
    """log F far to the left and log(1 - F) far to the right, and 1 - F where F rounds to 1."""
    loc, scale = oracles.gaussian_case(case, N, 1)
    loc, scale = loc.astype(dtype), scale.astype(dtype)
    q_z = AggregatePosterior(tfd.Normal(loc[:, 0], scale[:, 0]), weights=UNEVEN.astype(dtype))
    z: np.ndarray = np.linspace(
        loc.min() - 12 * scale.max(), loc.max() + 12 * scale.max(), 41
    ).astype(dtype)
    frozen = stats.norm(loc[:, 0].astype(np.float64), scale[:, 0].astype(np.float64))
    log_below, log_above = _mixture(_of(frozen)(z[:, None].astype(np.float64)), UNEVEN)
    assert log_above.min() < -30
    assert log_below.max() > -1e-12
    tolerance = 3e-5 if dtype is np.float32 else 1e-9
    tiny = float(np.finfo(dtype).tiny)
    np.testing.assert_allclose(q_z.log_cdf(z), log_below, rtol=tolerance, atol=tiny)
    np.testing.assert_allclose(q_z.log_survival_function(z), log_above, rtol=tolerance, atol=tiny)
    assert np.all(q_z.cdf(z) <= 1.0)


def test_derivatives() -> None:
    """d F / d z is the density, and d F / d loc_n = -w_n q_n(z), on both sides of F = 1/2."""
    loc = tf.constant(_SHIFT)
    z = tf.constant(np.linspace(-4.0, 4.0, 11))
    probs = UNEVEN / UNEVEN.sum()
    densities = stats.norm.pdf(z.numpy()[:, None], _SHIFT, 0.5) * probs
    factors = np.linspace(1.0, 3.0, 11)
    for method in ("cdf", "survival_function"):
        with tf.GradientTape() as tape:
            tape.watch([loc, z])
            q_z = AggregatePosterior(tfd.Normal(loc, np.float64(0.5)), weights=UNEVEN)
            value = tf.reduce_sum(factors * getattr(q_z, method)(z))
        to_z, to_loc = tape.gradient(value, [z, loc])
        weighted = (factors if method == "cdf" else -factors)[:, None] * densities
        np.testing.assert_allclose(to_z, weighted.sum(axis=1), rtol=1e-9)
        np.testing.assert_allclose(to_loc, -weighted.sum(axis=0), rtol=1e-9)


def test_gradients_beyond_the_support_are_zero_and_not_nan() -> None:
    q_z = AggregatePosterior(tfd.Uniform([0.0, 0.5], [1.0, 1.5]))
    z = tf.constant([-1.0, 0.25, 2.0])
    _, gradient = tfp.math.value_and_gradient(q_z.cdf, z)
    np.testing.assert_allclose(gradient, [0.0, 0.5, 0.0])


def test_batches_graphs_and_xla() -> None:
    loc, scale = oracles.gaussian_case("overlapping", N, 3)
    marginals = AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale)).marginals()
    z = np.linspace(-2.0, 2.0, 12).reshape(4, 1, 3)
    expected = stats.norm.cdf(z[..., None], loc.T, scale.T).mean(axis=-1)
    np.testing.assert_allclose(marginals.cdf(z), expected, rtol=1e-12)
    for options in ({}, {"jit_compile": True}):
        compiled = tf.function(marginals.cdf, autograph=False, **options)
        np.testing.assert_allclose(compiled(tf.constant(z)), expected, rtol=1e-12)
    assert marginals.cdf(np.zeros([0, 3])).shape == (0, 3)


def test_codes_of_several_dimensions_are_refused() -> None:
    q_z = AggregatePosterior(tfd.MultivariateNormalDiag(tf.zeros([3, 2])))
    for method in (q_z.cdf, q_z.log_cdf, q_z.survival_function, q_z.log_survival_function):
        with pytest.raises(NotImplementedError, match=r"scalar codes.*marginals\(\)"):
            method(tf.zeros([2]))
