from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from experiments.common.config import Config
from experiments.common.trained_model import TrainedModelSettings, load_trained_models
from tests.testing.runs import trained_run
from tfp_surgery import datasets
from tfp_surgery.training.checkpoint import load_checkpoint

TRAINING = Config(
    dataset="digits",
    latent_sizes=(2, 3),
    binarization="stochastic",
    epochs=1,
    batch_size=500,
    learning_rate=1e-2,
    hidden_sizes=(8,),
    num_samples=2,
    seed=1,
    training_seeds=(5, 0),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return trained_run(tmp_path_factory.mktemp("runs") / "trained", TRAINING)


def test_the_images_are_drawn_from_the_test_set(trained: pathlib.Path) -> None:
    settings = TrainedModelSettings(run=str(trained), latent_size=2, num_images=297, seed=0)
    model, other_model = load_trained_models(settings)
    test_set = datasets.load("digits", "test", binarization="stochastic", seed=TRAINING.seed)
    everything = test_set.observations(draw_seed=TRAINING.seed)
    np.testing.assert_array_equal(model.x, everything)
    assert model.data == f"297 random images of {test_set.describe(draw_seed=TRAINING.seed)}"
    assert model.dataset == test_set.to_dict()

    few, again, other = (
        load_trained_models(dataclasses.replace(settings, num_images=20, seed=seed))[0].x
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(few, again)
    assert not np.array_equal(few, other)
    rows = {row.tobytes() for row in everything}
    assert all(row.tobytes() in rows for row in few)

    z = np.zeros([1, 2], np.float32)
    for loaded, training_seed in ((model, 5), (other_model, 0)):
        assert loaded.training_seed == training_seed
        folder = trained / f"training_seed_{training_seed}" / "latent_02"
        decoder = load_checkpoint(folder / "checkpoint.keras").model.decoder
        np.testing.assert_array_equal(loaded.vae.decoder(z).mean(), decoder(z).mean())
    np.testing.assert_array_equal(model.x, other_model.x)
    assert not np.array_equal(model.vae.decoder(z).mean(), other_model.vae.decoder(z).mean())
    (chosen,) = load_trained_models(dataclasses.replace(settings, training_seeds=(0,)))
    assert chosen.training_seed == 0


def test_what_is_no_finished_run_is_refused(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def load(run: object, latent_size: int = 2, num_images: int = 1) -> None:
        load_trained_models(TrainedModelSettings(str(run), latent_size, num_images, seed=0))

    with pytest.raises(ValueError, match=r"holds no run of experiments\.elbo_surgery"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"latent size \[2, 3\], none of --latent_size=7"):
        load(trained, latent_size=7)
    with pytest.raises(OSError, match="latent_03"):
        load(trained, latent_size=3)  # named, and not there yet
    settings = TrainedModelSettings(str(trained), 2, 1, seed=0, training_seeds=(0, 2, 3))
    with pytest.raises(ValueError, match=r"seeds \[5, 0\], none of --training_seeds=2,3"):
        load_trained_models(settings)
    with pytest.raises(ValueError, match="exceeds the 297 images of digits/test"):
        load(trained, num_images=298)

    description = json.loads((trained / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**description, "experiment": "log_evidence"}))
    with pytest.raises(ValueError, match="something other than a run of elbo_surgery"):
        load(other)

    (other / "config.json").write_text(json.dumps({**description, "format": 2}))
    with pytest.raises(ValueError, match="a run of another version of elbo_surgery"):
        load(other)

    shutil.copytree(trained / "training_seed_5", other / "training_seed_5")
    description["config"]["epochs"] = 9
    (other / "config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="trained for 1 of 9 epochs"):
        load(other)
