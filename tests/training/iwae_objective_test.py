"""Tests of the three gradients of the importance-weighted bound, against quadrature."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing.importance_weights import ScalarModel, case
from tests.testing.oracles import CASES
from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.decoders import MLPDecoder
from tfp_surgery.networks.encoders import MLPEncoder
from tfp_surgery.priors.base import StandardNormalPrior
from tfp_surgery.training.iwae_objective import GRADIENTS, iwae

tfd = tfp.distributions

# An estimate is allowed this many standard errors.
STANDARD_ERRORS = 4.5
REPETITIONS = 20_000
SEED = tf.constant([1, 2])


def prior() -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))


def gradients(
    model: ScalarModel, m: int, gradient: str, repetitions: int = REPETITIONS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Independent gradients to (loc, log_scale) `[R, 2]` and to the decoder's slope `[R]`.

    Every repetition is an observation with parameters of its own; the third part is the bounds.
    """
    parameters = tf.constant(np.tile([model.loc, model.log_scale], [repetitions, 1]))
    slope = tf.fill([repetitions, 1], np.float64(model.slope))

    def encoder(_: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(parameters[:, :1], tf.exp(parameters[:, 1:]))

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.tile(slope, [m, 1]) * z, [np.float64(model.noise)])

    x = tf.fill([repetitions, 1], np.float64(model.x))
    with tf.GradientTape() as tape:
        tape.watch([parameters, slope])
        terms = iwae(m, gradient)(x, encoder, decoder, prior, SEED)
    to_encoder, to_slope = tape.gradient(terms.objective, [parameters, slope])
    return to_encoder.numpy(), to_slope.numpy()[:, 0], terms.objective.numpy()


@functools.cache
def exact_gradient(model: ScalarModel, m: int) -> np.ndarray:
    """d IW_m / d (loc, log_scale)."""
    return model.gradient(m)


def in_standard_errors(values: np.ndarray, expected: Any) -> np.ndarray:
    error = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    distance: np.ndarray = np.abs(values.mean(axis=0) - expected) / error
    return distance


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("m", [1, 5, 20])
def test_the_oracles_agree(name: str, m: int) -> None:
    """Tucker's identity, by two quadratures: differences of the bound, and v_i^2 along the path."""
    model = case(name, 0.3)
    np.testing.assert_allclose(
        model.weighted_path(m, 2), exact_gradient(model, m), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("m", [1, 5, 20])
@pytest.mark.parametrize("gradient", ["reparameterization", "doubly_reparameterized"])
def test_two_gradients_are_unbiased_for_every_m(name: str, m: int, gradient: str) -> None:
    model = case(name, 0.3)
    found, to_slope, bounds = gradients(model, m, gradient)
    assert np.all(in_standard_errors(found, exact_gradient(model, m)) < STANDARD_ERRORS)
    assert in_standard_errors(bounds, model.bound(m)) < STANDARD_ERRORS
    step = 1e-3
    difference = [
        dataclasses.replace(model, slope=model.slope + sign * step).bound(m) for sign in (1, -1)
    ]
    expected = (difference[0] - difference[1]) / (2 * step)
    assert in_standard_errors(to_slope, expected) < STANDARD_ERRORS


@pytest.mark.parametrize("name", CASES)
def test_sticking_the_landing_is_unbiased_for_one_sample(name: str) -> None:
    model = case(name, 0.3)
    found, _, _ = gradients(model, 1, "sticking_the_landing")
    assert np.all(in_standard_errors(found, exact_gradient(model, 1)) < STANDARD_ERRORS)
    np.testing.assert_array_equal(found, gradients(model, 1, "doubly_reparameterized")[0])


@pytest.mark.parametrize("name", CASES)
def test_sticking_the_landing_is_biased_for_more(name: str) -> None:
    """Its mean is E sum_i v_i d log w_i, by quadrature, and that is not the gradient."""
    model, m = case(name, 0.3), 5
    found, _, _ = gradients(model, m, "sticking_the_landing")
    assert np.all(in_standard_errors(found, model.weighted_path(m, 1)) < STANDARD_ERRORS)
    # Measured: its mean is 3.3 (collapsed), 5.2 and 11 (overlapping), 1.6 and 1.3 times (separated)
    # the gradient to location and log scale, more than 100 standard errors away.
    assert np.max(in_standard_errors(found, exact_gradient(model, m))) > 50
    assert np.all(np.abs(found.mean(axis=0)) > 1.2 * np.abs(exact_gradient(model, m)))


@pytest.mark.parametrize("m", [5, 20])
def test_near_the_posterior_sticking_the_landing_is_m_times_too_long(m: int) -> None:
    model = near_the_posterior(0.02)
    ratio = model.weighted_path(m, 1) / exact_gradient(model, m)
    np.testing.assert_allclose(ratio, m, rtol=0.05)


def near_the_posterior(offset: float) -> ScalarModel:
    """q with the posterior's parameters, but for `offset` of its standard deviation in each."""
    mean, deviation = ScalarModel(0.3, 0.0, 0.0).posterior
    return ScalarModel(0.3, mean + offset * deviation, math.log(deviation) + offset)


@pytest.mark.parametrize("m", [1, 5, 20])
def test_the_variance_near_the_posterior(m: int) -> None:
    """With q off by 5% of a standard deviation; measured are 98, 3050 and 49700, and 98 to 110."""
    model = near_the_posterior(0.05)
    plain, doubly, sticking = (
        gradients(model, m, gradient)[0].var(axis=0) for gradient in GRADIENTS
    )
    factor = {1: 50, 5: 1500, 20: 25_000}[m]
    assert np.all(factor * doubly < plain)
    assert np.all(50 * sticking < plain)


@pytest.mark.parametrize("m", [1, 5])
def test_at_the_posterior_the_variance_is_that_of_rounding(m: int) -> None:
    model = near_the_posterior(0.0)
    for gradient in GRADIENTS[1:]:
        found, *_ = gradients(model, m, gradient, repetitions=200)
        np.testing.assert_allclose(found, 0.0, atol=1e-12)
    plain, *_ = gradients(model, m, "reparameterization", repetitions=200)
    assert np.all(plain.std(axis=0) > 0.1)


def test_value_parts_and_gradients_of_decoder_and_prior_are_shared() -> None:
    """Given the draws, the estimators differ in the encoder's gradient alone."""
    model = case("overlapping", 0.3)
    loc = tf.constant([0.2], tf.float64)
    values = []
    for gradient in GRADIENTS:
        with tf.GradientTape() as tape:
            tape.watch(loc)
            terms = iwae(7, gradient)(
                tf.constant([[0.3], [1.0]], tf.float64),
                lambda x: tfd.MultivariateNormalDiag(x, [np.float64(0.5)]),
                lambda z: tfd.MultivariateNormalDiag(z * model.slope, [np.float64(0.4)]),
                lambda: tfd.MultivariateNormalDiag(loc, [np.float64(1.0)]),
                SEED,
            )
        values.append([*terms, tape.gradient(terms.objective, loc)])
        assert all(part.shape == [2] for part in terms)
        assert np.all(terms.reconstruction - terms.kl < terms.objective)
    for other in values[1:]:
        for part, first in zip(other, values[0], strict=True):
            np.testing.assert_allclose(part, first, rtol=1e-12)
    slopes = [gradients(model, 5, gradient, repetitions=50)[1] for gradient in GRADIENTS]
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-9)
    np.testing.assert_allclose(slopes[2], slopes[0], rtol=1e-9)


