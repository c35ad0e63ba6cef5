from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.log_density import queries

tfd = tfp.distributions

BATCHED = tfd.MultivariateNormalDiag(tf.zeros([2, 7, 3]))  # [B, N, E]


def test_samples_are_flattened_before_the_batch() -> None:
    z = np.arange(5 * 4 * 2 * 3, dtype=np.float32).reshape(5, 4, 2, 3)
    flat, shape = queries.flattened(tf.constant(z), BATCHED)
    np.testing.assert_array_equal(shape, [5, 4, 2])
    np.testing.assert_array_equal(flat, z.reshape(20, 2, 3))


def test_a_query_serves_the_whole_batch() -> None:
    flat, shape = queries.flattened(tf.constant([1.0, 2.0, 3.0]), BATCHED)
    np.testing.assert_array_equal(shape, [2])
    np.testing.assert_array_equal(flat, [[[1.0, 2.0, 3.0]] * 2])


@pytest.mark.parametrize("shape", [(), (2,), (4, 2, 1)])
def test_other_event_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"does not end in the event shape \(3,\)"):
        queries.flattened(tf.zeros(shape), BATCHED)


def test_a_shape_that_is_not_known_is_not_refused() -> None:
    @tf.function(input_signature=[tf.TensorSpec(None)])
    def check(z: tf.Tensor) -> tf.Tensor:
        queries.check_event_shape(z, BATCHED)
        return z

    assert check(tf.zeros([2])).shape == (2,)
