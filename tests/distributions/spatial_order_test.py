from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.distributions import spatial_order


def _components(num: int, event_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(num)
    return (
        tf.constant(rng.normal(size=(num, event_size)), tf.float32),
        tf.constant(rng.uniform(0.5, 2.0, size=(num, event_size)), tf.float32),
    )


@pytest.mark.parametrize("num", [1, 2, 15, 16, 100, 1000])
def test_every_component_has_one_place(num: int) -> None:
    loc, inverse_scale = _components(num, 3)
    order = spatial_order.order_components(loc, inverse_scale, leaf_size=16)
    indices, kept = order.indices.numpy(), order.is_component.numpy()
    np.testing.assert_array_equal(np.sort(indices[kept]), np.arange(num))
    num_leaves = 2 ** len(order.dimensions)
    assert len(indices) % num_leaves == 0
    assert len(indices) - num < num_leaves


def test_a_query_at_a_component_goes_to_its_leaf() -> None:
    loc, inverse_scale = _components(1024, 3)
    order = spatial_order.order_components(loc, inverse_scale, leaf_size=16)
    place = np.empty(1024, int)
    place[order.indices.numpy()] = np.arange(1024)
    leaf = spatial_order.leaf_of(loc, order).numpy()
    np.testing.assert_array_equal(leaf, place // 16)


def test_leaves_are_small_in_the_dimensions_that_tell_components_apart() -> None:
    """Dimension 1 varies as much as dimension 0, but not in units of its scale."""
    rng = np.random.default_rng(0)
    loc = tf.constant(rng.normal(size=(1024, 2)))
    inverse_scale = tf.constant(np.full((1024, 2), [100.0, 0.01]))
    order = spatial_order.order_components(loc, inverse_scale, leaf_size=16)
    width = np.ptp(loc.numpy()[order.indices.numpy()].reshape(64, 16, 2), axis=1)
    assert np.median(width[:, 0]) < 0.1
    assert np.median(width[:, 1]) > 1.0


def test_values_that_are_no_numbers_keep_every_component_in_one_place() -> None:
    loc, inverse_scale = _components(100, 2)
    loc = tf.tensor_scatter_nd_update(loc, [[3, 0], [40, 1]], [np.nan, np.inf])
    order = spatial_order.order_components(loc, inverse_scale, leaf_size=16)
    kept = order.indices.numpy()[order.is_component.numpy()]
    np.testing.assert_array_equal(np.sort(kept), np.arange(100))
    assert spatial_order.leaf_of(loc, order).numpy().max() < 2 ** len(order.dimensions)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-m", "not slow"]))
