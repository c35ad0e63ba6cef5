r"""Which prior is worth its nats, and which one memorises: an audit of learned priors.

Trains a VAE for every prior (--mode=joint), fits every prior to the finished VAE with an N(0, I)
prior (--mode=posthoc), or both, and measures each model on training and test data: the three
terms of the ELBO, the gap between the marginal KLs, the marginal KL with each training
observation's own component left out, and the log evidence of the same test images. Leaves a
table, figures, JSON, CSV, and the models in --workdir:

    python -m experiments.learned_priors --priors=standard,mog_full,aggregate \
        --mode=posthoc --training_seeds=0,1,2 --workdir=runs/priors

All of it is done for each of --training_seeds, which decides weights, order of batches and noise of
VAEs and priors; gains are differences within a training seed, and `summary.csv` has their mean and
spread. --seed decides all else: the data, the draws of what is measured, the choice of images.

A prior is named `family` or `family:K`, with K components. Trained jointly, `aggregate` encodes the
whole training set at every step: that is for small ones. A run that was stopped goes on when the
same command is given again; a finished one is shown again and left as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow_probability as tfp

from experiments.common import over_runs
from experiments.common.command import Command
from experiments.common.trained_model import (
    choose_images,
    latent_folder,
    load_dataset,
    model_folder,
    model_label,
    training_folder,
)
from experiments.common.training import train
from experiments.common.workdir import Record, Run
from experiments.priors import audit, families
from experiments.priors.audit import EncodedModel, Evaluation
from experiments.priors.config import STANDARD, PriorsConfig
from experiments.priors.families import (
    EM_FAMILIES,
    FAMILIES,
    JOINT,
    POSTHOC,
    Ingredients,
    PriorName,
)
from experiments.priors.table import KEYS, csv_rows, text_table
from tfp_surgery import seeds
from tfp_surgery.datasets import Dataset
from tfp_surgery.files import replaced_when_whole
from tfp_surgery.models.vae import VAE
from tfp_surgery.priors.base import Prior
from tfp_surgery.reporting import figures, prior_figures
from tfp_surgery.training.fit_prior import fit_prior

tfd = tfp.distributions

_FIELDS = ("training_seed", "latent_size", "mode", "prior", "train", "test", "log_evidence")
_HELD_OUT_SHARE = 12  # one in so many training observations stops the fits early
_TOLERANCE = 1e-4  # nats, of log q(z) in the report of a fit


def run(
    config: PriorsConfig,
    folder: Path,
    data_dir: str | None = None,
    manual_dir: str | None = None,
) -> list[Record]:
    """Brings the run in `folder` to its end, whatever of it is there already.

    Args:
      config: settings of the run.
      folder: its folder.
      data_dir: see `tfp_surgery.datasets.load`, as for `manual_dir`.
      manual_dir: likewise.

    Returns:
      The records of all training seeds, latent sizes, modes and priors.

    Raises:
      OSError: if the folder or the data cannot be used.
      ValueError: if the folder holds something else, or a setting does not go with the data.
    """
    work = Run(folder, "learned_priors", config.to_dict(), _FIELDS)
    if work.is_finished:
        return work.show(text_table)

    train_set, test_set = (
        load_dataset(config.to_dict(), split, data_dir, manual_dir) for split in ("train", "test")
    )
    _check_sizes(config, train_set)
    evaluation = Evaluation(
        train=train_set,
        test=test_set,
        images=choose_images(
            test_set,
            config.num_images,
            seeds.generator(config.seed, "experiments/learned_priors/images"),
        ),
        num_importance_samples=config.num_importance_samples,
        num_samples=config.num_samples,
        seed=config.seed,
    )
    work.begin(
        {"train": train_set.to_dict(), "test": test_set.to_dict()},
        f"{train_set.describe()}; {test_set.describe()}",
    )
    records = []
    for training_seed in config.training_seeds:
        for latent_size in config.latent_sizes:
            records += _PriorsOfSize(config, training_seed, latent_size, evaluation, work).records()
    rows = csv_rows(records)
    return work.finish(records, rows, text_table, over_runs.summary_rows(rows, KEYS))


def _check_sizes(config: PriorsConfig, train_set: Dataset) -> None:
    for mode, name in config.plan:
        # A layer that is fitted afterwards is made from what the fit does not hold out.
        fitted = mode == POSTHOC and name.family not in ("aggregate", *EM_FAMILIES)
        available = len(train_set) - (_num_held_out(len(train_set)) if fitted else 0)
        if name.num_components is not None and name.num_components > available:
            share = f", of which it is fitted to {available}" if fitted else ""
            raise ValueError(
                f"--priors={name} has more components than {train_set.describe()}{share}."
            )


def _num_held_out(num_observations: int) -> int:
    """How many observations, the last of the training set, stop a fit early."""
    return -(-num_observations // _HELD_OUT_SHARE)


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """A prior of a finished model.

    Attributes:
      prior: p(z).
      num_parameters: of p(z) alone.
      vae: the model with the layer that builds p(z), if one was fitted.
      report: of the fit, if there was one, in types that JSON knows.
      own_components: see `audit.audit`.
    """

    prior: tfd.Distribution
    num_parameters: int
    vae: VAE | None = None
    report: dict[str, Any] | None = None
    own_components: Any = None


class _PriorsOfSize:
    """All priors of one training seed and latent size."""

    def __init__(
        self,
        config: PriorsConfig,
        training_seed: int,
        latent_size: int,
        evaluation: Evaluation,
        work: Run,
    ) -> None:
        self._config = config
        self._training_seed = training_seed
        self._latent_size = latent_size
        self._evaluation = evaluation
        self._work = work
        self._name = model_folder(training_seed, latent_size)
        self._folder = work.folder / self._name
        # The model that priors are fitted to stays, encoded, while they are.
        self._model = functools.lru_cache(maxsize=1)(self._trained)

    def records(self) -> list[Record]:
        """Trains, fits and measures what is not done yet, and draws the figures."""
        records = []
        for mode, name in self._config.plan:
            path = f"{self._name}/{_file_name(mode, name)}/record"
            label = f"{model_label(self._training_seed, self._latent_size)}, {mode} {name}"
            records.append(self._work.part(path, label, partial(self._record, mode, name, label)))
        records = [
            {**record, "log_evidence_gain": audit.compare_evidence(record, records[0])}
            for record in records
        ]
        self._draw_figures(records)
        return records

    def _record(self, mode: str, name: PriorName, label: str) -> Record:
        print(f"\n{label} ...", flush=True)
        model, seconds = self._model(name if mode == JOINT else STANDARD)
        if mode == JOINT:
            layer = model.vae.prior
            fitted = _Fitted(
                layer(), _num_parameters(layer), own_components=self._own_components(layer)
            )
        else:
            start = time.monotonic()
            fitted = self._fitted(name, model)
            seconds = time.monotonic() - start
        folder = self._folder / _file_name(mode, name)
        if fitted.vae is not None:
            with replaced_when_whole(folder / "model.keras") as unfinished:
                fitted.vae.save(unfinished)
        images = audit.decoded_samples(model.vae, fitted.prior, self._config.seed)
        with (
            replaced_when_whole(folder / "samples.npy") as unfinished,
            unfinished.open("wb") as file,
        ):
            np.save(file, images)
        record = {
            "training_seed": self._training_seed,
            "latent_size": self._latent_size,
            "mode": mode,
            "prior": str(name),
            "family": name.family,
            "num_components": name.num_components,
            "num_parameters": fitted.num_parameters,
            "seconds": round(seconds, 2),
            "fit": fitted.report,
            **audit.audit(model, fitted.prior, self._evaluation, fitted.own_components),
        }
        print(f"{label}: {_summary(record)}", flush=True)
        return record

    def _trained(self, name: PriorName) -> tuple[EncodedModel, float]:
        """The VAE trained with a prior, and the seconds it took."""

        def make_prior(encoder: Any) -> Prior:
            x = self._evaluation.train.observations()
            return families.build(
                name, Ingredients(encoder, self._latent_size, x, self._training_seed)
            )

        folder = self._folder / _file_name(JOINT, name)
        trained = train(
            self._config,
            self._training_seed,
            self._latent_size,
            self._evaluation.train,
            folder,
            make_prior,
        )
        return EncodedModel(trained.model, self._evaluation), trained.seconds

    def _fitted(self, name: PriorName, model: EncodedModel) -> _Fitted:
        """A prior fitted to the finished model."""
        seed = self._training_seed
        num_observations = len(self._evaluation.train)
        if name.family == "aggregate":
            return _Fitted(model.train, 0, own_components=np.arange(num_observations))
        if name.family in EM_FAMILIES:
            codes = model.train.components_distribution.sample(
                seed=seeds.key(seed, "experiments/learned_priors/codes")
            )
            return _Fitted(*families.em_mixture(codes.numpy(), name, seed))
        fitted_to, held_out = np.split(
            np.arange(num_observations), [num_observations - _num_held_out(num_observations)]
        )
        x = self._evaluation.train.observations()[fitted_to]
        keras.utils.set_random_seed(seed)  # the layer's first weights
        layer = families.build(name, Ingredients(model.vae.encoder, self._latent_size, x, seed))
        vae = VAE(model.vae.encoder, model.vae.decoder, layer, seed=seed)
        vae.build((None, *x.shape[1:]))  # checks the model before it is fitted
        settings = FAMILIES[name.family].fit
        report = fit_prior(
            audit.part_of(model.train, fitted_to),
            layer,
            validation=audit.part_of(model.train, held_out),
            num_steps=min(settings.num_steps, self._config.fit_steps or settings.num_steps),
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            tolerance=_TOLERANCE,
            seed=seed,
        )
        return _Fitted(
            layer(), _num_parameters(layer), vae, report.to_dict(), self._own_components(layer)
        )

    def _own_components(self, layer: Any) -> Any:
        """See `audit.audit`."""
        places: Callable[[Any], Any] | None = getattr(layer, "places", None)
        return None if places is None else places(np.arange(len(self._evaluation.train)))

    def _draw_figures(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Draws the figures from the records and the decoded images beside them."""
        config = self._config
        folder, name = training_folder(self._training_seed), latent_folder(self._latent_size)
        title = (
            f"VAEs with latent size D = {self._latent_size}, {config.epochs} epochs, training seed "
            f"{self._training_seed}\n{records[0]['train']['data']}"
        )
        panels = {
            f"z from p(z): {prior}, {mode}": np.load(
                self._folder / _file_name(mode, prior) / "samples.npy"
            )
            for mode, prior in config.plan
        }
        self._work.write_figure(f"{folder}/samples_{name}", figures.samples_figure(panels, title))
        self._work.write_figure(
            f"{folder}/marginal_kl_{name}", prior_figures.marginal_kl_figure(records, title)
        )


def _file_name(mode: str, name: PriorName) -> str:
    return f"{mode}_{name.file_name}"


def _num_parameters(prior: Prior) -> int:
    return sum(math.prod(variable.shape) for variable in prior.fitted_variables)


def _summary(record: Mapping[str, Any]) -> str:
    train_kl, test_kl = (record[split]["marginal_kl"]["value"] for split in ("train", "test"))
    return (
        f"marginal KL {train_kl:.3f} on training data, {test_kl:.3f} on test data; log evidence "
        f"{record['log_evidence']['value']:.2f}; {record['seconds']:.0f} s"
    )


COMMAND = Command(PriorsConfig, run, "with the prior it was at")

if __name__ == "__main__":
    COMMAND.start()
