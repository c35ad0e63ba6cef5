r"""ELBO surgery of variational autoencoders, one for each latent size.

Trains a VAE per latent size, takes the ELBO of the training set and of the test set apart over all
of their observations, and leaves tables, figures, checkpoints and TensorBoard events in --workdir:

    python -m experiments.elbo_surgery --dataset=digits --workdir=runs/digits
    python -m experiments.elbo_surgery --dataset=mnist --latent_sizes=2,10,20 --workdir=runs/mnist

A run that was stopped goes on when the same command is given again; a finished one is shown again
and left as it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from experiments.common import command, config_flags, vae_figures, workdir
from experiments.common.config import Config
from experiments.common.config_flags import config_from_flags
from experiments.common.trained_model import load_dataset
from experiments.common.training import train
from tfp_surgery.datasets import Dataset
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.models.vae import VAE
from tfp_surgery.reporting import figures, tables
from tfp_surgery.surgery.elbo_surgery import elbo_surgery

flags.adopt_module_key_flags(config_flags)  # --helpshort shows them

_EXPERIMENT = "elbo_surgery"
_RECORD_FILE = "record.json"

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run", required=True)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "folder of prepared TFDS data; TFDS's own if none"
)
_MANUAL_DIR = flags.DEFINE_string(
    "manual_dir", None, "folder with the data set's original files, for machines without network"
)


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
      The records of all latent sizes, in order.

    Raises:
      OSError: if the folder or the data cannot be used.
      ValueError: if the folder holds something else, or there is no such data set.
    """
    state = workdir.find_state(folder, _EXPERIMENT, config.to_dict())
    if state is workdir.State.FINISHED:
        records = workdir.finished_records(folder / workdir.RESULTS_FILE, is_record)
        workdir.show_finished(folder, tables.text_table(records))
        return records

    train_set, test_set = (
        load_dataset(config.to_dict(), split, data_dir, manual_dir) for split in ("train", "test")
    )
    dataset = {"train": train_set.to_dict(), "test": test_set.to_dict()}
    warning = workdir.begin(folder, _EXPERIMENT, config.to_dict(), dataset)
    data = f"{train_set.describe()}; {test_set.describe()}"
    workdir.announce(folder, state, data, warning)

    records = [
        run_latent_size(config, latent_size, train_set, test_set, folder)
        for latent_size in config.latent_sizes
    ]
    workdir.write_figure(
        folder / "figures" / "terms.png",
        figures.terms_figure(records, f"ELBO surgery of VAEs\n{records[0]['data']}"),
    )
    workdir.write_csv(folder / "results.csv", csv_rows(records))
    # Written last: where it is, the run is finished.
    workdir.write_json(
        folder / workdir.RESULTS_FILE,
        {
            "dataset": dataset,
            "config": config.to_dict(),
            "versions": workdir.versions(),
            "results": records,
        },
    )
    print(f"\n{tables.text_table(records)}\n\nWritten to {folder}", flush=True)
    return records


def is_record(value: Any) -> bool:
    """Whether a value read from JSON can be the record of a latent size."""
    return isinstance(value, dict) and {"latent_size", "data", "elbo", "test"} <= value.keys()


def run_latent_size(
    config: Config, latent_size: int, train_set: Dataset, test_set: Dataset, folder: Path
) -> dict[str, Any]:
    """Trains one VAE, takes its ELBO apart and draws its figures, unless that is done.

    Args:
      config: settings of the run.
      latent_size: D.
      train_set: what the VAE is trained on.
      test_set: held-out data.
      folder: folder of the run.

    Returns:
      The record of this latent size.
    """
    own_folder = folder / f"latent_{latent_size:02d}"
    own_folder.mkdir(exist_ok=True)
    record_path = own_folder / _RECORD_FILE
    if record_path.exists():
        print(f"\nD = {latent_size}: done before.", flush=True)
        record: dict[str, Any] = workdir.read_json(record_path)
        if not is_record(record):
            raise ValueError(f"{record_path} is damaged: delete it to have it made anew.")
        return record

    print(flush=True)
    trained = train(config, latent_size, train_set, own_folder)
    vae = trained.model
    start = time.monotonic()
    aggregate = AggregatePosterior.from_encoder(
        vae.encoder, train_set.observations(draw_seed=config.seed)
    )
    terms = carve(config, vae, train_set)
    terms["test"] = carve(config, vae, test_set, aggregate)
    surgery_seconds = time.monotonic() - start
    draw_figures(config, vae, aggregate, test_set, terms["data"], folder / "figures")
    record = {
        "latent_size": latent_size,
        **terms,
        "epochs": trained.num_epochs,
        "num_parameters": vae.count_params(),
        "training_seconds": round(trained.seconds, 2),
        "surgery_seconds": round(surgery_seconds, 2),
    }
    # Written last: where it is, this latent size is done.
    workdir.write_json(record_path, record)
    return record


