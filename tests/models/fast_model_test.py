from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.decoders import ConvDecoder, MLPDecoder
from tfp_surgery.networks.encoders import ConvEncoder, MLPEncoder
from tfp_surgery.priors.base import StandardNormalPrior
from tfp_surgery.training.checkpoint import CheckpointCallback, load_checkpoint

EVENT = (4, 3, 1)
# 37 batches of 2: not a multiple of the steps that are executed together.
X = (np.random.default_rng(0).random((74, *EVENT)) > 0.5).astype(np.float32)


def make_vae(optimizer: Any = None, **settings: Any) -> VAE:
    keras.utils.set_random_seed(0)
    vae = VAE(MLPEncoder(2, (6,)), MLPDecoder(EVENT, (6,)), StandardNormalPrior(2))
    vae.compile(keras.optimizers.SGD(0.1) if optimizer is None else optimizer, **settings)
    return vae


def batches() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(X).batch(2)


class Recorder(keras.callbacks.Callback):
    """Writes down how many steps each execution has."""

    def __init__(self) -> None:
        super().__init__()
        self.in_one_call: list[int] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.in_one_call.append(self.model.steps_per_execution)


class BatchRecorder(Recorder):
    """Sees batches as well."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.batches.append(batch)


def fitted(vae: VAE, callback: Recorder | None = None, **settings: Any) -> dict[str, list[float]]:
    settings = {"epochs": 2, "validation_data": X[:10], **settings}
    callbacks = [] if callback is None else [callback]
    history = vae.fit(batches(), verbose=0, callbacks=callbacks, **settings)
    losses: dict[str, list[float]] = history.history
    return losses


@pytest.mark.slow
def test_the_defaults_train_as_single_steps_do() -> None:
    recorder = Recorder()
    vae = make_vae(keras.optimizers.Adam(0.01))
    single = make_vae(keras.optimizers.Adam(0.01), jit_compile=True, steps_per_execution=1)
    assert fitted(vae, recorder) == fitted(single)
    assert vae.jit_compile
    assert set(recorder.in_one_call) == {16}
    for weight, expected in zip(vae.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert vae.optimizer.iterations == 2 * 37


def test_batches_of_several_shapes_and_of_unknown_number_count_once_each() -> None:
    def unlike() -> tf.data.Dataset:
        data = tf.data.Dataset.from_tensor_slices(X[:20])
        # 10, 7 and 10 batches, the last of the 7 with two observations.
        data = data.batch(2).concatenate(data.batch(3)).concatenate(data.batch(2))
        return data.map(lambda x: {"x": x, "index": tf.range(tf.shape(x)[0])}).filter(
            lambda _: True
        )

    vae, single = make_vae(jit_compile=True), make_vae(jit_compile=True, steps_per_execution=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras tells that it learns the size from the first pass
        histories = [each.fit(unlike(), epochs=2, verbose=0).history for each in (vae, single)]
    assert histories[0] == histories[1]
    assert vae.optimizer.iterations == 2 * 27
    for weight, expected in zip(vae.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_steps_are_joined_where_nothing_can_tell() -> None:
    vae, recorder = make_vae(jit_compile=False), BatchRecorder()
    fitted(vae, recorder)
    assert recorder.in_one_call == [1, 1]
    assert recorder.batches == 2 * list(range(37))

    for limit in ({"steps_per_epoch": 5}, {"validation_steps": 1, "validation_batch_size": 2}):
        recorder = Recorder()
        before = int(vae.optimizer.iterations)
        fitted(vae, recorder, epochs=1, **limit)
        assert recorder.in_one_call == [1]
        assert vae.optimizer.iterations - before == limit.get("steps_per_epoch", 37)

    recorder = Recorder()
    fitted(vae, recorder, epochs=1)
    assert recorder.in_one_call == [16]
    hook = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: None)
    several = keras.callbacks.CallbackList([hook, recorder], model=vae, epochs=1, steps=37)
    vae.fit(batches(), verbose=0, callbacks=several)
    assert recorder.in_one_call == [16, 1]


def test_what_is_given_is_kept() -> None:
    vae, recorder = make_vae(jit_compile=False, steps_per_execution=3), Recorder()
    fitted(vae, recorder)
    assert recorder.in_one_call == [3, 3]
    assert vae.jit_compile is False
    assert vae.steps_per_execution == 3


def test_a_callback_may_evaluate_and_predict() -> None:
    seen = []

    class Looking(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            loss = self.model.evaluate(batches(), steps=5, verbose=0)[0]
            seen.append((loss, len(self.model.predict(batches(), steps=5, verbose=0))))

    vae = make_vae(jit_compile=False)
    vae.fit(batches(), epochs=2, verbose=0, callbacks=[Looking()])
    expected = vae.evaluate(X[:10], batch_size=2, verbose=0)[0]
    assert seen[-1] == (pytest.approx(expected), 10)
    assert vae.steps_per_execution == 1


def test_a_dataset_of_unknown_size_is_read_to_its_end() -> None:
    vae, data = make_vae(jit_compile=False), batches().filter(lambda _: True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras tells that it learns the size from the first pass
        vae.fit(data, epochs=3, verbose=0)
    assert vae.optimizer.iterations == 3 * 37


def test_no_xla_for_what_it_does_not_know() -> None:
    def decode(z: tf.Tensor) -> Any:
        parameters = tf.py_function(lambda value: value, [z], tf.float32)
        return decoder(tf.ensure_shape(parameters, z.shape))

    encoder, decoder = MLPEncoder(2, (6,)), MLPDecoder(EVENT, (6,))
    decoder.build((None, 2))
    decoder.trainable = False
    vae = VAE(encoder, decode, StandardNormalPrior(2))
    vae.compile(keras.optimizers.SGD(0.1))
    with pytest.warns(UserWarning, match="XLA cannot compile"):
        losses = fitted(vae)["loss"]
    assert np.all(np.isfinite(losses))
    assert not vae.jit_compile


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="is about CPUs")
def test_no_xla_for_convolutions_on_a_cpu() -> None:
    encoder = ConvEncoder(2, filters=(3,), hidden_sizes=(4,))
    vae = VAE(encoder, ConvDecoder(EVENT, filters=(3,), hidden_sizes=(4,)), StandardNormalPrior(2))
    vae.compile(keras.optimizers.SGD(0.1))
    fitted(vae)
    assert not vae.jit_compile


def test_no_xla_when_run_eagerly() -> None:
    vae, recorder = make_vae(run_eagerly=True), Recorder()
    vae.fit(X, batch_size=37, verbose=0, callbacks=[recorder])
    assert not vae.jit_compile
    assert recorder.in_one_call == [1]


def test_evaluation_a_new_compile_and_a_loaded_model_choose_as_well(tmp_path: Path) -> None:
    vae = make_vae()
    assert not vae.jit_compile
    vae.evaluate(X, verbose=0)
    assert vae.jit_compile
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    for name in ("jit_compile", "steps_per_execution"):
        assert loaded.get_compile_config()[name] == "auto"
    assert not loaded.jit_compile
    vae.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    vae.evaluate(X, verbose=0)
    assert not vae.jit_compile


def test_a_run_of_joined_steps_is_resumed_weight_for_weight(tmp_path: Path) -> None:
    def started() -> VAE:
        return make_vae(keras.optimizers.Adam(0.01), jit_compile=False)

    whole = started()
    whole.fit(batches(), epochs=4, verbose=0)
    path = tmp_path / "checkpoint.keras"
    started().fit(batches(), epochs=2, verbose=0, callbacks=[CheckpointCallback(path)])
    resumed, recorder = load_checkpoint(path).model, Recorder()
    assert resumed.get_compile_config()["jit_compile"] is False
    resumed.fit(batches(), initial_epoch=2, epochs=4, verbose=0, callbacks=[recorder])
    assert recorder.in_one_call == [16, 16]
    for weight, expected in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
