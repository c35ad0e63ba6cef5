from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.datasets import load
from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.decoders import MLPDecoder
from tfp_surgery.networks.encoders import MLPEncoder
from tfp_surgery.priors.base import StandardNormalPrior
from tfp_surgery.surgery.elbo_surgery import elbo_surgery
from tfp_surgery.training.callbacks import ElboSurgeryCallback

tfd = tfp.distributions


def _vae(event_shape: tuple[int, ...]) -> VAE:
    keras.utils.set_random_seed(0)
    vae = VAE(
        MLPEncoder(2, hidden_sizes=(16,)),
        MLPDecoder(event_shape, hidden_sizes=(16,)),
        StandardNormalPrior(2),
    )
    vae.compile(optimizer=keras.optimizers.Adam(1e-2))
    return vae


def test_reports_a_subset_while_training_and_everything_at_the_end() -> None:
    dataset = load("digits", binarization="fixed")
    vae = _vae(dataset.event_shape)
    callback = ElboSurgeryCallback(dataset, every=2, num_query=100, seed=5)
    history = vae.fit(
        dataset.batches(128, seed=0), epochs=4, verbose=0, callbacks=[callback]
    ).history
    assert [epoch for epoch, _ in callback.history] == [1, 3]
    assert all(surgery.num_query == 100 for _, surgery in callback.history)
    assert all(surgery.num_observations == 1500 for _, surgery in callback.history)
    assert history["surgery_elbo"][1::2] == [s.elbo.value for _, s in callback.history]
    assert np.all(np.isnan(history["surgery_elbo"][::2]))
    result = callback.result
    assert result is not None
    assert result.num_query == 1500
    assert result == elbo_surgery(dataset, vae.encoder, vae.decoder, vae.prior, seed=5)
    subset = callback.history[-1][1]
    error = np.hypot(subset.elbo.standard_error, result.elbo.standard_error)
    assert abs(subset.elbo.value - result.elbo.value) < 4 * error


def test_the_average_of_the_weights_is_what_the_end_is_about() -> None:
    """With use_ema Keras overwrites the weights before on_train_end."""
    dataset = load("digits", binarization="fixed")
    vae = _vae(dataset.event_shape)
    average = keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9)
    vae.compile(average, run_eagerly=True)
    callback = ElboSurgeryCallback(dataset, every=9, num_query=10)
    vae.fit(dataset.batches(128, seed=0), epochs=1, verbose=0, callbacks=[callback])
    assert callback.result == elbo_surgery(dataset, vae.encoder, vae.decoder, vae.prior)


TERMS = [
    "surgery_average_kl",
    "surgery_elbo",
    "surgery_index_code_mutual_information",
    "surgery_marginal_kl",
]
_MONITOR: dict[str, Any] = {"monitor": "surgery_elbo", "mode": "max"}


