"""Orders points so that each block of them is close together in space.

The points are halved repeatedly across the dimension of largest spread, which gives the order of
the leaves of a k-d tree (Bentley 1975). Each half consists of whole blocks, so that no block holds
points from both sides of a cut.

#### References

Jon L. Bentley. Multidimensional binary search trees used for associative searching.
Communications of the ACM, 18(9), 1975.
"""

from __future__ import annotations

import tensorflow as tf

_VOTERS = 16  # points of a block that determine the dimension to cut


def spatial_order(points: tf.Tensor, block_size: int) -> tf.Tensor:
    """Returns the order of points in space.

    Args:
      points: Floating `Tensor`, shape `[M, D]`; a coordinate that is not finite counts as 0.
      block_size: The number of points in a block, at least 1; the last block may hold fewer.

    Returns:
      int32 `Tensor`, shape `[M]`: the index of the point at each place.
    """
    # XLA needs every shape statically.
    num_points = tf.shape(points)[0] if points.shape[0] is None else points.shape[0]
    num_blocks = -(-num_points // block_size)
    # Factor 1/2, so that no difference overflows.
    points = 0.5 * tf.where(tf.math.is_finite(points), points, tf.zeros([], points.dtype))
    stride = max(1, block_size // _VOTERS)
    next_block = tf.cast(tf.range(num_points) // block_size + 1, tf.int64)  # [M]

    def halve(num_nodes: tf.Tensor, order: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Node j holds the blocks from j / num_nodes of them on, rounded down.
        node = (next_block * num_nodes - 1) // tf.cast(num_blocks, tf.int64)  # [M]
        x, voter = tf.gather(points, order[::stride]), node[::stride]  # [M / stride, ...]
        mean = tf.math.unsorted_segment_mean(x, voter, num_blocks)  # [nodes, D]
        square = (x - tf.gather(mean, voter)) ** 2
        spread = tf.math.unsorted_segment_sum(square, voter, num_blocks)
        # The square of a huge value may not be finite; it must not be the largest.
        spread = tf.where(tf.math.is_finite(spread), spread, tf.zeros([], spread.dtype))
        widest = tf.gather(tf.argmax(spread, axis=1, output_type=tf.int32), node)  # [M]
        key = tf.cast(tf.gather_nd(points, tf.stack([order, widest], axis=1)), tf.float64)
        low, high = (
            tf.gather(extreme(key, node, num_blocks), node)
            for extreme in (tf.math.unsorted_segment_min, tf.math.unsorted_segment_max)
        )
        place = tf.math.divide_no_nan(key - low, high - low)  # in [0, 1]
        order = tf.gather(order, tf.argsort(tf.cast(node, tf.float64) + 0.5 * place))
        return 2 * num_nodes, order

    start = (tf.constant(1, tf.int64), tf.range(num_points))
    _, order = tf.while_loop(lambda n, _: n < tf.cast(num_blocks, tf.int64), halve, start)
    return order