def carve(
    config: Config, vae: VAE, dataset: Dataset, training_aggregate: AggregatePosterior | None = None
) -> dict[str, Any]:
    """Takes the ELBO of all observations apart and prints the terms.

    Args:
      config: settings of the run.
      vae: the trained model.
      dataset: the training or test set.
      training_aggregate: aggregate posterior of the training set, for a test set.

    Returns:
      `ElboSurgery.to_dict()`.
    """
    print(f"\nSurgery over all of {dataset.name}/{dataset.split} ...", flush=True)
    surgery = elbo_surgery(
        dataset,
        vae.encoder,
        vae.decoder,
        vae.prior,
        num_samples=config.num_samples,
        seed=config.seed,
        training_aggregate_posterior=training_aggregate,
    )
    print(surgery, flush=True)
    return surgery.to_dict()


def draw_figures(
    config: Config,
    vae: VAE,
    aggregate: AggregatePosterior,
    test_set: Dataset,
    data: str,
    folder: Path,
) -> None:
    """Draws the figures of one latent size.

    Args:
      config: settings of the run.
      vae: the trained model.
      aggregate: q(z) over the training set.
      test_set: what reconstructions are shown of.
      data: what names the training set.
      folder: folder of the figures.
    """
    (latent_size,) = vae.prior().event_shape
    name, title = f"latent_{latent_size:02d}.png", f"VAE with latent size D = {latent_size}\n"
    workdir.write_figure(
        folder / f"samples_{name}",
        vae_figures.samples(vae, aggregate, config.seed, f"{title}trained on {data}"),
    )
    workdir.write_figure(
        folder / f"reconstructions_{name}",
        vae_figures.reconstructions(
            vae,
            test_set.observations(draw_seed=config.seed),
            f"{title}{test_set.describe(draw_seed=config.seed)}",
        ),
    )
    if latent_size == 2:
        workdir.write_figure(
            folder / f"codes_{name}",
            vae_figures.codes(vae, aggregate, config.seed, f"{title}trained on {data}"),
        )


def csv_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each latent size and split, each estimate with its standard error.

    Args:
      records: of all latent sizes.

    Returns:
      Rows with the same keys; what a split does not have is empty.
    """
    rows = []
    for record in records:
        for split, surgery in (("train", record), ("test", record["test"])):
            row = {
                "latent_size": record["latent_size"],
                "split": split,
                "data": surgery["data"],
                "num_samples": surgery["num_samples"],
                "seed": surgery["seed"],
                "num_observations": surgery["num_observations"],
                "log_num_observations": surgery["log_num_observations"],
            }
            # The training set has no cross term, and the test set has every field.
            for name, entry in record["test"].items():
                if isinstance(entry, dict):
                    estimate = surgery[name] or {"value": "", "standard_error": ""}
                    row[name] = estimate["value"]
                    row[f"{name}_standard_error"] = estimate["standard_error"]
            row["warnings"] = " ".join(surgery.get("warnings", ()))
            rows.append(row)
    return rows


def main(argv: Sequence[str]) -> int:
    """Runs the experiment that the flags describe."""

    def work() -> None:
        run(config_from_flags(), Path(_WORKDIR.value), _DATA_DIR.value, _MANUAL_DIR.value)

    return command.exit_code(argv, work, "from the last checkpoint")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # TFDS tells every step otherwise
    app.run(main)
