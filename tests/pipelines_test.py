"""Tests of pipelines that are read into memory."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery import datasets, pipelines
from tfp_surgery.observations import read_observations

X = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
Y = np.arange(7)
Pipeline = tf.data.Dataset
slices = Pipeline.from_tensor_slices
Pair = collections.namedtuple("Pair", ["image", "size"])


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
        lambda: slices(X).repeat().take(7),
        lambda: slices(X).batch(4).filter(lambda _: True),
        lambda: slices(X[:3]).concatenate(slices(X[3:])),
        lambda: slices(X).map(lambda x: tf.reshape(x, [2]), num_parallel_calls=2),
        lambda: Pipeline.range(7).map(lambda n: tf.gather(X, n)),
        lambda: generated(X[None], [None, 2]).unbatch(),
        lambda: generated(X[None], [7, 2]).unbatch(),
        lambda: generated(X, [2]).batch(3),
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


def generated(values: Any, shape: list[int | None]) -> Any:
    return Pipeline.from_generator(
        lambda: iter(values), output_signature=tf.TensorSpec(shape, values.dtype)
    )


def test_single_ragged_rows_are_ragged_observations() -> None:
    rows = tf.ragged.constant([[1.0], [2.0, 3.0], []])
    assert read_observations(slices(rows)).parts.to_list() == [[1.0], [2.0, 3.0], []]
    deeper = tf.ragged.constant([[[1.0], []], [[2.0, 3.0]]])
    assert read_observations(slices(deeper)).parts.to_list() == deeper.to_list()


@pytest.mark.parametrize("batch", [None, 3])
def test_sparse_elements_are_sparse_observations(batch: int | None) -> None:
    dense = np.where(X > 0, X, 0.0).astype(np.float32)
    pipeline = slices(tf.sparse.from_dense(dense))
    observations = read_observations(pipeline if batch is None else pipeline.batch(batch))
    np.testing.assert_array_equal(observations.rows(slice(0, 7)), dense)


def test_named_tuples_are_structured_observations() -> None:
    for pipeline in (slices(Pair(X, Y)), slices(Pair(X, Y)).batch(3), slices((Pair(X, Y), Y))):
        observations = read_observations(pipeline)
        np.testing.assert_array_equal(observations.parts.image, X)
        np.testing.assert_array_equal(observations.parts.size, Y)


def test_a_pair_of_one_integer_and_something_else_is_not_taken_for_data_and_label() -> None:
    enumerated = slices(X).enumerate()
    for pipeline in (enumerated, enumerated.batch(3), slices(X).batch(3).enumerate()):
        with pytest.raises(TypeError, match=r"as of .enumerate\(\): x.map\(lambda index, x: x\)"):
            read_observations(pipeline)
    assert read_observations(enumerated.map(lambda _, x: x)).event_shape == tf.TensorShape([2])
    counts = read_observations(slices((Y, Y)).map(lambda x, _: x))
    np.testing.assert_array_equal(counts.array, Y)


UNKNOWN = {
    "generator of batches": lambda: generated(np.ones([2, 3, 2]), [None, 2]),
    "generator of batches of one size": lambda: generated(np.ones([2, 3, 2]), [3, 2]),
    "interleaved": lambda: Pipeline.range(2).interleave(lambda _: slices(X).batch(7, True)),
    "flat map": lambda: Pipeline.range(2).flat_map(lambda _: slices(X).batch(7, True)),
    "by length": lambda: slices(X).bucket_by_sequence_length(lambda x: tf.shape(x)[0], [9], [4, 4]),
    "grouped": lambda: slices(X).group_by_window(
        lambda _: tf.constant(0, tf.int64), lambda _, group: group.batch(3), window_size=3
    ),
    "files of many": lambda: Pipeline.range(2).map(lambda n: tf.zeros([n, 2])),
    "means of batches": lambda: slices(X).batch(3).map(lambda x: tf.reduce_mean(x, 0)),
    "batches beside single ones": lambda: Pipeline.zip({"a": slices(X).batch(1), "b": slices(X)}),
    "batches and single ones": lambda: slices(X).batch(2, True).concatenate(slices(X[:, None])),
    "a constant beside a batch": lambda: Pipeline.from_tensors({"a": X, "b": 3.0}),
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_may_be_batches_or_single_observations_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"x.unbatch\(\) as its last step .* x.batch\(size\)"):
        read_observations(make())


def test_records_that_are_decoded_are_single_observations() -> None:
    records = slices([[0, 1, 2], [3, 4, 5]]).interleave(slices)  # as in TensorFlow Datasets
    assert records.element_spec.shape.rank == 0
    read = read_observations(records.map(lambda n: (tf.gather(X, n), n)).prefetch(1))
    assert read.array is not None
    np.testing.assert_array_equal(np.sort(read.array, 0), np.sort(X[:6], 0))


def test_a_pipeline_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "MAX_BYTES", 2**20)

    def endless() -> Any:
        while True:
            yield X

    signature = tf.TensorSpec([7, 2], tf.float32)
    pipeline = Pipeline.from_generator(endless, output_signature=signature).unbatch()
    with pytest.raises(ValueError, match=r"still going on .* x.take\(number_of_elements\)"):
        read_observations(pipeline)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: slices(X).repeat(), ValueError, "infinite pipeline"),
        (
            lambda: slices(X).repeat().filter(lambda _: True).batch(5),
            ValueError,
            "infinite pipeline",
        ),
        (lambda: slices(X).shuffle(7), ValueError, "two passes"),
        (lambda: slices(X).take(0), ValueError, "empty pipeline"),
        (lambda: slices((X, Y, Y)), TypeError, r"tuples of 3, expected x or \(x, y\)"),
        (lambda: slices(X).window(2), TypeError, "must be arrays of numbers; got DatasetSpec"),
        (lambda: slices(np.array(["a"] * 7)), TypeError, "must be arrays of numbers"),
        (
            lambda: slices(tf.ragged.constant([[1.0], [2.0, 3.0]])).map(lambda x: 2 * x),
            ValueError,
            r"differ in shape, \[1\] and \[2\]: .* x.ragged_batch\(size\)",
        ),
        (lambda: slices(X * np.nan), ValueError, "x must be finite"),
    ],
    ids=[
        *("infinite", "infinite and filtered", "shuffled", "empty", "triple", "windows", "text"),
        *("two lengths", "NaN"),
    ],
)
def test_pipelines_without_a_fixed_data_set_are_refused(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_observations(make())


def test_batches_of_a_data_set_send_back_to_it() -> None:
    dataset = datasets.load("digits", binarization="threshold")
    with pytest.raises(ValueError, match="hand in the Dataset itself"):
        read_observations(dataset.batches(100))
