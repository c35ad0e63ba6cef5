"""Models whose networks return Tensors, trained, saved, loaded and measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tests.testing.regression import controlled_mean
from tfp_surgery.checks.networks import unwrap
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import stratified_estimate
from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.bernoulli_decoder import BernoulliDecoder
from tfp_surgery.networks.gaussian_decoder import GaussianDecoder
from tfp_surgery.networks.gaussian_encoder import GaussianEncoder
from tfp_surgery.priors.base import StandardNormalPrior
from tfp_surgery.priors.vamp import VampPrior
from tfp_surgery.surgery.elbo_surgery import elbo_surgery
from tfp_surgery.surgery.scored_draws import scored_draws
from tfp_surgery.training.objectives import elbo, iwae

tfd = tfp.distributions

EVENT = (8, 8, 1)
D = 2
BINARY = (np.random.default_rng(0).uniform(size=(60, *EVENT)) < 0.4).astype(np.float32)


@keras.saving.register_keras_serializable(package="raw_networks_test")
class CodeSampler(keras.layers.Layer):
    """The noise of an encoder that draws its own codes, as an author of Keras writes it."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(11)

    def call(self, inputs: Any) -> Any:
        center, log_variance = inputs
        noise = keras.random.normal(keras.ops.shape(center), seed=self.seed_generator)
        return center + noise * keras.ops.exp(0.5 * log_variance)


@keras.saving.register_keras_serializable(package="raw_networks_test")
class Pair(keras.Model):
    """A subclassed network without `build`, with dropout, that returns two Tensors."""

    def __init__(self, size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.size = size
        self.flatten = keras.layers.Flatten()
        self.dropout = keras.layers.Dropout(0.2, seed=1)
        self.first, self.second = keras.layers.Dense(size), keras.layers.Dense(size)

    def call(self, inputs: Any, training: bool = False) -> Any:
        hidden = self.dropout(self.flatten(inputs), training=training)
        return self.first(hidden), self.second(hidden)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size}


def three_headed() -> keras.Model:
    """Functional: convolutions, then (mean, log variance, code)."""
    inputs = keras.Input(EVENT)
    hidden = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
    hidden = keras.layers.Dense(8, "relu")(keras.layers.Flatten()(hidden))
    mean, log_variance = keras.layers.Dense(D)(hidden), keras.layers.Dense(D)(hidden)
    code = CodeSampler()([mean, log_variance])
    return keras.Model(inputs, [mean, log_variance, code], name="three_headed")


def one_tensor() -> keras.Sequential:
    """Sequential: mean and log variance in one Tensor."""
    convolution = keras.layers.Conv2D(4, 3, strides=(2, 2), activation="relu")
    layers = [convolution, keras.layers.Flatten(), keras.layers.Dense(2 * D)]
    return keras.Sequential([keras.layers.InputLayer(EVENT), *layers])


def deconvolutions(activation: str | None = None) -> keras.Model:
    codes = keras.Input((D,))
    hidden = keras.layers.Reshape((4, 4, 3))(keras.layers.Dense(48, "relu")(codes))
    up = keras.layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")(hidden)
    return keras.Model(codes, keras.layers.Conv2D(1, 3, padding="same", activation=activation)(up))


def flat(activation: str | None = None) -> keras.Sequential:
    return keras.Sequential([keras.layers.Dense(64, activation), keras.layers.Reshape(EVENT)])


def encoder_of(network: Any) -> GaussianEncoder:
    return GaussianEncoder(network, latent_size=D, scale="log_variance")


def two_means() -> keras.Model:
    codes = keras.Input((D,))
    return keras.Model(codes, [flat()(codes), flat()(codes)])


MODELS: dict[str, Any] = {
    "three heads, sigmoid": lambda: (
        encoder_of(three_headed()),
        BernoulliDecoder(deconvolutions("sigmoid"), from_logits=False),
    ),
    "one tensor, log-odds": lambda: (
        encoder_of(one_tensor()),
        BernoulliDecoder(deconvolutions(), from_logits=True),
    ),
    "subclassed, shared scale": lambda: (
        GaussianEncoder(Pair(D), latent_size=D, scale="softplus"),
        GaussianDecoder(flat(), scale="shared"),
    ),
    "subclassed, two outputs": lambda: (
        GaussianEncoder(Pair(D), latent_size=D, scale="exp"),
        GaussianDecoder(two_means(), scale="log_variance"),
    ),
}


def model(name: str, seed: int = 0, prior: Any = None, **settings: Any) -> VAE:
    keras.utils.set_random_seed(seed)
    encoder, decoder = MODELS[name]()
    vae = VAE(encoder, decoder, prior(encoder) if prior else StandardNormalPrior(D))
    settings.setdefault("run_eagerly", "jit_compile" not in settings)
    vae.compile(keras.optimizers.Adam(0.01), **settings)
    vae.build((None, *EVENT))
    return vae


