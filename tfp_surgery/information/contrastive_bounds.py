"""Bounds that compare the codes of a minibatch with all posteriors of that minibatch."""

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
    """InfoNCE, leave-one-out, NWJ and Jensen-Shannon bounds, batch by batch.

    The critic is log q(z|x_j) - log q(z); see `mutual_information_bounds` for the equations.

    Args:
      posteriors: Components q(z|x_n), batch `[N]`, every parameter broadcast to it.
      batches: Integer array `[K, B]`: the distinct observations of each batch.
      z: Codes `[K, B, *code_shape]`, the one at [k, i] drawn from component `batches[k, i]`.
      log_aggregate: log q(z), float64 `[K, B]`.

    Returns:
      By name, float64 `[K]`. `"leave_one_out"` is infinite where a code lies outside the support of
      all other posteriors in its batch. `"nguyen_wainwright_jordan"` and `"jensen_shannon"` weight
      own pairs by 1/N; the latter is the divergence.
    """
    share = 1.0 / int(posteriors.batch_shape[0])

    def contrast(indices: tf.Tensor, codes: tf.Tensor, log_q: tf.Tensor) -> dict[str, tf.Tensor]:
        posterior = components_lib.gather(posteriors, indices)
        # log q(z_i|x_j) - log q(z_i), [B, B]; InfoNCE does not see what a row has in common.
        ratios = tf.cast(posterior.log_prob(codes[:, tf.newaxis]), tf.float64) - log_q[:, None]
        own = tf.linalg.diag_part(ratios)
        impossible = tf.fill(tf.shape(own), tf.constant(-np.inf, tf.float64))
        others = tf.linalg.set_diag(ratios, impossible)
        log_num_others = tf.math.log(tf.cast(tf.shape(own)[0] - 1, tf.float64))
        nwj = lower_bounds.lower_bound_nguyen_wainwright_jordan(1.0 + ratios)
        jensen_shannon = lower_bounds.lower_bound_jensen_shannon(ratios)
        # TFP subtracts the mean over distinct pairs; own pairs have their share in q(n) q(z).
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
    """The divergence of q(n, z) and q(n) q(z) where no two of N posteriors overlap.

    It is the largest: given z, it is that of q(n|z) and the uniform distribution, convex in q(n|z).
    """
    share = 1.0 / num_observations
    loss = (1.0 + share) * math.log1p(share) - share * math.log(share)
    return math.log(2.0) - 0.5 * loss
