"""Bounds that score the codes of a minibatch under all posteriors of the minibatch."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.measurement.traced import traced

lower_bounds = tfp.vi.mutual_information
tfd = tfp.distributions


def contrastive_bounds(
    posteriors: tfd.Distribution, batches: np.ndarray, z: tf.Tensor, log_aggregate: np.ndarray
) -> dict[str, np.ndarray]:
    """Computes InfoNCE, leave-one-out, NWJ and Jensen-Shannon bounds of each batch.

    The critic is log q(z|x_j) - log q(z); see `mutual_information_bounds` for the equations.

    Args:
      posteriors: Components q(z|x_n), batch shape `[N]`, every parameter broadcast to it.
      batches: Indices of the distinct observations of each batch, integers, shape `[K, B]`.
      z: Codes, shape `[K, B, *code_shape]`; `z[k, i]` is drawn from component `batches[k, i]`.
      log_aggregate: log q(z), float64, shape `[K, B]`.

    Returns:
      Bounds by name, float64, shape `[K]`, in nats. `"leave_one_out"` is infinite if a code lies
      outside the support of all other posteriors in its batch. `"nguyen_wainwright_jordan"` and
      `"jensen_shannon"` give a code and its own posterior the weight 1/N; the latter is the
      divergence.
    """
    share = 1.0 / int(posteriors.batch_shape[0])

    def contrast(indices: tf.Tensor, codes: tf.Tensor, log_q: tf.Tensor) -> dict[str, tf.Tensor]:
        posterior = components_lib.gather(posteriors, indices)
        # log q(z_i|x_j) - log q(z_i), [B, B]; InfoNCE is invariant to constants per row.
        ratios = tf.cast(posterior.log_prob(codes[:, tf.newaxis]), tf.float64) - log_q[:, None]
        own = tf.linalg.diag_part(ratios)
        impossible = tf.fill(tf.shape(own), tf.constant(-np.inf, tf.float64))
        others = tf.linalg.set_diag(ratios, impossible)
        log_num_others = tf.math.log(tf.cast(tf.shape(own)[0] - 1, tf.float64))
        nwj = lower_bounds.lower_bound_nguyen_wainwright_jordan(1.0 + ratios)
        jensen_shannon = lower_bounds.lower_bound_jensen_shannon(ratios)
        # TFP averages over i != j alone; under q(n) q(z), pairs with i = j have probability 1/N.
        nwj_distinct = 1.0 + tf.reduce_mean(own) - nwj
        nwj += share * (nwj_distinct - tf.reduce_mean(tf.exp(own)))
        js_distinct = -tf.reduce_mean(tf.nn.softplus(-own)) - jensen_shannon
        jensen_shannon += share * (js_distinct - tf.reduce_mean(tf.nn.softplus(own)))
        return {
            "info_nce": lower_bounds.lower_bound_info_nce(ratios),
            "leave_one_out": tf.reduce_mean(
                own - tf.reduce_logsumexp(others, axis=-1) + log_num_others
            ),
            "nguyen_wainwright_jordan": nwj,
            "jensen_shannon": 0.5 * jensen_shannon + math.log(2.0),
        }

    contrast = traced(
        contrast,
        tf.TensorSpec(batches.shape[1:], tf.int32),
        tf.TensorSpec(z.shape[1:], z.dtype),
        tf.TensorSpec(log_aggregate.shape[1:], tf.float64),
    )
    parts = [
        contrast(tf.constant(indices, tf.int32), codes, tf.constant(log_q))
        for indices, codes, log_q in zip(batches, z, log_aggregate, strict=True)
    ]
    return {name: np.array([part[name].numpy() for part in parts]) for name in parts[0]}


def jensen_shannon_ceiling(num_observations: int) -> float:
    """Returns the Jensen-Shannon divergence of q(n, z) and q(n) q(z) for disjoint posteriors.

    It is the largest possible, because the divergence given z, of q(n|z) and the uniform
    distribution, is convex in q(n|z).

    Args:
      num_observations: N.

    Returns:
      The ceiling in nats, below log 2.
    """
    share = 1.0 / num_observations
    loss = (1.0 + share) * math.log1p(share) - share * math.log(share)
    return math.log(2.0) - 0.5 * loss
