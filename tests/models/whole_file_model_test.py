from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.models.whole_file_model import WholeFileModel

X = np.linspace(-1.0, 1.0, 32, dtype=np.float32).reshape(8, 4)


@keras.saving.register_keras_serializable(package="weight_files_test")
class Network(WholeFileModel):
    def __init__(self, hidden_sizes: tuple[int, ...] = (3,), **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden_sizes = tuple(hidden_sizes)
        self.hidden_layers = [keras.layers.Dense(size) for size in hidden_sizes]
        self.last = keras.layers.Dense(1)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for layer in self.hidden_layers:
            x = layer(x)
        return self.last(x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "hidden_sizes": self.hidden_sizes}


def trained(*hidden_sizes: int, epochs: int = 1) -> Network:
    network = Network(hidden_sizes or (3,))
    network.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    network.fit(X, X[:, :1], epochs=epochs, verbose=0)
    return network


def state(network: Network) -> list[np.ndarray]:
    return [v.numpy() for v in [*network.variables, *network.optimizer.variables]]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["n.weights.h5", "n.keras"])
def test_weights_and_optimizer_come_back(tmp_path: Path, name: str) -> None:
    network, file = trained(), tmp_path / name
    (network.save_weights if name.endswith(".h5") else network.save)(file)
    fresh = Network()
    fresh.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    fresh(X)
    fresh.load_weights(file)
    assert fresh.optimizer.iterations == 1
    found, expected = fresh.optimizer.variables, network.optimizer.variables
    assert_same([v.numpy() for v in found], [v.numpy() for v in expected])
    assert_same(fresh.get_weights(), network.get_weights())
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["n.weights.h5", "n.keras"])
def test_a_save_that_fails_leaves_the_file_before_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, file = trained(), tmp_path / name
    save = network.save_weights if name.endswith(".h5") else network.save
    save(file)
    before = file.read_bytes()
    network.fit(X, X[:, :1], verbose=0)

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(network.last, "save_own_variables", fail)
    with pytest.raises(OSError, match="no space left"):
        save(file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_overwrite_is_asked_for(tmp_path: Path) -> None:
    network = trained()
    for save, file in (
        (network.save, tmp_path / "n.keras"),
        (network.save_weights, tmp_path / "n.weights.h5"),
    ):
        save(file)
        save(file)
        with pytest.raises(FileExistsError, match="overwrite is False"):
            save(file, overwrite=False)


@pytest.mark.parametrize("name", ["n.weights.h5", "n.keras"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_changes_nothing(tmp_path: Path, name: str, part: float) -> None:
    network, file = trained(), tmp_path / name
    (network.save_weights if name.endswith(".h5") else network.save)(file)
    network.fit(X, X[:, :1], verbose=0)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    before = state(network)
    with pytest.raises(OSError, match=rf"{name} cannot be read as weights: .+ The model is as it"):
        network.load_weights(file)
    assert_same(state(network), before)


def test_a_damaged_archive_changes_nothing(tmp_path: Path) -> None:
    network, file = trained(), tmp_path / "n.keras"
    network.save(file)
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo("model.weights.h5")
    content = bytearray(file.read_bytes())
    middle = info.header_offset + info.file_size // 2
    content[middle] ^= 0xFF
    file.write_bytes(content)
    before = state(network)
    with pytest.raises(OSError, match=r"cannot be read as weights.*CRC"):
        network.load_weights(file)
    assert_same(state(network), before)


@pytest.mark.parametrize("foreign", [(4,), (3, 3), ()])
def test_the_weights_of_another_network_change_nothing(
    tmp_path: Path, foreign: tuple[int, ...]
) -> None:
    other, file = Network(foreign), tmp_path / "other.weights.h5"
    other(X)
    other.save_weights(file)
    network = trained()
    before = state(network)
    with pytest.raises(ValueError, match=r"other.weights.h5 does not hold .* not in the model"):
        network.load_weights(file)
    assert_same(state(network), before)


def test_what_fails_halfway_is_put_back(tmp_path: Path) -> None:
    """Same shapes, but one array is not where the model looks for it."""
    network, file = trained(), tmp_path / "n.weights.h5"
    network.save_weights(file)
    network.fit(X, X[:, :1], verbose=0)
    shutil.copy(file, tmp_path / "moved.weights.h5")
    with h5py.File(tmp_path / "moved.weights.h5", "a") as moved:
        moved.move("last/vars/1", "last/vars/7")
    before = state(network)
    with pytest.raises(ValueError, match=r"moved\.weights\.h5 does not hold the weights"):
        network.load_weights(tmp_path / "moved.weights.h5")
    assert_same(state(network), before)


def test_missing_files_and_unbuilt_models(tmp_path: Path) -> None:
    network = trained()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.weights\.h5"):
        network.load_weights(tmp_path / "absent.weights.h5")
    with pytest.raises(ValueError, match="no weights yet to load into"):
        Network().load_weights(tmp_path / "absent.weights.h5")
