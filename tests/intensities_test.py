"""What levels stand for, through `Dataset`; through `load` see `image_files_test`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tests.testing.image_sets import assert_same_epochs, epochs, make_dataset
from tfp_surgery.datasets import BINARIZATIONS, Dataset
from tfp_surgery.intensities import decided_max_level

tfd = tfp.distributions

BITS = np.random.default_rng(3).integers(0, 2, (60, 4, 1), np.uint8)


@pytest.mark.parametrize("binarization", BINARIZATIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_, np.float32, np.float64])
def test_images_of_0_and_1_are_themselves(binarization: str, dtype: type) -> None:
    """As dSprites and binarized MNIST are stored, whatever the dtype."""
    dataset = Dataset("mine", "train", BITS.astype(dtype), binarization, 0)
    np.testing.assert_array_equal(dataset.observations(draw_seed=1), BITS)
    assert dataset.max_level == 1
    is_float = np.issubdtype(dtype, np.floating)
    assert dataset.describe(draw_seed=1).endswith("levels 0 and 1") != is_float
    (batch,) = next(iter(epochs(dataset.batches(60, seed=0), 1)))
    assert batch.mean() == pytest.approx(BITS.mean(), rel=1e-6)


@pytest.mark.parametrize("binarization", BINARIZATIONS)
@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float32, np.float64])
def test_levels_mean_the_same_in_every_dtype(binarization: str, dtype: type) -> None:
    expected = make_dataset(binarization)
    max_level = 255 if np.issubdtype(dtype, np.floating) else None
    levels: Any = expected.intensities.astype(dtype)
    dataset = Dataset("random", "train", levels, binarization, 0, max_level)
    assert dataset.max_level == 255
    assert dataset.describe() == expected.describe()
    assert dataset.to_dict() == expected.to_dict()
    np.testing.assert_array_equal(
        dataset.observations(draw_seed=2), expected.observations(draw_seed=2), strict=True
    )
    assert_same_epochs(
        epochs(dataset.batches(16, seed=1), 1), epochs(expected.batches(16, seed=1), 1)
    )


@pytest.mark.parametrize("binarization", BINARIZATIONS)
def test_other_levels_are_said_by_an_argument(binarization: str) -> None:
    levels = np.random.default_rng(0).integers(0, 17, (50, 8), np.uint8)
    with pytest.raises(ValueError, match=r"from 0 to 16, which leaves open.*max_level=16 .*=255 "):
        Dataset("mine", "train", levels, binarization, 0)
    dataset = Dataset("mine", "train", levels, binarization, 0, max_level=16)
    expected = Dataset("mine", "train", levels / np.float32(16), binarization, 0)
    np.testing.assert_array_equal(
        dataset.observations(draw_seed=0), expected.observations(draw_seed=0)
    )
    assert dataset.describe().endswith("level 16 is intensity 1")


def test_a_part_of_a_data_set_keeps_what_was_decided_for_all() -> None:
    levels = np.array([[0, 1], [1, 1], [7, 255]], np.uint8)
    whole = Dataset("mine", "train", levels, "none", 0)
    dark = dataclasses.replace(whole, split="train[:2]", intensities=whole.intensities[:2])
    np.testing.assert_array_equal(dark.observations(), levels[:2] / np.float32(255))
    np.testing.assert_array_equal(whole[:2], dark.observations())
    for batch, rows in zip(whole.batches(2), (levels[:2], levels[2:]), strict=True):
        np.testing.assert_array_equal(batch, rows / np.float32(255))
    dark = Dataset("mine", "train", levels[:2], "none", 0, max_level=255)
    np.testing.assert_array_equal(dark.observations(), levels[:2] / np.float32(255))


@pytest.mark.parametrize(
    ("dtype", "high", "max_level", "decided"),
    [
        (np.uint8, 0, None, 1),  # black under every rule
        (np.uint8, 128, None, 255),
        (np.uint8, 1, 255, 255),
        (np.uint16, 4000, 65535, 65535),
        (np.bool_, True, None, 1),
        (np.float64, 0.3, None, 1),
        (np.float32, 1.0, 255, 255),
        (np.float16, 16.0, 16, 16),
    ],
)
def test_what_the_values_decide(
    dtype: type, high: Any, max_level: int | None, decided: int
) -> None:
    assert decided_max_level(np.dtype(dtype), dtype(0), dtype(high), max_level) == decided


@pytest.mark.parametrize(
    ("dtype", "low", "high", "max_level", "message"),
    [
        (np.uint8, 0, 2, None, "max_level=2 for the largest one here, or max_level=255"),
        (np.uint8, 0, 127, None, "max_level=127 .*dark images of 8 bits"),
        (np.int64, 0, 256, None, "max_level=256 .*65535 for 16 bits"),
        (np.int64, -1, 1, None, "at least 0, got values from -1 to 1"),
        (np.uint8, 0, 200, 16, r"in \[0, 16\], as max_level says, got values from 0 to 200"),
        (np.float32, 0, 255, None, r"\[0, 1\].*from 0.0 to 255.0.*max_level=255"),
        (np.float32, -1, 1, None, r"\[0, 1\], got values from -1.0 to 1.0.$"),
        (np.float32, 0, 17, 16, r"\[0, 16\], got values from 0.0 to 17.0.$"),
        (np.bool_, False, True, 255, "booleans are 0 and 1"),
        (np.uint8, 0, 1, 0, "max_level must be at least 1"),
    ],
)
def test_what_they_leave_open_or_contradict(
    dtype: type, low: Any, high: Any, max_level: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decided_max_level(np.dtype(dtype), dtype(low), dtype(high), max_level)
    with pytest.raises(ValueError, match=message):
        Dataset("mine", "train", np.array([[low, high]], dtype), "none", 0, max_level)


def test_levels_of_16_bits_keep_their_precision() -> None:
    levels = np.array([[0, 257, 65535]], np.uint16)
    dataset = Dataset("mine", "train", levels, "none", 0, max_level=65535)
    np.testing.assert_array_equal(dataset.observations(), levels / np.float32(65535))


def test_intensities_are_not_divided_twice() -> None:
    levels = make_dataset("none")
    with pytest.raises(ValueError, match="so they are no levels up to 255: leave max_level out"):
        dataclasses.replace(levels, intensities=levels.observations())
    again = dataclasses.replace(levels, intensities=levels.observations(), max_level=None)
    np.testing.assert_array_equal(again.observations(), levels.observations())


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 2), np.uint8)


class Posterior(keras.layers.Layer):
    """q(z|x) = N(x, I)."""

    def call(self, x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(x, tf.ones_like(x))


@pytest.mark.parametrize(
    "take",
    [
        tfs.ElboSurgeryCallback,
        lambda x: tfs.priors.ExemplarPrior(2, Posterior(), x),
        lambda x: tfs.priors.AggregatePrior(2, Posterior(), x),
    ],
    ids=["callback", "ExemplarPrior", "AggregatePrior"],
)
def test_raw_levels_are_not_what_a_model_was_trained_on(take: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"x holds uint8 levels up to \d+.*datasets\.Dataset"):
        take(IMAGES)
    for x in (IMAGES % 2, IMAGES.astype(np.int64), IMAGES / np.float32(255)):
        take(x)
    take(Dataset("mine", "train", IMAGES, "none", 0))
