r"""Bias of minibatch estimates of log q(z) and of the index-code mutual information.

Takes Gaussian posteriors from collapsed to separated, draws random minibatches of several sizes,
and compares every estimator of `minibatch_log_prob` with the exact log q(z) at the same draws:

    python -m experiments.minibatch_bias --workdir=runs/minibatch_bias

Posterior n is N(sqrt(1 - scale^2) u_n, scale^2 I) with u_n drawn from N(0, I) in D dimensions, so
that q(z) is N(0, I) up to the finite number of observations: at scale 1 all posteriors are the
same, at scale 0 they do not overlap. A run that was stopped goes on when the same command is given
again; a finished one is shown again and left as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags

from experiments.common import command, workdir
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.information.minibatch_log_prob import (
    minibatch_log_prob,
    mutual_information_ceiling,
)
from tfp_surgery.reporting.bias_figures import minibatch_bias_figure

tfd = tfp.distributions

_EXPERIMENT = "minibatch_bias"
_METHODS = ("batch", "mws", "mss", "partially_stratified")
_EXACT_SAMPLES = 4
# The fewest whose spread is taken for a standard error.
_MIN_BATCHES = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """All that the numbers of a run depend on.

    Raises:
      ValueError: if a setting is out of range.
    """

    num_observations: int
    latent_size: int
    scales: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    num_draws: int
    seed: int

    def __post_init__(self) -> None:
        """Checks the settings."""
        for name, minimum in (
            ("num_observations", 2),
            ("latent_size", 1),
            ("num_draws", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < minimum:
                raise ValueError(f"--{name} must be at least {minimum}, got {getattr(self, name)}.")
        if self.seed >= 2**31:
            raise ValueError(f"--seed must be below 2**31, got {self.seed}.")
        for name in ("scales", "batch_sizes"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"--{name} must name at least one value, and none twice.")
        if not all(0.0 < scale <= 1.0 for scale in self.scales):
            raise ValueError(f"--scales must lie in (0, 1], got {_list(self.scales)}.")
        if min(self.batch_sizes) < 2 or max(self.batch_sizes) > self.num_observations:
            raise ValueError(
                f"--batch_sizes must lie from 2 to --num_observations={self.num_observations}, got "
                f"{_list(self.batch_sizes)}."
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings in types that JSON knows."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags, which other experiments name alike: only of the one that is run."""
    flags.DEFINE_string(
        "workdir", None, "folder of the run", required=True, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "num_observations", 4096, "N, number of posteriors", flag_values=flag_values
    )
    flags.DEFINE_integer("latent_size", 10, "D, size of the code", flag_values=flag_values)
    flags.DEFINE_list(
        "scales",
        ["1", "0.95", "0.85", "0.75", "0.6", "0.4", "0.1"],
        "standard deviations of the posteriors, from collapsed (1) to separated",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "batch_sizes", ["16", "64", "256", "1024"], "minibatch sizes B", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "num_draws",
        8192,
        f"codes drawn for each minibatch size, in at least {_MIN_BATCHES} minibatches",
        flag_values=flag_values,
    )
    flags.DEFINE_integer("seed", 0, "of posteriors, minibatches and draws", flag_values=flag_values)


def config_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Config:
    """The settings that the parsed flags state.

    Raises:
      ValueError: if one is not of its type, or out of range.
    """
    return Config(
        num_observations=flag_values.num_observations,
        latent_size=flag_values.latent_size,
        scales=_numbers("scales", flag_values.scales, float),
        batch_sizes=_numbers("batch_sizes", flag_values.batch_sizes, int),
        num_draws=flag_values.num_draws,
        seed=flag_values.seed,
    )