class KerasVAE(keras.Model):
    """The VAE of Keras's examples: networks of tensors, and a `train_step`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        inputs = keras.Input((64,))
        hidden = keras.layers.Dense(16, "relu")(inputs)
        self.encode = keras.Model(
            inputs, [keras.layers.Dense(2)(hidden), keras.layers.Dense(2)(hidden)]
        )
        self.decode = keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(64)]
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.decode(self.encode(x)[0])

    def test_step(self, x: tf.Tensor) -> dict[str, Any]:
        error = tf.nn.sigmoid_cross_entropy_with_logits(x, self(x))
        return {"loss": tf.reduce_mean(tf.reduce_sum(error, axis=1))}

    def train_step(self, x: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            mean, log_var = self.encode(x)
            z = mean + tf.exp(0.5 * log_var) * tf.random.normal(tf.shape(mean))
            error = tf.nn.sigmoid_cross_entropy_with_logits(x, self.decode(z))
            kl = -0.5 * (1 + log_var - tf.square(mean) - tf.exp(log_var))
            loss = tf.reduce_mean(tf.reduce_sum(error, axis=1) + tf.reduce_sum(kl, axis=1))
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


def _parts(model: KerasVAE) -> dict[str, Any]:
    def encoder(x: tf.Tensor) -> tfd.Distribution:
        mean, log_var = model.encode(x)
        return tfd.MultivariateNormalDiag(mean, tf.exp(0.5 * log_var))

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Bernoulli(logits=model.decode(z)), 1)

    return {
        "encoder": encoder,
        "decoder": decoder,
        "prior": tfd.MultivariateNormalDiag(tf.zeros(2)),
    }


def _keras_vae() -> tuple[KerasVAE, np.ndarray, dict[str, Any]]:
    x = load("digits", binarization="fixed").observations()[:64].reshape(64, 64)
    keras.utils.set_random_seed(0)
    model = KerasVAE()
    model.compile(keras.optimizers.Adam(1e-2))
    model.build((None, 64))
    return model, x.astype(np.float32), _parts(model)


def _own_vae() -> tuple[VAE, np.ndarray, dict[str, Any]]:
    dataset = load("digits", binarization="fixed")
    vae = _vae(dataset.event_shape)
    vae.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
    return vae, dataset.observations()[:64], {}


MODELS = pytest.mark.parametrize("make", [_own_vae, _keras_vae])


@MODELS
@pytest.mark.parametrize("validation", ["none", "every epoch", "every other epoch"])
def test_every_epoch_has_the_same_columns(make: Any, tmp_path: Path, validation: str) -> None:
    model, x, parts = make()
    file = tmp_path / "log.csv"
    settings: dict[str, Any] = {} if validation == "none" else {"validation_data": x[:8]}
    if validation == "every other epoch":
        settings["validation_freq"] = 2
    callback = ElboSurgeryCallback(x, **parts, every=3, num_query=10)
    loggers = [keras.callbacks.CSVLogger(file), keras.callbacks.TensorBoard(tmp_path / "board")]
    history = model.fit(
        x, epochs=4, verbose=2, callbacks=[callback, [*loggers]], **settings
    ).history
    rows = list(csv.DictReader(file.open()))
    columns = [name for name in rows[0] if name.startswith("surgery_")]
    assert set(TERMS) < set(columns) == {f"surgery_{n}" for n in callback.history[0][1].estimates()}
    assert not [name for name in rows[0] if name.startswith("val_surgery_")]
    assert {"loss", "val_loss"} < set(rows[0])  # Keras has the latter without validation as well
    for name in columns:
        found = [float(row[name]) for row in rows]
        np.testing.assert_array_equal(found, history[name])
        assert np.isnan(found).tolist() == [True, True, False, True]


@MODELS
def test_what_monitors_a_term_counts_the_looks_alone(make: Any, tmp_path: Path) -> None:
    model, x, parts = make()
    saved: list[int] = []

    class Checkpoint(keras.callbacks.ModelCheckpoint):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            super().on_epoch_end(epoch, logs)
            saved.extend([epoch] if Path(self.filepath).exists() else [])
            Path(self.filepath).unlink(missing_ok=True)

    checkpoint = Checkpoint(
        tmp_path / "best.weights.h5", save_best_only=True, save_weights_only=True, **_MONITOR
    )
    # Less than the epochs from one look to the next.
    stop = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True, **_MONITOR)
    plateau = keras.callbacks.ReduceLROnPlateau(patience=1, **_MONITOR)
    callback = ElboSurgeryCallback(x, **parts, every=2, num_query=20)
    model.fit(x, epochs=6, verbose=0, callbacks=[callback, checkpoint, stop, plateau])
    values = [surgery.elbo.value for _, surgery in callback.history]
    assert values == sorted(values)  # it rises at each look
    assert saved == [1, 3, 5]
    assert stop.best == plateau.best == checkpoint.best == values[-1]
    assert stop.stopped_epoch == 0
    np.testing.assert_allclose(model.optimizer.learning_rate, 1e-2, rtol=1e-6)


@MODELS
@pytest.mark.slow
def test_patience_ends_after_as_many_looks_without_improvement(make: Any) -> None:
    model, x, parts = make()
    model.optimizer.learning_rate = 0.0  # nothing improves
    stop = keras.callbacks.EarlyStopping(patience=2, **_MONITOR)
    callback = ElboSurgeryCallback(x, **parts, every=3, num_query=20)
    for _ in range(2):  # the callbacks of a former `fit` are not in the way
        history = model.fit(x, epochs=20, verbose=0, callbacks=[callback, stop])
        # Looks after epochs 3, 6 and 9: the first is the best, two more are not better.
        assert len(history.epoch) == 9


def test_parts_handed_in_are_those_that_are_trained() -> None:
    """And take precedence over the model's attributes."""
    model, x, parts = _keras_vae()
    model.encoder, model.prior = (lambda _: None), None
    model.decoder = parts.pop("decoder")  # found as an attribute
    callback = ElboSurgeryCallback(x, parts["encoder"], prior=parts["prior"], every=5, seed=3)
    model.fit(x, epochs=10, verbose=0, callbacks=[callback])
    first, last = (surgery.elbo.value for _, surgery in callback.history)
    assert last > first + 1.0
    assert callback.result == elbo_surgery(
        x, parts["encoder"], model.decoder, parts["prior"], seed=3
    )


