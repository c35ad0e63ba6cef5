"""Image data sets in memory with a declared binarization."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_surgery import dataset_draws as draws
from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.arrays import reject_missing
from tfp_surgery.intensities import checked_images, described_levels

__all__ = ["BINARIZATIONS", "Dataset", "load"]

BINARIZATIONS = ("stochastic", "fixed", "threshold", "none")


def __dir__() -> list[str]:
    """Lists the public names."""
    return __all__


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """N observations with a declared binarization.

    An intensity p in [0, 1] becomes, by binarization,

    * `"stochastic"`: a Bernoulli(p) draw, redrawn in every epoch of `batches`.
    * `"fixed"`: a Bernoulli(p) draw, drawn once from `seed` and `split`.
    * `"threshold"`: 1 if p > 0.5, else 0.
    * `"none"`: p itself, for real-valued likelihoods.

    Draws are stateless: the same fields give the same bits in every process. If the name of a part
    of a split states its first row (`"train[:500]"`, `"train[500:]"`), its draws by `seed` or
    `draw_seed` equal those of the same rows of the whole split. Other parts (`"train[10%:]"`,
    `"train+test"`) have independent draws, which `describe` states.

    Attributes:
      name: Name of the data set, such as `"mnist"`.
      split: Name of the split, such as `"train"`. Two splits never share their draws.
      intensities: Intensities in [0, 1], or levels, which are `max_level` times the intensity,
        shape `[N, *event_shape]`. Floats, integers or booleans, stored as uint8 for booleans and
        for integers with `max_level` of at most 255, and as float32 otherwise. The stored array is
        read-only; a writable array is copied.
      binarization: One of `BINARIZATIONS`.
      seed: Seed of the fixed and stochastic draws: integer in [0, 2**31) or pair of int32.
      max_level: The level of intensity 1. None derives it from the values: 1 for booleans, floats
        in [0, 1] and integers 0 and 1, and 255 for integers from 0 to 255 with one above 127.
        State it if the array is only a part of a data set, since a dark part of 8-bit images may
        hold 0 and 1 alone.

    Raises:
      TypeError: If a field has the wrong type, or `intensities` is not an array of numbers.
      ValueError: If the intensities are empty, have no event dimension, are masked, not finite or
        outside [0, max_level], if their values do not determine `max_level`, or if the binarization
        or the seed is not valid.
    """

    name: str
    split: str
    intensities: np.ndarray
    binarization: str
    seed: seeds.Seed
    max_level: int | None = None

    def __post_init__(self) -> None:
        """Checks the fields and makes the intensities read-only."""
        _check_string("name", self.name)
        _check_string("split", self.split)
        _check_binarization(self.binarization)
        object.__setattr__(self, "seed", seeds.checked_seed(self.seed))
        images, max_level = checked_images(self.intensities, self.max_level)
        object.__setattr__(self, "intensities", images)
        object.__setattr__(self, "max_level", max_level)

    @property
    def num_observations(self) -> int:
        """The number of observations N."""
        return int(self.intensities.shape[0])

    def __len__(self) -> int:
        """Returns the number of observations N."""
        return self.num_observations

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        return tuple(self.intensities.shape[1:])

    def observations(self, draw_seed: Any = None) -> np.ndarray:
        """Returns all observations in order.

        Args:
          draw_seed: Seed of one draw of a stochastic binarization: integer in [0, 2**31) or pair of
            int32. Unused by the other binarizations.

        Returns:
          A new float32 array, shape `[N, *event_shape]`.

        Raises:
          ValueError: If the binarization is stochastic and `draw_seed` is None.
        """
        if self.binarization != "stochastic":
            return np.asarray(self._stored, np.float32) / self._unit
        if draw_seed is None:
            raise ValueError(
                f"{self.describe()} has no single set of observations: state the draw with "
                "draw_seed=<integer>, so that whatever is computed from it can name it."
            )
        draw_seed = seeds.checked_seed(draw_seed, "draw_seed")
        return self._draw(draws.STATED_DRAW, draw_seed).astype(np.float32)

    def __getitem__(self, indices: Any) -> np.ndarray:
        """Returns `observations()[indices]` without computing the other rows.

        Args:
          indices: An integer, a slice, an integer array or a boolean mask of shape `[N]`.

        Returns:
          A float32 array, shape `[*indices_shape, *event_shape]`.

        Raises:
          TypeError: If `indices` is a tuple: only observations are indexed.
          ValueError: If the binarization is stochastic, or `indices` has masked entries.
        """
        if isinstance(indices, tuple):
            raise TypeError(f"a Dataset is indexed by observation alone, got the tuple {indices}.")
        reject_missing("indices", indices)
        if self.binarization == "stochastic":
            raise ValueError(
                f"{self.describe()} cannot be indexed: its observations change from draw to draw; "
                "index the array that observations(draw_seed=...) returns."
            )
        return np.asarray(self._stored[indices], np.float32) / self._unit

    def num_batches(self, batch_size: int) -> int:
        """Returns the number of batches in one pass, including a smaller last one."""
        return -(-self.num_observations // checked_integer("batch_size", batch_size, 1))

    def batches(
        self,
        batch_size: int,
        *,
        seed: Any = None,
        initial_epoch: int = 0,
        indexed: bool = False,
    ) -> tf.data.Dataset:
        """Returns batches of observations as a `tf.data.Dataset`; one iteration is one epoch.

        Iteration k is epoch `initial_epoch + k`. The order of an epoch depends on `(seed, epoch)`
        alone. Its stochastic draws depend on `(seed, epoch, batch_size)` and on the `seed` and
        `split` of the data set. A run resumed at epoch e with `initial_epoch=e` therefore equals
        the uninterrupted run bit for bit. Every iteration that reads a batch consumes an epoch.
        Keras may read one to build a model: build the model before `fit` (`tfp_surgery.VAE` does).

        Args:
          batch_size: Number of observations per batch; the last batch may be smaller.
          seed: Integer in [0, 2**31) or pair of int32; None keeps the data in order.
          initial_epoch: Epoch of the first iteration.
          indexed: Whether the elements contain the indices of their observations, which priors need
            that leave out each observation's own component (`tfp_surgery.priors`).

        Returns:
          A prefetching `tf.data.Dataset` of known cardinality `num_batches(batch_size)`. Its
          elements are float32 `Tensor`s of shape `[batch, *event_shape]`; if `indexed`, dicts of
          these (`"x"`) and of int32 indices of shape `[batch]` (`"index"`).

        Raises:
          TypeError: If an argument is not an integer.
          ValueError: If an argument is out of range, or the binarization is stochastic and
            `seed` is None.
        """
        num_batches = self.num_batches(batch_size)
        batch_size = min(operator.index(batch_size), self.num_observations)
        epochs = itertools.count(checked_integer("initial_epoch", initial_epoch, 0))
        if seed is not None:
            seed = seeds.checked_seed(seed)
        elif self.binarization == "stochastic":
            raise ValueError(
                f"batches of {self.describe()} need seed=<integer>: each epoch is a draw from it."
            )
        order_seed = 0 if seed is None else seed
        num_observations, unit = self.num_observations, self._unit
        draw_seed, split = self.seed, draws.of_name(self.split)
        stochastic = self.binarization == "stochastic"
        with tf.init_scope(), tf.device("CPU:0"):
            stored = tf.constant(self._stored)

        def next_epoch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            epoch = next(epochs)
            order = np.arange(num_observations, dtype=np.int32)
            if seed is not None:
                np.random.default_rng(draws.entropy(draws.ORDER, order_seed, epoch)).shuffle(order)
            entropy = draws.entropy(draws.EPOCH_DRAW, draw_seed, split, order_seed, epoch)
            yield order, draws.keys(entropy, num_batches)

        def epoch_batches(order: tf.Tensor, keys: tf.Tensor) -> tf.data.Dataset:
            def batch(number: tf.Tensor) -> Any:
                start = number * batch_size
                index = order[start : start + batch_size]
                x = tf.gather(stored, index)
                x = tf.cast(x, tf.float32) / unit
                if stochastic:
                    x = tf.cast(draws.uniform(tf.shape(x), keys[number]) < x, tf.float32)
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
        # An iterator that is never read must not consume an epoch.
        options.experimental_warm_start = False
        return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)

    def describe(self, draw_seed: Any = None) -> str:
        """Describes the data set in one line for tables and figures.

        For example `mnist/train, N = 60000, binarization threshold, level 255 is intensity 1`.

        Args:
          draw_seed: Seed of the draw of a stochastic binarization; None if there is none.

        Returns:
          The name, the split, N, the binarization with its seeds, and the levels.
        """
        drawn = [f"seed {self.seed}"]
        if self.binarization == "stochastic":
            drawn.append("a new draw each epoch" if draw_seed is None else f"draw {draw_seed}")
        is_one_draw = self.binarization == "fixed" or draw_seed is not None
        if is_one_draw and draws.has_draws_of_its_own(self.split):
            drawn.append("draws of its own, not those of a whole split")
        parts = [self.binarization]
        if self.binarization in ("fixed", "stochastic"):
            parts = [f"{self.binarization} ({', '.join(drawn)})"]
        levels = described_levels(self.intensities, self._max_level)
        parts += [levels] if levels else []
        return (
            f"{self.name}/{self.split}, N = {self.num_observations}, "
            f"binarization {', '.join(parts)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON-ready fields that identify the data set."""
        return {
            "name": self.name,
            "split": self.split,
            "num_observations": self.num_observations,
            "event_shape": list(self.event_shape),
            "binarization": self.binarization,
            "seed": self.seed if isinstance(self.seed, int) else list(self.seed),
            "max_level": self.max_level,
        }

    def _draw(self, use: int, *numbers: seeds.Seed) -> np.ndarray:
        split, first_row = draws.whole_split(self.split)
        source = draws.entropy(use, self.seed, draws.of_name(split), *numbers)
        return draws.bernoulli_rows(self.intensities, self._max_level, first_row, source)

    @property
    def _max_level(self) -> int:
        # Never None after the fields are checked.
        return self.max_level or 1

    @functools.cached_property
    def _stored(self) -> np.ndarray:
        """The binary pixels as uint8 if the binarization fixes them, otherwise the intensities."""
        if self.binarization == "fixed":
            return self._draw(draws.FIXED_DRAW)
        if self.binarization == "threshold":
            return (self.intensities > np.float32(0.5 * self._max_level)).astype(np.uint8)
        return self.intensities

    @property
    def _unit(self) -> np.float32:
        """The value in `_stored` of intensity 1."""
        settled = self.binarization in ("fixed", "threshold")
        return np.float32(1 if settled else self._max_level)