def run(config: Config, folder: Path) -> list[dict[str, Any]]:
    """Brings the run in `folder` to its end, whatever of it is there already.

    Args:
      config: settings of the run.
      folder: its folder.

    Returns:
      The records of all scales, in order.

    Raises:
      OSError: if the folder cannot be used.
      ValueError: if the folder holds something else.
    """
    state = workdir.find_state(folder, _EXPERIMENT, config.to_dict())
    if state is workdir.State.FINISHED:
        found = workdir.finished_records(folder / workdir.RESULTS_FILE, is_record)
        workdir.show_finished(folder, table(found))
        return found

    dataset = {"posteriors": describe(config)}
    warning = workdir.begin(folder, _EXPERIMENT, config.to_dict(), dataset)
    workdir.announce(folder, state, describe(config), warning)
    records = [run_scale(config, number, folder) for number in range(len(config.scales))]
    workdir.write_figure(
        folder / "figures" / "bias.png",
        minibatch_bias_figure(records, f"Minibatch estimates of log q(z)\n{describe(config)}"),
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
    print(f"\n{table(records)}\n\nWritten to {folder}", flush=True)
    return records


def run_scale(config: Config, number: int, folder: Path) -> dict[str, Any]:
    """Measures every estimator on the posteriors of one scale, unless that is done.

    Args:
      config: settings of the run.
      number: which of its scales.
      folder: folder of the run.

    Returns:
      The record: the scale, the exact mutual information, and an entry for each method and
      minibatch size.

    Raises:
      ValueError: if there is a record, and it is damaged.
    """
    path = folder / f"scale_{number:02d}.json"
    scale = config.scales[number]
    if path.exists():
        found: Any = workdir.read_json(path)
        if not is_record(found):
            raise ValueError(f"{path} is damaged: delete it to have it made anew.")
        print(f"scale {scale:g}: done before.", flush=True)
        return dict(found)
    posteriors = make_posteriors(config, scale)
    aggregate = AggregatePosterior(posteriors)
    z = posteriors.sample(_EXACT_SAMPLES, seed=_seed(config, number, 0))
    exact = stratified_estimate(
        (posteriors.log_prob(z) - aggregate.log_prob(z)).numpy(), config.num_observations
    )
    entries = []
    for position, batch_size in enumerate(config.batch_sizes):
        entries += measure(config, aggregate, number, position)
        print(f"scale {scale:g}: minibatches of {batch_size} done", flush=True)
    record = {
        "scale": scale,
        "mutual_information": exact.to_dict(),
        "log_num_observations": math.log(config.num_observations),
        "estimates": sorted(entries, key=lambda entry: _METHODS.index(entry["method"])),
    }
    workdir.write_json(path, record)
    return record


def measure(
    config: Config, aggregate: AggregatePosterior, number: int, position: int
) -> list[dict[str, Any]]:
    """Measures every estimator on independent random minibatches of one size.

    Estimate and exact value are those of the same draws, so that the bias has the standard error
    of their difference, taken over minibatches.

    Args:
      config: settings of the run.
      aggregate: the exact q(z).
      number: which scale, for the seed.
      position: which of the minibatch sizes.

    Returns:
      An entry for each method.
    """
    batch_size = config.batch_sizes[position]
    posteriors = aggregate.components_distribution
    loc, scale = posteriors.mean(), posteriors.stddev()
    rng = np.random.default_rng([config.seed, number, position])

    parts = []
    seed = _seed(config, number, position + 1)
    num_batches = max(_MIN_BATCHES, config.num_draws // batch_size)
    for batch in range(num_batches):
        indices = rng.choice(config.num_observations, size=batch_size, replace=False)
        step_seed = tf.random.experimental.stateless_fold_in(seed, batch)
        parts.append(
            _one_batch(loc, scale, tf.constant(indices), step_seed, config.num_observations)
        )
    z, log_posterior, estimates = (tf.stack(part) for part in zip(*parts, strict=True))
    log_aggregate = aggregate.log_prob(z).numpy()  # [batches, B]
    entries = []
    for method, estimate in zip(_METHODS, np.moveaxis(estimates.numpy(), 1, 0), strict=True):
        bias = _over_batches(estimate - log_aggregate)
        information = _over_batches(log_posterior.numpy() - estimate)
        entries.append(
            {
                "method": method,
                "batch_size": batch_size,
                "num_batches": num_batches,
                "ceiling": mutual_information_ceiling(method, batch_size, config.num_observations),
                "log_prob_bias": bias.to_dict(),
                "mutual_information": information.to_dict(),
            }
        )
    return entries


@tf.function(autograph=False)
def _one_batch(
    loc: tf.Tensor, scale: tf.Tensor, indices: tf.Tensor, seed: tf.Tensor, num_observations: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Codes `[B, D]` of a minibatch, log q(z_b|x_b) `[B]`, and estimates `[methods, B]`."""
    minibatch = tfd.MultivariateNormalDiag(tf.gather(loc, indices), tf.gather(scale, indices))
    z = minibatch.sample(seed=seed)
    estimates = [minibatch_log_prob(z, minibatch, num_observations, method) for method in _METHODS]
    return z, minibatch.log_prob(z), tf.stack(estimates)


def make_posteriors(config: Config, scale: float) -> tfd.Distribution:
    """The N posteriors of one scale, float64, batch `[N]`, event `[D]`."""
    shape = (config.num_observations, config.latent_size)
    loc = math.sqrt(1.0 - scale**2) * np.random.default_rng([config.seed]).standard_normal(shape)
    return tfd.MultivariateNormalDiag(loc, np.full(shape, scale))


def describe(config: Config) -> str:
    """What the posteriors are."""
    return (
        f"N = {config.num_observations} Gaussian posteriors in D = {config.latent_size} "
        f"dimensions, log N = {math.log(config.num_observations):.3f}"
    )


def is_record(value: Any) -> bool:
    """Whether a value read from JSON can be the record of a scale."""
    return isinstance(value, dict) and {"scale", "mutual_information", "estimates"} <= value.keys()


def csv_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each scale, method and minibatch size."""
    rows = []
    for record in records:
        for entry in record["estimates"]:
            row = {
                "scale": record["scale"],
                "exact_mutual_information": record["mutual_information"]["value"],
                "exact_mutual_information_standard_error": record["mutual_information"][
                    "standard_error"
                ],
            }
            for name, value in entry.items():
                if isinstance(value, dict):
                    row[name] = value["value"]
                    row[f"{name}_standard_error"] = value["standard_error"]
                else:
                    row[name] = value
            rows.append(row)
    return rows


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The biases of log q(z) as text; those of the mutual information are their negatives."""
    lines = ["bias of log q(z) in nats ± standard error; that of I(n; z) is its negative"]
    lines.append(f"{'scale':>6} {'I(n; z)':>8} {'B':>5}" + "".join(f"{m:>22}" for m in _METHODS))
    for record in records:
        information = record["mutual_information"]["value"]
        for batch_size in dict.fromkeys(entry["batch_size"] for entry in record["estimates"]):
            cells = []
            for entry in record["estimates"]:
                if entry["batch_size"] == batch_size:
                    bias = entry["log_prob_bias"]
                    cells.append(f"{bias['value']:12.4f} ± {bias['standard_error']:7.4f}")
            lines.append(
                f"{record['scale']:6g} {information:8.4f} {batch_size:5d}" + "".join(cells)
            )
    return "\n".join(lines)


def _over_batches(values: np.ndarray) -> Estimate:
    """The mean of values `[batches, B]`, with the error of independent minibatches."""
    means = values.mean(axis=1)
    error = means.std(ddof=1) / math.sqrt(len(means))
    return Estimate(float(means.mean()), float(error), values.size)


def _seed(config: Config, number: int, position: int) -> tf.Tensor:
    seed = tf.constant([config.seed, number], tf.int32)
    return tf.random.experimental.stateless_fold_in(seed, position)


def _numbers(name: str, values: Sequence[str], kind: Any) -> tuple[Any, ...]:
    try:
        return tuple(kind(value) for value in values)
    except ValueError:
        what = "integers" if kind is int else "numbers"
        raise ValueError(
            f"--{name} takes {what} with commas between them, got {_list(values)}."
        ) from None


def _list(values: Sequence[Any]) -> str:
    return ",".join(str(value) for value in values) or "none"


def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the experiment that the flags describe."""

    def work() -> None:
        run(config_from_flags(flag_values), Path(flag_values.workdir))

    return command.exit_code(argv, work, "from the last scale")


if __name__ == "__main__":
    define_flags()
    app.run(main)