def test_a_functional_model_with_parts() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    inputs = keras.Input((3,))
    squeeze, expand = keras.layers.Dense(2), keras.layers.Dense(3)
    model = keras.Model(inputs, expand(squeeze(inputs)))
    model.compile("adam", "mse")
    callback = ElboSurgeryCallback(
        x,
        lambda x: tfd.MultivariateNormalDiag(squeeze(x), [0.5, 0.5]),
        lambda z: tfd.MultivariateNormalDiag(expand(z), tf.ones(3)),
        tfd.MultivariateNormalDiag(tf.zeros(2)),
    )
    model.fit(x, x, epochs=3, verbose=0, callbacks=[callback])
    values = [surgery.average_reconstruction.value for _, surgery in callback.history]
    assert values == sorted(values)
    assert len(set(values)) == 3


def _conditional(condition_size: int) -> tuple[keras.Model, dict[str, Any]]:
    keras.utils.set_random_seed(0)
    squeeze, expand = keras.layers.Dense(2), keras.layers.Dense(3)
    inputs = keras.Input((3 + condition_size,))
    model = keras.Model(inputs, expand(squeeze(inputs)))
    model.compile(keras.optimizers.Adam(0.1), "mse")

    def encoder(x: tf.Tensor, condition: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(squeeze(tf.concat([x, condition], 1)), [0.5, 0.5])

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(expand(z), tf.ones(3))

    prior = tfd.MultivariateNormalDiag(tf.zeros(2))
    return model, {"encoder": encoder, "decoder": decoder, "prior": prior}


def test_the_condition_goes_with_its_observations() -> None:
    rng = np.random.default_rng(0)
    x, condition = (rng.normal(size=(30, size)).astype(np.float32) for size in (3, 2))
    model, parts = _conditional(2)
    callback = ElboSurgeryCallback(x, **parts, condition=condition, num_query=10)
    model.fit(np.concatenate([x, condition], axis=1), x, verbose=0, callbacks=[callback])
    assert callback.result == elbo_surgery(x, **parts, condition=condition)
    expected = elbo_surgery(x, **parts, condition=condition, num_query=10)
    assert callback.history[0][1] == expected
    with pytest.raises(ValueError, match="condition must have one row an observation, 30"):
        ElboSurgeryCallback(x, **parts, condition=condition[:20])


@pytest.mark.parametrize("form", ["tf.data.Dataset", "sparse", "Tensor"])
def test_the_data_may_have_other_forms(form: str) -> None:
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    given = {
        "tf.data.Dataset": lambda: tf.data.Dataset.from_tensor_slices(x).batch(7),
        "sparse": lambda: scipy.sparse.csr_matrix(x),
        "Tensor": lambda: tf.constant(x),
    }[form]()
    model, parts = _conditional(0)
    whole = parts["encoder"]
    parts["encoder"] = lambda x: whole(x, tf.zeros([len(x), 0]))
    callback = ElboSurgeryCallback(given, **parts, num_query=10)
    model.fit(x, x, verbose=0, callbacks=[callback])
    assert callback.result is not None
    expected = elbo_surgery(x, **parts)
    np.testing.assert_allclose(
        [term.value for term in callback.result.estimates().values()],
        [term.value for term in expected.estimates().values()],
        rtol=1e-6,
    )


def test_a_structured_observation() -> None:
    rng = np.random.default_rng(0)
    x = {
        "pixels": rng.normal(size=(30, 3)).astype(np.float32),
        "mask": rng.integers(0, 2, (30, 3)).astype(np.float32),
    }
    model, parts = _conditional(3)
    whole, expand = parts["encoder"], parts["decoder"]
    parts["encoder"] = lambda x: whole(x["pixels"], x["mask"])
    parts["decoder"] = lambda z: tfd.JointDistributionNamed(
        {
            "pixels": expand(z),
            "mask": tfd.Independent(tfd.Bernoulli(tf.zeros([len(z), 3]), dtype=tf.float32), 1),
        },
        batch_ndims=1,
    )
    callback = ElboSurgeryCallback(x, **parts, num_query=10)
    inputs = np.concatenate([x["pixels"], x["mask"]], axis=1)
    model.fit(inputs, x["pixels"], verbose=0, callbacks=[callback])
    assert callback.result == elbo_surgery(x, **parts)


def test_a_model_that_cannot_be_measured_is_told_before_the_first_epoch() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    vae = _vae((3,))
    vae.compile("adam", run_eagerly=True)
    epochs: list[int] = []
    seen = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: epochs.append(epoch))
    with pytest.raises(ValueError, match="support"):
        vae.fit(
            (x > 0).astype(np.float32),
            verbose=0,
            callbacks=[ElboSurgeryCallback(x, every=9), seen],
        )
    assert not epochs


