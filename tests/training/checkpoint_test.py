"""Tests of checkpoints: a run that goes on is the run that was never stopped."""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.datasets import Dataset
from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.decoders import MLPDecoder
from tfp_surgery.networks.encoders import MLPEncoder
from tfp_surgery.priors.base import StandardNormalPrior
from tfp_surgery.training.checkpoint import CheckpointCallback, load_checkpoint

tfd = tfp.distributions

NUM_EPOCHS = 4


class StoppedError(Exception):
    """Stands for whatever ends a process in the middle of its training."""


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch == self.epoch:
            raise StoppedError


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    intensities = np.random.default_rng(0).random((40, 3, 3, 1)).astype(np.float32)
    return Dataset("noise", "train", intensities, "stochastic", 1)


def make_vae(**settings: Any) -> VAE:
    """A model that runs step by step, without any program, where no settings are given."""
    keras.utils.set_random_seed(7)
    vae = VAE(MLPEncoder(2, (5,)), MLPDecoder((3, 3, 1), (5,)), StandardNormalPrior(2), seed=(3, 4))
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 3 * NUM_EPOCHS, alpha=0.01)
    vae.compile(keras.optimizers.Adam(schedule), **(settings or {"run_eagerly": True}))
    return vae


def fit(vae: VAE, dataset: Dataset, first_epoch: int, *callbacks: Any) -> None:
    vae.fit(
        dataset.batches(16, seed=5, initial_epoch=first_epoch),
        epochs=NUM_EPOCHS,
        initial_epoch=first_epoch,
        verbose=0,
        callbacks=list(callbacks),
    )


def state(vae: VAE) -> list[np.ndarray]:
    return [variable.numpy() for variable in (*vae.variables, *vae.optimizer.variables)]


