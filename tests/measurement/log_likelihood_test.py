"""Tests of log p(x|z) at codes."""

from __future__ import annotations

import collections
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tfp_surgery.measurement.log_likelihood import log_likelihood

tfd = tfp.distributions


def _decoder(z: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(z, tf.ones_like(z))


def test_reconstruction_scores_each_code_with_its_own_observation() -> None:
    rng = np.random.default_rng(0)
    z, x = rng.normal(size=(3, 4, 2)), rng.normal(size=(4, 2))
    values = log_likelihood(_decoder, tf.constant(z), tf.constant(x))
    expected = -0.5 * ((x - z) ** 2).sum(axis=-1) - math.log(2 * math.pi)
    np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_each_observation_is_scored_under_its_own_codes(num_samples: int) -> None:
    """The flattening of [S, B] keeps sample and observation apart, for images and matrices."""

    def matrix_decoder(z: tf.Tensor) -> tfd.Distribution:
        assert z.shape[1:] == [2, 1]
        mean = tf.tile(tf.reshape(z, [-1, 1, 2]), [1, 4, 1])  # [S B, 4, 2]
        return tfd.Independent(tfd.Normal(mean, np.float64(1.0)), 2)

    rng = np.random.default_rng(0)
    z, x = rng.normal(size=(num_samples, 5, 2, 1)), rng.normal(size=(5, 4, 2))
    found = log_likelihood(matrix_decoder, tf.constant(z), tf.constant(x))
    residual = x - z[..., 0][:, :, np.newaxis, :]  # [S, B, 4, 2]
    log_prob = (-0.5 * residual**2 - 0.5 * math.log(2 * math.pi)).sum(axis=(2, 3))
    np.testing.assert_allclose(found, log_prob, rtol=1e-12)


def test_a_decoder_of_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="one distribution for each of its codes"):
        log_likelihood(lambda z: _decoder(z[:1]), tf.zeros([3, 2, 1]), tf.zeros([2, 1]))


def test_parts_of_a_structure_are_matched_by_name() -> None:
    """The fields of a joint distribution keep their order, and the keys of a dict are sorted."""

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        @tfd.JointDistributionCoroutine
        def likelihood() -> Any:
            root = tfd.JointDistributionCoroutine.Root
            yield root(tfd.Normal(z[:, 0] + 5, np.float64(0.1), name="zeta"))
            yield root(tfd.Normal(z[:, 0], np.float64(1.0), name="alpha"))

        return likelihood

    rng = np.random.default_rng(0)
    z, zeta, alpha = rng.normal(size=(3, 4, 1)), 5 + rng.normal(size=4), rng.normal(size=4)
    expected = stats.norm(z[..., 0] + 5, 0.1).logpdf(zeta)
    expected += stats.norm(z[..., 0], 1.0).logpdf(alpha)
    named = collections.namedtuple("named", ["zeta", "alpha"])
    for x in ({"zeta": zeta, "alpha": alpha}, named(zeta, alpha)):
        found = log_likelihood(decoder, tf.constant(z), tf.nest.map_structure(tf.constant, x))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_dtype_that_tfp_keeps_as_a_string() -> None:
    """`dtype="float32"` stays a string in a distribution."""
    x = np.array([[2.0, 0.0, 1.0]], np.float32)

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        probs = tf.fill([len(z), 3], 1 / 3)
        return tfd.OneHotCategorical(probs=probs, dtype="float32")

    found = log_likelihood(decoder, tf.zeros([2, 1, 2]), tf.constant(x))
    np.testing.assert_allclose(found, np.full([2, 1], -3 * math.log(3)), rtol=1e-6)
