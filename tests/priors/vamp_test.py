from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tests.testing.encoder_priors import (
    EVENT_SHAPE,
    IdentityEncoder,
    binary_data,
    make_encoder,
    make_vae,
)
from tests.testing.prior_conformance import PriorConformance
from tfp_surgery.priors.base import Prior
from tfp_surgery.priors.vamp import VampPrior

tfd = tfp.distributions

X = binary_data()
STANDARD_ERRORS = 4.5


def make_prior(encoder: Any = None, num_components: int = 6, **kwargs: Any) -> VampPrior:
    encoder = make_encoder() if encoder is None else encoder
    return VampPrior(2, encoder, EVENT_SHAPE, num_components, **kwargs)


class TestVampConformance(PriorConformance):
    def make(self, **kwargs: Any) -> Prior:
        policy = {"dtype": kwargs["dtype"]} if "dtype" in kwargs else {}
        return make_prior(make_encoder(**policy), pseudo_inputs=X, weighted=True, **kwargs)

    def trained(self) -> tuple[Callable[[], tfd.Distribution], Sequence[tf.Variable]]:
        """With pseudo-inputs inside of [0, 1]: at its ends a difference leaves it."""
        layer, variables = super().trained()
        for variable in variables:
            if "pseudo_inputs" in variable.name:
                variable.assign(0.2 + 0.6 * variable)
        return layer, variables


def test_the_density_is_the_mixture_of_posteriors() -> None:
    encoder = make_encoder()
    prior = make_prior(encoder, weighted=True)
    prior.logits.assign([0.0, 1.0, -1.0, 0.5, -100.0, 0.0])
    posteriors = encoder(prior.pseudo_inputs)
    loc, scale = (
        part.numpy().astype(np.float64) for part in (posteriors.mean(), posteriors.stddev())
    )
    z = np.random.default_rng(0).normal(size=(5, 2))
    scores = scipy.stats.norm(loc, scale).logpdf(z[:, None]).sum(axis=-1)  # [5, K]
    weights = scipy.special.softmax(prior.logits.numpy().astype(np.float64))
    expected = scipy.special.logsumexp(scores, axis=1, b=weights)
    np.testing.assert_allclose(prior().log_prob(z.astype(np.float32)), expected, atol=1e-5)


def test_all_the_data_as_pseudo_inputs_give_the_aggregate_posterior() -> None:
    keras.utils.set_random_seed(3)
    encoder = make_encoder(dtype="float64")
    prior = make_prior(encoder, len(X), pseudo_inputs=X, trainable=False, dtype="float64")
    aggregate = tfs.AggregatePosterior.from_encoder(encoder, X.astype(np.float64))
    z = aggregate.sample(50, seed=(0, 1))
    np.testing.assert_allclose(prior().log_prob(z), aggregate.log_prob(z), rtol=1e-12)
    np.testing.assert_array_equal(prior().sample(9, seed=(0, 1)), aggregate.sample(9, seed=(0, 1)))


def test_a_known_mixture_is_reached() -> None:
    """q(z) is four Gaussians of unequal numbers of observations, which the prior can represent."""
    centres = np.array([[0.1, 0.2], [0.9, 0.3], [0.4, 0.8], [0.7, 0.7]], np.float32)
    x = np.repeat(centres, [10, 20, 30, 40], axis=0)
    encoder = IdentityEncoder(0.1)
    prior = VampPrior(2, encoder, (2,), num_components=12, weighted=True, seed=1)
    q_z = tfs.AggregatePosterior.from_encoder(encoder, x)
    fit = tfs.fit_prior(
        q_z, prior, num_steps=600, batch_size=200, learning_rate=0.03, num_samples=50, verbose=False
    )
    after = fit.training.marginal_kl_after
    assert fit.training.marginal_kl_before.value > 1.0
    assert abs(after.value) + STANDARD_ERRORS * after.standard_error < 0.05


