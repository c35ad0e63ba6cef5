r"""Log evidence of trained VAEs, from the ELBO up to annealed importance sampling.

Reads a latent size of a finished run of `experiments.elbo_surgery` and measures on some of its
test images: the ELBO, the importance-weighted bounds IW_5, IW_50 and IW_5000, annealed importance
sampling (AIS), IW_5000 with q(z) refined for each image as proposal, the approximation and
amortization gaps, and how far AIS can be trusted on this model, from both sides on data that the
model simulates:

    python -m experiments.log_evidence --run=runs/mnist --latent_size=10 --workdir=runs/evidence

All training seeds of that run are measured on the same images, or those of --training_seeds; what
they say together is in `summary.csv`. The bounds are measured by draws of their own: that they come
out in order is not built in. A run that was stopped goes on when the same command is given again; a
finished one is shown again and left as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

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
from experiments.common.workdir import Record, Run
from tfp_surgery import seeds
from tfp_surgery.evidence.annealed_importance_sampling import (
    log_evidence_by_annealed_importance_sampling,
)
from tfp_surgery.evidence.bidirectional_monte_carlo import bidirectional_monte_carlo
from tfp_surgery.evidence.importance_sampling import log_evidence_by_importance_sampling
from tfp_surgery.evidence.importance_weighted_elbo import importance_weighted_elbo
from tfp_surgery.evidence.inference_gaps import inference_gaps
from tfp_surgery.evidence.log_evidence import LogEvidence
from tfp_surgery.evidence.refined_posteriors import refined_posteriors
from tfp_surgery.measurement.result import aligned_rows
from tfp_surgery.reporting.tables import format_estimate

# The small bounds are averaged over so many draws an image as to have small errors too.
_SMALL_BOUNDS = {"elbo": 1, "iw_5": 5, "iw_50": 50}
_DRAWS_OF_SMALL_BOUNDS = 1000
_LABELS = {
    "elbo": "ELBO",
    "iw_5": "IW_5",
    "iw_50": "IW_50",
    "iw": "IW_{num_importance_samples}",
    "ais": "AIS",
    "ais_minus_iw": "AIS - IW_{num_importance_samples}",
    "optimal_elbo": "ELBO, q refined for each image",
    "refined_iw": "IW_{num_importance_samples}, q refined for each image",
    "ais_minus_refined_iw": "AIS - IW_{num_importance_samples}, q refined",
    "approximation_gap": "approximation gap (of the largest of the above)",
    "amortization_gap": "amortization gap",
    "simulated_lower": "simulated data: AIS, lower bound",
    "simulated_upper": "simulated data: reverse AIS, upper bound",
    "simulated_gap": "simulated data: upper - lower",
}


@dataclasses.dataclass(frozen=True)
class Config(TrainedModelSettings):
    """Of the bounds."""

    num_importance_samples: int = setting(
        5000, "draws an image of the largest importance-weighted bound", minimum=2
    )
    num_temperatures: int = setting(300, "of AIS")
    num_chains: int = setting(8, "of AIS, an image", minimum=2)
    num_leapfrog_steps: int = setting(5, "of AIS, a temperature")
    num_simulated: int = setting(50, "images that the model simulates", minimum=2)
    num_refinement_steps: int = setting(300, "of Adam on q(z) of each image")


def run(
    config: Config, folder: Path, data_dir: str | None = None, manual_dir: str | None = None
) -> list[Record]:
    """Brings the measurement in `folder` to its end, whatever of it is there already.

    Args:
      config: settings of the run.
      folder: its folder.
      data_dir: see `tfp_surgery.datasets.load`, as for `manual_dir`.
      manual_dir: likewise.

    Returns:
      The records of all training seeds and measurements.

    Raises:
      OSError: if a folder or the data cannot be used.
      ValueError: if a folder holds something else.
    """
    fields = ("training_seed", "measurement", "images", "seconds")
    work = Run(folder, "log_evidence", config.to_dict(), fields)
    table = partial(text_table, config)
    if work.is_finished:
        return work.show(table)

    subjects = load_trained_models(config, data_dir, manual_dir)
    data = subjects[0].data
    work.begin(subjects[0].dataset, f"{config.run}, latent size {config.latent_size}; {data}")
    records: list[Record] = []
    for subject in subjects:
        own: list[Record] = []
        for name in _MEASUREMENTS:
            make = partial(_measured, name, config, subject, by_name(own))
            path = f"{training_folder(subject.training_seed)}/{name}"
            own.append(work.part(path, _label(name, config, subject), make))
        records += own
    found = estimates_of_runs(records)
    rows = [
        {"training_seed": run["training_seed"], "quantity": name, **run[name]}
        for run in found
        for name in _LABELS
    ]
    summary = over_runs.summary_rows(found, {})
    return work.finish(records, rows, table, summary, data=data, estimates=found)


def measure_small_bounds(config: Config, subject: TrainedModel, _: Mapping[str, Record]) -> Record:
    """ELBO, IW_5 and IW_50, each averaged over draws of its own."""
    return {
        name: importance_weighted_elbo(
            *subject.arguments,
            num_importance_samples=m,
            num_samples=_DRAWS_OF_SMALL_BOUNDS // m,
            seed=config.seed,
        ).estimate.to_dict()
        for name, m in _SMALL_BOUNDS.items()
    }


def measure_importance_sampling(
    config: Config, subject: TrainedModel, _: Mapping[str, Record]
) -> Record:
    """The largest importance-weighted bound."""
    return log_evidence_by_importance_sampling(
        *subject.arguments,
        num_importance_samples=config.num_importance_samples,
        seed=config.seed,
    ).to_dict()


def measure_refined(config: Config, subject: TrainedModel, _: Mapping[str, Record]) -> Record:
    """The largest importance-weighted bound, with q(z) refined for each image as proposal."""
    proposals = refined_posteriors(
        *subject.arguments,
        num_steps=config.num_refinement_steps,
        seed=config.seed,
    )
    return log_evidence_by_importance_sampling(
        subject.x,
        proposals,
        subject.vae.decoder,
        subject.prior,
        num_importance_samples=config.num_importance_samples,
        seed=seeds.key(config.seed, "experiments/log_evidence/refined"),
    ).to_dict()


def measure_annealed(config: Config, subject: TrainedModel, _: Mapping[str, Record]) -> Record:
    """Annealed importance sampling from the prior."""
    return log_evidence_by_annealed_importance_sampling(
        subject.x, subject.vae.decoder, subject.prior, **_chains(config)
    ).to_dict()


def measure_gaps(config: Config, subject: TrainedModel, parts: Mapping[str, Record]) -> Record:
    """The two gaps, from the largest of the bounds on the log evidence."""
    best = max(
        (parts[name] for name in _LOG_EVIDENCE),
        key=lambda part: float(part["estimate"]["value"]),
    )
    log_evidence = LogEvidence(
        values=np.array([best["per_observation"]], np.float64),
        standard_errors=np.array(best["standard_errors"], np.float64),
        effective_sample_sizes=np.array(best["effective_sample_sizes"], np.float64),
        num_importance_samples=best["num_importance_samples"],
        num_samples=1,
        bound=best["bound"],
        method=best["method"],
        data=best["data"],
        seed=best["seed"],
    )
    gaps = inference_gaps(
        *subject.arguments,
        log_evidence=log_evidence,
        num_steps=config.num_refinement_steps,
        seed=config.seed,
    )
    return {**gaps.to_dict(), "method_of_log_evidence": log_evidence.method}


def measure_both_sides(config: Config, subject: TrainedModel, _: Mapping[str, Record]) -> Record:
    """AIS and reverse AIS on data that the model simulates."""
    return bidirectional_monte_carlo(
        subject.vae.decoder,
        subject.prior,
        num_observations=config.num_simulated,
        **_chains(config),
    ).to_dict()


_MEASUREMENTS: dict[str, Callable[[Config, TrainedModel, Mapping[str, Record]], Record]] = {
    "small_bounds": measure_small_bounds,
    "importance_sampling": measure_importance_sampling,
    "annealed": measure_annealed,
    "refined": measure_refined,
    "gaps": measure_gaps,
    "both_sides": measure_both_sides,
}
# Those that estimate the log evidence of every image.
_LOG_EVIDENCE = ("importance_sampling", "annealed", "refined")


def _chains(config: Config) -> dict[str, int]:
    return {
        "num_temperatures": config.num_temperatures,
        "num_chains": config.num_chains,
        "num_leapfrog_steps": config.num_leapfrog_steps,
        "seed": config.seed,
    }


def _measured(
    name: str, config: Config, subject: TrainedModel, parts: Mapping[str, Record]
) -> Record:
    """A measurement, with its time and what it warned of; both are printed."""
    print(f"{_label(name, config, subject)} ...", end=" ", flush=True)
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        record = _MEASUREMENTS[name](config, subject, parts)
    record["training_seed"] = subject.training_seed
    record["measurement"] = name
    record["images"] = subject.data
    record["seconds"] = round(time.monotonic() - start, 2)
    record["warnings"] = [str(w.message) for w in caught if w.category is UserWarning]
    print(f"{record['seconds']:.0f} s", flush=True)
    for message in record["warnings"]:
        print(f"  Warning: {message}", flush=True)
    return record


def _label(name: str, config: Config, subject: TrainedModel) -> str:
    model = model_label(subject.training_seed, config.latent_size)
    return f"{model}, {name.replace('_', ' ')}"


def by_name(records: Sequence[Record]) -> dict[str, Record]:
    """The records of one training seed by the names of the measurements."""
    return {record["measurement"]: record for record in records}


def estimates(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """All estimates of one training seed by name, in the order of the table.

    Args:
      records: of all its measurements.

    Returns:
      `{"value", "standard_error"}` of each.
    """
    parts = by_name(records)
    iw, ais, refined = (parts[name]["estimate"] for name in _LOG_EVIDENCE)

    def difference(larger: Mapping[str, float], smaller: Mapping[str, float]) -> dict[str, float]:
        return {
            "value": larger["value"] - smaller["value"],
            "standard_error": math.hypot(larger["standard_error"], smaller["standard_error"]),
        }

    found = {
        **{name: parts["small_bounds"][name] for name in _SMALL_BOUNDS},
        "iw": iw,
        "ais": ais,
        "ais_minus_iw": difference(ais, iw),
        "optimal_elbo": parts["gaps"]["optimal_elbo"],
        "refined_iw": refined,
        "ais_minus_refined_iw": difference(ais, refined),
        **{name: parts["gaps"][name] for name in ("approximation_gap", "amortization_gap")},
        **{f"simulated_{name}": parts["both_sides"][name] for name in ("lower", "upper", "gap")},
    }
    return {
        name: {key: entry[key] for key in ("value", "standard_error")}
        for name, entry in found.items()
    }


def estimates_of_runs(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The estimates of each training seed.

    Args:
      records: of all training seeds and measurements, those of a training seed one after another.

    Returns:
      `training_seed`, and `estimates` of its records.
    """
    return [
        {"training_seed": training_seed, **estimates(list(own))}
        for training_seed, own in itertools.groupby(records, lambda r: r["training_seed"])
    ]


