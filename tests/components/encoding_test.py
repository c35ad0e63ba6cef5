"""`AggregatePosterior.from_encoder`."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing import oracles
from tfp_surgery.components.encoding import encode
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior

tfd = tfp.distributions


def _normal(*shape: int, seed: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def test_the_last_batch_may_be_smaller() -> None:
    x = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    sizes = []

    def encoder(batch: tf.Tensor) -> tfd.Distribution:
        sizes.append(len(batch))
        return tfd.MultivariateNormalDiag(batch)

    posteriors = encode(encoder, x, batch_size=3)
    assert sizes[:3] == [3, 3, 2]
    assert sizes[3:] == [1, 1, 1, 1]  # encoded again, to see that they come out the same
    np.testing.assert_array_equal(posteriors.mean(), x)


def test_from_encoder_joins_batches_and_keeps_shared_scales_apart() -> None:
    """A shared [D, D] scale with batches of B = D observations must not pass for a batch."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    tril = tf.constant(np.tril(np.ones([3, 3])) + np.eye(3), tf.float32)

    def encoder(batch: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalTriL(2.0 * batch, tril)

    q_z = AggregatePosterior.from_encoder(encoder, x, batch_size=3)
    assert q_z.num_components == 8
    whole = AggregatePosterior(tfd.MultivariateNormalTriL(2.0 * x, tril))
    z = whole.sample(5, seed=(1, 2))
    np.testing.assert_allclose(q_z.log_prob(z), whole.log_prob(z), rtol=1e-5)


def test_from_encoder_refuses_what_does_not_fit() -> None:
    x = np.zeros([6, 2], np.float32)

    def encoder(batch: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(batch)

    with pytest.raises(ValueError, match="no observations"):
        AggregatePosterior.from_encoder(encoder, x[:0])
    with pytest.raises(ValueError, match="NaN"):
        AggregatePosterior.from_encoder(encoder, np.full([6, 2], np.nan))
    with pytest.raises(ValueError, match="batch_size"):
        AggregatePosterior.from_encoder(encoder, x, batch_size=0)
    with pytest.raises(ValueError, match="batch shape"):
        AggregatePosterior.from_encoder(lambda batch: tfd.Normal(batch, 1.0), x)
    with pytest.raises(TypeError, match="distribution"):
        AggregatePosterior.from_encoder(lambda batch: batch, x)


def test_from_encoder_passes_gradients_to_observations() -> None:
    """Learned pseudo-inputs get theirs, eagerly and in a compiled function."""
    x = tf.Variable(_normal(6, 2))
    z = _normal(5, 2, seed=3)

    def objective() -> tf.Tensor:
        q_z = AggregatePosterior.from_encoder(
            lambda batch: tfd.MultivariateNormalDiag(2.0 * batch), x, batch_size=4
        )
        return tf.reduce_sum(q_z.log_prob(z))

    with tf.GradientTape() as tape:
        eager = objective()
    gradient = tape.gradient(eager, x)
    loc = 2.0 * x.numpy()
    densities = oracles.gaussian_log_densities(z.numpy(), loc, np.ones_like(loc))
    index_probs = np.exp(densities - np.logaddexp.reduce(densities, axis=1, keepdims=True))
    expected = 2.0 * np.einsum("mn,mnd->nd", index_probs, z.numpy()[:, None] - loc)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tf.function(objective, jit_compile=True)(), eager, rtol=1e-5)
