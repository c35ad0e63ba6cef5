from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.priors.base import StandardNormalPrior

tfd = tfp.distributions


def test_the_standard_normal() -> None:
    prior = StandardNormalPrior(3)
    distribution = prior()
    assert isinstance(distribution, tfd.MultivariateNormalDiag)
    assert distribution.batch_shape == []
    assert distribution.event_shape == [3]
    assert prior.weights == []
    z = np.array([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]], np.float32)
    expected = -0.5 * (z**2).sum(axis=-1) - 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(distribution.log_prob(z), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("float32", tf.float32), ("mixed_float16", tf.float32), ("float64", tf.float64)],
)
def test_densities_are_never_half_precision(policy: str, dtype: tf.DType) -> None:
    assert StandardNormalPrior(2, dtype=policy)().dtype == dtype


def test_config_round_trip() -> None:
    prior = StandardNormalPrior(3, name="p")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(prior))
    assert isinstance(again, StandardNormalPrior)
    assert again.get_config() == prior.get_config()


def test_an_empty_code_is_refused() -> None:
    with pytest.raises(ValueError, match="event_size must be at least 1, got 0"):
        StandardNormalPrior(0)
