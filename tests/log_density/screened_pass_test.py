from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing import oracles
from tfp_surgery.log_density import gaussian_scores, screened_pass

tfd = tfp.distributions

N = 700
_EPS = float(np.finfo(np.float32).eps)
# One for all: each traces its programs anew.
PASS = screened_pass.ScreenedPass()


def _leaves(loc: np.ndarray, scale: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    leaves = gaussian_scores.diagonal_leaves(tfd.MultivariateNormalDiag(loc, scale))
    assert leaves is not None
    return leaves


def _evaluate(
    z: np.ndarray,
    loc: np.ndarray,
    scale: np.ndarray,
    log_weights: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    dtype = z.dtype
    leaves = _leaves(loc, scale)
    if log_weights is None:
        log_weights = np.full(len(loc), -np.log(len(loc)), dtype)
    results = PASS.forward(
        tf.constant(z),
        tf.constant(log_weights, dtype),
        leaves,
        None if excluded is None else tf.constant(excluded, tf.int32),
    )
    return results[0].numpy(), results[1].numpy()


def _case(
    case: str, event_size: int, shrink: float, dtype: type
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    loc, scale = oracles.gaussian_case(case, N, event_size)
    scale = scale / shrink
    z = loc + scale * np.random.default_rng(5).normal(size=loc.shape)
    return z[::2].astype(dtype), loc.astype(dtype), scale.astype(dtype)


def _check(results: tuple[np.ndarray, np.ndarray], densities: np.ndarray, eps: float) -> None:
    log_prob, entropy = oracles.log_prob_and_entropy(densities)
    bound = np.maximum(1e-4 * eps / _EPS, 4 * eps * np.abs(log_prob))
    assert np.all(np.abs(results[0] - log_prob) <= bound)
    # d H / d scores is at most log N + 1 times the error of the scores
    assert np.all(np.abs(results[1] - entropy) <= bound * (np.log(densities.shape[1]) + 1))


@pytest.mark.parametrize("case", oracles.CASES)
@pytest.mark.parametrize("event_size", [1, 5, 23])
@pytest.mark.parametrize("shrink", [1.0, 10.0, 1000.0])
def test_float32_agrees_with_brute_force(case: str, event_size: int, shrink: float) -> None:
    z, loc, scale = _case(case, event_size, shrink, np.float32)
    _check(_evaluate(z, loc, scale), oracles.gaussian_log_densities(z, loc, scale), _EPS)


@pytest.mark.parametrize("case", oracles.CASES)
def test_float64_keeps_its_digits(case: str) -> None:
    z, loc, scale = _case(case, 23, 1.0, np.float64)
    eps = float(np.finfo(np.float64).eps)
    _check(_evaluate(z, loc, scale), oracles.gaussian_log_densities(z, loc, scale), eps)


def test_scales_over_ten_orders_of_magnitude_and_far_queries() -> None:
    rng = np.random.default_rng(0)
    loc = rng.normal(size=(N, 20)).astype(np.float32)
    scale = (10.0 ** rng.uniform(-8, 2, size=(N, 20))).astype(np.float32)
    z = (loc + scale * rng.normal(size=loc.shape)).astype(np.float32)[:200]
    z[:50] += np.float32(100.0) * rng.normal(size=(50, 20)).astype(np.float32)
    _check(_evaluate(z, loc, scale), oracles.gaussian_log_densities(z, loc, scale), _EPS)


def test_duplicates_weights_of_zero_and_excluded_components() -> None:
    rng = np.random.default_rng(1)
    loc = np.repeat(rng.normal(size=(N // 2, 4)), 2, axis=0).astype(np.float32)
    scale = np.full_like(loc, 0.1)
    z = loc + scale * rng.normal(size=loc.shape).astype(np.float32)
    weights = rng.uniform(size=N) * (rng.uniform(size=N) < 0.7)
    weights /= weights.sum()
    excluded = np.arange(N)
    with np.errstate(divide="ignore"):
        results = _evaluate(z, loc, scale, np.log(weights), excluded)
    densities = oracles.gaussian_log_densities(z, loc, scale)
    densities[np.arange(N), excluded] = -np.inf
    with np.errstate(divide="ignore"):
        scores = densities + np.log(weights)
    log_prob = np.logaddexp.reduce(scores, axis=1)
    bound = np.maximum(1e-4, 4 * _EPS * np.abs(log_prob))
    assert np.all(np.abs(results[0] - log_prob) <= bound)


@pytest.mark.parametrize("case", oracles.CASES)
def test_more_components_than_one_tile_holds(case: str) -> None:
    num, rng = 5000, np.random.default_rng(2)
    loc, scale = (part.astype(np.float32) for part in oracles.gaussian_case(case, num, 14))
    rows = rng.choice(num, 300, replace=False)
    z = (loc + scale * rng.normal(size=loc.shape).astype(np.float32))[rows]
    densities = oracles.gaussian_log_densities(z, loc, scale)
    _check(_evaluate(z, loc, scale), densities, _EPS)
    densities[np.arange(len(z)), rows] = -np.inf
    log_prob, _ = _evaluate(z, loc, scale, excluded=rows)
    expected = np.logaddexp.reduce(densities, axis=1) - np.log(num)
    assert np.all(np.abs(log_prob - expected) <= np.maximum(1e-4, 4 * _EPS * np.abs(expected)))


def test_it_can_be_part_of_what_a_user_compiles_and_the_number_of_queries_unknown() -> None:
    z, loc, scale = _case("overlapping", 3, 1.0, np.float32)
    leaves = _leaves(loc, scale)
    log_weights = tf.fill([N], tf.constant(-np.log(N), tf.float32))

    def log_prob(z: tf.Tensor) -> tf.Tensor:
        return PASS.forward(z, log_weights, leaves, None)[0]

    expected = log_prob(tf.constant(z))
    compiled = tf.function(log_prob, jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(tf.constant(z)), expected, rtol=1e-5, atol=1e-5)
    unknown = tf.function(log_prob, [tf.TensorSpec([None, 3])], autograph=False)
    np.testing.assert_allclose(unknown(tf.constant(z)), expected, rtol=1e-5, atol=1e-5)
    assert unknown(tf.constant(z[:0])).shape == (0,)


def test_a_query_that_no_component_reaches_and_one_that_is_no_number() -> None:
    loc = np.zeros((N, 2), np.float32)
    z = np.array([[np.inf, 0.0], [np.nan, 0.0], [0.0, 0.0]], np.float32)
    log_prob, entropy = _evaluate(z, loc, np.ones_like(loc))
    assert log_prob[0] == -np.inf
    assert np.isnan(log_prob[1])
    assert np.isnan(entropy[:2]).all()
    np.testing.assert_allclose(log_prob[2], -np.log(2 * np.pi), rtol=1e-6)
    np.testing.assert_allclose(entropy[2], np.log(N), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", oracles.CASES)
def test_gradients_are_those_of_brute_force(case: str, dtype: type) -> None:
    z, loc, scale = _case(case, 5, 1.0, dtype)
    leaves = _leaves(loc, scale)
    log_weights = tf.fill([N], tf.constant(-np.log(N), dtype))
    excluded = tf.range(len(z)) * 2 + 1
    inputs = [tf.constant(z), log_weights, *leaves]
    rng = np.random.default_rng(0)
    upstream: tuple[np.ndarray, np.ndarray] = (
        rng.normal(size=len(z)).astype(dtype),
        rng.normal(size=len(z)).astype(dtype),
    )
    results = PASS.forward(inputs[0], inputs[1], inputs[2:], excluded)
    grads = PASS.backward(inputs[0], inputs[1], inputs[2:], excluded, results, upstream)

    wide = [tf.cast(part, tf.float64) for part in inputs]
    with tf.GradientTape() as tape:
        tape.watch(wide)
        standardised = (wide[0][:, tf.newaxis] - wide[2]) / wide[3]
        densities = -0.5 * standardised**2 - tf.math.log(wide[3])
        scores = wide[1] + tf.reduce_sum(densities, axis=-1) - 2.5 * np.log(2 * np.pi)
        scores -= 1e6 * tf.one_hot(excluded, N, dtype=tf.float64)
        log_prob = tf.reduce_logsumexp(scores, axis=1)
        log_index_prob = scores - log_prob[:, tf.newaxis]
        entropy = -tf.reduce_sum(tf.exp(log_index_prob) * log_index_prob, axis=1)
        target = tf.reduce_sum(log_prob * upstream[0] + entropy * upstream[1])
    for actual, expected in zip(grads, tape.gradient(target, wide), strict=True):
        tolerance = 1e3 * float(np.finfo(dtype).eps) * float(tf.reduce_max(tf.abs(expected)))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=max(tolerance, 1e-12))


def test_gradients_of_an_unknown_number_of_queries() -> None:
    z, loc, scale = _case("overlapping", 3, 1.0, np.float32)
    leaves = _leaves(loc, scale)
    log_weights = tf.fill([N], tf.constant(-np.log(N), tf.float32))

    def grads(z: tf.Tensor) -> Any:
        results = PASS.forward(z, log_weights, leaves, None)
        upstream = (tf.ones_like(results[0]), tf.zeros_like(results[0]))
        return PASS.backward(z, log_weights, leaves, None, results, upstream)

    unknown = tf.function(grads, [tf.TensorSpec([None, 3])], autograph=False)
    for num in (350, 130):
        for actual, expected in zip(unknown(z[:num]), grads(tf.constant(z[:num])), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    z_grad, *others = unknown(z[:0])
    assert z_grad.shape == (0, 3)
    for grad in others:
        np.testing.assert_array_equal(grad, tf.zeros_like(grad))


def test_a_block_of_queries_that_are_no_numbers() -> None:
    z, loc, scale = _case("overlapping", 3, 1.0, np.float32)
    z = np.concatenate([z, np.full((300, 3), np.nan, np.float32)])
    log_prob, _ = _evaluate(z, loc, scale)
    assert np.isnan(log_prob[-300:]).all()
    assert np.isfinite(log_prob[:-300]).all()


def test_gradients_stay_finite_beside_high_densities_and_infinite_queries() -> None:
    """The repeated last query scores above log of the largest float32; one query is infinite."""
    rng = np.random.default_rng(0)
    loc = rng.normal(size=(N, 64)).astype(np.float32)
    scale = np.full_like(loc, 0.05)
    z = loc[:130].copy()
    z[7, 3] = np.inf
    inputs = [tf.constant(z), tf.fill([N], np.float32(-np.log(N))), *_leaves(loc, scale)]
    results = PASS.forward(inputs[0], inputs[1], inputs[2:], None)
    assert results[0].numpy()[-1] > 100
    upstream = (tf.ones([130]), tf.ones([130]))
    grads = PASS.backward(inputs[0], inputs[1], inputs[2:], None, results, upstream)
    for grad in grads:
        assert np.isfinite(grad).all()


def test_narrow_components_that_carry_the_gradient_are_not_passed_over() -> None:
    """4096 components 25 nats below log q(0), of slope 8.9e6 each, against one of slope 1."""
    loc = np.full((4097, 1), 8.9e-6)
    scale = np.full((4097, 1), 1e-6)
    loc[0], scale[0] = -1.0, 1.0
    leaves = _leaves(loc, scale)
    log_weights = tf.fill([4097], tf.constant(-np.log(4097.0), tf.float64))
    arguments = [tf.cast(part, tf.float32) for part in (tf.zeros([1, 1]), log_weights, *leaves)]
    z, log_weights32, *leaves32 = arguments
    results = PASS.forward(z, log_weights32, leaves32, None)
    upstream = (tf.ones([1]), tf.zeros([1]))
    actual = PASS.backward(z, log_weights32, leaves32, None, results, upstream)[0]
    standardised = (0.0 - loc[:, 0]) / scale[:, 0]
    scores = -0.5 * standardised**2 - np.log(scale[:, 0])
    index_prob = np.exp(scores - np.logaddexp.reduce(scores))
    expected = np.sum(index_prob * -standardised / scale[:, 0])
    # Rounding 8.9e-6 and 1e-6 to float32 moves the small scores by some 1e-5.
    np.testing.assert_allclose(actual.numpy().item(), expected, rtol=1e-3)
    only_wide = index_prob[0] * -standardised[0]
    assert abs(expected - only_wide) > 0.1


def test_it_is_chosen_for_many_pairs_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loc = tf.zeros([60000, 2])
    assert screened_pass.is_suitable(tf.zeros([60000, 2]), loc)
    assert not screened_pass.is_suitable(tf.zeros([10, 2]), loc)
    assert not screened_pass.is_suitable(tf.zeros([60000, 2]), tf.zeros([100, 2]))
    assert not screened_pass.is_suitable(tf.zeros([3, 60000, 2]), tf.zeros([3, 60000, 2]))
    assert not screened_pass.is_suitable(
        tf.zeros([60000, 2], tf.float16), tf.zeros([60000, 2], tf.float16)
    )
    device = tf.config.PhysicalDevice("a GPU", "GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *_: [device])
    assert not screened_pass.is_suitable(tf.zeros([60000, 2]), loc)
