r"""Which prior is worth its nats, and which one memorises: an audit of learned priors.

Trains a VAE for every prior (--mode=joint), fits every prior to the finished VAE with an N(0, I)
prior (--mode=posthoc), or both, and measures each model on training and test data: the three
terms of the ELBO, the gap between the marginal KLs, the marginal KL with each training
observation's own component left out, and the log evidence of the same test images. Leaves a
table, figures, JSON, CSV, and the models in --workdir:

    python -m experiments.learned_priors --priors=standard,mog_full,aggregate \
        --mode=posthoc --workdir=runs/priors

A prior is named `family` or `family:K`, with K components. Trained jointly, `aggregate` encodes the
whole training set at every step: that is for small ones. A run that was stopped goes on when the
same command is given again; a finished one is shown again and left as it is.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags, logging

from experiments.common import command, workdir
from experiments.common.trained_model import load_dataset
from experiments.common.training import train
from experiments.priors import audit, families
from experiments.priors import config as priors_config
from experiments.priors.audit import Evaluation
from experiments.priors.config import STANDARD, PriorsConfig, config_from_flags, define_flags
from experiments.priors.families import (
    EM_FAMILIES,
    FAMILIES,
    JOINT,
    POSTHOC,
    Ingredients,
    PriorName,
)
from experiments.priors.table import csv_rows, text_table
from tfp_surgery.datasets import Dataset
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.distributions.leave_one_out import LeaveOneOut
from tfp_surgery.files import replaced_when_whole
from tfp_surgery.models.vae import VAE
from tfp_surgery.priors.base import Prior
from tfp_surgery.reporting import figures, prior_figures
from tfp_surgery.training.fit_prior import fit_prior

tfd = tfp.distributions

_EXPERIMENT = "learned_priors"
_HELD_OUT_SHARE = 12  # one in so many training observations stops the fits early
_IMAGES_STREAM, _CODES_STREAM = 8, 9  # of the seed
_TOLERANCE = 1e-4  # nats, of log q(z) in the report of a fit


def run(
    config: PriorsConfig,
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
      The records of all latent sizes, modes and priors.

    Raises:
      OSError: if the folder or the data cannot be used.
      ValueError: if the folder holds something else, or a setting does not go with the data.
    """
    state = workdir.find_state(folder, _EXPERIMENT, config.to_dict())
    if state is workdir.State.FINISHED:
        records = workdir.finished_records(folder / workdir.RESULTS_FILE, _is_record)
        workdir.show_finished(folder, text_table(records))
        return records

    train_set, test_set = (
        load_dataset(config.to_dict(), split, data_dir, manual_dir) for split in ("train", "test")
    )
    evaluation = _evaluation(config, train_set, test_set)
    dataset = {"train": train_set.to_dict(), "test": test_set.to_dict()}
    warning = workdir.begin(folder, _EXPERIMENT, config.to_dict(), dataset)
    workdir.announce(folder, state, f"{train_set.describe()}; {test_set.describe()}", warning)

    records = []
    for latent_size in config.latent_sizes:
        own_folder = folder / f"latent_{latent_size:02d}"
        own_folder.mkdir(exist_ok=True)
        of_size = _run_latent_size(config, latent_size, evaluation, own_folder)
        _draw_figures(config, of_size, own_folder, folder / "figures")
        records.extend(of_size)
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
    print(f"\n{text_table(records)}\n\nWritten to {folder}", flush=True)
    return records


