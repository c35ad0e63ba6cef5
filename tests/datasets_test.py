from __future__ import annotations

import dataclasses
import json
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.testing.bernoulli import STANDARD_ERRORS, assert_bernoulli
from tests.testing.image_sets import (
    assert_same_epochs,
    assert_unrelated,
    epochs,
    make_dataset,
    numbered,
)
from tfp_surgery import dataset_draws
from tfp_surgery.datasets import BINARIZATIONS, Dataset, load

# Binarization


def test_none_gives_the_intensities() -> None:
    dataset = make_dataset("none")
    np.testing.assert_array_equal(
        dataset.observations(), dataset.intensities.astype(np.float32) / np.float32(255)
    )
    assert dataset.observations().dtype == np.float32


def test_threshold_cuts_above_one_half() -> None:
    levels = np.array([[0, 127, 128, 255]], np.uint8)
    dataset = Dataset("mine", "train", levels, "threshold", 0)
    np.testing.assert_array_equal(dataset.observations(), [[0, 0, 1, 1]])
    floats = np.array([[0.0, 0.5, 0.50001, 1.0]])
    dataset = Dataset("mine", "train", floats, "threshold", 0)
    np.testing.assert_array_equal(dataset.observations(), [[0, 0, 1, 1]])


@pytest.mark.parametrize("binarization", ["fixed", "stochastic"])
def test_draws_have_the_intensities_as_means(binarization: str) -> None:
    dataset = make_dataset(binarization, 3000)  # more than one block of the draw
    assert_bernoulli(dataset.observations(draw_seed=3), dataset.intensities / 255)


def test_epoch_draws_have_the_intensities_as_means() -> None:
    intensities = np.repeat(np.linspace(0, 1, 50, dtype=np.float32)[:, np.newaxis], 400, axis=1)
    pipeline = Dataset("mine", "train", intensities, "stochastic", 0).batches(50, seed=1)
    (batch,) = next(iter(epochs(pipeline, 1)))
    # The epoch is shuffled; p = 0 and p = 1 are certain, so sorting by means finds the rest.
    ordered = batch[np.argsort(batch.mean(axis=1))]
    assert not ordered[0].any()
    assert ordered[-1].all()
    p = intensities[:, 0].astype(np.float64)
    error = np.sqrt(np.sum(p * (1 - p)) / 400) / 50
    assert abs(batch.mean(dtype=np.float64) - p.mean()) < STANDARD_ERRORS * error
    # The order statistics of 400-pixel means stay within the same bound of the sorted p.
    bound = STANDARD_ERRORS * 0.5 / np.sqrt(400)
    np.testing.assert_allclose(ordered.mean(axis=1), p, atol=bound)


def test_certain_pixels_never_flip() -> None:
    levels = np.tile(np.array([0, 255], np.uint8), (4000, 8))
    for binarization in BINARIZATIONS:
        dataset = Dataset("mine", "train", levels, binarization, 0)
        np.testing.assert_array_equal(dataset.observations(draw_seed=0), levels / 255)


def test_fixed_draw_is_one_per_seed_and_split() -> None:
    x = make_dataset("fixed").observations()
    np.testing.assert_array_equal(x, make_dataset("fixed").observations())
    np.testing.assert_array_equal(x, make_dataset("fixed").observations(draw_seed=9))
    for other in (make_dataset("fixed", seed=1), make_dataset("fixed", split="test")):
        np.testing.assert_array_equal(other.intensities, make_dataset("fixed").intensities)
        assert_unrelated(x, other.observations(), other.intensities / 255)


def test_stochastic_draws_are_named_by_their_seed() -> None:
    dataset = make_dataset("stochastic")
    x = dataset.observations(draw_seed=3)
    np.testing.assert_array_equal(x, make_dataset("stochastic").observations(draw_seed=3))
    p = dataset.intensities / 255
    assert_unrelated(x, dataset.observations(draw_seed=4), p)
    assert_unrelated(x, make_dataset("stochastic", seed=1).observations(draw_seed=3), p)
    assert_unrelated(dataset.observations(draw_seed=0), make_dataset("fixed").observations(), p)


