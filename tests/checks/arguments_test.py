from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.arguments import check_observations

tfd = tfp.distributions


def test_observations_come_back_as_an_array() -> None:
    x = np.ones([3, 2], np.float32)
    assert check_observations(x) is x
    np.testing.assert_array_equal(check_observations(tf.constant(x)), x)
    np.testing.assert_array_equal(check_observations([[0, 1], [1, 0]]), [[0, 1], [1, 0]])
    assert check_observations(tf.ones([2, 2], tf.bfloat16)).shape == (2, 2)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.float32(1.0), ValueError, "got a scalar"),
        (np.zeros([0, 4], np.float32), ValueError, r"no observations: its shape is \[0, 4\]"),
        (np.array([[0.0, np.nan], [1.0, 1.0]]), ValueError, "1 of its values.*index 0"),
        (np.array([[0.0, 1.0], [1.0, -np.inf]]), ValueError, "1 of its values.*index 1"),
        (np.array(["a", "b"]), TypeError, "numbers"),
        (np.array([1j]), TypeError, "complex"),
        ([[1.0], [1.0, 2.0]], TypeError, "numbers"),
        (None, TypeError, "object"),
    ],
)
def test_what_cannot_be_a_data_set_is_refused(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_observations(x)


def test_integers_and_booleans_have_no_nan_to_be_found() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_observations(np.zeros([2, 2], np.uint8))
        check_observations(np.zeros([2, 2], np.bool_))
