"""Stateless random numbers of data sets, equal for a row of a split and of its parts."""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_surgery.seeds import Seed

# Part of the entropy of each use of a seed, so that uses of the same seed are independent.
FIXED_DRAW, STATED_DRAW, EPOCH_DRAW, ORDER = range(4)

BLOCK = 1024  # rows per key

# "train", "train[:500]", "train[500:1000]", "train[:10%]": parts whose first row is known.
_PART = re.compile(r"([^\[\]+]+)(?:\[(?:(\d[\d_]*)?:(?:-?\d[\d_]*)?|:\d+%)\])?")


def whole_split(split: str) -> tuple[str, int]:
    """Returns the whole split of a part, and the index of the part's first row in it.

    Args:
      split: A name, or an expression of TensorFlow Datasets such as `"train[500:]"`.

    Returns:
      The name of the whole split and the index; `split` itself and 0 if the expression does not
      determine them (`"train[10%:]"`, `"train[-500:]"`, `"train+test"`).
    """
    match = _PART.fullmatch(split)
    return (match[1], int(match[2] or 0)) if match else (split, 0)


def has_draws_of_its_own(split: str) -> bool:
    """Returns whether the draws of a part of a split are independent of those of the split."""
    return _PART.fullmatch(split) is None


def entropy(use: int, *numbers: Seed) -> np.random.SeedSequence:
    """Returns the entropy of one use of a seed.

    Args:
      use: One of the constants above.
      *numbers: Fewer than 16 seeds (integers or pairs) and other integers.

    Returns:
      A `SeedSequence`, different for different arguments.
    """
    parts = [(number,) if isinstance(number, int) else number for number in numbers]
    # A SeedSequence ignores trailing zeros and the grouping of pairs: the number of parts and the
    # positions of pairs come first.
    form = len(parts) + sum(16 << place for place, part in enumerate(parts) if len(part) == 2)
    return np.random.SeedSequence((use, form, *(word % 2**32 for part in parts for word in part)))


def of_name(name: str) -> int:
    """Returns a hash of a name as an integer."""
    return zlib.crc32(name.encode())


def keys(source: np.random.SeedSequence, count: int) -> np.ndarray:
    """Returns stateless seeds, int32 `[count, 2]`; the first ones do not depend on `count`."""
    return source.generate_state(2 * count, np.uint32).view(np.int32).reshape(count, 2)


def uniform(shape: Any, key: Any) -> tf.Tensor:
    """Draws uniform numbers in [0, 1); the first rows do not depend on the number of rows."""
    # The default algorithm depends on the device and the version of TensorFlow.
    return tf.random.stateless_uniform(shape, key, alg="philox")


def bernoulli_rows(
    images: np.ndarray, max_level: int, first_row: int, source: np.random.SeedSequence
) -> np.ndarray:
    """Draws every pixel from a Bernoulli distribution, block by block to save memory.

    Args:
      images: Levels, shape `[N, *event_shape]`, the rows from `first_row` on of a larger array.
      max_level: The level of probability 1.
      first_row: Index of the first row in the larger array.
      source: Entropy of the draw of the larger array.

    Returns:
      A uint8 array of 0 and 1, shape `[N, *event_shape]`.
    """
    draw = np.empty(images.shape, np.uint8)
    end = first_row + len(images)
    block_keys = keys(source, -(-end // BLOCK))
    with tf.init_scope(), tf.device("CPU:0"):
        for block in range(first_row // BLOCK, len(block_keys)):
            top, bottom = block * BLOCK, min((block + 1) * BLOCK, end)
            noise = uniform((bottom - top, *images.shape[1:]), block_keys[block]).numpy()
            start = max(top, first_row)
            rows = slice(start - first_row, bottom - first_row)
            p = np.asarray(images[rows], np.float32) / np.float32(max_level)
            draw[rows] = noise[start - top :] < p
    return draw
