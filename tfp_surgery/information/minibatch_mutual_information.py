"""Index-code mutual information and aggregate entropy, estimated from minibatches."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.components import components as components_lib
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate
from tfp_surgery.information.minibatch_log_prob import (
    minibatch_log_prob,
    mutual_information_ceiling,
)
from tfp_surgery.measurement.bound import at_ceiling, batch_estimate
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model_checks import check_aggregate_posterior
from tfp_surgery.measurement.result import Result
from tfp_surgery.measurement.traced import traced
from tfp_surgery.seeds import Seed

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True)
class MinibatchInformation(Result):
    """Index-code mutual information and aggregate entropy, estimated from minibatches.

    The standard errors are those of the estimates about their own expectations; they do not
    contain the bias that `minibatch_log_prob` states for each method.

    Attributes:
      mutual_information: Estimate of I(n; z), in nats.
      aggregate_entropy: Estimate of H[q(z)] = -E_q(z)[log q(z)], from the same draws: the mutual
        information plus the average entropy of q(z|x_n), and of the same bias.
      ceiling: What `mutual_information` cannot exceed: log N, log B or log(N B). The entropy
        cannot exceed it by more than the average entropy of q(z|x_n).
      method: How log q(z) was estimated; see `minibatch_log_prob`.
      num_observations: N.
      batch_size: B.
      num_batches: Number of independent minibatches.
      seed: The seed of minibatches and draws.
    """

    _derived: ClassVar[tuple[str, ...]] = ("at_ceiling",)

    mutual_information: Estimate
    aggregate_entropy: Estimate
    ceiling: float
    method: str
    num_observations: int
    batch_size: int
    num_batches: int
    seed: Seed

    @property
    def at_ceiling(self) -> bool:
        """Whether the mutual information has come to its ceiling; see `Bound.at_ceiling`."""
        return at_ceiling(self.mutual_information, self.ceiling)

    def _title(self) -> list[str]:
        batches = f"{self.num_batches} minibatches of {self.batch_size} of {self.num_observations}"
        return [f'Minibatch estimates, nats; "{self.method}" with {batches}, seed {self.seed}']

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            ("index-code mutual information", self.mutual_information),
            ("  ceiling", f"{self.ceiling:.4f}{' REACHED' if self.at_ceiling else ''}"),
            ("aggregate entropy", self.aggregate_entropy),
        ]


def minibatch_mutual_information(
    aggregate_posterior: AggregatePosterior,
    *,
    batch_size: int,
    method: str = "mss",
    num_batches: int = 100,
    num_samples: int = 1,
    seed: Any = 0,
) -> MinibatchInformation:
    """Estimates I(n; z) and H[q(z)] from random minibatches, as a training loop sees them.

    The estimates are biased as `minibatch_log_prob` states. To measure the quantities take
    `elbo_surgery` or `AggregatePosterior`, which are exact in log q(z); this function shows what a
    minibatch estimator makes of the same posteriors. The minibatches are independent of one
    another, each drawn uniformly without replacement; the standard errors are those of the mean
    over minibatches. A warning is given where the mutual information sits at its ceiling
    (`MinibatchInformation.at_ceiling`): more information would not have changed it.

    Args:
      aggregate_posterior: q(z) of the whole data set, batch `[]`, of equal weights.
      batch_size: B.
      method: One of `METHODS`.
      num_batches: Number of minibatches, at least 2.
      num_samples: Draws of z an observation of a minibatch.
      seed: Integer in [0, 2**31), or a pair of int32.

    Returns:
      `MinibatchInformation`.

    Raises:
      TypeError: If `aggregate_posterior` is no `AggregatePosterior`, or a number no integer.
      ValueError: If it is batched or weighted, a number is out of range, there is no such method,
        or the posteriors give NaN.
    """
    check_aggregate_posterior(aggregate_posterior)
    batch_size = checked_integer("batch_size", batch_size, 1)
    num_batches = checked_integer("num_batches", num_batches, 2)
    num_samples = checked_integer("num_samples", num_samples, 1)
    seed = seeds.checked_seed(seed)
    num_observations = int(aggregate_posterior.num_components)
    ceiling = mutual_information_ceiling(method, batch_size, num_observations)
    components = components_lib.broadcast(aggregate_posterior.components_distribution)

    def one_batch(indices: tf.Tensor, step_seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        minibatch = components_lib.gather(components, indices)
        z = minibatch.sample(num_samples, seed=step_seed)  # [S, B, E...]
        log_aggregate = minibatch_log_prob(z, minibatch, num_observations, method)
        log_posterior = minibatch.log_prob(z)
        parts = (
            log_posterior - log_aggregate,
            -log_aggregate,
            tf.abs(log_posterior) + tf.abs(log_aggregate),
            tf.abs(log_aggregate),
        )
        return tuple(tf.reduce_mean(tf.cast(part, tf.float64)) for part in parts)

    one_batch = traced(
        one_batch, tf.TensorSpec([batch_size], tf.int32), tf.TensorSpec([2], tf.int32)
    )
    rng = seeds.generator(seed, "minibatch_mutual_information/batches")
    key = seeds.key(seed, "minibatch_mutual_information/codes")
    means = np.empty([num_batches, 4])  # the two estimates, and what they round with
    for number in range(num_batches):
        indices = rng.choice(num_observations, size=batch_size, replace=False)
        step_seed = seeds.fold_in(key, number)
        means[number] = [
            mean.numpy() for mean in one_batch(tf.constant(indices, tf.int32), step_seed)
        ]
    checked_draws(
        "a log density of the posteriors at their own draws",
        means,
        cause=lambda _: "has training diverged?",
    )
    roundings = np.finfo(components_lib.dtype_of(components).as_numpy_dtype).eps * means[
        :, 2:
    ].mean(axis=0)
    information, entropy = (
        batch_estimate(means[:, number], num_samples * batch_size, float(roundings[number]))
        for number in range(2)
    )
    result = MinibatchInformation(
        information, entropy, ceiling, method, num_observations, batch_size, num_batches, seed
    )
    if result.at_ceiling and method != "full":  # which is exact: the ceiling is the quantity's
        warnings.warn(
            f'the "{method}" estimate of the index-code mutual information, {information} nats, '
            f"sits at its ceiling of {ceiling:.4f}: it says nothing of how much larger or smaller "
            "the quantity is. elbo_surgery gives it over all observations.",
            stacklevel=2,
        )
    return result
