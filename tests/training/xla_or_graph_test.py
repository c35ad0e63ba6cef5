from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfp_surgery.training.xla_or_graph import XlaOrGraph


def test_a_function_is_compiled_once() -> None:
    traces = []

    def double(x: tf.Tensor) -> tf.Tensor:
        traces.append(x)
        return 2 * x

    function = XlaOrGraph(double, tf.TensorSpec([2]))
    for _ in range(3):
        np.testing.assert_array_equal(function([1.0, 2.0]), [2, 4])
    assert len(traces) == 1
