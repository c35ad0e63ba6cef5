"""Tests of pipelines that are read into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery import datasets
from tfp_surgery.observations import read_observations

X = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
Y = np.arange(7)
Pipeline = tf.data.Dataset
slices = Pipeline.from_tensor_slices


@pytest.mark.parametrize(
    "make",
    [
        lambda: slices(X),
        lambda: slices(X).batch(3),
        lambda: slices(X).batch(3).prefetch(2).cache(),
        lambda: slices(X).batch(3).unbatch(),
        lambda: slices(X).batch(7, drop_remainder=True),
        lambda: Pipeline.from_tensors(X),
        lambda: Pipeline.zip(slices(X), slices(Y)).batch(2).map(lambda x, _: x),
        lambda: slices(X).shuffle(7, seed=0, reshuffle_each_iteration=False).batch(4),
    ],
)
def test_elements_are_joined_whether_batches_or_not(make: Callable[[], Any]) -> None:
    observations = read_observations(make())
    assert observations.array is not None
    np.testing.assert_array_equal(np.sort(observations.array, axis=0), np.sort(X, axis=0))
    assert observations.data.startswith("a tf.data.Dataset, N = 7")


def test_labels_are_left_out_and_said_to_be() -> None:
    for pipeline in (slices((X, Y)), slices((X, Y)).batch(3)):
        observations = read_observations(pipeline)
        np.testing.assert_array_equal(observations.array, X)
        assert "(x, y), of which y is left out" in observations.data


def test_structured_elements_are_structured_observations() -> None:
    observations = read_observations(slices({"a": X, "b": Y}).batch(3))
    np.testing.assert_array_equal(observations.parts["b"], Y)
    pair = read_observations(slices(((X, Y), Y)).batch(3))
    np.testing.assert_array_equal(pair.parts[0], X)
    np.testing.assert_array_equal(pair.parts[1], Y)
    assert "y is left out" in pair.data


def test_ragged_batches_are_joined() -> None:
    rows = tf.ragged.constant([[1.0], [2.0, 3.0], []])
    observations = read_observations(slices(rows).batch(2))
    assert observations.parts.to_list() == [[1.0], [2.0, 3.0], []]


def generated(shape: list[int | None]) -> Any:
    return Pipeline.from_generator(
        lambda: iter(np.ones([2, 3, 2])), output_signature=tf.TensorSpec(shape, tf.float64)
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: slices(X).repeat(), ValueError, "infinite pipeline"),
        (lambda: slices(X).shuffle(7), ValueError, "two passes"),
        (lambda: slices(X).take(0), ValueError, "empty pipeline"),
        (lambda: slices((X, Y, Y)), TypeError, r"tuples of 3, expected x or \(x, y\)"),
        (lambda: generated([None, 2]), ValueError, r"x.unbatch\(\) or x.batch\(size\)"),
        (lambda: slices(X * np.nan), ValueError, "x must be finite"),
    ],
    ids=["infinite", "shuffled", "empty", "triple", "unknown batches", "NaN"],
)
def test_pipelines_without_a_fixed_data_set_are_refused(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_observations(make())


def test_single_elements_of_an_unknown_source_are_observations() -> None:
    assert read_observations(generated([3, 2])).event_shape == tf.TensorShape([3, 2])


def test_batches_of_a_data_set_send_back_to_it() -> None:
    dataset = datasets.load("digits", binarization="threshold")
    with pytest.raises(ValueError, match="hand in the Dataset itself"):
        read_observations(dataset.batches(100))
