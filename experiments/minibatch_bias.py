r"""Bias of minibatch estimates of log q(z) and of the index-code mutual information.

Takes Gaussian posteriors from collapsed to separated, draws random minibatches of several sizes,
and compares every estimator of `minibatch_log_prob` with the exact log q(z) at the same draws:

    python -m experiments.minibatch_bias --workdir=runs/minibatch_bias

Posterior n is N(sqrt(1 - scale^2) u_n, scale^2 I) with u_n drawn from N(0, I) in D dimensions, so
that q(z) is N(0, I) up to the finite number of observations: at scale 1 all posteriors are the
same, at scale 0 they do not overlap. Nothing is trained: --seed is all that the numbers depend on.
A run that was stopped goes on when the same command is given again; a finished one is shown again
and left as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from experiments.common.command import Command
from experiments.common.settings import Settings, seed_setting, setting
from experiments.common.workdir import Run
from tfp_surgery import seeds
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate
from tfp_surgery.information.minibatch_log_prob import (
    minibatch_log_prob,
    mutual_information_ceiling,
)
from tfp_surgery.measurement.result import aligned_rows
from tfp_surgery.reporting.bias_figures import minibatch_bias_figure
from tfp_surgery.reporting.tables import format_estimate
from tfp_surgery.surgery.elbo_surgery import elbo_surgery

tfd = tfp.distributions

_METHODS = ("batch", "mws", "mss", "partially_stratified")
_EXACT_SAMPLES = 4
# The fewest whose spread is taken for a standard error.
_MIN_BATCHES = 10


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Of posteriors and minibatches."""

    num_observations: int = setting(4096, "N, number of posteriors", minimum=2)
    latent_size: int = setting(10, "D, size of the code")
    scales: tuple[float, ...] = setting(
        (1.0, 0.95, 0.85, 0.75, 0.6, 0.4, 0.1),
        "standard deviations of the posteriors, from collapsed (1) to separated",
        distinct=True,
    )
    batch_sizes: tuple[int, ...] = setting(
        (16, 64, 256, 1024), "minibatch sizes B", minimum=2, distinct=True
    )
    num_draws: int = setting(
        8192, f"codes drawn for each minibatch size, in at least {_MIN_BATCHES} minibatches"
    )
    seed: int = seed_setting("of posteriors, minibatches and draws")

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        if max(self.scales) > 1.0:
            raise ValueError(f"--scales must be at most 1, got {max(self.scales)}.")
        if max(self.batch_sizes) > self.num_observations:
            raise ValueError(
                f"--batch_sizes must be at most --num_observations={self.num_observations}, got "
                f"{max(self.batch_sizes)}."
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
    fields = ("scale", "mutual_information", "estimates")
    work = Run(folder, "minibatch_bias", config.to_dict(), fields)
    if work.is_finished:
        return work.show(table)

    work.begin({"posteriors": describe(config)}, describe(config))
    records = [
        work.part(f"scale_{number:02d}", f"scale {scale:g}", partial(run_scale, config, number))
        for number, scale in enumerate(config.scales)
    ]
    title = f"Minibatch estimates of log q(z)\n{describe(config)}"
    work.write_figure("bias", minibatch_bias_figure(records, title))
    return work.finish(records, csv_rows(records), table)


def run_scale(config: Config, number: int) -> dict[str, Any]:
    """Measures every estimator on the posteriors of one scale.

    Args:
      config: settings of the run.
      number: which of its scales.

    Returns:
      The record: the scale, the exact mutual information, and an entry for each method and
      minibatch size.
    """
    scale = config.scales[number]
    posteriors = make_posteriors(config, scale)
    aggregate = AggregatePosterior(posteriors)
    size = config.latent_size
    key = seeds.key(config.seed, "experiments/minibatch_bias/exact_codes", number)
    exact = elbo_surgery(
        None,
        posteriors,
        None,
        # Near q(z), whose log density its own then takes most of the variance from.
        tfd.MultivariateNormalDiag(np.zeros(size), np.ones(size)),
        num_samples=_EXACT_SAMPLES,
        seed=key.numpy(),
    ).index_code_mutual_information
    entries = []
    for position, batch_size in enumerate(config.batch_sizes):
        entries += measure(config, aggregate, number, position)
        print(f"scale {scale:g}: minibatches of {batch_size} done", flush=True)
    return {
        "scale": scale,
        "mutual_information": exact.to_dict(),
        "log_num_observations": math.log(config.num_observations),
        "estimates": sorted(entries, key=lambda entry: _METHODS.index(entry["method"])),
    }


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
    rng = seeds.generator(config.seed, "experiments/minibatch_bias/minibatches", number, position)
    seed = seeds.key(config.seed, "experiments/minibatch_bias/codes", number, position)

    parts = []
    num_batches = max(_MIN_BATCHES, config.num_draws // batch_size)
    for batch in range(num_batches):
        indices = rng.choice(config.num_observations, size=batch_size, replace=False)
        step_seed = seeds.fold_in(seed, batch)
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
    rng = seeds.generator(config.seed, "experiments/minibatch_bias/posteriors")
    loc = math.sqrt(1.0 - scale**2) * rng.standard_normal(shape)
    return tfd.MultivariateNormalDiag(loc, np.full(shape, scale))


def describe(config: Config) -> str:
    """What the posteriors are."""
    return (
        f"N = {config.num_observations} Gaussian posteriors in D = {config.latent_size} "
        f"dimensions, log N = {math.log(config.num_observations):.3f}"
    )


def csv_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each scale, method and minibatch size."""
    return [
        {
            "scale": record["scale"],
            "exact_mutual_information": record["mutual_information"],
            **entry,
        }
        for record in records
        for entry in record["estimates"]
    ]


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The biases of log q(z) as text; those of the mutual information are their negatives."""
    rows = []
    for record in records:
        biases: dict[int, list[str]] = {}  # of the methods, in their order
        for entry in record["estimates"]:
            biases.setdefault(entry["batch_size"], []).append(
                format_estimate(entry["log_prob_bias"])
            )
        information = f"{record['mutual_information']['value']:.4f}"
        for batch_size, cells in biases.items():
            rows.append((f"{record['scale']:g}", information, batch_size, *cells))
    return "\n".join(
        [
            "bias of log q(z) in nats ± standard error; that of I(n; z) is its negative",
            *aligned_rows(rows, ("scale", "I(n; z)", "B", *_METHODS)),
        ]
    )


def _over_batches(values: np.ndarray) -> Estimate:
    """The mean of values `[batches, B]`, with the error of independent minibatches."""
    means = values.mean(axis=1)
    error = means.std(ddof=1) / math.sqrt(len(means))
    return Estimate(float(means.mean()), float(error), values.size)


COMMAND = Command(Config, run, "from the last scale", data=False)

if __name__ == "__main__":
    COMMAND.start()
