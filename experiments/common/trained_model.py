"""The trained VAEs of a finished run of `experiments.elbo_surgery`, and some of its test images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_probability as tfp

import tfp_surgery.networks  # noqa: F401 - the classes that a checkpoint is made of
from experiments.common import workdir
from experiments.common.settings import Settings, seed_setting, setting, training_seeds_setting
from tfp_surgery import datasets, seeds
from tfp_surgery.datasets import Dataset
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.models.vae import VAE
from tfp_surgery.training.checkpoint import load_checkpoint

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True)
class TrainedModelSettings(Settings):
    """Which models are measured, and on which images."""

    run: str = setting(dataclasses.MISSING, "folder of a run of experiments.elbo_surgery")
    latent_size: int = setting(10, "which VAE of that run")
    num_images: int = setting(100, "test images, drawn at random")
    seed: int = seed_setting("of the choice of images and of all draws")
    training_seeds: tuple[int, ...] | None = training_seeds_setting(
        None, "which training runs of that run; all of them if none"
    )

    def __post_init__(self) -> None:
        """Checks the settings; the folder is named alike wherever the command is given."""
        super().__post_init__()
        object.__setattr__(self, "run", str(Path(self.run).resolve()))


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """What is measured: a trained VAE on test images.

    Attributes:
      training_seed: of the model.
      vae: the model.
      x: images, `[num_images, *event_shape]`.
      data: what they are.
      dataset: the test set, in types that JSON knows.
    """

    training_seed: int
    vae: VAE
    x: np.ndarray
    data: str
    dataset: dict[str, Any]

    @functools.cached_property
    def posteriors(self) -> AggregatePosterior:
        """q(z) over the images, encoded when it is first asked for."""
        return AggregatePosterior.from_encoder(self.vae.encoder, self.x)

    @functools.cached_property
    def prior(self) -> tfd.Distribution:
        """p(z), built when it is first asked for."""
        return self.vae.prior()

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What a measurement takes first: images, their posteriors, decoder, prior."""
        return self.x, self.posteriors, self.vae.decoder, self.prior


def training_folder(training_seed: int) -> str:
    """The folder of a training seed below that of a run."""
    return f"training_seed_{training_seed}"


def model_folder(training_seed: int, latent_size: int) -> str:
    """The folder of a trained model below that of a run."""
    return f"{training_folder(training_seed)}/{latent_folder(latent_size)}"


def latent_folder(latent_size: int) -> str:
    """The name of a latent size in files and folders of a run."""
    return f"latent_{latent_size:02d}"


def model_label(training_seed: int, latent_size: int) -> str:
    """What is printed of a model."""
    return f"training seed {training_seed}, D = {latent_size}"


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


def choose_images(dataset: Dataset, number: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of some images, drawn without replacement, in the order of the data set.

    Args:
      dataset: the data set.
      number: how many.
      rng: random numbers.

    Returns:
      The indices, `[number]`.

    Raises:
      ValueError: if there are too few images.
    """
    if number > len(dataset):
        raise ValueError(
            f"--num_images={number} exceeds the {len(dataset)} images of "
            f"{dataset.name}/{dataset.split}."
        )
    return np.sort(rng.choice(len(dataset), number, replace=False))


def load_trained_models(
    config: TrainedModelSettings, data_dir: str | None = None, manual_dir: str | None = None
) -> list[TrainedModel]:
    """Loads the VAEs of some training seeds and draws test images of their data set.

    Args:
      config: which VAEs and how many images; the same seed and number give the same images.
      data_dir: see `tfp_surgery.datasets.load`, as for `manual_dir`.
      manual_dir: likewise.

    Returns:
      The models in the order of their training seeds, all with the same images, which are in the
      order of the data set.

    Raises:
      OSError: if a checkpoint or the data cannot be had.
      ValueError: if the folder holds no such run, a VAE is missing or not trained to its end, or
        there are too few images.
    """
    source = Path(config.run)
    settings = workdir.settings_of("run", source, "elbo_surgery")
    if config.latent_size not in settings["latent_sizes"]:
        raise ValueError(
            f"--run={source} has VAEs of latent size {settings['latent_sizes']}, none of "
            f"--latent_size={config.latent_size}."
        )
    given = settings["training_seeds"] if config.training_seeds is None else config.training_seeds
    missing = [str(k) for k in given if k not in settings["training_seeds"]]
    if missing:
        raise ValueError(
            f"--run={source} has VAEs of training seeds {settings['training_seeds']}, none of "
            f"--training_seeds={','.join(missing)}."
        )
    vaes = [
        _trained_vae(source / model_folder(training_seed, config.latent_size), settings["epochs"])
        for training_seed in given
    ]
    test_set = load_dataset(settings, "test", data_dir, manual_dir)
    chosen = choose_images(
        test_set,
        config.num_images,
        seeds.generator(config.seed, "experiments/trained_model/images"),
    )
    draw_seed = settings["seed"] if test_set.binarization == "stochastic" else None
    x = test_set.observations(draw_seed=draw_seed)[chosen]
    return [
        TrainedModel(
            training_seed=training_seed,
            vae=vae,
            x=x,
            data=f"{len(chosen)} random images of {test_set.describe(draw_seed=draw_seed)}",
            dataset=test_set.to_dict(),
        )
        for training_seed, vae in zip(given, vaes, strict=True)
    ]


def _trained_vae(folder: Path, num_epochs: int) -> VAE:
    checkpoint = load_checkpoint(folder / "checkpoint.keras")
    if checkpoint.num_epochs != num_epochs:
        raise ValueError(
            f"the VAE in {folder} was trained for {checkpoint.num_epochs} of {num_epochs} epochs: "
            "finish that run first."
        )
    vae: VAE = checkpoint.model
    return vae
