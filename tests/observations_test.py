"""Tests of data sets in memory: structures, sparse and ragged rows, and what is refused."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from tfp_surgery import datasets
from tfp_surgery.observations import (
    Observations,
    event_shape_of,
    read_array,
    read_observations,
    repeated,
)

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
COUNTS = np.arange(5)
Pair = collections.namedtuple("Pair", ["image", "label"])


def test_one_array_says_what_it_is() -> None:
    observations = read_observations([[1.0], [2.0]])
    np.testing.assert_array_equal(observations.array, [[1.0], [2.0]])
    assert observations.data == "an array, N = 2, binarization not stated"
    levels = read_observations(np.array([[0], [200]], np.uint8))
    assert levels.data == (
        "an array, N = 2, uint8 from 0 to 200 taken as they are, binarization not stated"
    )
    assert len(observations) == 2
    assert not observations.is_structure


def test_a_stochastic_data_set_is_one_stated_draw() -> None:
    dataset = datasets.load("digits", binarization="stochastic")
    observations = read_observations(dataset, seed=3)
    np.testing.assert_array_equal(observations.array, dataset.observations(draw_seed=3))
    assert observations.data == dataset.describe(draw_seed=3)
    with pytest.raises(ValueError, match="state the draw"):
        read_observations(dataset)


@pytest.mark.parametrize(
    "rows", [slice(1, 4), np.array([4, 0, 0]), tf.constant([4, 0, 0])], ids=["slice", "array", "tf"]
)
@pytest.mark.parametrize(
    ("x", "paths"),
    [
        ({"b": COUNTS, "a": X}, ["a", "b"]),
        ((X, COUNTS), ["0", "1"]),
        (Pair(X, COUNTS), ["image", "label"]),
        ({"a": {"inner": X}, "b": (COUNTS, COUNTS)}, ["a['inner']", "b[0]", "b[1]"]),
    ],
    ids=["dict", "tuple", "namedtuple", "nested"],
)
def test_structures_are_picked_row_by_row(x: Any, paths: list[str], rows: Any) -> None:
    observations = read_observations(x)
    assert observations.is_structure
    assert len(observations) == 5
    assert observations.array is None
    assert all(path in observations.data for path in paths)
    picked = observations.rows(rows)
    tf.nest.assert_same_structure(picked, x)
    index = rows if isinstance(rows, slice) else np.asarray(rows)
    for leaf, whole in zip(tf.nest.flatten(picked), tf.nest.flatten(x), strict=True):
        np.testing.assert_array_equal(leaf, whole[index])


def test_a_tuple_of_equally_shaped_arrays_is_one_observation_and_never_stacked() -> None:
    observations = read_observations((X, X))
    assert len(observations) == 5
    assert observations.data.startswith("a structure of 0 float32 [3], 1 float32 [3], N = 5")
    numbers = read_observations(((1.0, 2.0), (3.0, 4.0)))  # nested numbers are one array, as lists
    np.testing.assert_array_equal(numbers.array, [[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(TypeError, match=r"arrays of its own.*x\[0\]"):
        read_observations([X, X])


@pytest.mark.parametrize("kind", ["csr", "coo", "array", "tf"])
def test_sparse_rows_become_dense_by_the_block(kind: str) -> None:
    dense = np.where(X > 0.3, X, 0.0).astype(np.float32)
    sparse: Any = {
        "csr": scipy.sparse.csr_matrix,
        "coo": scipy.sparse.coo_matrix,
        "array": scipy.sparse.csr_array,
        "tf": tf.sparse.from_dense,
    }[kind](dense)
    observations = read_observations(sparse)
    assert observations.event_shape == tf.TensorShape([3])
    np.testing.assert_array_equal(observations.rows(slice(1, 3)), dense[1:3])
    np.testing.assert_array_equal(observations.rows(np.array([4, 1])), dense[[4, 1]])
    assert observations.rows(slice(0, 1)).dtype == tf.float32


def test_ragged_rows_stay_ragged() -> None:
    ragged = tf.ragged.constant([[1.0, 2.0], [], [3.0]])
    observations = read_observations(ragged)
    assert len(observations) == 3
    assert observations.rows(slice(1, 3)).to_list() == [[], [3.0]]
    assert observations.rows(np.array([2, 0])).to_list() == [[3.0], [1.0, 2.0]]
    assert repeated(observations.rows(slice(1, 3)), 2).to_list() == [[], [3.0], [], [3.0]]


def test_batches_are_repeated_in_step_with_flat_codes() -> None:
    batch = {"x": tf.constant(X[:2]), "n": tf.constant([7, 8])}
    twice = repeated(batch, 3)
    np.testing.assert_array_equal(twice["n"], [7, 8] * 3)
    np.testing.assert_array_equal(twice["x"], np.tile(X[:2], [3, 1]))
    assert event_shape_of(batch) == {"x": tf.TensorShape([3]), "n": tf.TensorShape([])}


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ({"a": X, "b": COUNTS[:4]}, ValueError, r"x\['a'\] has 5, x\['b'\] has 4"),
        ((X, X[:4]), ValueError, r"x\[0\] has 5, x\[1\] has 4"),
        ({"a": X, "b": np.full([5], np.nan)}, ValueError, r"x\['b'\] must be finite"),
        ({"a": X, "b": np.array(["a"] * 5)}, TypeError, r"x\['b'\] must be an array of numbers"),
        ({1: X}, TypeError, "names in x must be strings"),
        ({}, ValueError, "holds no arrays"),
        (scipy.sparse.csr_matrix(np.array([[1.0, np.inf]])), ValueError, "values of x.*finite"),
        (tf.sparse.from_dense(np.ones([2, 2, 2])), ValueError, "sparse in two dimensions"),
        (tf.ragged.constant([[1.0], [np.nan]]), ValueError, "values of x.*finite"),
        ((row for row in X), TypeError, r"np.stack\(list\(x\)\)"),
        (iter([X, X]), TypeError, r"np.concatenate\(list\(x\)\)"),
    ],
    ids=[
        "dict of two N",
        "tuple of two N",
        "NaN in a part",
        "text in a part",
        "no name",
        "empty",
        "sparse infinity",
        "sparse cube",
        "ragged NaN",
        "generator",
        "iterator",
    ],
)
def test_what_is_no_data_set_is_refused_by_its_place(
    x: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_observations(x)


def test_observations_are_read_once() -> None:
    observations = read_observations(X)
    assert read_observations(observations) is observations
    assert isinstance(observations, Observations)


def test_one_array_is_read_from_whatever_holds_it() -> None:
    for x in (X, tf.constant(X), scipy.sparse.csr_matrix(X), tf.data.Dataset.from_tensors(X)):
        array = read_array(x)
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, X)
    for several in ((X, X), {"a": X}, tf.ragged.constant([[1.0], [1.0, 2.0]])):
        with pytest.raises(TypeError, match=r"must be one array .* observations alone"):
            read_array(several)
