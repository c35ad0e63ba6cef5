"""Index-code mutual information and aggregate entropy, estimated from minibatches."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.arguments import MAX_SEED, checked_integer
from tfp_surgery.components import components as components_lib
from tfp_surgery.estimate import Estimate
from tfp_surgery.information.minibatch_log_prob import (
    checked_posteriors,
    minibatch_log_prob,
    mutual_information_ceiling,
)
from tfp_surgery.measurement.bounds import batch_estimate
from tfp_surgery.measurement.model import traced

tfd = tfp.distributions

# An estimate is said to sit at its ceiling where it is nearer than the larger of these two.
_CEILING_STANDARD_ERRORS = 3.0
_CEILING_FRACTION = 0.01


@dataclasses.dataclass(frozen=True)
class MinibatchInformation:
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
      dataset_size: N.
      batch_size: B.
      num_batches: Number of independent minibatches.
      seed: The seed of minibatches and draws.
    """

    mutual_information: Estimate
    aggregate_entropy: Estimate
    ceiling: float
    method: str
    dataset_size: int
    batch_size: int
    num_batches: int
    seed: int

    @property
    def at_ceiling(self) -> bool:
        """Whether the mutual information sits at its ceiling, and may be cut off by it.

        That is where it is nearer than 3 standard errors, or than 1% of the ceiling. Of "full",
        which is exact, the ceiling is that of the quantity, and this is never said.
        """
        margin = max(
            _CEILING_STANDARD_ERRORS * self.mutual_information.standard_error,
            _CEILING_FRACTION * self.ceiling,
        )
        return self.method != "full" and self.ceiling - self.mutual_information.value <= margin

    def to_dict(self) -> dict[str, Any]:
        """Returns plain, JSON-ready values."""
        result: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            result[field.name] = value.to_dict() if isinstance(value, Estimate) else value
        result["at_ceiling"] = self.at_ceiling
        return result

    def __str__(self) -> str:
        """Both estimates, and the ceiling."""
        return (
            f"index-code mutual information {self.mutual_information} nats (ceiling "
            f"{self.ceiling:.4f}{', which it has reached' if self.at_ceiling else ''}), aggregate "
            f'entropy {self.aggregate_entropy} nats; "{self.method}" with {self.num_batches} '
            f"minibatches of {self.batch_size} of {self.dataset_size}, seed {self.seed}"
        )


def minibatch_mutual_information(
    components_distribution: tfd.Distribution,
    *,
    batch_size: int,
    method: str = "mss",
    num_batches: int = 100,
    num_samples: int = 1,
    seed: int = 0,
) -> MinibatchInformation:
    """Estimates I(n; z) and H[q(z)] from random minibatches, as a training loop sees them.

    The estimates are biased as `minibatch_log_prob` states. To measure the quantities take
    `elbo_surgery` or `AggregatePosterior`, which are exact in log q(z); this function shows what a
    minibatch estimator makes of the same posteriors. The minibatches are independent of one
    another, each drawn uniformly without replacement; the standard errors are those of the mean
    over minibatches. A warning is given where the mutual information sits at its ceiling
    (`MinibatchInformation.at_ceiling`): more information would not have changed it.

    Args:
      components_distribution: The posteriors of the whole data set, batch shape `[N]`, for example
        `AggregatePosterior.from_encoder(encoder, x).components_distribution`.
      batch_size: B.
      method: One of `METHODS`.
      num_batches: Number of minibatches, at least 2.
      num_samples: Draws of z an observation of a minibatch.
      seed: Integer in [0, 2**31).

    Returns:
      `MinibatchInformation`.

    Raises:
      TypeError: If the components are no distribution over single tensors, or a number is none.
      ValueError: If a number is out of range, there is no such method, the batch shape is not
        `[N]`, or the posteriors give NaN.
    """
    components = checked_posteriors(components_distribution)
    batch_size = checked_integer("batch_size", batch_size, 1)
    num_batches = checked_integer("num_batches", num_batches, 2)
    num_samples = checked_integer("num_samples", num_samples, 1)
    seed = checked_integer("seed", seed, 0, MAX_SEED)
    dataset_size = int(components_lib.num_components(components))
    ceiling = mutual_information_ceiling(method, batch_size, dataset_size)
    components = components_lib.broadcast(components)

    def one_batch(indices: tf.Tensor, step_seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        minibatch = components_lib.gather(components, indices)
        z = minibatch.sample(num_samples, seed=step_seed)  # [S, B, E...]
        log_aggregate = minibatch_log_prob(z, minibatch, dataset_size, method)
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
    rng = np.random.default_rng([seed, 0])
    base_seed = tf.constant([seed, 1], tf.int32)
    means = np.empty([num_batches, 4])  # the two estimates, and what they round with
    for number in range(num_batches):
        indices = rng.choice(dataset_size, size=batch_size, replace=False)
        step_seed = tf.random.experimental.stateless_fold_in(base_seed, number)
        means[number] = [
            mean.numpy() for mean in one_batch(tf.constant(indices, tf.int32), step_seed)
        ]
    if not np.isfinite(means).all():
        raise ValueError(
            "the posteriors give NaN or infinite log densities of their own draws; has training "
            "diverged?"
        )
    roundings = np.finfo(components_lib.dtype_of(components).as_numpy_dtype).eps * means[
        :, 2:
    ].mean(axis=0)
    information, entropy = (
        batch_estimate(means[:, number], num_samples * batch_size, float(roundings[number]))
        for number in range(2)
    )
    result = MinibatchInformation(
        information, entropy, ceiling, method, dataset_size, batch_size, num_batches, seed
    )
    if result.at_ceiling:
        warnings.warn(
            f'the "{method}" estimate of the index-code mutual information, {information} nats, '
            f"sits at its ceiling of {ceiling:.4f}: it says nothing of how much larger or smaller "
            "the quantity is. elbo_surgery gives it over all observations.",
            stacklevel=2,
        )
    return result
