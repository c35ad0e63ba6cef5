from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

from tfp_surgery.components.divergence import closed_form_kl
from tfp_surgery.training.objectives import elbo

tfd = tfp.distributions

# x = W z + b + sigma noise with z of 2 and x of 3 dimensions; the posterior is any Gaussian, not
# the exact one, so that all parts of the bound are there.
WEIGHTS = np.array([[0.8, -0.3, 0.5], [0.2, 0.9, -0.4]])
OFFSET = np.array([0.1, -0.2, 0.3])
SIGMA = 0.7
POSTERIOR_WEIGHTS = np.array([[0.5, 0.1], [-0.2, 0.6], [0.3, -0.3]])
POSTERIOR_SCALE = np.array([0.4, 0.9])
X = np.array([[0.4, -1.0, 0.7], [2.0, 0.3, -0.6]])

# An estimate is allowed this many standard errors.
STANDARD_ERRORS = 5.0


def encoder(x: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(tf.matmul(x, POSTERIOR_WEIGHTS), POSTERIOR_SCALE)


def decoder(z: tf.Tensor) -> tfd.Distribution:
    return tfd.Independent(tfd.Normal(tf.matmul(z, WEIGHTS) + OFFSET, np.float64(SIGMA)), 1)


def diagonal_prior() -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(tf.zeros([2], tf.float64))


def mixture_prior() -> tfd.Distribution:
    """The same density in a class for which TFP registers no divergence."""
    components = tfd.MultivariateNormalDiag(tf.zeros([2, 2], tf.float64))
    return tfd.MixtureSameFamily(tfd.Categorical(tf.zeros([2], tf.float64)), components)


def analytic_terms(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = x @ POSTERIOR_WEIGHTS
    residual = x - mean @ WEIGHTS - OFFSET
    trace = np.sum((POSTERIOR_SCALE[:, np.newaxis] * WEIGHTS) ** 2)
    reconstruction = -0.5 * ((residual**2).sum(axis=1) + trace) / SIGMA**2
    reconstruction -= 3 * (math.log(SIGMA) + 0.5 * math.log(2 * math.pi))
    kl = 0.5 * (mean**2).sum(axis=1) + np.sum(
        0.5 * (POSTERIOR_SCALE**2 - 1.0) - np.log(POSTERIOR_SCALE)
    )
    return reconstruction, kl


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("prior", [diagonal_prior, mixture_prior])
def test_against_the_linear_gaussian_model(
    num_samples: int, prior: Callable[[], tfd.Distribution]
) -> None:
    repetitions = 4000
    terms = elbo(num_samples)(
        np.tile(X, [repetitions, 1]), encoder, decoder, prior, seed=tf.constant([1, num_samples])
    )
    reconstruction, kl = analytic_terms(X)
    expected = {"reconstruction": reconstruction, "kl": kl, "objective": reconstruction - kl}
    for name, value in expected.items():
        estimates = getattr(terms, name).numpy().reshape(repetitions, 2)
        standard_error = estimates.std(axis=0, ddof=1) / math.sqrt(repetitions)
        if name == "kl" and prior is diagonal_prior:
            np.testing.assert_allclose(estimates, np.tile(value, [repetitions, 1]), rtol=1e-12)
        else:
            assert np.all(standard_error > 0.0)
            assert np.all(np.abs(estimates.mean(axis=0) - value) < STANDARD_ERRORS * standard_error)


def test_more_samples_average() -> None:
    x = np.tile(X[:1], [2000, 1])
    variance = [
        np.var(elbo(m)(x, encoder, decoder, diagonal_prior, seed=tf.constant([0, m])).objective)
        for m in (1, 16)
    ]
    # A variance from 2000 Gaussian-like draws is right to about 3%; the reconstruction is
    # quadratic in them, so allow several times that.
    assert variance[0] / variance[1] == pytest.approx(16.0, rel=0.4)


def test_the_exact_posterior_gives_the_log_evidence_without_noise() -> None:
    precision = np.eye(2) + WEIGHTS @ WEIGHTS.T / SIGMA**2
    covariance = np.linalg.inv(precision)

    def exact(x: tf.Tensor) -> tfd.Distribution:
        mean = (x - OFFSET) @ WEIGHTS.T @ covariance / SIGMA**2
        return tfd.MultivariateNormalTriL(mean, np.linalg.cholesky(covariance))

    # Without a registered divergence every draw gives log p(x|z) + log p(z) - log q(z|x).
    terms = elbo()(X, exact, decoder, mixture_prior(), seed=tf.constant([3, 4]))
    evidence = tfd.MultivariateNormalFullCovariance(
        OFFSET, WEIGHTS.T @ WEIGHTS + SIGMA**2 * np.eye(3)
    ).log_prob(X)
    np.testing.assert_allclose(terms.objective, evidence, rtol=1e-12)
    assert np.all(np.abs(terms.kl - closed_form_kl(exact(X), diagonal_prior())) > 1e-3)


def test_the_gradient_is_that_of_the_analytic_bound() -> None:
    repetitions = 20000
    scale = tf.constant(POSTERIOR_SCALE)
    x = np.tile(X[:1], [repetitions, 1])
    scales = tf.tile(scale[tf.newaxis], [repetitions, 1])  # a gradient for each repetition
    with tf.GradientTape() as tape:
        tape.watch(scales)
        terms = elbo()(
            x,
            lambda x: tfd.MultivariateNormalDiag(x @ POSTERIOR_WEIGHTS, scales),
            decoder,
            diagonal_prior,
            seed=tf.constant([5, 6]),
        )
    gradients = tape.gradient(terms.objective, scales).numpy()
    expected = 1.0 / POSTERIOR_SCALE - POSTERIOR_SCALE
    expected -= POSTERIOR_SCALE * (WEIGHTS**2).sum(axis=1) / SIGMA**2
    standard_error = gradients.std(axis=0, ddof=1) / math.sqrt(repetitions)
    assert np.all(np.abs(gradients.mean(axis=0) - expected) < STANDARD_ERRORS * standard_error)


def test_the_seed_decides() -> None:
    def objective(seed: Any) -> Any:
        return elbo()(X, encoder, decoder, diagonal_prior, seed=seed).objective.numpy()

    np.testing.assert_array_equal(objective([1, 2]), objective(tf.constant([1, 2])))
    np.testing.assert_array_equal(objective(1), objective(1))
    assert np.all(objective([1, 2]) != objective([1, 3]))
    assert np.all(objective(1) != objective(2))


def test_x_is_scored_in_the_precision_of_the_likelihood() -> None:
    terms = elbo()(
        X.astype(np.float32),
        lambda x: encoder(tf.cast(x, tf.float64)),
        decoder,
        diagonal_prior,
        seed=tf.constant([0, 0]),
    )
    assert terms.objective.dtype == tf.float64


def test_it_compiles_with_a_batch_of_unknown_size() -> None:
    specification = tf.TensorSpec([None, 3], tf.float64)
    for prior in (diagonal_prior, mixture_prior):

        @tf.function(input_signature=[specification])
        def graph(x: tf.Tensor, prior: Any = prior) -> tf.Tensor:
            return elbo(2)(x, encoder, decoder, prior, tf.constant([0, 0])).objective

        @tf.function(jit_compile=True)
        def compiled(x: tf.Tensor, prior: Any = prior) -> Any:
            return tuple(elbo(2)(x, encoder, decoder, prior, tf.constant([0, 0])))

        eager = elbo(2)(X, encoder, decoder, prior, tf.constant([0, 0])).objective
        np.testing.assert_allclose(graph(tf.constant(X)), eager, rtol=1e-12)
        objective, reconstruction, kl = compiled(tf.constant(X))
        np.testing.assert_allclose(objective, reconstruction - kl, rtol=1e-12)


def test_networks_of_tf_keras_and_tfp_layers() -> None:
    network = tf_keras.Sequential([tf_keras.layers.Dense(5), tfp.layers.MultivariateNormalTriL(2)])
    picture = tf_keras.Sequential([tf_keras.layers.Dense(3), tfp.layers.IndependentBernoulli([3])])
    prior = tfd.MultivariateNormalDiag(tf.zeros([2]))
    x = tf.constant([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    terms = elbo(4)(x, network, picture, prior, tf.constant([0, 1]))
    assert terms.objective.shape == [2]
    np.testing.assert_allclose(terms.kl, tfd.kl_divergence(network(x), prior), rtol=1e-6)


def test_a_posterior_without_reparameterized_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="reparameterized samples, got Independent"):
        elbo()(
            X,
            lambda x: tfd.Independent(tfd.Bernoulli(logits=x[:, :2], dtype=tf.float64), 1),
            decoder,
            diagonal_prior,
            tf.constant([0, 0]),
        )
    with pytest.raises(TypeError, match=r"expected a tfp\.distributions\.Distribution"):
        elbo()(X, lambda x: x[:, :2], decoder, diagonal_prior, tf.constant([0, 0]))


def test_config_round_trip_and_bad_arguments() -> None:
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(elbo(3)))
    assert again.num_samples == 3
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        elbo(0)
    with pytest.raises(TypeError):
        elbo(1.5)  # type: ignore[arg-type]
