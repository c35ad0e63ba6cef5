"""Tests of log p(x|z) at codes."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.measurement.reconstruction import reconstruction_log_prob

tfd = tfp.distributions


def _decoder(z: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(z, tf.ones_like(z))


def test_reconstruction_scores_each_code_with_its_own_observation() -> None:
    rng = np.random.default_rng(0)
    z, x = rng.normal(size=(3, 4, 2)), rng.normal(size=(4, 2))
    values = reconstruction_log_prob(_decoder, tf.constant(z), tf.constant(x))
    expected = -0.5 * ((x - z) ** 2).sum(axis=-1) - math.log(2 * math.pi)
    np.testing.assert_allclose(values, expected, rtol=1e-12)
