"""Image data sets with a declared binarization, whole in memory and addressed by index."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_surgery import image_files
from tfp_surgery.checks import MAX_SEED, checked_integer

BINARIZATIONS = ("stochastic", "fixed", "threshold", "none")

_DRAW_BLOCK = 1024

# Part of the entropy behind each use of a seed: uses that share the user's seed stay unrelated.
_FIXED_DRAW, _STATED_DRAW, _EPOCH_DRAW, _ORDER = range(4)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """N observations with a declared binarization.

    With p an intensity in [0, 1], the observation at that position is

    * `"stochastic"`: a Bernoulli(p) draw, a new one in every epoch of `batches`;
    * `"fixed"`: one Bernoulli(p) draw, made once from `seed` and `split`;
    * `"threshold"`: 1 where p > 0.5, else 0;
    * `"none"`: p itself, for real-valued likelihoods.

    Draws are stateless: the same fields give the same bits in every process.

    Attributes:
        name: name of the data set, such as `"mnist"`.
        split: name of the split, such as `"train"`. Two splits never share their draws.
        intensities: `[N, *event_shape]`; uint8 levels (the intensity is level / 255) or floats in
            [0, 1], kept as float32. The array is kept read-only; a writable one is copied.
        binarization: one of `BINARIZATIONS`.
        seed: integer in [0, 2**31) behind the fixed and stochastic draws.

    Raises:
        TypeError: if a field has the wrong type, or `intensities` is neither uint8 nor floating.
        ValueError: if the intensities are empty, have no event dimension, are not finite or leave
            [0, 1], or the binarization or the seed is not an accepted one.
    """

    name: str
    split: str
    intensities: np.ndarray
    binarization: str
    seed: int

    def __post_init__(self) -> None:
        """Checks the fields and makes the intensities read-only."""
        _check_string("name", self.name)
        _check_string("split", self.split)
        _check_binarization(self.binarization)
        object.__setattr__(self, "seed", checked_integer("seed", self.seed, 0, MAX_SEED))
        object.__setattr__(self, "intensities", _checked_intensities(self.intensities))

    @property
    def num_observations(self) -> int:
        """N."""
        return int(self.intensities.shape[0])

    def __len__(self) -> int:
        """N."""
        return self.num_observations

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return tuple(self.intensities.shape[1:])

    def observations(self, draw_seed: int | None = None) -> np.ndarray:
        """All observations, in order.

        Args:
            draw_seed: integer in [0, 2**31) that names one draw of a stochastic binarization. The
                other binarizations have one set of observations and do not use it.

        Returns:
            A new float32 array `[N, *event_shape]`.

        Raises:
            ValueError: if the binarization is stochastic and `draw_seed` is None.
        """
        if self.binarization != "stochastic":
            return _to_float32(self._stored, self._unit)
        if draw_seed is None:
            raise ValueError(
                f"{self.describe()} has no single set of observations: state the draw with "
                "draw_seed=<integer>, so that whatever is computed from it can name it."
            )
        draw_seed = checked_integer("draw_seed", draw_seed, 0, MAX_SEED)
        return self._draw(self._entropy(_STATED_DRAW, draw_seed)).astype(np.float32)

    def __getitem__(self, indices: Any) -> np.ndarray:
        """The rows `observations()[indices]`, without making the others.

        Args:
            indices: an integer, a slice, an integer array or a boolean mask of shape `[N]`.

        Returns:
            float32 `[*indices_shape, *event_shape]`.

        Raises:
            TypeError: if `indices` is a tuple: only observations are indexed.
            ValueError: if the binarization is stochastic.
        """
        if isinstance(indices, tuple):
            raise TypeError(f"a Dataset is indexed by observation alone, got the tuple {indices}.")
        if self.binarization == "stochastic":
            raise ValueError(
                f"{self.describe()} cannot be indexed: its observations change from draw to draw; "
                "index the array that observations(draw_seed=...) returns."
            )
        return _to_float32(self._stored[indices], self._unit)

    def num_batches(self, batch_size: int) -> int:
        """Number of batches in one pass, the smaller last one included."""
        return -(-self.num_observations // checked_integer("batch_size", batch_size, 1))

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        initial_epoch: int = 0,
        indexed: bool = False,
    ) -> tf.data.Dataset:
        """Batches of observations: one iteration of the result is one pass over the data.

        Iteration k is epoch `initial_epoch + k`. The order of an epoch is a function of `(seed,
        epoch)`; its stochastic draws are one of `(seed, epoch, batch_size)` and of the data set's
        own `seed` and `split`. A run that goes on at epoch e with `initial_epoch=e` thus sees,
        bit for bit, what the uninterrupted run saw. Every iteration that reads a batch uses up an
        epoch, and Keras may read one to build a model: build the model before `fit`
        (`tfp_surgery.VAE` does).

        Args:
            batch_size: observations a batch; the last batch holds what remains.
            seed: integer in [0, 2**31); None keeps the data in order.
            initial_epoch: epoch of the first iteration.
            indexed: whether the elements tell which observations they hold, as a prior asks for
                that leaves each observation's own component out (`tfp_surgery.priors`).

        Returns:
            A prefetching `tf.data.Dataset` of known cardinality `num_batches(batch_size)` with
            float32 elements `[batch, *event_shape]`; if `indexed`, with dicts of these as `"x"`
            and of their indices as `"index"`, int32 `[batch]`.

        Raises:
            TypeError: if an argument is not an integer.
            ValueError: if an argument is out of range, or the binarization is stochastic and
                `seed` is None.
        """
        num_batches = self.num_batches(batch_size)
        batch_size = min(operator.index(batch_size), self.num_observations)
        epochs = itertools.count(checked_integer("initial_epoch", initial_epoch, 0))
        if seed is not None:
            seed = checked_integer("seed", seed, 0, MAX_SEED)
        elif self.binarization == "stochastic":
            raise ValueError(
                f"batches of {self.describe()} need seed=<integer>: each epoch is a draw from it."
            )
        num_observations, unit = self.num_observations, self._unit
        stochastic = self.binarization == "stochastic"
        with tf.init_scope(), tf.device("CPU:0"):
            stored = tf.constant(self._stored)

        def next_epoch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            epoch = next(epochs)
            order = np.arange(num_observations, dtype=np.int32)
            if seed is not None:
                np.random.default_rng(_entropy(_ORDER, seed, epoch)).shuffle(order)
            yield order, _keys(self._entropy(_EPOCH_DRAW, seed or 0, epoch), num_batches)

        def epoch_batches(order: tf.Tensor, keys: tf.Tensor) -> tf.data.Dataset:
            def batch(number: tf.Tensor) -> Any:
                start = number * batch_size
                index = order[start : start + batch_size]
                x = tf.gather(stored, index)
                x = tf.cast(x, tf.float32) / unit
                if stochastic:
                    x = tf.cast(_uniform(tf.shape(x), keys[number]) < x, tf.float32)
                return {"x": x, "index": index} if indexed else x

            numbers = tf.data.Dataset.range(num_batches, output_type=tf.int32)
            return numbers.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

        dataset = tf.data.Dataset.from_generator(
            next_epoch,
            output_signature=(
                tf.TensorSpec([num_observations], tf.int32),
                tf.TensorSpec([num_batches, 2], tf.int32),
            ),
        ).flat_map(epoch_batches)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
        options = tf.data.Options()
        # An iterator that is made and never read must not use up an epoch.
        options.experimental_warm_start = False
        return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)

    def describe(self, draw_seed: int | None = None) -> str:
        """One line for tables and figures, e.g. `mnist/train, N = 60000, binarization threshold`.

        Args:
            draw_seed: the draw that a stochastic binarization was observed with, if one was.

        Returns:
            The name, the split, N and the binarization with the seeds behind it.
        """
        seeds = {
            "fixed": f" (seed {self.seed})",
            "stochastic": f" (seed {self.seed}, "
            + ("a new draw each epoch)" if draw_seed is None else f"draw {draw_seed})"),
        }.get(self.binarization, "")
        return (
            f"{self.name}/{self.split}, N = {self.num_observations}, "
            f"binarization {self.binarization}{seeds}"
        )

    def to_dict(self) -> dict[str, Any]:
        """What names this data set, in types that JSON knows."""
        return {
            "name": self.name,
            "split": self.split,
            "num_observations": self.num_observations,
            "event_shape": list(self.event_shape),
            "binarization": self.binarization,
            "seed": self.seed,
        }

    def _entropy(self, use: int, *numbers: int) -> np.random.SeedSequence:
        return _entropy(use, self.seed, zlib.crc32(self.split.encode()), *numbers)

    def _draw(self, entropy: np.random.SeedSequence) -> np.ndarray:
        """One Bernoulli draw as uint8, made a block of rows at a time to keep the uniforms few."""
        draw = np.empty(self.intensities.shape, np.uint8)
        starts = range(0, len(draw), _DRAW_BLOCK)
        with tf.init_scope(), tf.device("CPU:0"):
            for start, key in zip(starts, _keys(entropy, len(starts)), strict=True):
                rows = slice(start, start + _DRAW_BLOCK)
                p = _to_float32(self.intensities[rows], _unit_of(self.intensities))
                draw[rows] = _uniform(p.shape, key).numpy() < p
        return draw

    @functools.cached_property
    def _stored(self) -> np.ndarray:
        """Binary pixels as uint8 where they are settled, the intensities otherwise."""
        if self.binarization == "fixed":
            return self._draw(self._entropy(_FIXED_DRAW))
        if self.binarization == "threshold":
            return (self.intensities > 0.5 * _unit_of(self.intensities)).astype(np.uint8)
        return self.intensities

    @property
    def _unit(self) -> np.float32:
        """The number in `_stored` that stands for 1."""
        settled = self.binarization in ("fixed", "threshold")
        return np.float32(1) if settled else _unit_of(self.intensities)


def load(
    name: str,
    split: str = "train",
    *,
    binarization: str,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads an image data set into memory.

    `"digits"` is scikit-learn's bundled set of 1797 real 8x8 images with 17 levels (event shape
    `(8, 8, 1)`); it is read from the installed package. Its split is by position: the first 1500
    images are `"train"`, the last 297 are `"test"`. Every other name is one of TensorFlow
    Datasets (`"mnist"`, `"fashion_mnist"`, `"omniglot"`, `"emnist/letters"`, ...) whose feature
    `"image"` is uint8 and of one size (H, W, C). TFDS prepares it in `data_dir` once, from files
    in `manual_dir` or from the network, verifies the checksums it has on record, and reads it
    without the network from then on. Levels 0 and 1 alone, as in `"dsprites"`, count as the
    intensities 0 and 1; otherwise the intensity is level / 255.

    Args:
        name: `"digits"` or the name of a TFDS data set.
        split: `"train"`, `"test"`, or what else TFDS accepts for the data set (`"train[:1000]"`).
        binarization: one of `BINARIZATIONS`; see `Dataset`.
        seed: seed of the fixed and stochastic draws.
        data_dir: folder of prepared TFDS data; None for TFDS's own default.
        manual_dir: folder with the original files under their original names, for machines
            without network.

    Returns:
        The `Dataset`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if there is no such data set, split or binarization, or the data set does not
            hold uint8 images of one size.
        OSError: if `manual_dir` or a file in it is missing, a checksum does not match, the
            download fails, or `data_dir` cannot be used.
    """
    _check_string("name", name)
    _check_string("split", split)
    _check_binarization(binarization)
    checked_integer("seed", seed, 0, MAX_SEED)
    if manual_dir is not None and not Path(manual_dir).is_dir():
        raise FileNotFoundError(f"manual_dir {os.fspath(manual_dir)!r} is not an existing folder.")
    if name == "digits":
        intensities = image_files.read_digits(split)
    else:
        intensities = image_files.read_tfds(name, split, data_dir, manual_dir)
    intensities.flags.writeable = False
    return Dataset(name, split, intensities, binarization, seed)


