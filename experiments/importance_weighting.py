r"""The ladder from the ELBO to the log evidence, on test images of a trained VAE.

Takes a VAE that `experiments.elbo_surgery` has trained, and bounds the log evidence of test images
by importance weighting with more and more samples. Leaves a table, a figure, JSON and CSV in
--workdir:

    python -m experiments.elbo_surgery --dataset=mnist --latent_sizes=10 --workdir=runs/mnist
    python -m experiments.importance_weighting --run=runs/mnist --latent_size=10 \
        --workdir=runs/mnist_ladder

A run that was stopped goes on when the same command is given again; a finished one is shown again
and left as it is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

import tfp_surgery.networks  # noqa: F401 - the classes that a checkpoint is made of
from experiments.common import command, workdir
from experiments.common.trained_model import load_trained_model
from tfp_surgery.estimate import Estimate
from tfp_surgery.evidence.importance_weighted_elbo import importance_weighted_elbo
from tfp_surgery.models.vae import VAE
from tfp_surgery.reporting.ladder_figures import ladder_figure
from tfp_surgery.reporting.tables import aligned_lines

_EXPERIMENT = "importance_weighting"
_RECORD_FIELDS = {"num_importance_samples", "num_samples", "importance_weighted_elbo", "data"}


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags, some of which have the names of those of other experiments."""
    flags.DEFINE_string(
        "workdir", None, "folder of this run", required=True, flag_values=flag_values
    )
    flags.DEFINE_string(
        "run",
        None,
        "folder of a finished run of experiments.elbo_surgery",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "latent_size", 10, "size of the code of its VAE to take", flag_values=flag_values
    )
    flags.DEFINE_integer("num_images", 100, "test images, drawn at random", flag_values=flag_values)
    flags.DEFINE_list(
        "num_importance_samples",
        ["1", "5", "50", "500", "5000"],
        "rungs of the ladder; 1 is the ELBO",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_draws",
        5000,
        "codes an image that each rung may use; every rung is repeated at least twice",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "seed", 0, "of the choice of images and of the draws of codes", flag_values=flag_values
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "folder of prepared TFDS data; TFDS's own if none",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "manual_dir",
        None,
        "folder with the data set's original files, for machines without network",
        flag_values=flag_values,
    )


