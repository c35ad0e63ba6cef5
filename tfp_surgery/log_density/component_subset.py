"""log q(z) from a random subset of posteriors that are encoded again, with its error."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfp_surgery.components import components as components_lib
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors
from tfp_surgery.log_density.reencoded_pass import scores_of_blocks

NUM_GROUPS = 20  # of the jackknife


class SubsetEvaluation(NamedTuple):
    """log q(z) estimated from K of N components.

    Attributes:
      log_prob: log of the estimate of q(z), float64, shape `[M]`.
      standard_error: That of the mean of `log_prob` over the queries, by a jackknife over groups of
        components.
      bias: Jackknife estimate of the bias of this mean.
    """

    log_prob: np.ndarray
    standard_error: float
    bias: float


def log_prob_by_subset(
    components: ReencodedPosteriors,
    queries: tf.Tensor,
    own: np.ndarray,
    log_own: np.ndarray,
    subset: np.ndarray,
) -> SubsetEvaluation:
    """Estimates log q(z) of draws from known components by a subset of the others.

        q(z) = 1/N q(z|x_i) + (N - 1)/N mean_{n != i} q(z|x_n)

    The component i that a query was drawn from is exact, and the mean over the others is that over
    those of them in the subset, which is unbiased. The logarithm of the estimate is biased
    downwards, to first order by half its relative variance.

    The subset is one for all queries. Its error is therefore common to them, and is estimated by
    leaving out each of 20 groups of the subset in turn (delete-a-group jackknife). It is too small
    where q(z) hangs on a few components other than i that no subset of this size is likely to have.

    Args:
      components: Posteriors with batch shape `[N]`.
      queries: Codes, shape `[M, E...]`.
      own: Index i of the component that each query was drawn from, shape `[M]`.
      log_own: log q(z|x_i), shape `[M]`.
      subset: Indices of K different components in random order, at least 2 for each group.

    Returns:
      `SubsetEvaluation`.
    """
    num_components = int(components.batch_shape[0])
    log_sums, counts = [], []
    for group in np.array_split(subset, NUM_GROUPS):
        rows = components_lib.gather(components, tf.constant(group, tf.int32))
        total = np.full(len(own), -math.inf)
        for places, chunk, scores in scores_of_blocks(rows, queries):
            values = scores.numpy().astype(np.float64)  # [M, B]
            values[own[chunk][:, np.newaxis] == group[places]] = -math.inf
            total[chunk] = np.logaddexp(total[chunk], np.logaddexp.reduce(values, axis=1))
        log_sums.append(total)
        counts.append(len(group) - np.isin(own, group))
    sums, sizes = np.stack(log_sums), np.stack(counts)  # [G, M]

    def log_mean(kept: np.ndarray) -> np.ndarray:
        others = np.logaddexp.reduce(sums[kept], axis=0) - np.log(sizes[kept].sum(axis=0))
        joint: np.ndarray = np.logaddexp(log_own, math.log(num_components - 1) + others)
        return joint - math.log(num_components)

    everything = np.arange(NUM_GROUPS)
    log_prob = log_mean(everything)
    left_out = np.array([log_mean(everything[everything != g]).mean() for g in everything])
    spread = left_out - left_out.mean()
    variance = (NUM_GROUPS - 1) / NUM_GROUPS * float(spread @ spread)
    bias = (NUM_GROUPS - 1) * float(left_out.mean() - log_prob.mean())
    unseen = 1.0 - len(subset) / num_components  # components are drawn without replacement
    return SubsetEvaluation(log_prob, math.sqrt(unseen * variance), unseen * bias)
