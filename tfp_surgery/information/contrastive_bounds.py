"""Bounds that score the codes of a minibatch under all posteriors of the minibatch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.measurement.traced import traced, traced_for_many

lower_bounds = tfp.vi.mutual_information
tfd = tfp.distributions

_BLOCK_ELEMENTS = 2**21  # of the [B, k, B, E] array of codes that a block scores


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
    contrast = _contrast(batches.shape[1], int(posteriors.batch_shape[0]))
    parts = [
        contrast(tf.constant(ratios))
        for scores, log_q in _scored(posteriors, batches, z, log_aggregate)
        # log q(z_i|x_j) - log q(z_i), [B, B]; InfoNCE is invariant to constants per row.
        for ratios in scores.astype(np.float64) - log_q[..., np.newaxis]
    ]
    return {name: np.array([part[name].numpy() for part in parts]) for name in parts[0]}


def _scored(
    posteriors: tfd.Distribution, batches: np.ndarray, z: tf.Tensor, log_aggregate: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields log q(z_i|x_j), `[k, B, B]`, and log q(z_i), `[k, B]`, of k batches at a time.

    A family's own code takes longer than what it computes, so that it is called as seldom as the
    memory of a block allows.
    """
    num_batches, size = batches.shape
    event_shape = z.shape[2:]
    count = max(1, _BLOCK_ELEMENTS // (size * size * max(1, event_shape.num_elements())))
    num_blocks = -(-num_batches // count)
    count = -(-num_batches // num_blocks)

    def score(indices: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
        posterior = components_lib.gather(posteriors, tf.reshape(indices, [-1]))  # [k B]
        codes = tf.experimental.numpy.swapaxes(codes, 0, 1)[:, :, tf.newaxis]  # [B, k, 1, E]
        codes = tf.broadcast_to(codes, [size, count, size, *event_shape])
        scores = posterior.log_prob(tf.reshape(codes, [size, count * size, *event_shape]))
        return tf.transpose(tf.reshape(scores, [size, count, size]), [1, 0, 2])

    score = traced_for_many(
        num_blocks,
        score,
        tf.TensorSpec([count, size], tf.int32),
        tf.TensorSpec([count, size, *event_shape], z.dtype),
    )
    for start in range(0, num_batches, count):
        stop = min(start + count, num_batches)
        rows = np.minimum(np.arange(start, start + count), num_batches - 1)  # a full last block
        scores = score(tf.constant(batches[rows], tf.int32), tf.gather(z, rows))
        yield scores.numpy()[: stop - start], log_aggregate[start:stop]


@functools.lru_cache(maxsize=16)
def _contrast(size: int, num_observations: int) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns the bounds of a batch from log q(z_i|x_j) - log q(z_i), float64, `[B, B]`."""
    share = 1.0 / num_observations

    def contrast(ratios: tf.Tensor) -> dict[str, tf.Tensor]:
        own = tf.linalg.diag_part(ratios)
        impossible = tf.fill([size], tf.constant(-np.inf, tf.float64))
        others = tf.linalg.set_diag(ratios, impossible)
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
                own - tf.reduce_logsumexp(others, axis=-1) + math.log(size - 1)
            ),
            "nguyen_wainwright_jordan": nwj,
            "jensen_shannon": 0.5 * jensen_shannon + math.log(2.0),
        }

    return traced(contrast, tf.TensorSpec([size, size], tf.float64))


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
