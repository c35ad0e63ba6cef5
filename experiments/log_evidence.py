r"""Log evidence of a trained VAE, from the ELBO up to annealed importance sampling.

Reads a latent size of a finished run of `experiments.elbo_surgery` and measures on some of its
test images: the ELBO, the importance-weighted bounds IW_5, IW_50 and IW_5000, annealed importance
sampling (AIS), IW_5000 with q(z) refined for each image as proposal, the approximation and
amortization gaps, and how far AIS can be trusted on this model, from both sides on data that the
model simulates:

    python -m experiments.log_evidence --run=runs/mnist --latent_size=10 --workdir=runs/evidence

The bounds are measured by draws of their own: that they come out in order is not built in. A run
that was stopped goes on when the same command is given again; a finished one is shown again and
left as it is.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

from experiments.common import command, workdir
from experiments.common.trained_model import TrainedModel, load_trained_model
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.estimate import Estimate
from tfp_surgery.evidence.annealed_importance_sampling import (
    log_evidence_by_annealed_importance_sampling,
)
from tfp_surgery.evidence.bidirectional_monte_carlo import bidirectional_monte_carlo
from tfp_surgery.evidence.importance_sampling import log_evidence_by_importance_sampling
from tfp_surgery.evidence.importance_weighted_elbo import importance_weighted_elbo
from tfp_surgery.evidence.inference_gaps import inference_gaps
from tfp_surgery.evidence.log_evidence import LogEvidence
from tfp_surgery.evidence.refined_posteriors import refined_posteriors
from tfp_surgery.seeds import MAX_SEED

_EXPERIMENT = "log_evidence"

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

_INTEGER_FLAGS = {
    "latent_size": (10, "which VAE of that run"),
    "num_images": (100, "test images, drawn at random"),
    "num_importance_samples": (5000, "draws an image of the largest importance-weighted bound"),
    "num_temperatures": (300, "of AIS"),
    "num_chains": (8, "of AIS, an image"),
    "num_leapfrog_steps": (5, "of AIS, a temperature"),
    "num_simulated": (50, "images that the model simulates"),
    "num_refinement_steps": (300, "of Adam on q(z) of each image"),
    "seed": (0, "of the choice of images and of all draws"),
}
_FOLDER_FLAGS = {
    "run": "folder of a run of experiments.elbo_surgery",
    "workdir": "folder of the results",
    "data_dir": "folder of prepared TFDS data; TFDS's own if none",
    "manual_dir": "folder with the data set's original files, for machines without network",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """All that the numbers depend on.

    Raises:
      ValueError: if a setting is out of range.
    """

    run: str
    latent_size: int
    num_images: int
    num_importance_samples: int
    num_temperatures: int
    num_chains: int
    num_leapfrog_steps: int
    num_simulated: int
    num_refinement_steps: int
    seed: int

    def __post_init__(self) -> None:
        """Checks the settings."""
        least = {"seed": 0, "num_chains": 2, "num_simulated": 2, "num_importance_samples": 2}
        for field in dataclasses.fields(self):
            if field.name != "run":
                maximum = MAX_SEED if field.name == "seed" else None
                minimum = least.get(field.name, 1)
                checked_integer(f"--{field.name}", getattr(self, field.name), minimum, maximum)

    def to_dict(self) -> dict[str, Any]:
        """The settings in types that JSON knows."""
        return dataclasses.asdict(self)


def run(
    config: Config, folder: Path, data_dir: str | None = None, manual_dir: str | None = None
) -> dict[str, Any]:
    """Brings the measurement in `folder` to its end, whatever of it is there already.

    Args:
      config: settings of the run.
      folder: its folder.
      data_dir: see `tfp_surgery.datasets.load`, as for `manual_dir`.
      manual_dir: likewise.

    Returns:
      The content of `results.json`.

    Raises:
      OSError: if a folder or the data cannot be used.
      ValueError: if a folder holds something else.
    """
    state = workdir.find_state(folder, _EXPERIMENT, config.to_dict())
    results: dict[str, Any]
    if state is workdir.State.FINISHED:
        results = workdir.read_json(folder / workdir.RESULTS_FILE)
        if not (isinstance(results, dict) and {"data", "estimates"} <= results.keys()):
            raise ValueError(f"{folder / workdir.RESULTS_FILE} is damaged: delete it.")
        workdir.show_finished(folder, text_table(config, results))
        return results

    subject = load_trained_model(
        config.run, config.latent_size, config.num_images, config.seed, data_dir, manual_dir
    )
    warning = workdir.begin(folder, _EXPERIMENT, config.to_dict(), subject.dataset)
    name = f"{config.run}, latent size {config.latent_size}; {subject.data}"
    workdir.announce(folder, state, name, warning)

    parts: dict[str, dict[str, Any]] = {}
    for name, measure in _MEASUREMENTS.items():
        parts[name] = _measured(folder / f"{name}.json", name, measure, config, subject, parts)
    results = {
        "data": subject.data,
        "config": config.to_dict(),
        "versions": workdir.versions(),
        "seconds": {name: part["seconds"] for name, part in parts.items()},
        "estimates": estimates(parts),
        "parts": parts,
    }
    rows = [{"quantity": name, **entry} for name, entry in results["estimates"].items()]
    workdir.write_csv(folder / "results.csv", rows)
    # Written last: where it is, the run is finished.
    workdir.write_json(folder / workdir.RESULTS_FILE, results)
    print(f"\n{text_table(config, results)}\n\nWritten to {folder}", flush=True)
    return results


def measure_small_bounds(
    config: Config, subject: TrainedModel, _: Mapping[str, Any]
) -> dict[str, Any]:
    """ELBO, IW_5 and IW_50, each averaged over draws of its own."""
    vae = subject.vae
    return {
        name: importance_weighted_elbo(
            subject.x,
            vae.encoder,
            vae.decoder,
            vae.prior,
            num_importance_samples=m,
            num_samples=_DRAWS_OF_SMALL_BOUNDS // m,
            seed=config.seed,
        ).estimate.to_dict()
        for name, m in _SMALL_BOUNDS.items()
    }


def measure_importance_sampling(
    config: Config, subject: TrainedModel, _: Mapping[str, Any]
) -> dict[str, Any]:
    """The largest importance-weighted bound."""
    vae = subject.vae
    return log_evidence_by_importance_sampling(
        subject.x,
        vae.encoder,
        vae.decoder,
        vae.prior,
        num_importance_samples=config.num_importance_samples,
        seed=config.seed,
    ).to_dict()


def measure_refined(config: Config, subject: TrainedModel, _: Mapping[str, Any]) -> dict[str, Any]:
    """The largest importance-weighted bound, with q(z) refined for each image as proposal."""
    vae = subject.vae
    proposals = refined_posteriors(
        subject.x,
        vae.encoder,
        vae.decoder,
        vae.prior,
        num_steps=config.num_refinement_steps,
        seed=config.seed,
    )
    return log_evidence_by_importance_sampling(
        subject.x,
        proposals,
        vae.decoder,
        vae.prior,
        num_importance_samples=config.num_importance_samples,
        seed=config.seed,
    ).to_dict()


def measure_annealed(config: Config, subject: TrainedModel, _: Mapping[str, Any]) -> dict[str, Any]:
    """Annealed importance sampling from the prior."""
    return log_evidence_by_annealed_importance_sampling(
        subject.x, subject.vae.decoder, subject.vae.prior, **_chains(config)
    ).to_dict()


def measure_gaps(config: Config, subject: TrainedModel, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The two gaps, from the largest of the bounds on the log evidence."""
    vae = subject.vae
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
        subject.x,
        vae.encoder,
        vae.decoder,
        vae.prior,
        log_evidence=log_evidence,
        num_steps=config.num_refinement_steps,
        seed=config.seed,
    )
    return {**gaps.to_dict(), "method_of_log_evidence": log_evidence.method}


