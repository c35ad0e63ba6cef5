from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_surgery as tfs
from tests.testing.encoder_priors import EVENT_SHAPE, binary_data, make_encoder, make_vae
from tests.testing.prior_conformance import PriorConformance
from tfp_surgery.priors.aggregate import AggregatePrior
from tfp_surgery.priors.base import Prior

X = binary_data(20)
X_TEST = binary_data(20, seed=1)


class TestAggregateConformance(PriorConformance):
    def make(self, **kwargs: Any) -> Prior:
        policy = {"dtype": kwargs["dtype"]} if "dtype" in kwargs else {}
        # The model of the conformance test trains on arrays, which tell no indices.
        return AggregatePrior(2, make_encoder(**policy), X, leave_one_out=False, **kwargs)

    def test_gradients_to_parameters(self) -> None:
        """It has no weights of its own; the encoder's get a gradient if that is not stopped."""
        z = tf.constant(np.random.default_rng(0).normal(size=(200, 2)), tf.float32)
        for stop_gradient in (True, False):
            prior = AggregatePrior(2, make_encoder(), X, stop_gradient=stop_gradient)
            assert prior.fitted_variables == []
            with tf.GradientTape() as tape:
                loss = -tf.reduce_mean(prior().log_prob(z))
            variables = prior.encoder.trainable_variables
            assert len(variables) == 4
            for gradient in tape.gradient(loss, [v.value for v in variables]):
                if stop_gradient:
                    assert gradient is None
                else:
                    assert np.all(np.isfinite(gradient))
                    assert np.any(gradient != 0)


def test_it_is_the_aggregate_posterior_under_the_current_encoder() -> None:
    encoder = make_encoder()
    prior = AggregatePrior(2, encoder, X)
    z = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    before = prior().log_prob(z).numpy()
    kernel = encoder.output_layer.kernel
    for factor in (1.0, 0.5):
        kernel.assign(kernel.numpy() * factor)
        q_z = tfs.AggregatePosterior.from_encoder(encoder, X)
        np.testing.assert_allclose(prior().log_prob(z), q_z.log_prob(z), rtol=1e-6)
    assert np.all(prior().log_prob(z) != before)


def test_marginal_kl_is_zero_on_its_data_and_not_on_others() -> None:
    encoder = make_encoder()
    prior = AggregatePrior(2, encoder, X)
    decoder = tfs.networks.MLPDecoder(EVENT_SHAPE, (8,))
    for given in (prior, tfs.AggregatePosterior.from_encoder(encoder, X)):
        train, test = (
            tfs.elbo_surgery(x, encoder, decoder, given, num_samples=100) for x in (X, X_TEST)
        )
        # Each log density is off by a few roundings of numbers below 16, and so is their mean.
        assert abs(train.marginal_kl.value) < 16 * np.finfo(np.float32).eps
        assert train.marginal_kl.standard_error < 16 * np.finfo(np.float32).eps
        assert test.marginal_kl.value > 4.5 * test.marginal_kl.standard_error


def test_the_gradient_through_the_prior_is_stopped_or_not() -> None:
    """The step of the encoder equals that with the prior held, or differs from it."""

    def step(stop_gradient: bool | None) -> np.ndarray:
        encoder = make_encoder()
        if stop_gradient is None:
            prior: Any = tfs.AggregatePosterior.from_encoder(encoder, X)
        else:
            prior = AggregatePrior(2, encoder, X, stop_gradient=stop_gradient, leave_one_out=False)
        vae = make_vae(encoder, prior)
        vae.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        vae.build((None, *EVENT_SHAPE))
        vae.train_on_batch(X)
        kernel: np.ndarray = encoder.output_layer.kernel.numpy()
        return kernel

    np.testing.assert_allclose(step(True), step(None), rtol=1e-5)
    assert np.abs(step(False) - step(None)).max() > 1e-3


def test_training_leaves_one_out() -> None:
    encoder = make_encoder()

    def objective(x: Any, encoder: Any, decoder: Any, prior: Any, seed: Any) -> Any:
        del seed
        return tfs.objectives.elbo()(x, encoder, decoder, prior, seed=(0, 1))

    vae = make_vae(encoder, AggregatePrior(2, encoder, X), objective=objective)
    vae.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    vae.build((None, *EVENT_SHAPE))
    index = np.array([3, 3, 7])
    own = encoder(X[index])
    z = own.sample(1, seed=(0, 1))[0]
    components = tfs.AggregatePosterior.from_encoder(encoder, X)
    expected = components.leave_one_out_log_prob(z, index)
    np.testing.assert_allclose(vae.prior.leave_one_out(index).log_prob(z), expected, rtol=1e-5)
    plain = vae.test_on_batch({"x": X[index], "index": index}, return_dict=True)
    left = vae.train_on_batch({"x": X[index], "index": index}, return_dict=True)
    for logs, log_prior in ((plain, components.log_prob(z)), (left, expected)):
        average_kl = np.mean(own.log_prob(z) - log_prior)
        np.testing.assert_allclose(logs["average_kl"], average_kl, rtol=1e-5)
    assert left["average_kl"] != plain["average_kl"]


def test_configuration_round_trip() -> None:
    prior = AggregatePrior(2, make_encoder(), X, stop_gradient=False, name="p")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(prior))
    assert isinstance(again, AggregatePrior)
    assert again.get_config() == prior.get_config()
    assert not again.stop_gradient
    again.set_weights(prior.get_weights())
    np.testing.assert_array_equal(again().sample(3, seed=(0, 1)), prior().sample(3, seed=(0, 1)))
    with pytest.raises(ValueError, match="AggregatePrior is a prior of codes alone"):
        prior(tf.zeros([2, 3]))
