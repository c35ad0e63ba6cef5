"""Tests of functions as graphs."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.measurement.traced import traced


def test_many_models_are_traced_without_warnings(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tensorflow"):
        for factor in range(8):

            def double(x: tf.Tensor, factor: int = factor) -> dict[str, tf.Tensor]:
                return {"value": factor * x, "nothing": None}

            graph = traced(double, tf.TensorSpec([2], tf.float32))
            result = graph(tf.constant([1.0, 2.0]))
            np.testing.assert_array_equal(result["value"], [factor, 2 * factor])
            assert result["nothing"] is None
    assert "retracing" not in caplog.text
