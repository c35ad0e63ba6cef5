from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing import oracles
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.distributions.leave_one_out import LeaveOneOut

tfd = tfp.distributions

RNG = np.random.default_rng(0)
N, D = 5, 2
LOC = RNG.normal(size=(N, D)) * 2
SCALE = RNG.uniform(0.3, 1.0, (N, D))
WEIGHTS = np.array([1.0, 0.0, 3.0, 2.0, 0.5])
INDEX = np.array([0, 3, -1, 4, N, 2])  # with two that are no component


def aggregate(weights: np.ndarray | None = None) -> AggregatePosterior:
    return AggregatePosterior(tfd.MultivariateNormalDiag(LOC, SCALE), weights)


def remaining_weights(weights: np.ndarray | None) -> np.ndarray:
    """The normalised weights without the component left out, `[B, N]`."""
    rows = np.tile(np.ones(N) if weights is None else weights, (len(INDEX), 1))
    for row, index in zip(rows, INDEX, strict=True):
        if 0 <= index < N:
            row[index] = 0.0
    rows /= rows.sum(axis=1, keepdims=True)
    return rows


def brute_force(z: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """log q_{-i}(z) of z `[S, B, D]`, by masking."""
    scores = scipy.stats.norm(LOC, SCALE).logpdf(z[..., None, :]).sum(axis=-1)  # [S, B, N]
    with np.errstate(divide="ignore"):
        terms = scores + np.log(remaining_weights(weights))
    log_prob: np.ndarray = scipy.special.logsumexp(terms, axis=-1)
    return log_prob


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_log_prob_is_that_of_the_other_components(weights: np.ndarray | None) -> None:
    left = LeaveOneOut(aggregate(weights), INDEX)
    assert left.batch_shape == [len(INDEX)]
    assert left.event_shape == [D]
    assert left.dtype == tf.float64
    z = RNG.normal(size=(4, len(INDEX), D)) * 2
    np.testing.assert_allclose(left.log_prob(z), brute_force(z, weights), rtol=1e-12)
    np.testing.assert_allclose(left.log_prob(z[0]), brute_force(z[:1], weights)[0], rtol=1e-12)
    same = np.broadcast_to(z[0, 0], (1, len(INDEX), D))
    np.testing.assert_allclose(left.log_prob(z[0, 0]), brute_force(same, weights)[0], rtol=1e-12)


@pytest.mark.parametrize("case", oracles.CASES)
def test_with_a_tolerance_the_log_prob_is_within_it(case: str) -> None:
    num, tolerance = 400, 1e-3
    loc, scale = oracles.gaussian_case(case, num, D)
    index = np.arange(-1, num + 1)  # with two that are no component
    own = index % num
    z = loc[own] + scale[own] * RNG.normal(size=(num + 2, D))
    is_component = (index >= 0) & (index < num)
    densities = oracles.gaussian_log_densities(z, loc, scale)
    densities[is_component, index[is_component]] = -np.inf
    expected = np.logaddexp.reduce(densities, axis=1) - np.log(num - is_component)
    left = LeaveOneOut(AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale)), index)
    actual = left.log_prob(z, tolerance=tolerance)
    # Rounding is below 1e-12 |log q| in float64.
    assert np.all(np.abs(actual - expected) <= tolerance + 1e-12 * np.abs(expected))
    with pytest.raises(ValueError, match="tolerance must be positive and finite"):
        left.log_prob(z, tolerance=-1.0)


def test_a_component_that_dominates_is_masked_and_not_subtracted() -> None:
    components = tfd.MultivariateNormalDiag([[0.0], [30.0]], [[0.01], [1.0]])  # float32
    left = LeaveOneOut(AggregatePosterior(components), [0])
    expected = scipy.stats.norm(30, 1).logpdf(0.0)
    np.testing.assert_allclose(left.log_prob([[0.0]]), [expected], rtol=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_draws_come_from_the_other_components(weights: np.ndarray | None) -> None:
    apart = tfd.MultivariateNormalDiag(np.arange(N)[:, None] * 100.0, np.ones([N, 1]))
    left = LeaveOneOut(AggregatePosterior(apart, weights), INDEX)
    num = 20000
    draws = left.sample(num, seed=(1, 2)).numpy()
    assert draws.shape == (num, len(INDEX), 1)
    component = np.round(draws[..., 0] / 100).astype(int)
    for b, expected in enumerate(remaining_weights(weights)):
        frequency = np.bincount(component[:, b], minlength=N) / num
        error = np.sqrt(expected * (1 - expected) / num)
        np.testing.assert_array_equal(frequency[expected == 0], 0)
        assert np.all(np.abs(frequency - expected) <= 4.5 * error)
        noise = (draws[:, b, 0] - 100 * component[:, b]).astype(np.float64)
        assert scipy.stats.kstest(noise, "norm").pvalue > 1e-4
    np.testing.assert_array_equal(left.sample(3, seed=(1, 2)), left.sample(3, seed=(1, 2)))


def test_gradients_are_those_of_the_other_components() -> None:
    z = tf.constant(RNG.normal(size=(3, len(INDEX), D)))
    loc = tf.constant(LOC)

    def by_streaming(z: tf.Tensor, loc: tf.Tensor) -> tf.Tensor:
        components = tfd.MultivariateNormalDiag(loc, SCALE)
        return LeaveOneOut(AggregatePosterior(components), INDEX).log_prob(z)

    def by_masking(z: tf.Tensor, loc: tf.Tensor) -> tf.Tensor:
        components = tfd.MultivariateNormalDiag(loc, SCALE)
        weights = tf.constant(remaining_weights(None))
        return tf.reduce_logsumexp(
            components.log_prob(z[..., tf.newaxis, :]) + tf.math.log(weights), axis=-1
        )

    _, gradients = tfp.math.value_and_gradient(by_streaming, [z, loc])
    _, expected = tfp.math.value_and_gradient(by_masking, [z, loc])
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-9, atol=1e-12)


def test_as_argument_of_a_compiled_function() -> None:
    left = LeaveOneOut(aggregate(), INDEX)
    z = RNG.normal(size=(4, len(INDEX), D))

    @tf.function(jit_compile=True)
    def draw_and_score(left: LeaveOneOut, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return left.sample(2, seed=(0, 1)), left.log_prob(z)

    draws, log_prob = draw_and_score(left, tf.constant(z))
    assert draws.shape == [2, len(INDEX), D]
    np.testing.assert_allclose(log_prob, brute_force(z, None), rtol=1e-9)


def test_bad_arguments() -> None:
    with pytest.raises(
        TypeError, match="must be an AggregatePosterior; got MultivariateNormalDiag"
    ):
        LeaveOneOut(tfd.MultivariateNormalDiag(LOC, SCALE), [0])
    with pytest.raises(TypeError, match="integer dtype; got float32"):
        LeaveOneOut(aggregate(), [0.0])
    with pytest.raises(ValueError, match=r"batch shape \(2,\)"):
        LeaveOneOut(aggregate().marginals(), [0])
    with pytest.raises(ValueError, match="N = 1"):
        LeaveOneOut(AggregatePosterior(tfd.MultivariateNormalDiag(LOC[:1], SCALE[:1])), [0])