def test_the_bound_is_the_log_mean_of_the_weights() -> None:
    """Codes with two axes and a posterior made by a bijector, against the densities as they are."""
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=[4, 3]))
    normal = tfd.Independent(tfd.Normal(tf.zeros([2, 3], tf.float64), 1.0), 2)
    codes: list[tf.Tensor] = []

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        base = tfd.Normal(tf.stack([x, -x], axis=1), np.float64(0.7))  # [4, 2, 3]
        return tfd.Independent(tfp.bijectors.Sinh()(base), 2)

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        codes.append(z)
        return tfd.MultivariateNormalDiag(tf.reduce_sum(z, axis=1), np.ones(3))

    for gradient in GRADIENTS:
        terms = iwae(6, gradient)(x, encoder, decoder, normal, SEED)
        z = tf.reshape(codes[-1], [6, 4, 2, 3])
        log_weights = normal.log_prob(z) - encoder(x).log_prob(z)
        log_weights += tfd.MultivariateNormalDiag(tf.reduce_sum(z, 2), np.ones(3)).log_prob(x)
        expected = tf.reduce_logsumexp(log_weights, axis=0) - math.log(6)
        np.testing.assert_allclose(terms.objective, expected, rtol=1e-9)


def test_it_trains_a_vae_under_xla() -> None:
    rng = np.random.default_rng(0)
    x = (rng.random((128, 4, 4, 1)) < rng.random((128, 1, 1, 1))).astype(np.float32)
    keras.utils.set_random_seed(0)
    vae = VAE(
        MLPEncoder(2, (8,)),
        MLPDecoder((4, 4, 1), (8,)),
        StandardNormalPrior(2),
        objective=iwae(5, "doubly_reparameterized"),
    )
    vae.build((None, 4, 4, 1))
    vae.compile(optimizer=keras.optimizers.Adam(1e-2), jit_compile=True)
    before = [weight.numpy() for weight in vae.trainable_weights]
    losses = vae.fit(x, epochs=15, batch_size=64, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 0.5
    assert all(
        np.any(weight.numpy() != old)
        for weight, old in zip(vae.trainable_weights, before, strict=True)
    )


def test_a_posterior_without_reparameterized_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="reparameterized samples, got Independent"):
        iwae()(
            tf.zeros([2, 1]),
            lambda x: tfd.Independent(tfd.Bernoulli(logits=x, dtype=tf.float32), 1),
            lambda z: tfd.MultivariateNormalDiag(z, [1.0]),
            tfd.MultivariateNormalDiag(tf.zeros([1])),
            SEED,
        )


def test_config_round_trip_and_bad_arguments() -> None:
    for gradient in GRADIENTS:
        written = keras.saving.serialize_keras_object(iwae(3, gradient))
        again = keras.saving.deserialize_keras_object(written)
        assert (again.num_importance_samples, again.gradient) == (3, gradient)
    assert iwae().gradient == "reparameterization"
    with pytest.raises(ValueError, match="num_importance_samples must be at least 1, got 0"):
        iwae(0)
    with pytest.raises(TypeError, match="must be an integer"):
        iwae(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gradient must be one of reparameterization, .*'dreg'"):
        iwae(2, "dreg")