def test_blocks_of_a_draw_are_unrelated() -> None:
    half = np.full((2 * dataset_draws.BLOCK, 5), 0.5, np.float32)
    x = Dataset("mine", "train", half, "fixed", 0).observations()
    first, second = np.split(x, 2)
    assert_unrelated(first, second, half[: len(first)])


def test_stochastic_observations_need_a_draw_seed() -> None:
    with pytest.raises(ValueError, match=r"random/train.*draw_seed=<integer>"):
        make_dataset("stochastic").observations()


# Indexing and description


@pytest.mark.parametrize("binarization", ["fixed", "threshold", "none"])
def test_indexing_gives_rows_of_the_observations(binarization: str) -> None:
    dataset = make_dataset(binarization)
    x = dataset.observations()
    indices: list[Any] = [3, -1, slice(2, 9, 3), [4, 4, 0], np.arange(50) % 2 == 0, np.int64(5)]
    for index in indices:
        np.testing.assert_array_equal(dataset[index], x[index], strict=True)


def test_indexing_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="cannot be indexed"):
        make_dataset("stochastic")[0]
    with pytest.raises(TypeError, match="tuple"):
        make_dataset("fixed")[0, 1]
    with pytest.raises(IndexError):
        make_dataset("fixed")[50]


def test_description_and_dict() -> None:
    dataset = make_dataset("fixed", seed=5)
    assert dataset.num_observations == len(dataset) == 50
    assert dataset.event_shape == (4, 3, 1)
    levels = ", level 255 is intensity 1"
    assert dataset.describe() == f"random/train, N = 50, binarization fixed (seed 5){levels}"
    assert make_dataset("none").describe() == f"random/train, N = 50, binarization none{levels}"
    stochastic = make_dataset("stochastic")
    assert stochastic.describe().endswith(f"stochastic (seed 0, a new draw each epoch){levels}")
    assert stochastic.describe(draw_seed=8).endswith(f"stochastic (seed 0, draw 8){levels}")
    assert numbered(3, "fixed").describe() == "numbered/train, N = 3, binarization fixed (seed 0)"
    assert json.loads(json.dumps(dataset.to_dict())) == {
        "name": "random",
        "split": "train",
        "num_observations": 50,
        "event_shape": [4, 3, 1],
        "binarization": "fixed",
        "seed": 5,
        "max_level": 255,
    }


def test_a_pair_of_int32_is_a_seed() -> None:
    dataset = make_dataset("stochastic", seed=(1, -2))  # type: ignore[arg-type]
    record = json.loads(json.dumps(dataset.to_dict()))
    assert record["seed"] == [1, -2]
    again = Dataset("random", "train", dataset.intensities, "stochastic", record["seed"])
    assert again.seed == (1, -2)
    np.testing.assert_array_equal(
        dataset.observations(draw_seed=(3, 4)), again.observations(draw_seed=np.array([3, 4]))
    )
    assert_same_epochs(
        epochs(dataset.batches(8, seed=(5, 6)), 2), epochs(again.batches(8, seed=[5, 6]), 2)
    )
    first, second = (epochs(dataset.batches(8, seed=(5, n)), 1)[0] for n in (6, 7))
    assert np.any(np.concatenate(first) != np.concatenate(second))
    assert load("digits", binarization="fixed", seed=[0, 1]).seed == (0, 1)