def _check_string(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r}.")
    if not value:
        raise ValueError(f"{name} must not be empty.")


def _check_binarization(binarization: Any) -> None:
    if binarization not in BINARIZATIONS:
        raise ValueError(
            f"binarization must be one of {', '.join(BINARIZATIONS)}, got {binarization!r}."
        )


def _checked_intensities(given: Any) -> np.ndarray:
    if not isinstance(given, np.ndarray):
        raise TypeError(f"intensities must be a numpy array, got {type(given).__name__}.")
    intensities: np.ndarray = given
    if intensities.ndim < 2 or 0 in intensities.shape:
        raise ValueError(
            "intensities must have the shape [N, *event_shape] with at least one observation and "
            f"one event dimension, none of them 0; got {list(intensities.shape)}."
        )
    if np.issubdtype(intensities.dtype, np.floating):
        low, high = intensities.min(), intensities.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("intensities must be finite, got NaN or infinity.")
        if low < 0 or high > 1:
            raise ValueError(
                f"floating intensities must lie in [0, 1], got values from {low} to {high}."
            )
        intensities = np.asarray(intensities, np.float32)
    elif intensities.dtype != np.uint8:
        raise TypeError(
            "intensities must be uint8 levels (0 to 255) or floats in [0, 1], got "
            f"{intensities.dtype}."
        )
    if intensities.flags.writeable or not intensities.flags.owndata:
        intensities = np.array(intensities)
        intensities.flags.writeable = False
    return intensities


def _unit_of(intensities: np.ndarray) -> np.float32:
    return np.float32(255 if intensities.dtype == np.uint8 else 1)


def _to_float32(stored: np.ndarray, unit: np.float32) -> np.ndarray:
    x: np.ndarray = np.asarray(stored, np.float32) / unit
    return x


def _entropy(use: int, *numbers: int) -> np.random.SeedSequence:
    # A SeedSequence does not tell trailing zeros from nothing: the length goes in front.
    return np.random.SeedSequence((use, len(numbers), *numbers))


def _keys(entropy: np.random.SeedSequence, count: int) -> np.ndarray:
    """Stateless seed pairs, int32 `[count, 2]`."""
    return entropy.generate_state(2 * count, np.uint32).view(np.int32).reshape(count, 2)


def _uniform(shape: Any, key: Any) -> tf.Tensor:
    # Philox, named, gives the same bits on every device and in every version of TensorFlow.
    return tf.random.stateless_uniform(shape, key, alg="philox")