@dataclasses.dataclass(frozen=True)
class LadderConfig:
    """All that the numbers of a run depend on.

    Raises:
      ValueError: if a setting is out of range.
    """

    run: str
    latent_size: int
    num_images: int
    num_importance_samples: tuple[int, ...]
    num_draws: int
    seed: int

    def __post_init__(self) -> None:
        """Checks the settings."""
        rungs = ",".join(map(str, self.num_importance_samples))
        if not rungs or min(self.num_importance_samples) < 1:
            raise ValueError(f"--num_importance_samples must be at least 1 each, got {rungs}.")
        if len(set(self.num_importance_samples)) != len(self.num_importance_samples):
            raise ValueError(f"--num_importance_samples names one twice: {rungs}.")
        for name, minimum in (("latent_size", 1), ("num_images", 1), ("num_draws", 1), ("seed", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"--{name} must be at least {minimum}, got {getattr(self, name)}.")
        if self.seed >= 2**31:
            raise ValueError(f"--seed must be below 2**31, got {self.seed}.")

    def to_dict(self) -> dict[str, Any]:
        """The settings in types that JSON knows."""
        return {
            **dataclasses.asdict(self),
            "num_importance_samples": list(self.num_importance_samples),
        }


def config_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> LadderConfig:
    """The settings that the parsed flags state.

    Raises:
      ValueError: if one is not of its type, or out of range.
    """
    given = flag_values.num_importance_samples
    try:
        rungs = tuple(int(value) for value in given)
    except ValueError:
        raise ValueError(
            f"--num_importance_samples takes integers with commas between them, got "
            f"{','.join(given)}."
        ) from None
    return LadderConfig(
        run=str(Path(flag_values.run).resolve()),
        latent_size=flag_values.latent_size,
        num_images=flag_values.num_images,
        num_importance_samples=rungs,
        num_draws=flag_values.num_draws,
        seed=flag_values.seed,
    )


def run(
    config: LadderConfig,
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
      The records of all rungs, in the order of the settings.

    Raises:
      OSError: if a folder, the checkpoint or the data cannot be used.
      ValueError: if a folder holds something else.
    """
    state = workdir.find_state(folder, _EXPERIMENT, config.to_dict())
    if state is workdir.State.FINISHED:
        records = workdir.finished_records(folder / workdir.RESULTS_FILE, _is_record)
        workdir.show_finished(folder, table(records))
        return records

    model = load_trained_model(
        config.run, config.latent_size, config.num_images, config.seed, data_dir, manual_dir
    )
    data = model.data
    warning = workdir.begin(folder, _EXPERIMENT, config.to_dict(), model.dataset)
    workdir.announce(folder, state, data, warning)
    records = []
    for m in config.num_importance_samples:
        path = folder / f"importance_samples_{m:06d}.json"
        if path.exists():
            print(f"m = {m}: done before.", flush=True)
            record = workdir.read_json(path)
            if not _is_record(record):
                raise ValueError(f"{path} is damaged: delete it to have it made anew.")
        else:
            record = rung(config, model.vae, model.x, data, m)
            workdir.write_json(path, record)  # where it is, this rung is done
        records.append(record)
    workdir.write_figure(
        folder / "figures" / "ladder.png",
        ladder_figure(records, f"VAE with latent size D = {config.latent_size}\n{data}"),
    )
    workdir.write_csv(folder / "results.csv", [_csv_row(record) for record in records])
    # Written last: where it is, the run is finished.
    workdir.write_json(
        folder / workdir.RESULTS_FILE,
        {
            "dataset": model.dataset,
            "data": data,
            "config": config.to_dict(),
            "versions": workdir.versions(),
            "results": records,
        },
    )
    print(f"\n{table(records)}\n\nWritten to {folder}", flush=True)
    return records


def rung(
    config: LadderConfig, vae: VAE, images: np.ndarray, data: str, num_importance_samples: int
) -> dict[str, Any]:
    """Evaluates one bound of the ladder and prints it.

    Args:
      config: settings of the run.
      vae: the trained model.
      images: `[N, *event_shape]`.
      data: what names the images.
      num_importance_samples: m.

    Returns:
      The bound, its sizes, the mean and least effective sample size, and the seconds it took.
    """
    start = time.monotonic()
    bound = importance_weighted_elbo(
        images,
        vae.encoder,
        vae.decoder,
        vae.prior,
        num_importance_samples=num_importance_samples,
        num_samples=max(2, config.num_draws // num_importance_samples),
        seed=config.seed,
    )
    seconds = time.monotonic() - start
    print(f"m = {num_importance_samples}: {bound.estimate} nats, {seconds:.1f} s", flush=True)
    return {
        "num_importance_samples": bound.num_importance_samples,
        "num_samples": bound.num_samples,
        "importance_weighted_elbo": bound.estimate.to_dict(),
        "mean_effective_sample_size": float(bound.effective_sample_sizes.mean()),
        "least_effective_sample_size": float(bound.effective_sample_sizes.min()),
        "num_observations": bound.num_observations,
        "seed": bound.seed,
        "data": data,
        "warnings": list(bound.warnings),
        "seconds": round(seconds, 2),
    }


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The ladder as text.

    Args:
      records: one a rung.

    Returns:
      The data set, a row for each rung, how to read them.
    """
    rows = [["m", "k", "bound", "mean ESS", "least ESS", "seconds"]]
    for record in records:
        m, k, entry = (
            record[name]
            for name in ("num_importance_samples", "num_samples", "importance_weighted_elbo")
        )
        estimate = Estimate(entry["value"], entry["standard_error"], k)
        sizes = [f"{record[f'{which}_effective_sample_size']:.1f}" for which in ("mean", "least")]
        rows.append([str(m), str(k), str(estimate), *sizes, f"{record['seconds']:.1f}"])
    return "\n".join(
        [
            records[0]["data"],
            "",
            *aligned_lines(rows),
            "",
            "Nats per image, ± the Monte Carlo standard error of the draws, given the images.",
            "MC_k-IW_m-ELBO; m = 1 is the ELBO. All are lower bounds on log p(x).",
        ]
    )


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= _RECORD_FIELDS


def _csv_row(record: Mapping[str, Any]) -> dict[str, Any]:
    row = dict(record)
    estimate = row.pop("importance_weighted_elbo")
    row["warnings"] = " ".join(row.get("warnings", ()))
    return {
        "num_importance_samples": row.pop("num_importance_samples"),
        "num_samples": row.pop("num_samples"),
        "importance_weighted_elbo": estimate["value"],
        "importance_weighted_elbo_standard_error": estimate["standard_error"],
        **row,
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

    return command.exit_code(argv, work, "with the rung it was in")


if __name__ == "__main__":
    define_flags()
    logging.set_verbosity(logging.WARNING)  # TFDS tells every step otherwise
    app.run(main)