def test_what_cannot_be_carved_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="two passes over x give other observations"):
        ElboSurgeryCallback(tf.data.Dataset.range(30).shuffle(30).batch(7))
    with pytest.raises(ValueError, match="uint8 levels up to 9"):
        ElboSurgeryCallback(tf.fill([3, 2], tf.constant(9, tf.uint8)))
    with pytest.raises(ValueError, match="NaN"):
        ElboSurgeryCallback(np.full([3, 2], np.nan))
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("adam", "mse")
    prior = tfd.MultivariateNormalDiag(tf.zeros(2))
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, r"Sequential has no encoder and no decoder and no prior\."),
        ({"prior": prior}, r"no encoder and no decoder\. .*\(x, encoder=\.\.\., decoder=\.\.\.\)"),
    ]
    for parts, message in cases:
        callback = ElboSurgeryCallback(np.zeros([3, 2]), **parts)
        with pytest.raises(TypeError, match=message):
            model.fit(np.zeros([3, 2]), np.zeros([3, 1]), callbacks=[callback], verbose=0)
        assert not model.built
    cases = [
        ({"encoder": prior}, "encoder must be a callable .*calls anew, got Mult"),
        ({"decoder": 3}, "decoder must be a callable .* got int"),
        ({"prior": "normal"}, "prior must be a tfd.Distribution or a callable .* got str"),
    ]
    for parts, message in cases:
        with pytest.raises(TypeError, match=message):
            ElboSurgeryCallback(np.zeros([3, 2]), **parts)


@pytest.mark.parametrize("name", ["every", "num_query", "num_samples", "batch_size"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ElboSurgeryCallback(np.zeros([3, 2]), **{name: 0})  # type: ignore[arg-type]
