from __future__ import annotations

import pytest
import tensorflow as tf

from tfp_surgery.networks.precision import at_least_float32


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (tf.float16, tf.float32),
        (tf.bfloat16, tf.float32),
        (tf.float32, tf.float32),
        (tf.float64, tf.float64),
    ],
)
def test_only_half_precision_is_widened(given: tf.DType, expected: tf.DType) -> None:
    assert at_least_float32(tf.ones([2], given)).dtype == expected
