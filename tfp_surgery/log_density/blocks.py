"""Equal blocks of an axis, for loops that hold one of them at a time."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_surgery.tfp_internals import prefer_static as ps


class Blocks:
    """Equal blocks that cover an axis; the last entry is repeated to fill the last block."""

    def __init__(self, length: Any, limit: Any) -> None:
        """Covers `length` entries by blocks of at most `limit`."""
        self.length = length
        self.count = ps.maximum(1, -(-length // limit))
        self.size = ps.maximum(1, -(-length // self.count))

    def _positions(self, i: tf.Tensor) -> tf.Tensor:
        return i * self.size + tf.range(self.size)

    def valid(self, i: tf.Tensor) -> tf.Tensor:
        """Returns which entries of block i lie within the axis, shape `[size]`."""
        return self._positions(i) < self.length

    def gather(self, tensor: tf.Tensor, i: tf.Tensor, axis: int) -> tf.Tensor:
        """Returns block i of a tensor."""
        return tf.gather(tensor, tf.minimum(self._positions(i), self.length - 1), axis=axis)

    def mask(self, j: tf.Tensor, excluded: tf.Tensor | None) -> tf.Tensor:
        """Returns which components of block j take part, `[n, 1]` or `[B..., n, m]`."""
        keep = self.valid(j)[:, tf.newaxis]  # [n, 1]
        if excluded is None:
            return keep
        positions = tf.cast(self._positions(j), excluded.dtype)[:, tf.newaxis]  # [n, 1]
        return keep & tf.not_equal(positions, excluded[..., tf.newaxis, :])  # [B..., n, m]

    def scatter_add(self, total: tf.Tensor, part: tf.Tensor, j: tf.Tensor, axis: int) -> tf.Tensor:
        """Adds block j's part to the total; the part must be zero beyond the axis."""
        positions = tf.minimum(self._positions(j), self.length - 1)
        if axis == 0:
            return tf.tensor_scatter_nd_add(total, positions[:, tf.newaxis], part)
        moved = tf.tensor_scatter_nd_add(
            move_axis(total, axis, 0), positions[:, tf.newaxis], move_axis(part, axis, 0)
        )
        return move_axis(moved, 0, axis)

    def join(self, stacked: tf.Tensor, axis: int) -> tf.Tensor:
        """Joins stacked blocks: `[count, ..., size, ...]` becomes `[..., length, ...]`."""
        moved = move_axis(stacked, 0, axis)  # [..., count, size, ...]
        shape = ps.shape(moved)
        flat = tf.reshape(
            moved, ps.concat([shape[:axis], [self.count * self.size], shape[axis + 2 :]], axis=0)
        )
        return tf.gather(flat, tf.range(self.length), axis=axis)


def move_axis(tensor: tf.Tensor, source: int, destination: int) -> tf.Tensor:
    """Moves an axis of a tensor of known rank; the others keep their order."""
    if source == destination:
        return tensor
    order = list(range(tensor.shape.rank))
    order.insert(destination, order.pop(source))
    return tf.transpose(tensor, order)