@pytest.fixture(scope="module")
def finished(
    dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[VAE, pathlib.Path]:
    path = tmp_path_factory.mktemp("finished") / "checkpoint.keras"
    vae = make_vae(jit_compile=True)
    fit(vae, dataset, 0, CheckpointCallback(path))
    return vae, path


@pytest.mark.slow
def test_a_run_that_goes_on_equals_the_uninterrupted_one(
    dataset: Dataset, finished: tuple[VAE, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "checkpoint.keras"
    with pytest.raises(StoppedError):
        fit(make_vae(jit_compile=True), dataset, 0, StopAt(2), CheckpointCallback(path))

    checkpoint = load_checkpoint(path)
    assert checkpoint.num_epochs == 2  # the third epoch was lost
    assert checkpoint.model.jit_compile
    callback = CheckpointCallback(path, seconds_before=checkpoint.seconds)
    fit(checkpoint.model, dataset, checkpoint.num_epochs, callback)

    for resumed, uninterrupted in zip(state(checkpoint.model), state(finished[0]), strict=True):
        np.testing.assert_array_equal(resumed, uninterrupted)


def test_loads_the_state_that_was_saved(finished: tuple[VAE, pathlib.Path]) -> None:
    vae, path = finished
    checkpoint = load_checkpoint(path)
    assert checkpoint.num_epochs == NUM_EPOCHS
    for loaded, saved in zip(state(checkpoint.model), state(vae), strict=True):
        np.testing.assert_array_equal(loaded, saved)


def test_adds_up_the_time_of_all_processes(dataset: Dataset, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "checkpoint.keras"
    fit(make_vae(), dataset, 3, CheckpointCallback(path, seconds_before=1000.0))
    assert load_checkpoint(path).seconds > 1000.0


def test_waits_between_checkpoints_and_saves_the_last_epoch(
    dataset: Dataset, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "checkpoint.keras"
    with pytest.raises(StoppedError):
        fit(make_vae(), dataset, 0, CheckpointCallback(path, every_seconds=1e6), StopAt(2))
    assert not path.exists()
    fit(make_vae(), dataset, 0, CheckpointCallback(path, every_seconds=1e6))
    assert load_checkpoint(path).num_epochs == NUM_EPOCHS


def test_saves_the_epoch_at_which_training_is_stopped(
    dataset: Dataset, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "checkpoint.keras"
    stop = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=1e6)
    fit(make_vae(), dataset, 0, stop, CheckpointCallback(path, every_seconds=1e6))
    assert load_checkpoint(path).num_epochs == 2


def test_a_failed_save_leaves_the_earlier_checkpoint(
    dataset: Dataset, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.keras"
    with pytest.raises(StoppedError):
        fit(make_vae(), dataset, 0, StopAt(1), CheckpointCallback(path))

    def save_half(self: VAE, filepath: pathlib.Path) -> None:
        del self
        filepath.write_bytes(b"PK\x03\x04 the first half")
        raise StoppedError

    monkeypatch.setattr(VAE, "save", save_half)
    with pytest.raises(StoppedError):
        fit(make_vae(), dataset, 0, CheckpointCallback(path))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.keras"]
    assert load_checkpoint(path).num_epochs == 1


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_byte(content: bytes) -> bytes:
    at = content.index(b"HDF") + 4000  # in the weights
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def replace_by_text(content: bytes) -> bytes:
    return b"not a checkpoint" * (len(content) // 16)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, replace_by_text])
def test_says_that_a_file_is_damaged(
    damage: Callable[[bytes], bytes],
    finished: tuple[VAE, pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "damaged.keras"
    path.write_bytes(damage(finished[1].read_bytes()))
    with pytest.raises(OSError, match=r"damaged\.keras is damaged"):
        load_checkpoint(path)


def test_says_that_a_model_file_is_no_checkpoint(
    finished: tuple[VAE, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    finished[0].save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="not written by CheckpointCallback"):
        load_checkpoint(tmp_path / "model.keras")


class NeedsItsFunction(MLPEncoder):
    """Keras can make no configuration of it."""

    def __init__(self, function: Any) -> None:
        super().__init__(2, (5,))
        self.function = function

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("NeedsItsFunction has no get_config")


def test_what_cannot_be_saved_is_told_before_the_first_epoch(
    dataset: Dataset, tmp_path: pathlib.Path
) -> None:
    def encoder(x: Any) -> Any:
        return tfd.MultivariateNormalDiag(tf.reshape(x, [-1, 9])[:, :2])

    decoder, prior = MLPDecoder((3, 3, 1), (5,)), StandardNormalPrior(2)
    for part, message in (
        (encoder, "CheckpointCallback cannot save this model: a VAE whose encoder is a function"),
        (NeedsItsFunction(len), "cannot save this model: NeedsItsFunction has no get_config"),
    ):
        vae = VAE(part, decoder, prior)
        vae.compile("adam", run_eagerly=True)
        with pytest.raises(ValueError, match=message):
            fit(vae, dataset, 0, StopAt(0), CheckpointCallback(tmp_path / "checkpoint.keras"))
    assert not list(tmp_path.iterdir())


def test_the_cause_of_a_failed_load_comes_first(
    finished: tuple[VAE, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "unknown.keras"
    with (
        zipfile.ZipFile(finished[1]) as archive,
        zipfile.ZipFile(path, "w") as changed,
    ):
        for name in archive.namelist():
            content = archive.read(name)
            if name == "config.json":
                content = content.replace(b"MLPEncoder", b"MyEncoder9")
                content = content.replace(b"tfp_surgery.networks.encoders", b"my_own_module")
            changed.writestr(name, content)
    with pytest.raises(ValueError, match=r"^Could not locate class 'MyEncoder9'") as error:
        load_checkpoint(path)
    message = str(error.value)
    assert message.endswith("unknown.keras is whole, but its model cannot be rebuilt here.")
    assert "config" not in message


def test_says_that_there_is_no_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path / "nothing.keras")


def test_checks_its_arguments(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"end in \.keras"):
        CheckpointCallback(tmp_path / "checkpoint.h5")
    with pytest.raises(FileNotFoundError, match="no folder"):
        CheckpointCallback(tmp_path / "none" / "checkpoint.keras")
    with pytest.raises(ValueError, match="every_seconds must not be negative"):
        CheckpointCallback(tmp_path / "checkpoint.keras", every_seconds=-1.0)
    with pytest.raises(ValueError, match="seconds_before must not be negative"):
        CheckpointCallback(tmp_path / "checkpoint.keras", seconds_before=float("nan"))