@pytest.mark.parametrize("name", MODELS)
def test_training_lowers_the_loss_and_moves_every_weight(name: str) -> None:
    vae = model(name)
    before = vae.get_weights()
    assert len(before) >= 6
    losses = vae.fit(BINARY, batch_size=20, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for weight, old in zip(vae.weights, before, strict=True):
        assert np.any(weight.numpy() != old), weight.path


@pytest.mark.slow
def test_a_network_that_draws_codes_trains_in_a_graph() -> None:
    expected, *others = (
        (vae, vae.fit(BINARY, batch_size=20, epochs=3, shuffle=False, verbose=0).history["loss"])
        for vae in (
            model("three heads, sigmoid", **settings)
            for settings in ({"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True})
        )
    )
    for vae, losses in others:
        assert losses[-1] < losses[0]
        if not vae.jit_compile:  # XLA has other normal draws
            np.testing.assert_allclose(losses, expected[1], rtol=1e-5)
    assert [vae.jit_compile for vae, _ in others] == [False, True]  # XLA has compiled it


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("file", ["vae.keras", "vae.weights.h5"])
def test_a_file_gives_the_model_back(name: str, file: str, tmp_path: Path) -> None:
    vae = model(name)
    vae.fit(BINARY, batch_size=20, verbose=0)
    if file.endswith(".keras"):
        vae.save(tmp_path / file)
        loaded = keras.models.load_model(tmp_path / file)
    else:
        vae.save_weights(tmp_path / file)
        loaded = model(name, seed=1)
        loaded.load_weights(tmp_path / file)
    for weight, value in zip(loaded.get_weights(), vae.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, value)
    assert loaded.evaluate(BINARY, verbose=0) == vae.evaluate(BINARY, verbose=0)
    if "subclassed" in name:  # a .keras file does not hold the seed of dropout
        return
    for trained in (vae, loaded):
        trained.fit(BINARY, batch_size=20, shuffle=False, verbose=0)
    for weight, value in zip(loaded.get_weights(), vae.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, value)


def parameters_by_hand(network: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    output = network(x)
    mean, log_variance = output[:2] if isinstance(output, list) else np.split(output, 2, axis=-1)
    return np.asarray(mean, np.float64), np.exp(np.asarray(log_variance, np.float64) / 2)


@pytest.mark.parametrize("network", [three_headed, one_tensor])
def test_the_aggregate_posterior_is_the_mixture_of_the_outputs(network: Any) -> None:
    keras.utils.set_random_seed(2)
    raw = network()
    q_z = AggregatePosterior.from_encoder(encoder_of(raw), BINARY, batch_size=25)
    mean, scale = parameters_by_hand(raw, BINARY)  # [N, D]
    z = np.random.default_rng(3).normal(size=(7, D))
    terms = -0.5 * ((z[:, None] - mean) / scale) ** 2 - np.log(scale * math.sqrt(2 * math.pi))
    expected = np.log(np.exp(terms.sum(axis=-1)).mean(axis=-1))
    np.testing.assert_allclose(q_z.log_prob(z.astype(np.float32)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["three heads, sigmoid", "one tensor, log-odds"])
def test_surgery_gives_the_terms_of_the_outputs(name: str) -> None:
    vae = model(name)
    vae.fit(BINARY, batch_size=20, verbose=0)
    encoder: Any = vae.encoder
    result = elbo_surgery(BINARY, encoder, vae.decoder, vae.prior, num_samples=2)
    mean, scale = parameters_by_hand(encoder.network, BINARY)
    kl = 0.5 * (mean**2 + scale**2 - 1.0 - 2.0 * np.log(scale)).sum(axis=-1)
    assert result.average_kl_method == "analytic"
    np.testing.assert_allclose(result.average_kl.value, kl.mean(), rtol=1e-5)
    draws = scored_draws(BINARY, encoder, vae.decoder, vae.prior, num_samples=2)
    codes = np.reshape(draws.z, [-1, D])
    decoder: Any = vae.decoder
    output = np.asarray(decoder.network(codes), np.float64).reshape(2, *BINARY.shape)
    log_odds = output if decoder.from_logits else np.log(output) - np.log1p(-output)
    terms = -np.where(BINARY == 1.0, np.log1p(np.exp(-log_odds)), np.log1p(np.exp(log_odds)))
    expected = terms.sum(axis=(2, 3, 4))
    np.testing.assert_allclose(draws.reconstruction, expected, rtol=1e-5)
    plain = stratified_estimate(expected, len(BINARY))
    assert abs(result.average_reconstruction.value - plain.value) < 4 * plain.standard_error
    z = np.asarray(draws.z, np.float64)
    log_posterior = stats.norm.logpdf(z, mean, scale).sum(axis=-1)
    log_ratio = log_posterior - stats.norm.logpdf(z).sum(axis=-1)
    known = {
        "H[q(z|x)]": log_posterior + stats.norm(mean, scale).entropy().sum(axis=-1),
        "KL(q(z|x) || p(z))": log_ratio - kl,
    }
    assert result.control_variates[:1] == ("H[q(z|x)]",)
    controls = [known[name] for name in result.control_variates]
    controlled, _ = controlled_mean(expected, controls, len(BINARY))
    np.testing.assert_allclose(result.average_reconstruction.value, controlled, rtol=1e-5)


def test_a_prior_of_the_same_encoder_survives_a_file(tmp_path: Path) -> None:
    def prior(encoder: Any) -> VampPrior:
        return VampPrior(D, encoder, EVENT, 3)

    vae = model("three heads, sigmoid", prior=prior)
    vae.fit(BINARY, batch_size=20, verbose=0)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    assert loaded.prior.encoder is loaded.encoder
    assert loaded.evaluate(BINARY, verbose=0) == vae.evaluate(BINARY, verbose=0)


def test_saturated_probabilities_are_explained() -> None:
    decoder = BernoulliDecoder(lambda z: tf.ones([len(z), *EVENT]), from_logits=False)
    encoder = encoder_of(three_headed())
    with pytest.raises(
        ValueError, match="probabilities that the decoder gives Bernoulli are exactly"
    ):
        elbo_surgery(BINARY, encoder, decoder, tfd.MultivariateNormalDiag(tf.zeros(D)))


def test_what_is_no_probability_for_some_codes_is_named() -> None:
    """The first code passes; the graph that scores all finds NaN, and the message its cause."""
    decoder = BernoulliDecoder(
        lambda z: tf.reshape(tf.repeat(0.6 * z[:, :1], 64, axis=1), [-1, *EVENT]) + 0.5,
        from_logits=False,
    )
    with pytest.raises(ValueError, match=r"lie outside \[0, 1\], from"):
        elbo_surgery(BINARY, encoder_of(three_headed()), decoder, StandardNormalPrior(D))


def test_networks_without_a_wrapper_are_shown_it() -> None:
    prior = StandardNormalPrior(D)
    decoder = BernoulliDecoder(flat(), from_logits=True)
    raw = three_headed()
    line = r'GaussianEncoder\(network, latent_size=2, scale="log_variance"\)'
    function: Any = lambda x: raw(x)  # noqa: E731, PLW0108
    for encoder in (raw, function, one_tensor()):
        vae = VAE(encoder, decoder, prior)
        vae.compile("adam")
        with pytest.raises(TypeError, match=line):
            vae.fit(BINARY, verbose=0)
        with pytest.raises(TypeError, match=line):
            elbo_surgery(BINARY, encoder, decoder, prior)
        for objective in (elbo(), iwae(2)):
            with pytest.raises(TypeError, match=line):
                objective(BINARY[:2], encoder, decoder, prior, 0)
    vae = VAE(encoder_of(raw), flat(), prior)
    vae.compile("adam")
    with pytest.raises(TypeError, match=r"BernoulliDecoder\(network, from_logits=True\)"):
        vae.fit(BINARY, verbose=0)


@pytest.mark.parametrize("train", ["fit", "train_on_batch"])
def test_an_encoder_hidden_in_a_function_is_named(train: str) -> None:
    """Nothing else has weights: Keras's optimizer could only say that it has nothing to unpack."""
    raw = three_headed()

    def posterior(x: Any) -> Any:
        mean, log_variance, _ = raw(x)
        return tfd.MultivariateNormalDiag(mean, tf.exp(log_variance / 2))

    def likelihood(z: Any) -> Any:
        return tfd.Independent(tfd.Bernoulli(logits=tf.reshape(z @ decode, [-1, *EVENT])), 3)

    decode = np.ones([D, 64], np.float32)
    prior = tfd.MultivariateNormalDiag(tf.zeros(D))
    calls: Any = lambda x: raw(x)  # noqa: E731, PLW0108
    for encoder in (posterior, encoder_of(calls)):
        vae = VAE(encoder, likelihood, prior)
        vae.compile("adam", run_eagerly=True)
        with pytest.raises(TypeError, match="the encoder has 8 trainable variables") as caught:
            getattr(vae, train)(BINARY[:4])
        assert "A function has no weights that could be trained" in str(caught.value)
        assert "tfs.networks.GaussianEncoder(network, latent_size=D" in str(caught.value)
    assert unwrap(posterior(BINARY[:4])).batch_shape == [4]


def test_a_function_in_a_wrapper_cannot_be_saved_whole(tmp_path: Path) -> None:
    weights = np.zeros([64, 2 * D], np.float32)
    encoder = encoder_of(lambda x: tf.reshape(x, [-1, 64]) @ weights)
    vae = VAE(encoder, BernoulliDecoder(flat(), from_logits=True), StandardNormalPrior(D))
    vae.compile("adam", run_eagerly=True)
    vae.fit(BINARY, verbose=0)
    with pytest.raises(ValueError, match="whose network is a function cannot be written"):
        vae.save(tmp_path / "vae.keras")
    vae.save_weights(tmp_path / "vae.weights.h5")
    vae.load_weights(tmp_path / "vae.weights.h5")