def text_table(config: Config, records: Sequence[Record]) -> str:
    """The table of a finished run.

    Args:
      config: settings of the run.
      records: of all training seeds and measurements.

    Returns:
      Lines of text.
    """
    found = estimates_of_runs(records)
    labels = {name: label.format(**config.to_dict()) for name, label in _LABELS.items()}
    lines = [
        f"Log evidence, VAE with latent size {config.latent_size} of {config.run}",
        records[0]["images"],
        "nats per image ± standard error (of the draws; for simulated data, over the images)",
        "",
        *aligned_rows(
            [
                (label, *(format_estimate(run[name]) for run in found))
                for name, label in labels.items()
            ],
            ("", *(f"training seed {run['training_seed']}" for run in found)),
        ),
    ]
    for record in records:
        own = f"  training seed {record['training_seed']}, "
        if record["measurement"] in _LOG_EVIDENCE:
            sizes = np.array(record["effective_sample_sizes"])
            refined = ", q refined" if record["measurement"] == "refined" else ""
            lines.append(
                f"{own}{record['method']}{refined}: effective sample size {np.median(sizes):.1f} "
                f"in the median, {sizes.min():.1f} at least"
            )
        if record["measurement"] == "annealed":
            lines.append(f"{own}acceptance rate of HMC {record['acceptance_rate']:.2f}")
    return over_runs.with_summary("\n".join(lines), found, {}, labels)


COMMAND = Command(Config, run, "from the last measurement")

if __name__ == "__main__":
    COMMAND.start()
