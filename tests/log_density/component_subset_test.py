"""Tests of log q(z) from a subset of components, against all of them by numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

import tfp_surgery as tfs
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors
from tfp_surgery.log_density.component_subset import SubsetEvaluation, log_prob_by_subset

tfd = tfp.distributions

N, D, S = 400, 2, 2
LOC = np.random.default_rng(0).normal(size=(N, D))
# Collapsed, overlapping and separated posteriors.
CASES = {"collapsed": (0.0, 1.0), "overlapping": (1.0, 0.5), "separated": (1e4, 0.5)}
Z = np.random.default_rng(1).normal(size=(S, N, D))


def posteriors(case: str) -> ReencodedPosteriors:
    spread, scale = CASES[case]
    table = tf.constant(spread * LOC)

    def encode_rows(rows: Any) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.gather(table, rows), np.full(D, scale))

    return ReencodedPosteriors(tf.range(N), encode_rows, batch_size=64)


def exact(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws [S N, D], their own scores and log q(z), the latter by numpy."""
    spread, scale = CASES[case]
    z = (spread * LOC + scale * Z).reshape(-1, D)
    scores = stats.norm.logpdf(z[:, None], spread * LOC, scale).sum(-1)
    own = np.tile(np.arange(N), S)
    return z, scores[np.arange(S * N), own], special.logsumexp(scores, axis=1) - np.log(N)


def evaluated(case: str, size: int, seed: int) -> SubsetEvaluation:
    z, log_own, _ = exact(case)
    subset = np.random.default_rng(seed).permutation(N)[:size]
    return log_prob_by_subset(
        posteriors(case), tf.constant(z), np.tile(np.arange(N), S), log_own, subset
    )


@pytest.mark.parametrize("case", CASES)
def test_all_components_give_the_exact_density(case: str) -> None:
    found = evaluated(case, N, 0)
    np.testing.assert_allclose(found.log_prob, exact(case)[2], rtol=1e-9)
    assert found.standard_error == 0.0
    assert found.bias == 0.0


@pytest.mark.parametrize("case", ["collapsed", "separated"])
def test_a_subset_is_exact_where_every_component_or_one_alone_counts(case: str) -> None:
    found = evaluated(case, 60, 0)
    np.testing.assert_allclose(found.log_prob, exact(case)[2], rtol=1e-9)
    assert found.standard_error < 1e-9


@pytest.mark.slow
def test_the_stated_error_is_that_of_many_subsets() -> None:
    means = exact("overlapping")[2].mean()
    runs = [evaluated("overlapping", 100, seed) for seed in range(24)]
    errors = np.array([run.log_prob.mean() for run in runs]) - means
    stated = np.array([run.standard_error for run in runs])
    bias = np.mean([run.bias for run in runs])
    # The bias is that of the logarithm, downwards, and the jackknife finds it.
    assert bias < 0
    error_of_mean = errors.std(ddof=1) / np.sqrt(len(runs))
    assert abs(errors.mean() - bias) < 5 * error_of_mean
    # Where the stated variance is right, 23 times this ratio is chi-squared with 23 degrees.
    ratio = errors.var(ddof=1) / np.mean(stated**2)
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], 23) / 23
    assert low < ratio < high


def test_a_surgery_states_the_error_of_its_subset() -> None:
    x = LOC.astype(np.float64)
    encoder = lambda x: tfd.MultivariateNormalDiag(x, np.full(D, 0.5))  # noqa: E731
    prior = tfd.MultivariateNormalDiag(np.zeros(D), np.ones(D))
    options: dict[str, Any] = {"num_query": 50, "reencode": True, "seed": 3}
    whole = tfs.elbo_surgery(x, encoder, None, prior, **options)
    part = tfs.elbo_surgery(x, encoder, None, prior, num_components=100, **options)
    assert part.average_kl == whole.average_kl
    for name in ("index_code_mutual_information", "marginal_kl"):
        one, other = getattr(part, name), getattr(whole, name)
        assert one.standard_error > other.standard_error
        added = np.sqrt(one.standard_error**2 - other.standard_error**2)
        assert 0 < abs(one.value - other.value) < 5 * added
    total = part.index_code_mutual_information.value + part.marginal_kl.value
    assert total == pytest.approx(part.average_kl.value)
    assert "from 100 of 400 components (standard error " in part.evaluation
    assert part.index_code_mutual_information_from_entropy is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 100}, "goes with reencode=True"),
        ({"num_components": 39, "reencode": True}, "at least 40"),
        ({"num_components": 401, "reencode": True}, "exceeds the number of observations, 400"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    encoder = lambda x: tfd.MultivariateNormalDiag(x, np.ones(D))  # noqa: E731
    prior = tfd.MultivariateNormalDiag(np.zeros(D), np.ones(D))
    with pytest.raises(ValueError, match=message):
        tfs.elbo_surgery(LOC, encoder, None, prior, **options)
