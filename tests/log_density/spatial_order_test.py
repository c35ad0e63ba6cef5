from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.log_density.spatial_order import spatial_order


@pytest.mark.parametrize("num", [1, 2, 15, 16, 100, 1000])
def test_every_point_has_one_place(num: int) -> None:
    points = tf.constant(np.random.default_rng(num).normal(size=(num, 3)), tf.float32)
    np.testing.assert_array_equal(np.sort(spatial_order(points, 4)), np.arange(num))


def test_the_number_of_points_may_be_unknown() -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def order(points: tf.Tensor) -> tf.Tensor:
        return spatial_order(points, 4)

    points = tf.constant(np.random.default_rng(0).normal(size=(100, 3)), tf.float32)
    np.testing.assert_array_equal(order(points), spatial_order(points, 4))
    assert order(points[:0]).shape == (0,)


def test_it_can_be_compiled() -> None:
    points = tf.constant(np.random.default_rng(0).normal(size=(100, 3)), tf.float32)
    order = tf.function(lambda x: spatial_order(x, 4), jit_compile=True, autograph=False)
    np.testing.assert_array_equal(order(points), spatial_order(points, 4))


def test_a_line_is_walked_from_end_to_end() -> None:
    x = np.random.default_rng(0).permutation(64)
    points = np.stack([np.zeros(64), x], axis=1)
    np.testing.assert_array_equal(x[spatial_order(tf.constant(points), 1)], np.arange(64))


def test_neighbours_in_the_order_are_near_in_the_dimension_that_varies_most() -> None:
    points = np.random.default_rng(0).normal(size=(1024, 2)) * [100.0, 0.01]
    order = spatial_order(tf.constant(points), 16).numpy()
    width = np.ptp(points[order].reshape(64, 16, 2), axis=1)
    assert np.median(width[:, 0]) < 10.0  # of 600
    assert np.median(width[:, 1]) > 0.02


def test_values_that_are_no_numbers_keep_every_point_in_one_place() -> None:
    points = np.random.default_rng(0).normal(size=(100, 2))
    points[3, 0], points[40, 1], points[41] = np.nan, np.inf, 1e300
    np.testing.assert_array_equal(np.sort(spatial_order(tf.constant(points), 4)), np.arange(100))
