from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.distributions import weights

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


def test_weights_that_do_not_fit_are_refused() -> None:
    weights.check_shape(tf.TensorShape([3]), COMPONENTS.batch_shape)
    with pytest.raises(ValueError, match=r"weights of shape \(2,\).*\(2, 3\)"):
        weights.check_shape(tf.TensorShape([2]), COMPONENTS.batch_shape)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-m", "not slow"]))
