from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.distributions.discretized_logistic import DiscretizedLogistic

tfd = tfp.distributions


def levels(num_levels: int, dtype: Any = np.float64) -> np.ndarray:
    return np.arange(num_levels, dtype=dtype) / (num_levels - 1)


@pytest.mark.parametrize("num_levels", [2, 5, 17, 256])
@pytest.mark.parametrize(("loc", "scale"), [(0.5, 0.1), (-3.0, 0.3), (1.0, 1e-5), (0.2, 50.0)])
def test_probabilities_sum_to_one(num_levels: int, loc: float, scale: float) -> None:
    distribution = DiscretizedLogistic(np.float64(loc), np.float64(scale), num_levels)
    probabilities = distribution.prob(levels(num_levels)).numpy()
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    assert probabilities.min() >= 0.0


def test_mass_is_that_of_the_logistic_in_the_bin() -> None:
    logistic = tfd.Logistic(np.float64(0.4), np.float64(0.15))
    x = levels(9)
    edges = (x[1:] + x[:-1]) / 2
    cdf = np.concatenate([[0.0], logistic.cdf(edges), [1.0]])
    found = DiscretizedLogistic(np.float64(0.4), np.float64(0.15), 9).prob(x)
    np.testing.assert_allclose(found, np.diff(cdf), rtol=1e-12)


def test_float32_log_prob_far_in_the_tail() -> None:
    x = levels(256, np.float32)
    exact = DiscretizedLogistic(np.float64(-0.5), np.float64(0.01), 256).log_prob(
        x.astype(np.float64)
    )
    found = DiscretizedLogistic(np.float32(-0.5), np.float32(0.01), 256).log_prob(x)
    assert exact.numpy().min() < -120.0  # a difference of float32 cdfs would be 0 there
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=1e-5)


def test_between_the_levels_there_is_no_mass() -> None:
    distribution = DiscretizedLogistic(0.5, 0.1, 5)
    assert distribution.log_prob(0.3) == -np.inf
    assert distribution.log_prob(1.25) == -np.inf
    with pytest.raises(tf.errors.InvalidArgumentError, match="5 levels"):
        DiscretizedLogistic(0.5, 0.1, 5, validate_args=True).log_prob(0.3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="scale must be positive"):
        DiscretizedLogistic(0.5, -0.1, 5, validate_args=True)
    with pytest.raises(ValueError, match="num_levels must be at least 2"):
        DiscretizedLogistic(0.5, 0.1, 1)


@pytest.mark.parametrize(
    ("loc", "scale"), [(0.5, 0.1), (-2.0, 0.5), (1.3, 0.05), (0.05, 0.4), (0.9, 0.5)]
)
def test_mean_and_mode_are_those_of_the_probabilities(loc: float, scale: float) -> None:
    distribution = DiscretizedLogistic([np.float64(loc)] * 2, np.float64(scale), 17)
    x = levels(17)
    probabilities = distribution.prob(x[:, np.newaxis]).numpy()[:, 0]
    np.testing.assert_allclose(distribution.mean(), [probabilities @ x] * 2, rtol=1e-12)
    np.testing.assert_allclose(distribution.mode(), [x[probabilities.argmax()]] * 2, rtol=1e-12)


def test_samples_follow_the_probabilities() -> None:
    distribution = DiscretizedLogistic([0.1, 0.6], [0.2, 0.05], 9)
    num_samples = 20000
    samples = distribution.sample(num_samples, seed=(1, 2)).numpy()
    assert samples.shape == (num_samples, 2)
    np.testing.assert_array_equal(samples, distribution.sample(num_samples, seed=(1, 2)))
    for level in levels(9, np.float32):
        p = distribution.prob(level).numpy()
        standard_error = np.sqrt(p * (1 - p) / num_samples)
        frequency = np.isclose(samples, level).mean(axis=0)
        assert np.all(np.abs(frequency - p) <= 5 * standard_error + 1e-9)


def test_gradients_are_finite_and_right() -> None:
    x = tf.constant(levels(9))
    loc, scale = tf.constant(0.3, tf.float64), tf.constant(0.1, tf.float64)
    for argument in (0, 1):

        def log_prob(value: tf.Tensor, argument: int = argument) -> tf.Tensor:
            parameters = (value, scale) if argument == 0 else (loc, value)
            return DiscretizedLogistic(*parameters, num_levels=9).log_prob(x)

        theory, numeric = tf.test.compute_gradient(log_prob, [[loc, scale][argument]], delta=1e-6)
        np.testing.assert_allclose(theory[0], numeric[0], rtol=1e-5, atol=1e-5)
    with tf.GradientTape() as tape:
        extreme = tf.constant([-100.0, 100.0, 0.5])
        tape.watch(extreme)
        total = tf.reduce_sum(DiscretizedLogistic(extreme, 1e-3, 256).log_prob(1.0))
    assert np.all(np.isfinite(tape.gradient(total, extreme)))


def test_it_composes_with_tensorflow_probability() -> None:
    image = tfd.Independent(DiscretizedLogistic(tf.zeros([3, 4]), tf.ones([3, 4]), 9), 1)
    assert image.batch_shape == [3]
    assert image.event_shape == [4]
    x = image.sample(seed=(0, 0))

    @tf.function(jit_compile=True)
    def log_prob(loc: tf.Tensor) -> tf.Tensor:
        return tfd.Independent(DiscretizedLogistic(loc, tf.ones([3, 4]), 9), 1).log_prob(x)

    np.testing.assert_allclose(log_prob(tf.zeros([3, 4])), image.log_prob(x), rtol=1e-5)
