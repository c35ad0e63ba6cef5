from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.log_density.blocks import Blocks, move_axis


@pytest.mark.parametrize(("length", "limit"), [(1, 5), (7, 3), (6, 3), (5, 100)])
@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_cover_an_axis_once(length: int, limit: int, axis: int) -> None:
    values = tf.constant(np.random.default_rng(0).normal(size=(2, length, 3)), tf.float32)
    values = values if axis else tf.transpose(values, [1, 0, 2])
    blocks = Blocks(length, limit)
    assert blocks.size <= limit
    parts = [blocks.gather(values, i, axis) for i in range(blocks.count)]
    np.testing.assert_array_equal(blocks.join(tf.stack(parts), axis), values)
    total = tf.zeros_like(values)
    for i, part in enumerate(parts):
        valid = tf.cast(blocks.valid(i), tf.float32)[:, tf.newaxis]
        masked = part * (valid if axis else valid[..., tf.newaxis])
        total = blocks.scatter_add(total, masked, i, axis)
    np.testing.assert_array_equal(total, values)


def test_a_mask_leaves_out_what_repeats_the_end_and_what_is_excluded() -> None:
    blocks = Blocks(3, 2)  # {0, 1}, {2, 2}
    np.testing.assert_array_equal(blocks.mask(1, None), [[True], [False]])
    excluded = tf.constant([0, 2, -1])
    np.testing.assert_array_equal(
        blocks.mask(0, excluded), [[False, True, True], [True, True, True]]
    )


def test_an_axis_moves_and_the_others_stay_in_order() -> None:
    assert move_axis(tf.zeros([2, 3, 4]), 0, 2).shape == (3, 4, 2)
    assert move_axis(tf.zeros([2, 3, 4]), 2, 0).shape == (4, 2, 3)
