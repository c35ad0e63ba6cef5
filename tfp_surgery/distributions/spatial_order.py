"""Orders components and queries so that neighbours in code space are neighbours in memory.

Components are halved again and again, each time across the dimension in which they are spread most
in units of their own scale: a k-d tree (Bentley 1975) whose leaves all have the same size. Queries
go to the leaf whose cell they lie in.

#### References

Jon L. Bentley. Multidimensional binary search trees used for associative searching.
Communications of the ACM, 18(9), 1975.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf


class SpatialOrder(NamedTuple):
    """Components in the order of the leaves, and the cuts that lead to them.

    Attributes:
      indices: int32 `Tensor`, shape `[num_leaves * leaf_size]`: the component at each place. The
        last component fills the places beyond N.
      is_component: bool `Tensor` of the same shape: False at the places that are filled.
      dimensions: the dimension that each node of a level is cut across, int32 `[2**level]` each.
      thresholds: where it is cut, floating `[2**level]` each.
    """

    indices: tf.Tensor
    is_component: tf.Tensor
    dimensions: tuple[tf.Tensor, ...]
    thresholds: tuple[tf.Tensor, ...]


def order_components(loc: tf.Tensor, inverse_scale: tf.Tensor, leaf_size: int) -> SpatialOrder:
    """Orders components.

    Args:
      loc: floating `Tensor`, shape `[N, D]`, N known statically.
      inverse_scale: the same of 1 / scale.
      leaf_size: components a leaf; rounded so that the number of leaves is a power of two.

    Returns:
      The order.
    """
    num_components = loc.shape[0]
    num_levels = max(0, round(math.log2(num_components / leaf_size)))
    leaf_size = -(-num_components // 2**num_levels)
    places = tf.range(leaf_size * 2**num_levels)
    order = tf.minimum(places, num_components - 1)
    dimensions, thresholds = [], []
    for level in range(num_levels):
        order = tf.reshape(order, [2**level, -1])  # [nodes * n] -> [nodes, n]
        x = tf.gather(loc, order)  # [nodes, n, D]
        spread = tf.math.reduce_std(x, axis=1) * tf.reduce_mean(
            tf.gather(inverse_scale, order), axis=1
        )
        # A spread that is no number, of components that are none, is never the largest.
        spread = tf.where(tf.math.is_finite(spread), spread, tf.zeros_like(spread))
        dimension = tf.argmax(spread, axis=1, output_type=tf.int32)  # [nodes]
        keys = tf.gather(x, dimension, axis=2, batch_dims=1)  # [nodes, n]
        sorting = tf.argsort(keys, axis=1)
        order = tf.gather(order, sorting, batch_dims=1)
        middle = keys.shape[1] // 2
        dimensions.append(dimension)
        thresholds.append(tf.gather(keys, sorting[:, middle], batch_dims=1))
    order = tf.reshape(order, [-1])  # [nodes, n] -> [places]
    # Each component keeps one of its places.
    first = tf.math.unsorted_segment_min(places, order, num_components)  # [N]
    is_component = tf.equal(tf.gather(first, order), places)
    return SpatialOrder(order, is_component, tuple(dimensions), tuple(thresholds))


def leaf_of(queries: tf.Tensor, order: SpatialOrder) -> tf.Tensor:
    """The leaf in whose cell each query lies.

    Args:
      queries: floating `Tensor`, shape `[M, D]`.
      order: of the components.

    Returns:
      int32 `Tensor`, shape `[M]`.
    """
    node = tf.zeros(tf.shape(queries)[:1], tf.int32)
    for dimension, threshold in zip(order.dimensions, order.thresholds, strict=True):
        key = tf.gather(queries, tf.gather(dimension, node), axis=1, batch_dims=1)
        node = 2 * node + tf.cast(key >= tf.gather(threshold, node), tf.int32)
    return node
