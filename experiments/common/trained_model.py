"""A trained VAE of a finished run of `experiments.elbo_surgery`, and some of its test images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import workdir
from tfp_surgery import datasets
from tfp_surgery.datasets import Dataset
from tfp_surgery.models.vae import VAE
from tfp_surgery.training.checkpoint import load_checkpoint


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """What is measured: a trained VAE on test images.

    Attributes:
      vae: the model.
      x: images, `[num_images, *event_shape]`.
      data: what they are.
      dataset: the test set, in types that JSON knows.
    """

    vae: VAE
    x: np.ndarray
    data: str
    dataset: dict[str, Any]


def load_dataset(
    settings: Mapping[str, Any], split: str, data_dir: str | None, manual_dir: str | None
) -> Dataset:
    """The data set that a run of `experiments.elbo_surgery` with these settings uses.

    Args:
      settings: of the run, as in its `config.json`.
      split: "train" or "test".
      data_dir: see `tfp_surgery.datasets.load`, as for `manual_dir`.
      manual_dir: likewise.

    Returns:
      The data set.

    Raises:
      OSError: if the data cannot be had.
      ValueError: if there is no such data set.
    """
    return datasets.load(
        settings["dataset"],
        split,
        binarization=settings["binarization"],
        seed=settings["seed"],
        data_dir=data_dir,
        manual_dir=manual_dir,
    )


def load_trained_model(
    run: str,
    latent_size: int,
    num_images: int,
    seed: int,
    data_dir: str | None = None,
    manual_dir: str | None = None,
) -> TrainedModel:
    """Loads a trained VAE and draws test images of the data set it was trained on.

    Args:
      run: folder of a run of `experiments.elbo_surgery`.
      latent_size: which of its VAEs.
      num_images: how many images, drawn at random without replacement.
      seed: of the choice of images; the same seed and number give the same images.
      data_dir: see `tfp_surgery.datasets.load`, as for `manual_dir`.
      manual_dir: likewise.

    Returns:
      The model and the images, in the order of the data set.

    Raises:
      OSError: if the checkpoint or the data cannot be had.
      ValueError: if the folder holds no such run, the VAE is missing or not trained to its end, or
        there are too few images.
    """
    source = Path(run)
    path = source / workdir.CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"--run={run} holds no run of experiments.elbo_surgery.")
    description = workdir.read_json(path)
    if not isinstance(description, dict) or description.get("experiment") != "elbo_surgery":
        raise ValueError(f"--run={run} holds something other than a run of elbo_surgery.")
    settings = description["config"]
    if latent_size not in settings["latent_sizes"]:
        raise ValueError(
            f"--run={run} has VAEs of latent size {settings['latent_sizes']}, none of "
            f"--latent_size={latent_size}."
        )
    own_folder = source / f"latent_{latent_size:02d}"
    checkpoint = load_checkpoint(own_folder / "checkpoint.keras")
    if checkpoint.num_epochs != settings["epochs"]:
        raise ValueError(
            f"the VAE in {own_folder} was trained for {checkpoint.num_epochs} of "
            f"{settings['epochs']} epochs: finish that run first."
        )
    test_set = load_dataset(settings, "test", data_dir, manual_dir)
    if num_images > len(test_set):
        raise ValueError(
            f"--num_images={num_images} exceeds the {len(test_set)} images of {test_set.name}/test."
        )
    rng = np.random.default_rng([seed, 0])
    chosen = np.sort(rng.choice(len(test_set), num_images, replace=False))
    draw_seed = settings["seed"] if test_set.binarization == "stochastic" else None
    return TrainedModel(
        vae=checkpoint.model,
        x=test_set.observations(draw_seed=draw_seed)[chosen],
        data=f"{num_images} random images of {test_set.describe(draw_seed=draw_seed)}",
        dataset=test_set.to_dict(),
    )