def load(
    name: str,
    split: str = "train",
    *,
    binarization: str,
    seed: Any = 0,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    max_level: int | None = None,
) -> Dataset:
    """Loads an image data set into memory.

    `"digits"` is scikit-learn's bundled set of 1797 real 8x8 images with 17 levels (event shape
    `(8, 8, 1)`). The first 1500 images are `"train"`, the last 297 are `"test"`. Other names are
    data sets of TensorFlow Datasets (`"mnist"`, `"fashion_mnist"`, `"omniglot"`,
    `"emnist/letters"`, ...) with a uint8 feature `"image"` of one size (H, W, C). TFDS prepares a
    data set in `data_dir` once, from files in `manual_dir` or from the network, verifies its
    checksums, and later reads it without network. The level of intensity 1 is derived from all
    splits together by the rule of `Dataset`; the other splits are read if a split is dark.

    Args:
      name: `"digits"` or the name of a TFDS data set.
      split: `"train"`, `"test"`, or another split that TFDS accepts (`"train[:1000]"`).
      binarization: One of `BINARIZATIONS`; see `Dataset`.
      seed: See `Dataset`.
      data_dir: Folder of prepared TFDS data; None for the default of TFDS.
      manual_dir: Folder with the original files under their original names, for machines
        without network.
      max_level: The level of intensity 1; see `Dataset`. For `"digits"`, whose intensities are
        level / 16, None or 16.

    Returns:
      A `Dataset`.

    Raises:
      TypeError: If an argument has the wrong type.
      ValueError: If the data set, split or binarization does not exist, if the images are not uint8
        of one size, or if their levels do not determine `max_level`.
      OSError: If `manual_dir` or a file in it is missing, a checksum does not match, the
        download fails, or `data_dir` cannot be used.
    """
    _check_string("name", name)
    _check_string("split", split)
    _check_binarization(binarization)
    seed = seeds.checked_seed(seed)
    if manual_dir is not None and not Path(manual_dir).is_dir():
        raise FileNotFoundError(f"manual_dir {os.fspath(manual_dir)!r} is not an existing folder.")
    from tfp_surgery import image_files  # loads TFDS and scikit-learn

    if name == "digits":
        if max_level not in (None, 16):
            raise ValueError(
                f"the digits have the levels 0 to 16: max_level is 16, got {max_level}."
            )
        intensities, max_level = image_files.read_digits(split), None
    else:
        if max_level is not None:
            max_level = checked_integer("max_level", max_level, 1)
        intensities, max_level = image_files.read_tfds(name, split, data_dir, manual_dir, max_level)
    intensities.flags.writeable = False
    return Dataset(name, split, intensities, binarization, seed, max_level)


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
