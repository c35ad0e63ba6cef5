"""Orders points so that neighbours in space are neighbours in memory.

They are halved again and again, each time across the dimension in which they are spread most: the
order of the leaves of a k-d tree (Bentley 1975).

#### References

Jon L. Bentley. Multidimensional binary search trees used for associative searching.
Communications of the ACM, 18(9), 1975.
"""

from __future__ import annotations

import tensorflow as tf


def spatial_order(points: tf.Tensor, num_levels: int) -> tf.Tensor:
    """Orders points.

    Args:
      points: floating `Tensor`, shape `[M, D]`; a coordinate that is not finite counts as 0.
      num_levels: how often they are halved.

    Returns:
      int32 `Tensor`, shape `[M]`: the index of the point at each place.
    """
    # XLA needs every shape statically.
    num_points = tf.shape(points)[0] if points.shape[0] is None else points.shape[0]
    points = tf.where(tf.math.is_finite(points), points, tf.zeros([], points.dtype))
    leaf_size = -(-num_points // 2**num_levels)
    # The last point fills the places beyond M.
    order = tf.minimum(tf.range(leaf_size * 2**num_levels), num_points - 1)
    for level in range(num_levels):
        # [nodes * n] -> [nodes, n]
        order = tf.reshape(order, [2**level, leaf_size * 2 ** (num_levels - level)])
        x = tf.gather(points, order)  # [nodes, n, D]
        spread = tf.math.reduce_variance(x, axis=1)
        # The variance of huge values may be no number, which is never the largest.
        spread = tf.where(tf.math.is_finite(spread), spread, tf.zeros_like(spread))
        dimension = tf.argmax(spread, axis=1, output_type=tf.int32)  # [nodes]
        keys = tf.gather(x, dimension, axis=2, batch_dims=1)  # [nodes, n]
        order = tf.gather(order, tf.argsort(keys, axis=1), batch_dims=1)
    order = tf.reshape(order, [-1])  # [nodes, n] -> [places]
    # Each point keeps the first of its places.
    first = tf.math.unsorted_segment_min(tf.range(tf.size(order)), order, num_points)  # [M]
    return tf.argsort(first)
