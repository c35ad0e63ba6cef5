from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import weights

tfd = tfp.distributions

COMPONENTS = tfd.Normal(np.zeros((2, 3)), 1.0)


def test_no_weights_are_equal_ones() -> None:
    np.testing.assert_allclose(weights.log_weights(None, COMPONENTS), np.full((2, 3), -np.log(3)))


def test_weights_broadcast_and_sum_to_one() -> None:
    log_weights = weights.log_weights(tf.constant([1.0, 0.0, 3.0], tf.float64), COMPONENTS)
    np.testing.assert_allclose(np.exp(log_weights), [[0.25, 0.0, 0.75]] * 2)


def test_what_remains_without_one_component() -> None:
    log_weights = tf.math.log(tf.constant([0.25, 0.0, 0.75], tf.float64))
    remaining = weights.log_remaining(log_weights, tf.constant([[2, 0], [-1, 1]]))
    np.testing.assert_allclose(np.exp(remaining), [[0.25, 0.75], [1.0, 1.0]], rtol=1e-14)


@pytest.mark.parametrize("given", [None, [1.0, 0.0, 3.0]])
def test_indices_are_drawn_by_weight(given: list[float] | None) -> None:
    num = 20000
    chosen = None if given is None else tf.constant(given, tf.float64)
    index = weights.sample_index(chosen, COMPONENTS, tf.constant(num), seed=(1, 2))
    assert index.shape == (2, num)
    assert index.dtype == tf.int32
    expected = np.full(3, 1 / 3) if given is None else np.array(given) / 4
    error = np.sqrt(expected * (1 - expected) / num)
    for row in index.numpy():
        assert np.all(np.abs(np.bincount(row, minlength=3) / num - expected) <= 4.5 * error)
    assert np.any(index[0] != index[1])


def test_weights_that_do_not_fit_are_refused() -> None:
    weights.check_shape(tf.TensorShape([3]), COMPONENTS.batch_shape)
    with pytest.raises(ValueError, match=r"weights of shape \(2,\).*\(2, 3\)"):
        weights.check_shape(tf.TensorShape([2]), COMPONENTS.batch_shape)


def test_weights_from_logits_are_a_softmax() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 5))
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(weights.weights_from_logits(tf.constant(logits)), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_from_logits_never_underflow(dtype: str) -> None:
    """However small, a weight has a finite logarithm and gradient, and the rest lose nothing."""
    logits = tf.constant([800.0, 799.0, 0.0, -1e4], dtype)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        result = weights.weights_from_logits(logits)
        log_weights = weights.log_weights(result, tfd.Normal(tf.zeros([4], dtype), 1.0))
    larger = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(result[:2], [larger, 1 - larger], rtol=1e-6)
    np.testing.assert_allclose(log_weights[2:], np.log(larger) - [60.0, 60.0], rtol=1e-6)
    assert np.all(np.isfinite(tape.gradient(log_weights, logits)))
