from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.models.condition_spec import (
    checked_condition,
    read_spec,
    spec_of_condition,
    split_shape,
    written_spec,
    zero_condition,
)

NESTED = {"a": np.ones([5, 2, 3], np.float16), "b": (np.arange(5), {"c": np.ones(5, bool)})}


class Pair(NamedTuple):
    first: Any
    second: Any


def test_a_spec_is_written_and_read() -> None:
    spec = spec_of_condition(NESTED)
    assert spec["a"] == tf.TensorSpec([None, 2, 3], tf.float16)
    assert spec["b"][0] == tf.TensorSpec([None], tf.int64)
    assert read_spec(json.loads(json.dumps(written_spec(spec)))) == spec
    assert spec_of_condition(spec) == spec
    assert spec_of_condition(None) is None


def test_zeros_look_like_checked_conditions() -> None:
    spec = spec_of_condition(NESTED)
    checked = checked_condition(NESTED, np.zeros([5, 1]), spec)
    zeros = zero_condition(spec, 5)
    tf.nest.map_structure(lambda a, b: np.testing.assert_equal(a.shape, b.shape), zeros, checked)
    dtypes = [leaf.dtype for leaf in tf.nest.flatten(checked)]
    assert dtypes == [leaf.dtype for leaf in tf.nest.flatten(zeros)]
    assert dtypes == [tf.float32, tf.int64, tf.bool]


@pytest.mark.parametrize(
    "condition",
    [
        tf.ragged.constant([[1.0], [2.0, 3.0]]),
        tf.TensorSpec([None, None], tf.float32),
        tf.TensorSpec(None, tf.float32),
        tf.TensorSpec([], tf.float32),
        tf.constant(["a"]),
        Pair(np.zeros(2), np.zeros(2)),
        [1.0, 2.0],
        {},
        3,
    ],
)
def test_what_is_no_condition(condition: Any) -> None:
    with pytest.raises(ValueError, match="must be dense numbers of a known shape"):
        spec_of_condition(condition)


@pytest.mark.parametrize(
    ("input_shape", "message"),
    [
        ({"x": (None, 3), "index": (None,)}, "a conditional model is built by"),
        ({"x": (None, 3), "condition": (None, 2)}, r"got the condition \(None, 2\)"),
        ({"x": (None,), "condition": tf.TensorSpec([None], tf.int32)}, "input_shape must be"),
    ],
)
def test_what_a_model_is_not_built_for(input_shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_shape(input_shape)