def test_where_pseudo_inputs_start() -> None:
    noise = make_prior(seed=3).pseudo_inputs.numpy()
    assert noise.shape == (6, *EVENT_SHAPE)
    assert noise.min() >= 0
    assert noise.max() <= 1
    np.testing.assert_array_equal(make_prior(seed=3).pseudo_inputs, noise)
    assert np.all(make_prior(seed=4).pseudo_inputs != noise)
    np.testing.assert_array_equal(make_prior(pseudo_inputs=X[:6]).pseudo_inputs, X[:6])

    numbered = np.broadcast_to(np.arange(50.0).reshape(50, 1, 1) / 64, (50, *EVENT_SHAPE))
    dataset = tfs.datasets.Dataset("mine", "train", numbered, "none", 0)
    for given in (numbered, dataset):
        drawn = make_prior(pseudo_inputs=given, seed=1).pseudo_inputs.numpy()[:, 0, 0] * 64
        assert len(set(drawn)) == 6  # without replacement
        assert np.all(drawn == np.round(drawn))
        other = make_prior(pseudo_inputs=given, seed=2).pseudo_inputs.numpy()[:, 0, 0] * 64
        assert set(drawn) != set(other)


@pytest.mark.parametrize("start", ["binary", "noise", "beyond"])
def test_pixels_at_and_beyond_the_borders_learn(start: str) -> None:
    """Codes that a known pseudo-input gives are found again, from wherever the search starts."""
    encoder = make_encoder()
    target = np.full((1, *EVENT_SHAPE), 0.5, np.float32)
    codes = encoder(target).sample(2000, seed=(0, 1))[:, 0]
    prior = make_prior(encoder, 1, pseudo_inputs=None if start == "noise" else X[:1])
    if start == "beyond":
        prior.free_pseudo_inputs.assign(X[:1] * 4 - 2)
    variables = prior.fitted_variables
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(variables)

    @tf.function(autograph=False)
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(prior().log_prob(codes))
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    first = tf.reduce_mean(prior().log_prob(codes))
    inside = []
    for _ in range(150):
        step()
        values = prior.free_pseudo_inputs.numpy()
        inside.append((values > 0) & (values < 1))
        assert values.min() >= 0
        assert values.max() <= 1
    best = tf.reduce_mean(encoder(target).log_prob(codes[:, tf.newaxis]))
    assert best - first > 0.3
    assert abs(best - tf.reduce_mean(prior().log_prob(codes))) < 0.02
    if start != "noise":
        # Pixels that a first step pushes against the border come back from it.
        assert np.sum(inside[0]) < np.sum(np.any(inside, axis=0))


def test_freezing_the_prior_leaves_the_encoder_free() -> None:
    encoder = make_encoder()
    prior = make_prior(encoder, pseudo_inputs=X, weighted=True)
    assert [v.name for v in prior.fitted_variables] == ["free_pseudo_inputs", "logits"]
    for frozen in (prior, make_prior(encoder, pseudo_inputs=X, weighted=True, trainable=False)):
        frozen.trainable = False
        assert frozen.fitted_variables == []
        vae = make_vae(encoder, frozen)
        vae.build((None, *EVENT_SHAPE))
        names = [v.path for v in vae.trainable_weights]
        assert len(encoder.trainable_weights) == 4
        assert not any("pseudo" in name or "logits" in name for name in names)
        vae.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        before = encoder.get_weights()
        pixels = frozen.free_pseudo_inputs.numpy()
        vae.fit(X, batch_size=64, verbose=0)
        assert all(np.any(a != b) for a, b in zip(before, encoder.get_weights(), strict=True))
        np.testing.assert_array_equal(frozen.free_pseudo_inputs, pixels)
    prior.trainable = True
    assert len(prior.fitted_variables) == 2


def test_the_encoder_gets_the_gradient_of_the_prior_too() -> None:
    encoder = make_encoder()
    prior = make_prior(encoder, pseudo_inputs=X)
    with tf.GradientTape() as tape:
        log_prob = tf.reduce_mean(prior().log_prob(tf.zeros([4, 2])))
    for gradient in tape.gradient(log_prob, [v.value for v in encoder.trainable_variables]):
        assert np.any(gradient != 0)


def trained() -> tfs.VAE:
    encoder = make_encoder()
    vae = make_vae(encoder, make_prior(encoder, pseudo_inputs=X))
    vae.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    vae.fit(batches(), epochs=2, verbose=0)
    return vae


