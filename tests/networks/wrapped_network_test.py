from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

import tfp_surgery as tfs
from tfp_surgery.checks.takes_condition import takes_condition
from tfp_surgery.networks.bernoulli_decoder import BernoulliDecoder
from tfp_surgery.networks.encoders import MLPEncoder
from tfp_surgery.networks.gaussian_decoder import GaussianDecoder
from tfp_surgery.networks.gaussian_encoder import GaussianEncoder

tfd = tfp.distributions

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def encoder_of(network: Any) -> GaussianEncoder:
    return GaussianEncoder(network, latent_size=2, scale="exp")


def bernoulli_of(network: Any) -> BernoulliDecoder:
    return BernoulliDecoder(network, from_logits=True)


def gaussian_of(network: Any) -> GaussianDecoder:
    return GaussianDecoder(network, scale=0.5)


WRAPPERS = [encoder_of, bernoulli_of, gaussian_of]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_weights_are_those_of_the_network(wrapper: Any) -> None:
    network = keras.Sequential([keras.layers.Dense(3, "relu"), keras.layers.Dense(4)])
    layer = wrapper(network)
    layer(X)
    assert len(network.weights) == 4
    assert [id(w) for w in layer.trainable_weights] == [id(w) for w in network.weights]
    layer.trainable = False
    assert layer.trainable_weights == network.trainable_weights == []


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_training_reaches_the_network(wrapper: Any) -> None:
    seen: list[Any] = []

    class Noted(keras.layers.Layer):
        def call(self, x: tf.Tensor, training: Any = None) -> tf.Tensor:
            seen.append(training)
            return x

    layer = wrapper(keras.Sequential([Noted(), keras.layers.Dense(4)]))
    layer(X)
    seen.clear()
    layer(X)
    layer(X, training=True)
    layer(X, training=False)
    assert [bool(training) for training in seen] == [False, True, False]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_no_network_may_be(wrapper: Any) -> None:
    with pytest.raises(
        TypeError, match=r"network must be .* or a callable, got a value of type nd"
    ):
        wrapper(X)
    returns_text: Any = lambda _: ["a", "b"]  # noqa: E731
    for returns, kind in [
        (lambda _: None, "an object of type NoneType"),
        (lambda x: {"mean": x}, "an object of type dict"),
        (lambda _: (), r"a tuple of 0, dtypes: none"),
        (lambda x: tf.cast(x, tf.int32), r"a Tensor of shape \[5, 4\], dtypes: int32"),
        (returns_text, "a list of 2 .*dtypes: string, string"),
    ]:
        with pytest.raises(TypeError, match=kind):
            wrapper(returns)(X)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "network",
    [
        lambda: MLPEncoder(2, (3,)),
        lambda: lambda x: (tfd.Normal(x, 1.0), x),
        lambda: tf_keras.Sequential([tf_keras.layers.Dense(4), tfp.layers.IndependentNormal([2])]),
    ],
    ids=["distribution", "in a tuple", "tfp.layers"],
)
def test_a_network_of_distributions_needs_no_wrapper(wrapper: Any, network: Any) -> None:
    layer = wrapper(network())
    with pytest.raises(TypeError, match=f"already and needs no {type(layer).__name__}: hand it in"):
        layer(X)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_the_network_sets_the_precision(wrapper: Any, policy: str) -> None:
    network = keras.layers.Dense(4, dtype=policy)
    layer = wrapper(network)
    assert layer.dtype_policy.name == policy
    x = X.astype(np.float64)
    distribution = layer(x)
    assert distribution.dtype == (tf.float64 if policy == "float64" else tf.float32)
    wide = layer(X).parameters if policy == "float64" else None
    assert wide is None or network(x).dtype == "float64"


def test_observations_in_float64_stay_so() -> None:
    """A layer of Keras in float32 would round them before the network sees them."""
    weights = np.random.default_rng(1).normal(size=(4, 4))
    posterior = encoder_of(lambda x: x @ weights)(X.astype(np.float64) + 1e-9)
    expected = (X.astype(np.float64) + 1e-9) @ weights
    np.testing.assert_allclose(posterior.mean(), expected[:, :2], rtol=1e-13)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_config_round_trip(wrapper: Any) -> None:
    layer = wrapper(keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, "tanh")]))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    again.set_weights(layer.get_weights())
    for name in ("mean", "variance"):
        np.testing.assert_array_equal(getattr(again(X), name)(), getattr(layer(X), name)())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_function_cannot_be_written_to_a_file(wrapper: Any) -> None:
    layer = wrapper(lambda x: x)
    with pytest.raises(ValueError, match="whose network is a function cannot be written"):
        layer.get_config()


def two_inputs() -> keras.Model:
    first, given = keras.Input([4]), keras.Input([3])
    joined = keras.layers.Concatenate()([first, keras.layers.Dense(2)(given)])
    return keras.Model([first, given], keras.layers.Dense(4)(joined))


@pytest.mark.parametrize("wrapper", [GaussianEncoder, BernoulliDecoder, GaussianDecoder])
def test_a_conditional_layer_calls_its_network_on_both(wrapper: Any) -> None:
    settings: dict[Any, dict[str, Any]] = {
        GaussianEncoder: {"latent_size": 2, "scale": "exp"},
        BernoulliDecoder: {"from_logits": True},
        GaussianDecoder: {"scale": 0.5},
    }
    network = two_inputs()
    layer = wrapper(network, conditional=True, **settings[wrapper])
    condition = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    found = layer(X, condition=condition)
    expected = wrapper(lambda _: network([X, condition]), **settings[wrapper])(X)
    np.testing.assert_array_equal(found.mean(), expected.mean())
    np.testing.assert_array_equal(found.variance(), expected.variance())
    assert takes_condition(layer)
    again = type(layer).from_config(layer.get_config())
    assert takes_condition(again)
    with pytest.raises(TypeError, match="made with conditional=True and needs condition="):
        layer(X)
    alone = wrapper(keras.layers.Dense(4), **settings[wrapper])
    assert not takes_condition(alone)
    with pytest.raises(TypeError, match=r"takes no condition: made with conditional=True"):
        alone(X, condition=condition)


def test_conditional_layers_are_trained_and_measured() -> None:
    condition = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    encoder = GaussianEncoder(two_inputs(), latent_size=2, scale="exp", conditional=True)
    decoder = gaussian_of(keras.layers.Dense(4))
    prior = tfs.priors.StandardNormalPrior(2)
    vae = tfs.VAE(encoder, decoder, prior)
    vae.compile("adam", run_eagerly=True)
    before = [weight.numpy() for weight in encoder.trainable_weights]
    vae.fit({"x": X, "condition": condition}, epochs=2, verbose=0)
    for weight, old in zip(encoder.trainable_weights, before, strict=True):
        assert np.any(weight.numpy() != old), weight.path
    surgery = tfs.elbo_surgery(X, encoder, decoder, prior, condition=condition)
    assert "condition given to encoder" in str(surgery)
    with pytest.raises(TypeError, match="encoder needs condition="):
        tfs.elbo_surgery(X, encoder, decoder, prior)
