"""The random numbers of a data set: stateless, and the same for a row in a split and its parts."""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_surgery.seeds import Seed

# Part of the entropy behind each use of a seed: uses that share the user's seed stay unrelated.
FIXED_DRAW, STATED_DRAW, EPOCH_DRAW, ORDER = range(4)

BLOCK = 1024  # rows that one key serves

# "train", "train[:500]", "train[500:1000]", "train[:10%]": parts whose first row is known.
_PART = re.compile(r"([^\[\]+]+)(?:\[(?:(\d[\d_]*)?:(?:-?\d[\d_]*)?|:\d+%)\])?")


def whole_split(split: str) -> tuple[str, int]:
    """The split that a part was taken from, and the place in it of the part's first row.

    Args:
      split: A name, or an expression of TensorFlow Datasets such as `"train[500:]"`.

    Returns:
      The name of the whole split and a number of rows; `split` itself and 0 where the expression
      alone does not tell them (`"train[10%:]"`, `"train[-500:]"`, `"train+test"`).
    """
    match = _PART.fullmatch(split)
    return (match[1], int(match[2] or 0)) if match else (split, 0)


def has_draws_of_its_own(split: str) -> bool:
    """Whether the draws of a part of a split are unrelated to those of the whole split."""
    return _PART.fullmatch(split) is None


def entropy(use: int, *numbers: Seed) -> np.random.SeedSequence:
    """What the random numbers of one use of a seed are made from.

    Args:
      use: One of the constants above.
      *numbers: Fewer than 16 seeds (integers or pairs) and other integers.
    """
    parts = [(number,) if isinstance(number, int) else number for number in numbers]
    # A SeedSequence does not tell trailing zeros from nothing, nor a pair from two numbers: how
    # many there are, and which of them are pairs, goes in front.
    form = len(parts) + sum(16 << place for place, part in enumerate(parts) if len(part) == 2)
    return np.random.SeedSequence((use, form, *(word % 2**32 for part in parts for word in part)))


def of_name(name: str) -> int:
    """A number for a name."""
    return zlib.crc32(name.encode())


def keys(source: np.random.SeedSequence, count: int) -> np.ndarray:
    """Stateless seed pairs, int32 `[count, 2]`; the first ones do not depend on `count`."""
    return source.generate_state(2 * count, np.uint32).view(np.int32).reshape(count, 2)


def uniform(shape: Any, key: Any) -> tf.Tensor:
    """Uniform numbers in [0, 1); the first rows do not depend on how many there are."""
    # Philox, named, gives the same bits on every device and in every version of TensorFlow.
    return tf.random.stateless_uniform(shape, key, alg="philox")


def bernoulli_rows(
    images: np.ndarray, max_level: int, first_row: int, source: np.random.SeedSequence
) -> np.ndarray:
    """One Bernoulli draw of every pixel, made a block of rows at a time to keep the uniforms few.

    Args:
      images: `[N, *event_shape]`, read as the rows from `first_row` on of a larger array.
      max_level: The level whose probability is 1.
      first_row: The rows of the larger array before them.
      source: The entropy of the draw of the larger array.

    Returns:
      uint8 `[N, *event_shape]`, 0 or 1.
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