def _evaluation(config: PriorsConfig, train_set: Dataset, test_set: Dataset) -> Evaluation:
    if config.num_images > len(test_set):
        raise ValueError(
            f"--num_images={config.num_images} exceeds the {len(test_set)} images of "
            f"{test_set.name}/test."
        )
    for mode, name in config.plan:
        # A layer that is fitted afterwards is made from what the fit does not hold out.
        fitted = mode == POSTHOC and name.family not in ("aggregate", *EM_FAMILIES)
        available = len(train_set) - (_num_held_out(train_set) if fitted else 0)
        if name.num_components is not None and name.num_components > available:
            share = f", of which it is fitted to {available}" if fitted else ""
            raise ValueError(
                f"--priors={name} has more components than {train_set.describe()}{share}."
            )
    rng = np.random.default_rng([config.seed, _IMAGES_STREAM])
    chosen = np.sort(rng.choice(len(test_set), config.num_images, replace=False))
    return Evaluation(
        train=train_set,
        test=test_set,
        images=test_set.observations()[chosen],
        num_importance_samples=config.num_importance_samples,
        num_samples=config.num_samples,
        seed=config.seed,
    )


def _num_held_out(x: Sized) -> int:
    """How many observations, the last of the training set, stop a fit early."""
    return -(-len(x) // _HELD_OUT_SHARE)


def _run_latent_size(
    config: PriorsConfig, latent_size: int, evaluation: Evaluation, folder: Path
) -> list[dict[str, Any]]:
    """Trains, fits and measures all priors of one latent size, but for what is done."""
    records: list[dict[str, Any]] = []
    for mode, name in config.plan:
        own_folder = _folder_of(folder, mode, name)
        own_folder.mkdir(exist_ok=True)
        path = own_folder / "record.json"
        label = f"D = {latent_size}, {mode} {name}"
        if path.exists():
            print(f"{label}: done before.", flush=True)
            record = workdir.read_json(path)
            if not _is_record(record):
                raise ValueError(f"{path} is damaged: delete it to have it made anew.")
        else:
            print(f"\n{label} ...", flush=True)
            make = _train_jointly if mode == JOINT else _fit_afterwards
            record = {
                "latent_size": latent_size,
                "mode": mode,
                "prior": str(name),
                "family": name.family,
                "num_components": name.num_components,
                **make(config, latent_size, name, evaluation, folder),
            }
            workdir.write_json(path, record)  # where it is, this prior is done
            print(f"{label}: {_summary(record)}", flush=True)
        records.append(record)
    return [
        {
            **record,
            "log_evidence_gain": audit.compare_evidence(record, records[0]),
        }
        for record in records
    ]


def _train_jointly(
    config: PriorsConfig, latent_size: int, name: PriorName, evaluation: Evaluation, folder: Path
) -> dict[str, Any]:
    own_folder = _folder_of(folder, JOINT, name)

    def make_prior(encoder: Any) -> Prior:
        x = evaluation.train.observations()
        return families.build(name, Ingredients(encoder, latent_size, x, config.seed))

    trained = train(config.training, latent_size, evaluation.train, own_folder, make_prior)
    vae = trained.model
    return {
        "num_parameters": _num_parameters(vae.prior),
        "seconds": round(trained.seconds, 2),
        "fit": None,
        **_measured(
            vae, vae.prior(), getattr(vae.prior, "leave_one_out", None), evaluation, own_folder
        ),
    }


def _fit_afterwards(
    config: PriorsConfig, latent_size: int, name: PriorName, evaluation: Evaluation, folder: Path
) -> dict[str, Any]:
    vae = train(
        config.training, latent_size, evaluation.train, _folder_of(folder, JOINT, STANDARD)
    ).model
    own_folder = _folder_of(folder, POSTHOC, name)
    x = evaluation.train.observations()
    start = time.monotonic()
    leave_one_out: Callable[[Any], tfd.Distribution] | None = None
    fitted: dict[str, Any] | None = None
    if name.family == "aggregate":
        prior = AggregatePosterior.from_encoder(vae.encoder, x)
        leave_one_out = functools.partial(LeaveOneOut, prior)
        num_parameters = 0
    elif name.family in EM_FAMILIES:
        posteriors = AggregatePosterior.from_encoder(vae.encoder, x).components_distribution
        seed = tf.constant([config.seed, _CODES_STREAM], tf.int32)
        prior, num_parameters = families.em_mixture(
            posteriors.sample(seed=seed).numpy(), name, config.seed
        )
    else:
        held_out = _num_held_out(x)
        given = Ingredients(vae.encoder, latent_size, x[:-held_out], config.seed)
        keras.utils.set_random_seed(config.seed)  # the layer's first weights
        layer = families.build(name, given)
        settings = FAMILIES[name.family].fit
        num_steps = settings.num_steps
        if config.fit_steps is not None:
            num_steps = min(num_steps, config.fit_steps)
        fitted = fit_prior(
            AggregatePosterior.from_encoder(vae.encoder, x[:-held_out]),
            layer,
            validation=AggregatePosterior.from_encoder(vae.encoder, x[-held_out:]),
            num_steps=num_steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            tolerance=_TOLERANCE,
            seed=config.seed,
        ).to_dict()
        prior, num_parameters = layer(), _num_parameters(layer)
        leave_one_out = getattr(layer, "leave_one_out", None)
        model = VAE(vae.encoder, vae.decoder, layer, seed=config.seed)
        model.build((None, *x.shape[1:]))
        with replaced_when_whole(own_folder / "model.keras") as unfinished:
            model.save(unfinished)
    return {
        "num_parameters": num_parameters,
        "seconds": round(time.monotonic() - start, 2),
        "fit": fitted,
        **_measured(vae, prior, leave_one_out, evaluation, own_folder),
    }


def _measured(
    vae: VAE,
    prior: tfd.Distribution,
    leave_one_out: Callable[[Any], tfd.Distribution] | None,
    evaluation: Evaluation,
    folder: Path,
) -> dict[str, Any]:
    images = audit.decoded_samples(vae, prior, evaluation.seed)
    with replaced_when_whole(folder / "samples.npy") as unfinished, unfinished.open("wb") as file:
        np.save(file, images)
    return audit.audit(vae, prior, evaluation, leave_one_out)


def _num_parameters(prior: Prior) -> int:
    return sum(math.prod(variable.shape) for variable in prior.fitted_variables)


def _folder_of(folder: Path, mode: str, name: PriorName) -> Path:
    return folder / f"{mode}_{name.file_name}"


def _summary(record: Mapping[str, Any]) -> str:
    train_kl, test_kl = (record[split]["marginal_kl"]["value"] for split in ("train", "test"))
    return (
        f"marginal KL {train_kl:.3f} on training data, {test_kl:.3f} on test data; log evidence "
        f"{record['log_evidence']['value']:.2f}; {record['seconds']:.0f} s"
    )


def _draw_figures(
    config: PriorsConfig, records: Sequence[Mapping[str, Any]], folder: Path, target: Path
) -> None:
    """Draws the figures of one latent size from its records and the decoded images beside them."""
    latent_size, data = records[0]["latent_size"], records[0]["train"]["data"]
    title = f"VAEs with latent size D = {latent_size}, {config.epochs} epochs\n{data}"
    panels = {}
    for mode, name in config.plan:
        images = np.load(_folder_of(folder, mode, name) / "samples.npy")
        panels[f"z from p(z): {name}, {mode}"] = images
    workdir.write_figure(
        target / f"samples_latent_{latent_size:02d}.png", figures.samples_figure(panels, title)
    )
    workdir.write_figure(
        target / f"marginal_kl_latent_{latent_size:02d}.png",
        prior_figures.marginal_kl_figure(records, title),
    )


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {
        "latent_size",
        "mode",
        "prior",
        "train",
        "test",
        "log_evidence",
    }


def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the experiment that the flags describe."""

    def work() -> None:
        run(
            config_from_flags(flag_values),
            Path(flag_values.workdir),
            flag_values.data_dir,
            flag_values.manual_dir,
        )

    return command.exit_code(argv, work, "with the prior it was at")


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(priors_config)  # --helpshort shows them
    logging.set_verbosity(logging.WARNING)  # TFDS tells every step otherwise
    app.run(main)
