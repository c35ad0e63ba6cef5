from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing import oracles
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.log_density import evaluation
from tfp_surgery.log_density.tree import component_tree

tfd = tfp.distributions

N, D = 600, 3
TOLERANCE = 1e-3


def _problem(case: str = "overlapping") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    loc, scale = oracles.gaussian_case(case, N, D)
    return loc + scale * np.random.default_rng(5).normal(size=loc.shape), loc, scale


def _brute_force(z: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> Any:
    return oracles.log_prob_and_entropy(oracles.gaussian_log_densities(z, loc, scale))


@pytest.mark.parametrize("case", oracles.CASES)
def test_without_a_tolerance_all_components_count(case: str) -> None:
    z, loc, scale = _problem(case)
    evaluated = AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale)).evaluate(z)
    log_prob, entropy = _brute_force(z, loc, scale)
    np.testing.assert_allclose(evaluated.log_prob, log_prob, rtol=1e-12)
    np.testing.assert_allclose(evaluated.index_entropy, entropy, atol=1e-10)
    assert evaluated.component_log_prob is None
    np.testing.assert_array_equal(evaluated.num_visited, np.full(N, N))


@pytest.mark.parametrize("case", oracles.CASES)
def test_with_a_tolerance_the_tree_answers_within_it(case: str) -> None:
    pytest.importorskip("numba")
    z, loc, scale = _problem(case)
    q_z = AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale))
    evaluated = q_z.evaluate(z.reshape(2, -1, D), tolerance=TOLERANCE)
    log_prob, entropy = (part.reshape(2, -1) for part in _brute_force(z, loc, scale))
    assert np.abs(evaluated.log_prob - log_prob).max() <= TOLERANCE
    assert np.abs(evaluated.index_entropy - entropy).max() <= TOLERANCE
    assert evaluated.num_visited.shape == (2, N // 2)
    visited = np.mean(evaluated.num_visited)
    assert visited == N if case == "collapsed" else visited < (N if case == "overlapping" else 20)
    np.testing.assert_array_equal(
        q_z.log_prob(z, tolerance=TOLERANCE), tf.reshape(evaluated.log_prob, [-1])
    )
    np.testing.assert_array_equal(
        q_z.index_entropy(z, tolerance=TOLERANCE), tf.reshape(evaluated.index_entropy, [-1])
    )


def test_the_tree_has_the_derivatives_of_the_streamed_pass() -> None:
    pytest.importorskip("numba")
    z, loc, scale = (tf.constant(part) for part in _problem())

    def gradients(tolerance: float | None) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([z, loc, scale])
            q_z = AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale))
            evaluated = q_z.evaluate(z, tolerance=tolerance)
            target = tf.reduce_sum(evaluated.log_prob - 0.5 * evaluated.index_entropy)
        return tape.gradient(target, [z, loc, scale])

    for actual, expected in zip(gradients(1e-6), gradients(None), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_without_numba_the_streamed_pass_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component_tree, "is_available", lambda: False)
    z, loc, scale = _problem()
    q_z = AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale))
    evaluated = q_z.evaluate(z, tolerance=TOLERANCE)
    np.testing.assert_array_equal(evaluated.num_visited, N)
    np.testing.assert_array_equal(evaluated.log_prob, q_z.log_prob(z))


@pytest.mark.parametrize("kind", ["full covariance", "batch", "graph"])
def test_what_the_tree_does_not_serve_is_streamed(kind: str) -> None:
    z, loc, scale = _problem("separated")
    z, loc, scale = z[:20], loc[:20], scale[:20]
    components = tfd.MultivariateNormalDiag(loc, scale)
    if kind == "full covariance":
        components = tfd.MultivariateNormalTriL(loc, tf.linalg.diag(scale))
    if kind == "batch":
        components = tfd.MultivariateNormalDiag(loc[None], scale[None])
        z = z[:, None]
    evaluate = AggregatePosterior(components).evaluate
    if kind == "graph":
        evaluate = tf.function(evaluate)
    evaluated = evaluate(tf.constant(z), tolerance=TOLERANCE)
    values = np.reshape(evaluated.log_prob, -1)
    np.testing.assert_allclose(values, _brute_force(z.reshape(-1, D), loc, scale)[0], rtol=1e-10)
    np.testing.assert_array_equal(evaluated.num_visited, 20)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_a_function_may_return_the_evaluation(named: bool, jit_compile: bool) -> None:
    z, loc, scale = (tf.constant(part) for part in _problem())
    index = tf.range(N) if named else None
    q_z = AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale))
    evaluated = tf.function(q_z.evaluate, jit_compile=jit_compile)(z, index)
    assert isinstance(evaluated, evaluation.Evaluation)
    for actual, expected in zip(evaluated, q_z.evaluate(z, index), strict=True):
        if expected is None:
            assert actual is None
        else:
            assert actual.dtype == expected.dtype
            np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_queries", [N, 6 * N])
@pytest.mark.parametrize("case", oracles.CASES)
def test_leaving_one_out_is_within_the_tolerance(case: str, num_queries: int) -> None:
    """Also for many queries, which start from what some of them gave."""
    pytest.importorskip("numba")
    _, loc, scale = _problem(case)
    index = np.arange(num_queries) % N
    z = loc[index] + scale[index] * np.random.default_rng(5).normal(size=(num_queries, D))
    densities = oracles.gaussian_log_densities(z, loc, scale)
    densities[np.arange(num_queries), index] = -np.inf
    expected = np.logaddexp.reduce(densities, axis=1) - np.log(N - 1)
    q_z = AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale))
    actual = q_z.leave_one_out_log_prob(z, index, tolerance=TOLERANCE)
    # Rounding is below 1e-12 |log q| in float64.
    assert np.all(np.abs(actual - expected) <= TOLERANCE + 1e-12 * np.abs(expected))
    if case == "overlapping":
        # The tree answered: something was left out, for less than the tolerance.
        assert np.abs(actual - expected).max() > 1e-9


def test_the_named_component_is_scored_in_the_same_pass() -> None:
    z, loc, scale = _problem()
    q_z = AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale))
    index = np.arange(N)[::-1].copy()
    evaluated = q_z.evaluate(z, index=index)
    assert evaluated.component_log_prob is not None
    densities = oracles.gaussian_log_densities(z, loc, scale)
    np.testing.assert_allclose(
        evaluated.component_log_prob, densities[np.arange(N), index], rtol=1e-12
    )
    with pytest.raises(ValueError, match="index must lie"):
        q_z.evaluate(z, index=np.full(N, N))


@pytest.mark.parametrize("case", oracles.CASES)
def test_marginals_with_a_tolerance_are_interpolated_within_it(case: str) -> None:
    z, loc, scale = _problem(case)
    marginals = AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale)).marginals()
    values = marginals.log_prob(z, tolerance=1e-5)
    assert values.shape == (N, D)
    np.testing.assert_allclose(values, marginals.log_prob(z), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tolerance_is_positive_and_finite(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance must be positive and finite"):
        evaluation.checked_tolerance(tolerance)


@pytest.mark.parametrize("tolerance", ["1e-4", True])
def test_a_tolerance_is_a_number(tolerance: Any) -> None:
    with pytest.raises(TypeError, match="tolerance must be a positive number"):
        evaluation.checked_tolerance(tolerance)
