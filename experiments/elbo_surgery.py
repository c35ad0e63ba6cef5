r"""ELBO surgery of variational autoencoders, one for each training seed and latent size.

Trains a VAE per training seed and latent size, takes the ELBO of the training set and of the test
set apart over all of their observations, and leaves tables, figures, checkpoints and TensorBoard
events in --workdir:

    python -m experiments.elbo_surgery --dataset=digits --workdir=runs/digits
    python -m experiments.elbo_surgery --dataset=mnist --latent_sizes=2,10,20 \
        --training_seeds=0,1,2 --workdir=runs/mnist

--training_seeds decides weights, order of batches and noise, a training run each; what they say
together is in `summary.csv`. --seed decides all else: the data and the draws of the surgery. A run
that was stopped goes on when the same command is given again; a finished one is shown again and
left as it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_probability as tfp

from experiments.common import over_runs, vae_figures
from experiments.common.command import Command
from experiments.common.config import Config
from experiments.common.trained_model import (
    latent_folder,
    load_dataset,
    model_folder,
    model_label,
    training_folder,
)
from experiments.common.training import train
from experiments.common.workdir import Run
from tfp_surgery.datasets import Dataset
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.models.vae import VAE
from tfp_surgery.reporting import figures, tables
from tfp_surgery.surgery.elbo_surgery import elbo_surgery

tfd = tfp.distributions

_KEYS = {"latent_size": "D", "split": "split"}
_SIZES = ("data", "num_samples", "seed", "num_observations", "log_num_observations")


def run(
    config: Config,
    folder: Path,
    data_dir: str | None = None,
    manual_dir: str | None = None,
) -> list[dict[str, Any]]:
    """Brings the run in `folder` to its end, whatever of it is there already.

    Args:
      config: settings of the run.
      folder: its folder.
      data_dir: see `tfp_surgery.datasets.load`, as for `manual_dir`.
      manual_dir: likewise.

    Returns:
      The records of all training seeds and latent sizes, in order.

    Raises:
      OSError: if the folder or the data cannot be used.
      ValueError: if the folder holds something else, or there is no such data set.
    """
    fields = ("training_seed", "latent_size", "data", "elbo", "test")
    work = Run(folder, "elbo_surgery", config.to_dict(), fields)
    if work.is_finished:
        return work.show(text_table)

    train_set, test_set = (
        load_dataset(config.to_dict(), split, data_dir, manual_dir) for split in ("train", "test")
    )
    work.begin(
        {"train": train_set.to_dict(), "test": test_set.to_dict()},
        f"{train_set.describe()}; {test_set.describe()}",
    )
    records = [
        work.part(
            f"{model_folder(training_seed, latent_size)}/record",
            model_label(training_seed, latent_size),
            partial(measure, config, training_seed, latent_size, train_set, test_set, work),
        )
        for training_seed in config.training_seeds
        for latent_size in config.latent_sizes
    ]
    title = f"ELBO surgery of VAEs\n{records[0]['data']}"
    work.write_figure("terms", figures.terms_figure(records, title))
    rows = csv_rows(records)
    return work.finish(records, rows, text_table, over_runs.summary_rows(rows, _KEYS))


def measure(
    config: Config,
    training_seed: int,
    latent_size: int,
    train_set: Dataset,
    test_set: Dataset,
    work: Run,
) -> dict[str, Any]:
    """Trains one VAE, takes its ELBO apart and draws its figures.

    Args:
      config: settings of the run.
      training_seed: of the VAE.
      latent_size: D.
      train_set: what the VAE is trained on.
      test_set: held-out data.
      work: the run.

    Returns:
      The record of this training seed and latent size.
    """
    print(flush=True)
    model_name = model_folder(training_seed, latent_size)
    trained = train(config, training_seed, latent_size, train_set, work.folder / model_name)
    vae = trained.model
    start = time.monotonic()
    prior = vae.prior()
    aggregates = [
        AggregatePosterior.from_encoder(vae.encoder, dataset.observations(draw_seed=config.seed))
        for dataset in (train_set, test_set)
    ]
    terms = carve(config, vae, prior, train_set, aggregates[0])
    terms["test"] = carve(config, vae, prior, test_set, aggregates[1], aggregates[0])
    surgery_seconds = time.monotonic() - start
    draw_figures(config, training_seed, vae, prior, aggregates, test_set, terms["data"], work)
    return {
        "training_seed": training_seed,
        "latent_size": latent_size,
        **terms,
        "epochs": trained.num_epochs,
        "num_parameters": vae.count_params(),
        "training_seconds": round(trained.seconds, 2),
        "surgery_seconds": round(surgery_seconds, 2),
    }


def carve(
    config: Config,
    vae: VAE,
    prior: tfd.Distribution,
    dataset: Dataset,
    aggregate: AggregatePosterior,
    training_aggregate: AggregatePosterior | None = None,
) -> dict[str, Any]:
    """Takes the ELBO of all observations apart and prints the terms.

    Args:
      config: settings of the run.
      vae: the trained model.
      prior: its p(z).
      dataset: the training or test set.
      aggregate: q(z) over it.
      training_aggregate: q(z) over the training set, for a test set.

    Returns:
      `ElboSurgery.to_dict()`.
    """
    print(f"\nSurgery over all of {dataset.name}/{dataset.split} ...", flush=True)
    # q(z) of a stochastic binarization is that of one draw, which elbo_surgery does not see.
    is_settled = dataset.binarization != "stochastic"
    surgery = elbo_surgery(
        dataset,
        aggregate if is_settled else vae.encoder,
        vae.decoder,
        prior,
        num_samples=config.num_samples,
        seed=config.seed,
        training_aggregate_posterior=training_aggregate,
    )
    print(surgery, flush=True)
    return surgery.to_dict()


def draw_figures(
    config: Config,
    training_seed: int,
    vae: VAE,
    prior: tfd.Distribution,
    aggregates: Sequence[AggregatePosterior],
    test_set: Dataset,
    data: str,
    work: Run,
) -> None:
    """Draws the figures of one trained VAE.

    Args:
      config: settings of the run.
      training_seed: of the VAE.
      vae: the trained model.
      prior: its p(z).
      aggregates: q(z) over the training set, and over the test set.
      test_set: what reconstructions are shown of.
      data: what names the training set.
      work: the run.
    """
    of_training, of_test = aggregates
    (latent_size,) = prior.event_shape
    name, folder = latent_folder(latent_size), training_folder(training_seed)
    title = f"VAE with latent size D = {latent_size}, training seed {training_seed}\n"
    figure = vae_figures.samples(vae, prior, of_training, config.seed, f"{title}trained on {data}")
    work.write_figure(f"{folder}/samples_{name}", figure)
    figure = vae_figures.reconstructions(
        vae,
        of_test,
        test_set.observations(draw_seed=config.seed),
        f"{title}{test_set.describe(draw_seed=config.seed)}",
    )
    work.write_figure(f"{folder}/reconstructions_{name}", figure)
    if latent_size == 2:
        figure = vae_figures.codes(prior, of_training, config.seed, f"{title}trained on {data}")
        work.write_figure(f"{folder}/codes_{name}", figure)


def text_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The terms of all models, and what the training runs say together.

    Args:
      records: of all training seeds and latent sizes.

    Returns:
      Lines of text.
    """
    table = tables.text_table(records)
    return over_runs.with_summary(table, csv_rows(records), _KEYS, tables.TERMS)


def csv_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each training seed, latent size and split.

    Args:
      records: of all training seeds and latent sizes.

    Returns:
      Rows with the same keys; what a split does not have is None.
    """
    return [
        {
            "training_seed": record["training_seed"],
            "latent_size": record["latent_size"],
            "split": split,
            **{name: surgery[name] for name in _SIZES},
            # The training set has no cross term, and the test set has every field.
            **{
                name: surgery[name]
                for name, entry in record["test"].items()
                if isinstance(entry, dict) and "value" in entry
            },
            "warnings": surgery.get("warnings", []),
        }
        for record in records
        for split, surgery in (("train", record), ("test", record["test"]))
    ]


COMMAND = Command(Config, run, "from the last checkpoint")

if __name__ == "__main__":
    COMMAND.start()
