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
from functools import partial
from pathlib import Path
from typing import Any

from experiments.common.command import Command
from experiments.common.settings import setting
from experiments.common.trained_model import (
    TrainedModel,
    TrainedModelSettings,
    load_trained_model,
)
from experiments.common.workdir import Run
from tfp_surgery.evidence.importance_weighted_elbo import importance_weighted_elbo
from tfp_surgery.measurement.result import aligned_rows
from tfp_surgery.reporting.ladder_figures import ladder_figure
from tfp_surgery.reporting.tables import format_estimate


@dataclasses.dataclass(frozen=True)
class Config(TrainedModelSettings):
    """Of the ladder."""

    num_importance_samples: tuple[int, ...] = setting(
        (1, 5, 50, 500, 5000), "rungs of the ladder; 1 is the ELBO", distinct=True
    )
    num_draws: int = setting(
        5000, "codes an image that each rung may use; every rung is repeated at least twice"
    )


def run(
    config: Config, folder: Path, data_dir: str | None = None, manual_dir: str | None = None
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
    fields = ("num_importance_samples", "num_samples", "importance_weighted_elbo", "data")
    work = Run(folder, "importance_weighting", config.to_dict(), fields)
    if work.is_finished:
        return work.show(table)

    model = load_trained_model(config, data_dir, manual_dir)
    work.begin(model.dataset, model.data)
    records = [
        work.part(f"importance_samples_{m:06d}", f"m = {m}", partial(rung, config, model, m))
        for m in config.num_importance_samples
    ]
    title = f"VAE with latent size D = {config.latent_size}\n{model.data}"
    work.write_figure("ladder", ladder_figure(records, title))
    return work.finish(records, records, table, data=model.data)


def rung(config: Config, model: TrainedModel, num_importance_samples: int) -> dict[str, Any]:
    """Evaluates one bound of the ladder and prints it.

    Args:
      config: settings of the run.
      model: the trained model and the images.
      num_importance_samples: m.

    Returns:
      The bound, its sizes, the mean and least effective sample size, and the seconds it took.
    """
    start = time.monotonic()
    bound = importance_weighted_elbo(
        *model.arguments,
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
        "data": model.data,
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
    rows = [
        (
            record["num_importance_samples"],
            record["num_samples"],
            format_estimate(record["importance_weighted_elbo"]),
            f"{record['mean_effective_sample_size']:.1f}",
            f"{record['least_effective_sample_size']:.1f}",
            f"{record['seconds']:.1f}",
        )
        for record in records
    ]
    return "\n".join(
        [
            records[0]["data"],
            "",
            *aligned_rows(rows, ("m", "k", "bound", "mean ESS", "least ESS", "seconds")),
            "",
            "Nats per image, ± the Monte Carlo standard error of the draws, given the images.",
            "MC_k-IW_m-ELBO; m = 1 is the ELBO. All are lower bounds on log p(x).",
        ]
    )


COMMAND = Command(Config, run, "with the rung it was in")

if __name__ == "__main__":
    COMMAND.start()
