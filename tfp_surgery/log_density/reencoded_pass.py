"""log q(z) of posteriors that are encoded again, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator

import tensorflow as tf

from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors, scored
from tfp_surgery.log_density import online_softmax

_CELLS = 2**21  # numbers of codes that are scored at a time


def log_prob_and_index_entropy(
    components: ReencodedPosteriors,
    log_weights: tf.Tensor,
    queries: tf.Tensor,
    excluded_index: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log q(z) and H[q(n|z)]; encodes every observation once.

    Args:
      components: Posteriors with batch shape `[N]`.
      log_weights: Normalised log weights, shape `[N]`.
      queries: Codes, shape `[M, E...]`.
      excluded_index: Component that is left out for each query, int32, shape `[M]`; negative for
        none.

    Returns:
      Two `Tensor`s, shape `[M]`, in nats.
    """
    states: dict[int, online_softmax.State] = {}
    for places, chunk, block in scores_of_blocks(components, queries):
        scores = tf.cast(block, log_weights.dtype) + log_weights[places]
        if excluded_index is not None:
            index = tf.range(places.start, places.stop)
            is_out = excluded_index[chunk][:, tf.newaxis] == index  # [M, B]
            scores = tf.where(is_out, tf.constant(-math.inf, scores.dtype), scores)
        state = states.get(chunk.start)
        if state is None:
            state = online_softmax.start(tf.shape(scores)[:1], scores.dtype)
        states[chunk.start] = online_softmax.add(state, scores, axis=1)
    finished = [online_softmax.finish(states[start]) for start in sorted(states)]
    log_prob, entropy = zip(*finished, strict=True)
    return tf.concat(log_prob, axis=0), tf.concat(entropy, axis=0)


def scores_of_blocks(
    components: ReencodedPosteriors, queries: tf.Tensor
) -> Iterator[tuple[slice, slice, tf.Tensor]]:
    """Scores queries under blocks of components, each of which is encoded once.

    Args:
      components: Posteriors with batch shape `[N]`.
      queries: Codes, shape `[M, E...]`.

    Yields:
      places: The B components of a block.
      chunk: The Q queries.
      scores: log q(z_m|x_n), shape `[Q, B]`, in nats.
    """
    num_queries, event_size = queries.shape[0], max(1, math.prod(queries.shape[1:]))
    length = max(1, _CELLS // (components.batch_size * event_size))
    for places, posterior in components.blocks():
        size = places.stop - places.start
        for start in range(0, num_queries, length):
            chunk = slice(start, min(start + length, num_queries))
            z = tf.repeat(queries[chunk][:, tf.newaxis], size, axis=1)  # [Q, E...] -> [Q, B, E...]
            yield places, chunk, scored(posterior, z)