def test_dataset_is_frozen() -> None:
    intensities = np.full((3, 2), 0.25)
    dataset = Dataset("mine", "train", intensities, "none", 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.binarization = "fixed"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        dataset.intensities[0] = 1
    intensities[:] = 1  # the caller's array stays the caller's
    np.testing.assert_array_equal(dataset.observations(), np.full((3, 2), 0.25))
    dataset.observations()[:] = 7
    dataset[:][:] = 7
    np.testing.assert_array_equal(dataset.observations(), np.full((3, 2), 0.25))


MASKED: Any = np.ma  # whose functions have no types


@pytest.mark.parametrize(
    ("intensities", "error", "message"),
    [
        (np.zeros((0, 4), np.uint8), ValueError, r"at least one observation.*\[0, 4\]"),
        (np.zeros((4, 0), np.float32), ValueError, r"got \[4, 0\]"),
        (np.zeros(4, np.uint8), ValueError, r"event dimension.*got \[4\]"),
        (np.array([[0.5, np.nan]]), ValueError, "finite"),
        (np.array([[0.5, np.inf]]), ValueError, "finite"),
        (np.array([[0.5, 1.5]]), ValueError, r"\[0, 1\].*0\.5 to 1\.5"),
        (np.array([[-0.5, 0.5]]), ValueError, r"\[0, 1\]"),
        (np.zeros((2, 2), complex), TypeError, "complex"),
        (np.array([["a", "b"]]), TypeError, "dtype <U1"),
        (np.array([[None, 1.0]]), TypeError, "none is None"),
        (np.zeros((2, 2), [("red", np.uint8)]), TypeError, "structured_to_unstructured"),
        (np.zeros((2, 2), "datetime64[s]"), TypeError, "datetime64"),
        (np.zeros((2, 2), "timedelta64[s]"), TypeError, "timedelta64"),
        (MASKED.masked_equal(np.eye(2), 0), ValueError, "2 of 4 .* masked.* 2 of 2 rows"),
        ([[0.5, 0.5]], TypeError, "numpy array, got list"),
    ],
)
def test_bad_intensities_are_refused(
    intensities: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Dataset("mine", "train", intensities, "none", 0)


def test_bad_fields_are_refused() -> None:
    x = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match=r"stochastic, fixed, threshold, none, got 'dynamic'"):
        Dataset("mine", "train", x, "dynamic", 0)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        Dataset("mine", "train", x, "fixed", -1)
    with pytest.raises(ValueError, match="at most 2147483647"):
        Dataset("mine", "train", x, "fixed", 2**31)
    for seed in (0.5, True, None):
        with pytest.raises(TypeError, match="seed must be an integer or a pair"):
            Dataset("mine", "train", x, "fixed", seed)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name must be a string"):
        Dataset(3, "train", x, "fixed", 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split must not be empty"):
        Dataset("mine", "", x, "fixed", 0)


# Batches


@pytest.mark.parametrize("batch_size", [1, 7, 50, 10**12])
@pytest.mark.parametrize("seed", [None, 3])
def test_an_epoch_is_every_observation_once(batch_size: int, seed: int | None) -> None:
    dataset = numbered(50)
    pipeline = dataset.batches(batch_size, seed=seed)
    expected = dataset.num_batches(batch_size)
    assert expected == int(np.ceil(50 / batch_size))
    assert int(pipeline.cardinality()) == expected
    assert pipeline.element_spec == tf.TensorSpec([None, 1], tf.float32)
    orders = []
    for epoch in epochs(pipeline, 3):
        assert [len(batch) for batch in epoch[:-1]] == [min(batch_size, 50)] * (expected - 1)
        orders.append(np.concatenate(epoch)[:, 0] * 1024)
        np.testing.assert_array_equal(np.sort(orders[-1]), np.arange(50))
    in_order = [np.array_equal(order, np.arange(50)) for order in orders]
    assert in_order == [seed is None] * 3
    assert (seed is None) == np.array_equal(orders[0], orders[1])


def test_shuffling_depends_on_the_seed_alone() -> None:
    first = epochs(numbered(50).batches(8, seed=3), 2)
    assert_same_epochs(first, epochs(numbered(50).batches(8, seed=3), 2))
    other = epochs(numbered(50).batches(8, seed=4), 2)
    assert not np.array_equal(np.concatenate(first[0]), np.concatenate(other[0]))


def test_shuffling_reaches_across_the_whole_data() -> None:
    size = 1000
    for epoch in epochs(numbered(size).batches(300, seed=0), 3):
        order = np.concatenate(epoch)[:, 0] * 1024
        # Moments of sum_n |order_n - n| (Spearman's footrule) over uniform permutations.
        mean = (size**2 - 1) / 3
        error = np.sqrt((size + 1) * (2 * size**2 + 7) / 45)
        footrule = np.abs(order - np.arange(size)).sum()
        assert abs(footrule - mean) < STANDARD_ERRORS * error


@pytest.mark.parametrize("binarization", ["fixed", "threshold", "none"])
def test_batches_in_order_are_the_observations(binarization: str) -> None:
    dataset = make_dataset(binarization)
    for epoch in epochs(dataset.batches(16), 2):
        np.testing.assert_array_equal(np.concatenate(epoch), dataset.observations(), strict=True)


@pytest.mark.parametrize("binarization", BINARIZATIONS)
def test_resuming_equals_going_on(binarization: str) -> None:
    dataset = make_dataset(binarization)
    uninterrupted = epochs(dataset.batches(16, seed=2), 5)
    resumed = make_dataset(binarization).batches(16, seed=2, initial_epoch=2)
    assert_same_epochs(uninterrupted[2:], epochs(resumed, 3))


def test_stochastic_epochs_are_new_draws() -> None:
    half = np.full((40, 30), 0.5, np.float32)
    dataset = Dataset("mine", "train", half, "stochastic", 0)
    runs = {seed: epochs(dataset.batches(10, seed=seed), 2) for seed in (0, 1)}
    batches = [batch for run in runs.values() for epoch in run for batch in epoch]
    for i, a in enumerate(batches):
        for b in batches[:i]:
            assert_unrelated(a, b, half[:10])


def test_draws_do_not_depend_on_the_order_of_threads() -> None:
    dataset = make_dataset("stochastic", 2000)
    serial = dataset.batches(3, seed=0)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    assert_same_epochs(
        epochs(serial.with_options(options), 2), epochs(dataset.batches(3, seed=0), 2)
    )


def test_an_unread_iterator_uses_up_no_epoch() -> None:
    pipeline = numbered(20).batches(5, seed=1)
    expected = epochs(numbered(20).batches(5, seed=1), 1)
    iter(pipeline)
    assert_same_epochs(expected, epochs(pipeline, 1))


class Recorder(keras.Model):
    """Keeps what `fit` feeds it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = keras.layers.Dense(1)
        self.seen: list[np.ndarray] = []

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.scale.build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.scale(x)

    def train_step(self, data: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.numpy_function(self.seen.append, [data], [])
        return {"loss": tf.reduce_mean(self(data))}


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_keras_fit_sees_each_epoch_in_turn(steps_per_execution: int) -> None:
    model = Recorder()
    model.build((None, 1))
    model.compile(optimizer="sgd", steps_per_execution=steps_per_execution)
    model.fit(numbered(22).batches(5, seed=1), epochs=3, verbose=0)
    model.fit(
        numbered(22).batches(5, seed=1, initial_epoch=3), epochs=5, initial_epoch=3, verbose=0
    )
    expected = epochs(numbered(22).batches(5, seed=1), 5)
    assert_same_epochs([model.seen], [[batch for epoch in expected for batch in epoch]])


@pytest.mark.parametrize("binarization", BINARIZATIONS)
@pytest.mark.parametrize("seed", [None, 3])
def test_indexed_batches_tell_what_they_hold(binarization: str, seed: int | None) -> None:
    if binarization == "stochastic" and seed is None:
        return
    dataset = make_dataset(binarization)
    indexed = dataset.batches(16, seed=seed, initial_epoch=1, indexed=True)
    event_shape = dataset.event_shape
    assert indexed.element_spec == {
        "x": tf.TensorSpec([None, *event_shape], tf.float32),
        "index": tf.TensorSpec([None], tf.int32),
    }
    assert int(indexed.cardinality()) == dataset.num_batches(16)
    plain = epochs(dataset.batches(16, seed=seed, initial_epoch=1), 2)
    both = [list(indexed.as_numpy_iterator()) for _ in range(2)]
    assert_same_epochs([[batch["x"] for batch in epoch] for epoch in both], plain)
    for epoch in both:
        index = np.concatenate([batch["index"] for batch in epoch])
        np.testing.assert_array_equal(np.sort(index), np.arange(len(dataset)))
        if binarization != "stochastic":
            x = np.concatenate([batch["x"] for batch in epoch])
            np.testing.assert_array_equal(x, dataset[index])


def test_bad_batch_arguments_are_refused() -> None:
    dataset = make_dataset("stochastic")
    with pytest.raises(ValueError, match=r"stochastic.*seed=<integer>"):
        dataset.batches(8)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        dataset.batches(0, seed=0)
    with pytest.raises(TypeError, match=r"batch_size must be an integer, got 2\.5"):
        dataset.num_batches(2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="initial_epoch must be at least 0"):
        dataset.batches(8, seed=0, initial_epoch=-1)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        dataset.batches(8, seed=-1)
