r"""The ladder from the ELBO to the log evidence, on test images of trained VAEs.

Takes the VAEs of one latent size that `experiments.elbo_surgery` has trained, and bounds the log
evidence of test images by importance weighting with more and more samples. Leaves a table, figures,
JSON and CSV in --workdir:

    python -m experiments.elbo_surgery --dataset=mnist --latent_sizes=10 --workdir=runs/mnist
    python -m experiments.importance_weighting --run=runs/mnist --latent_size=10 \
        --workdir=runs/mnist_ladder

All training seeds of that run are measured on the same images, or those of --training_seeds; what
they say together is in `summary.csv`. A run that was stopped goes on when the same command is given
again; a finished one is shown again and left as it is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.common import over_runs
from experiments.common.command import Command
from experiments.common.settings import setting
from experiments.common.trained_model import (
    TrainedModel,
    TrainedModelSettings,
    load_trained_models,
    model_label,
    training_folder,
)
from experiments.common.workdir import Run
from tfp_surgery.evidence.importance_weighted_elbo import importance_weighted_elbo
from tfp_surgery.measurement.result import aligned_rows
from tfp_surgery.reporting.ladder_figures import ladder_figure
from tfp_surgery.reporting.tables import format_estimate

_KEYS = {"num_importance_samples": "m"}


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
      The records of all training seeds and rungs, in the order of the settings.

    Raises:
      OSError: if a folder, the checkpoint or the data cannot be used.
      ValueError: if a folder holds something else.
    """
    fields = (
        "training_seed",
        "num_importance_samples",
        "num_samples",
        "importance_weighted_elbo",
        "data",
    )
    work = Run(folder, "importance_weighting", config.to_dict(), fields)
    if work.is_finished:
        return work.show(table)

    models = load_trained_models(config, data_dir, manual_dir)
    data = models[0].data
    work.begin(models[0].dataset, data)
    records: list[dict[str, Any]] = []
    for model in models:
        folder_name = training_folder(model.training_seed)
        label = model_label(model.training_seed, config.latent_size)
        own = [
            work.part(
                f"{folder_name}/importance_samples_{m:06d}",
                f"{label}, m = {m}",
                partial(rung, config, model, m),
            )
            for m in config.num_importance_samples
        ]
        work.write_figure(f"{folder_name}/ladder", ladder_figure(own, f"VAE, {label}\n{data}"))
        records += own
    summary = over_runs.summary_rows(records, _KEYS)
    return work.finish(records, records, table, summary, data=data)


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
    label = model_label(model.training_seed, config.latent_size)
    print(
        f"{label}, m = {num_importance_samples}: {bound.estimate} nats, {seconds:.1f} s", flush=True
    )
    return {
        "training_seed": model.training_seed,
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
      records: one a training seed and rung.

    Returns:
      The data set, a row for each record, how to read them, and what the training runs say
      together.
    """
    rows = [
        (
            record["training_seed"],
            record["num_importance_samples"],
            record["num_samples"],
            format_estimate(record["importance_weighted_elbo"]),
            f"{record['mean_effective_sample_size']:.1f}",
            f"{record['least_effective_sample_size']:.1f}",
            f"{record['seconds']:.1f}",
        )
        for record in records
    ]
    text = "\n".join(
        [
            records[0]["data"],
            "",
            *aligned_rows(
                rows, ("training seed", "m", "k", "bound", "mean ESS", "least ESS", "seconds")
            ),
            "",
            "Nats per image, ± the Monte Carlo standard error of the draws, given the images.",
            "MC_k-IW_m-ELBO; m = 1 is the ELBO. All are lower bounds on log p(x).",
        ]
    )
    return over_runs.with_summary(text, records, _KEYS, {"importance_weighted_elbo": "bound"})


COMMAND = Command(Config, run, "with the rung it was in")

if __name__ == "__main__":
    COMMAND.start()
