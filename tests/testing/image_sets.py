"""Small data sets of images, and what their draws and epochs must be."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.testing.bernoulli import STANDARD_ERRORS
from tfp_surgery.datasets import Dataset


def make_dataset(
    binarization: str, num_observations: int = 50, *, split: str = "train", seed: int = 0
) -> Dataset:
    levels = np.random.default_rng(7).integers(0, 256, (num_observations, 4, 3, 1), np.uint8)
    return Dataset("random", split, levels, binarization, seed)


def numbered(num_observations: int, binarization: str = "none") -> Dataset:
    """Observation n is the one number n / 1024, exact in float32."""
    intensities = np.arange(num_observations, dtype=np.float32)[:, np.newaxis] / 1024
    return Dataset("numbered", "train", intensities, binarization, 0)


def epochs(pipeline: tf.data.Dataset, count: int) -> list[list[np.ndarray]]:
    return [list(pipeline.as_numpy_iterator()) for _ in range(count)]


def assert_same_epochs(a: list[list[np.ndarray]], b: list[list[np.ndarray]]) -> None:
    assert len(a) == len(b)
    for epoch_a, epoch_b in zip(a, b, strict=True):
        assert len(epoch_a) == len(epoch_b)
        for batch_a, batch_b in zip(epoch_a, epoch_b, strict=True):
            np.testing.assert_array_equal(batch_a, batch_b)


def assert_unrelated(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> None:
    """Independent draws disagree with probability 2 p (1 - p) at each pixel."""
    disagree = 2 * p * (1 - p)
    error = np.sqrt(np.sum(disagree * (1 - disagree)))
    assert abs(np.sum(a != b) - np.sum(disagree)) < STANDARD_ERRORS * error
