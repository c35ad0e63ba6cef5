"""Estimates index-code mutual information and aggregate entropy from minibatches."""

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
from tfp_surgery.estimate import Estimate, rounding
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
    """Minibatch estimates of index-code mutual information and aggregate entropy, in nats.

    The standard errors refer to the expectations of the estimates. They do not contain the bias of
    each method, which is stated by `minibatch_log_prob` and measured in `bias`.

    Attributes:
      mutual_information: Estimate of I(n; z).
      aggregate_entropy: Estimate of H[q(z)] = -E_q(z)[log q(z)] from the same draws: the mutual
        information plus the average entropy of q(z|x_n), with the same bias.
      bias: The bias of both: log q(z) over all N components less the estimate of it at the same
        draws, on average. Its standard error is that of these differences, without the variance
        that both have in common.
      ceiling: The ceiling of `mutual_information`: log N, log B or log(N B). The ceiling of the
        entropy is larger by the average entropy of q(z|x_n).
      method: How log q(z) was estimated; see `minibatch_log_prob`.
      num_observations: N.
      batch_size: B.
      num_batches: Number of independent minibatches.
      seed: Seed of the minibatches and draws.
    """

    _derived: ClassVar[tuple[str, ...]] = ("at_ceiling",)

    mutual_information: Estimate
    aggregate_entropy: Estimate
    bias: Estimate
    ceiling: float
    method: str
    num_observations: int
    batch_size: int
    num_batches: int
    seed: Seed

    @property
    def at_ceiling(self) -> bool:
        """Whether the mutual information has reached its ceiling; see `Bound.at_ceiling`."""
        return at_ceiling(self.mutual_information, self.ceiling)

    def _title(self) -> list[str]:
        batches = f"{self.num_batches} minibatches of {self.batch_size} of {self.num_observations}"
        return [f'Minibatch estimates, nats; "{self.method}" with {batches}, seed {self.seed}']

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            ("index-code mutual information", self.mutual_information),
            ("  ceiling", f"{self.ceiling:.4f}{' REACHED' if self.at_ceiling else ''}"),
            ("aggregate entropy", self.aggregate_entropy),
            ("bias of both", self.bias),
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
    """Estimates I(n; z) and H[q(z)] from random minibatches, as in a training loop.

    Use it to study minibatch estimators: the estimates have the biases stated by
    `minibatch_log_prob`. To measure the quantities, use `elbo_surgery` or `AggregatePosterior`,
    which are exact in log q(z). The minibatches are independent of one another, each drawn
    uniformly without replacement. Standard errors are those of the mean over minibatches. For the
    bias, log q(z) is evaluated over all N components at each of the `num_batches * num_samples *
    batch_size` draws.

    Args:
      aggregate_posterior: q(z) of the whole data set, batch shape `[]`, equal weights.
      batch_size: B.
      method: One of `METHODS`.
      num_batches: Number of minibatches, at least 2.
      num_samples: Number of draws of z per observation of a minibatch.
      seed: Integer in [0, 2**31), or a pair of int32.

    Returns:
      `MinibatchInformation`.

    Raises:
      TypeError: If `aggregate_posterior` is not an `AggregatePosterior`, or a number is not an
        integer.
      ValueError: If `aggregate_posterior` is batched or weighted, a number is out of range, the
        method is unknown, or a log density of the posteriors is not finite.

    Warns:
      UserWarning: If the mutual information is at its ceiling, where it would not change with more
        information (`MinibatchInformation.at_ceiling`).
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
        estimated = minibatch_log_prob(z, minibatch, num_observations, method)
        return z, minibatch.log_prob(z), estimated

    one_batch = traced(
        one_batch, tf.TensorSpec([batch_size], tf.int32), tf.TensorSpec([2], tf.int32)
    )
    rng = seeds.generator(seed, "minibatch_mutual_information/batches")
    key = seeds.key(seed, "minibatch_mutual_information/codes")
    drawn = []
    for number in range(num_batches):
        indices = rng.choice(num_observations, size=batch_size, replace=False)
        drawn.append(one_batch(tf.constant(indices, tf.int32), seeds.fold_in(key, number)))
    z, log_posterior, estimated = (tf.stack(part) for part in zip(*drawn, strict=True))
    log_posterior, estimated, log_aggregate = (
        checked_draws(
            "a log density of the posteriors at their own draws",
            values,
            cause=lambda _: "has training diverged?",
        )
        for values in (log_posterior, estimated, aggregate_posterior.log_prob(z))
    )  # [K, S, B]

    def estimate(*terms: np.ndarray) -> Estimate:
        values = np.sum([term.astype(np.float64) for term in terms], axis=0)
        means = values.reshape(num_batches, -1).mean(axis=1)
        return batch_estimate(means, num_samples * batch_size, rounding(*terms))

    result = MinibatchInformation(
        mutual_information=estimate(log_posterior, -estimated),
        aggregate_entropy=estimate(-estimated),
        bias=estimate(log_aggregate, -estimated),
        ceiling=ceiling,
        method=method,
        num_observations=num_observations,
        batch_size=batch_size,
        num_batches=num_batches,
        seed=seed,
    )
    if result.at_ceiling and method != "full":  # "full" is exact, and log N bounds I(n; z) itself
        warnings.warn(
            f'the "{method}" estimate of the index-code mutual information, '
            f"{result.mutual_information} nats, sits at its ceiling of {ceiling:.4f}: it says "
            "nothing of how much larger or smaller the quantity is. elbo_surgery gives it over all "
            "observations.",
            stacklevel=2,
        )
    return result