def batches(initial_epoch: int = 0) -> tf.data.Dataset:
    dataset = tfs.datasets.Dataset("mine", "train", X, "none", 0)
    return dataset.batches(16, seed=0, initial_epoch=initial_epoch)


@pytest.mark.slow
def test_a_loaded_model_has_one_encoder_and_trains_on(tmp_path: Path) -> None:
    vae = trained()
    assert len(vae.trainable_weights) == 4 + 4 + 1  # encoder, decoder, pseudo-inputs
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    assert loaded.prior.encoder is loaded.encoder
    assert [w.shape for w in loaded.weights] == [w.shape for w in vae.weights]
    for model in (vae, loaded):
        model.fit(batches(2), initial_epoch=2, epochs=4, verbose=0)
    for a, b in zip(vae.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loaded.prior.encoder is loaded.encoder

    vae.save_weights(tmp_path / "vae.weights.h5")
    other = make_encoder()
    rebuilt = make_vae(other, make_prior(other))
    rebuilt.build((None, *EVENT_SHAPE))
    rebuilt.load_weights(tmp_path / "vae.weights.h5")
    np.testing.assert_array_equal(
        rebuilt.prior().sample(3, seed=(0, 1)), vae.prior().sample(3, seed=(0, 1))
    )


def test_a_model_from_its_configuration_has_one_encoder() -> None:
    encoder = make_encoder()
    vae = make_vae(encoder, make_prior(encoder))
    again = tfs.VAE.from_config(vae.get_config())
    assert again.prior.encoder is again.encoder
    other = make_vae(make_encoder(), make_prior(encoder))
    again = tfs.VAE.from_config(other.get_config())
    assert again.prior.encoder is not again.encoder


def test_importance_weighted_training() -> None:
    encoder = make_encoder()
    objective = tfs.objectives.iwae(3, "doubly_reparameterized")
    vae = make_vae(encoder, make_prior(encoder, pseudo_inputs=X), objective=objective)
    vae.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    vae.build((None, *EVENT_SHAPE))
    before = vae.get_weights()
    vae.train_on_batch(X)
    for old, new in zip(before, vae.get_weights(), strict=True):
        assert np.all(np.isfinite(new))
        assert np.any(old != new)


def test_surgery_takes_the_layer() -> None:
    encoder = make_encoder()
    vae = make_vae(encoder, make_prior(encoder, len(X), pseudo_inputs=X))
    surgery = tfs.elbo_surgery(X, encoder, vae.decoder, vae.prior)
    assert abs(surgery.marginal_kl.value) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_components": 0}, ValueError, "num_components must be at least 1"),
        ({"num_components": 2.5}, TypeError, "num_components must be an integer"),
        ({"event_size": 3}, ValueError, r"codes of shape \[3\]"),
        ({"encoder": 3}, TypeError, "encoder must be callable, got int"),
        ({"encoder": lambda x: x}, TypeError, "encoder must return a distribution"),
        ({"dtype": "float64"}, ValueError, "dtype=encoder.dtype_policy"),
        ({"pseudo_inputs": X[:3]}, ValueError, "at least 4 observations"),
        ({"pseudo_inputs": X.reshape(64, 6)}, ValueError, r"shape \[3, 2\], got shape \[64, 6\]"),
        ({"pseudo_inputs": 2 * X}, ValueError, r"lie in \[0, 1\], got values from 0 to 2"),
        ({"pseudo_inputs": np.full_like(X, np.nan)}, ValueError, "finite"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: Any, message: str) -> None:
    given = {
        "event_size": 2,
        "encoder": make_encoder(),
        "observation_shape": EVENT_SHAPE,
        "num_components": 4,
    }
    with pytest.raises(error, match=message):
        VampPrior(**{**given, **arguments})


def test_no_condition_and_no_configuration_of_a_function() -> None:
    with pytest.raises(ValueError, match="VampPrior is a prior of codes alone"):
        make_prior()(tf.zeros([3, 1]))
    encoder = make_encoder()

    def network(x: tf.Tensor) -> tfd.Distribution:
        return encoder(2.0 * x)

    prior = make_prior(network)
    assert len(prior.fitted_variables) == 1
    with pytest.raises(ValueError, match="encoder is a function cannot be written"):
        prior.get_config()
