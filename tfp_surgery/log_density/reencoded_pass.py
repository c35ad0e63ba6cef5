"""log q(z) of posteriors that are encoded again, block by block."""

from __future__ import annotations

import math

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
    num_queries = queries.shape[0]
    event_size = max(1, math.prod(queries.shape[1:]))
    length = max(1, _CELLS // (components.batch_size * event_size))
    chunks = [slice(start, start + length) for start in range(0, num_queries, length)]
    states = [
        online_softmax.start(tf.shape(queries[chunk])[:1], log_weights.dtype) for chunk in chunks
    ]
    for places, posterior in components.blocks():
        size = places.stop - places.start
        index = tf.range(places.start, places.stop)
        for number, chunk in enumerate(chunks):
            z = tf.repeat(queries[chunk][:, tf.newaxis], size, axis=1)  # [M, E...] -> [M, B, E...]
            scores = tf.cast(scored(posterior, z), log_weights.dtype) + log_weights[places]
            if excluded_index is not None:
                is_out = excluded_index[chunk][:, tf.newaxis] == index  # [M, B]
                scores = tf.where(is_out, tf.constant(-math.inf, scores.dtype), scores)
            states[number] = online_softmax.add(states[number], scores, axis=1)
    log_prob, entropy = zip(*map(online_softmax.finish, states), strict=True)
    return tf.concat(log_prob, axis=0), tf.concat(entropy, axis=0)
