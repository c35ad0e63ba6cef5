from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfp_surgery.priors.standardization import Standardization, moments


def test_moments_are_mean_and_standard_deviation() -> None:
    codes = np.random.default_rng(0).normal(size=(50, 3)) * [1.0, 0.02, 5e3] + [0.0, 7.0, -1e4]
    loc, scale = moments(codes.astype(np.float32))
    np.testing.assert_allclose(loc, codes.mean(axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(scale, codes.std(axis=0), rtol=1e-4)
    assert loc.dtype == scale.dtype == np.float64


def test_a_dimension_that_does_not_vary_has_the_scale_of_the_others() -> None:
    """In their unit, whatever it is; of 0.1 NumPy finds a deviation of some 1e-17."""
    codes = np.random.default_rng(0).normal(size=(50, 4)) * [3.0, 4.0, 0.0, 0.0] + [0, 0, 0, 0.1]
    assert 0 < codes[:, 3].std() < 1e-15
    for unit in (1e-30, 1.0, 1e3):
        scale = moments(unit * codes)[1] / unit
        np.testing.assert_allclose(scale[2:], np.hypot(*scale[:2]) / np.sqrt(2))
    np.testing.assert_array_equal(moments(np.full((5, 2), 0.1))[1], [1.0, 1.0])


def test_it_is_the_identity_until_assigned_and_never_trained() -> None:
    layer = Standardization(2, tf.float64)
    z = np.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(layer(z), z)
    layer.assign(np.array([1.0, 2.0]), np.array([0.5, 4.0]))
    np.testing.assert_array_equal(layer(z), [[0.0, 0.0], [4.0, 0.5]])
    around = keras.Sequential([layer])
    around.trainable = False
    around.trainable = True
    assert around.trainable_variables == []
    assert len(around.non_trainable_variables) == 2