def measure_both_sides(
    config: Config, subject: TrainedModel, _: Mapping[str, Any]
) -> dict[str, Any]:
    """AIS and reverse AIS on data that the model simulates."""
    return bidirectional_monte_carlo(
        subject.vae.decoder,
        subject.vae.prior,
        num_observations=config.num_simulated,
        **_chains(config),
    ).to_dict()


_MEASUREMENTS: dict[str, Callable[[Config, TrainedModel, Mapping[str, Any]], dict[str, Any]]] = {
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
    path: Path,
    name: str,
    measure: Callable[[Config, TrainedModel, Mapping[str, Any]], dict[str, Any]],
    config: Config,
    subject: TrainedModel,
    parts: Mapping[str, Any],
) -> dict[str, Any]:
    """A part of the results: as it was written, or measured and written now."""
    label = name.replace("_", " ")
    if path.exists():
        print(f"{label}: done before.", flush=True)
        part: dict[str, Any] = workdir.read_json(path)
        if not isinstance(part, dict) or "seconds" not in part:
            raise ValueError(f"{path} is damaged: delete it to have it made anew.")
        return part
    print(f"{label} ...", end=" ", flush=True)
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        part = measure(config, subject, parts)
    part["seconds"] = round(time.monotonic() - start, 2)
    part["warnings"] = [str(w.message) for w in caught if w.category is UserWarning]
    workdir.write_json(path, part)
    print(f"{part['seconds']:.0f} s", flush=True)
    for message in part["warnings"]:
        print(f"  Warning: {message}", flush=True)
    return part


def estimates(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """All estimates by name, in the order of the table.

    Args:
      parts: what was measured.

    Returns:
      `{"value", "standard_error"}` of each.
    """
    iw, ais, refined = (parts[name]["estimate"] for name in _LOG_EVIDENCE)

    def difference(larger: Mapping[str, float], smaller: Mapping[str, float]) -> dict[str, float]:
        return {
            "value": larger["value"] - smaller["value"],
            "standard_error": math.hypot(larger["standard_error"], smaller["standard_error"]),
        }

    return {
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


def text_table(config: Config, results: Mapping[str, Any]) -> str:
    """The table of a finished run.

    Args:
      config: settings of the run.
      results: content of `results.json`.

    Returns:
      Lines of text.
    """
    labels = {name: label.format(**config.to_dict()) for name, label in _LABELS.items()}
    width = max(map(len, labels.values()))
    lines = [
        f"Log evidence, VAE with latent size {config.latent_size} of {config.run}",
        f"{results['data']}",
        "nats per image ± standard error (of the draws; for simulated data, over the images)",
        "",
    ]
    for name, label in labels.items():
        entry = results["estimates"][name]
        estimate = Estimate(entry["value"], entry["standard_error"], 0)
        lines.append(f"  {label:<{width}}  {estimate!s:>18}")
    parts = results["parts"]
    for name in _LOG_EVIDENCE:
        sizes = np.array(parts[name]["effective_sample_sizes"])
        refined = ", q refined" if name == "refined" else ""
        lines.append(
            f"  {parts[name]['method']}{refined}: effective sample size {np.median(sizes):.1f} in "
            f"the median, {sizes.min():.1f} at least"
        )
    lines.append(f"  acceptance rate of HMC {parts['annealed']['acceptance_rate']:.2f}")
    return "\n".join(lines)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags: not on import, since other experiments have flags of the same names.

    Args:
      values: where to define them.
    """
    for name, (default, text) in _INTEGER_FLAGS.items():
        flags.DEFINE_integer(name, default, text, flag_values=values)
    for name, text in _FOLDER_FLAGS.items():
        flags.DEFINE_string(name, None, text, flag_values=values)


def config_from_flags(values: flags.FlagValues) -> Config:
    """The settings that the parsed flags state.

    Raises:
      ValueError: if one is missing or out of range.
    """
    for name in ("run", "workdir"):
        if not values[name].value:
            raise ValueError(f"--{name} must name a folder.")
    integers: dict[str, Any] = {name: values[name].value for name in _INTEGER_FLAGS}
    return Config(run=values.run, **integers)


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the experiment that the flags describe."""

    def work() -> None:
        config = config_from_flags(values)
        run(config, Path(values.workdir), values.data_dir, values.manual_dir)

    return command.exit_code(argv, work, "from the last measurement")


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    logging.set_verbosity(logging.WARNING)  # TFDS tells every step otherwise
    app.run(main)
