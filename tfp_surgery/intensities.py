"""Interpretation of image values as intensities in [0, 1], or as levels up to `max_level`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.arrays import checked_numbers

# A byte above this uses its highest bit, so that there are 256 levels.
LARGEST_OF_SEVEN_BITS = 127
_LARGEST_BYTE = 255


def decided_max_level(dtype: Any, low: Any, high: Any, max_level: int | None) -> int:
    """Returns the level of intensity 1 for a whole data set.

    If `max_level` is None,

    * booleans are the intensities 0 and 1.
    * floats in [0, 1] are intensities.
    * integers 0 and 1 are the intensities 0 and 1, as in binarized MNIST or dSprites.
    * integers from 0 to 255 with one above 127 are 8-bit levels, and 255 is intensity 1.
    * all other values are ambiguous (a largest level of 16 may be one of 17 levels, or a dark 8-bit
      image) and require `max_level`.

    Args:
      dtype: Dtype of the images.
      low: Smallest value of the whole data set.
      high: Largest value of the whole data set.
      max_level: Integer of at least 1, or None.

    Returns:
      The level.

    Raises:
      TypeError: If `max_level` is not an integer.
      ValueError: If the values do not determine `max_level`, or lie outside [0, max_level].
    """
    if max_level is not None:
        max_level = checked_integer("max_level", max_level, 1)
    if dtype == np.bool_:
        if max_level not in (None, 1):
            raise ValueError(f"booleans are 0 and 1: max_level must be None, got {max_level}.")
        return 1
    if np.issubdtype(dtype, np.integer):
        return _of_integers(low, high, max_level)
    largest = 1 if max_level is None else max_level
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("intensities must be finite, got NaN or infinity.")
    if low < 0 or high > largest:
        way_out = (
            " If they are levels, max_level says which of them stands for 1: max_level=255 for "
            "images of 8 bits."
            if low >= 0 and max_level is None
            else ""
        )
        raise ValueError(
            f"floating intensities must lie in [0, {largest}], got values from {low} to {high}."
            + way_out
        )
    return largest


def _of_integers(low: Any, high: Any, max_level: int | None) -> int:
    if low < 0 or (max_level is not None and high > max_level):
        bound = "at least 0" if max_level is None else f"in [0, {max_level}], as max_level says"
        raise ValueError(f"levels must be {bound}, got values from {low} to {high}.")
    if max_level is not None:
        return max_level
    if high <= 1:
        return 1
    if LARGEST_OF_SEVEN_BITS < high <= _LARGEST_BYTE:
        return _LARGEST_BYTE
    other = "255 for dark images of 8 bits" if high < _LARGEST_BYTE else "65535 for 16 bits"
    raise ValueError(
        f"the levels go from {low} to {high}, which leaves open which level stands for intensity "
        f"1: say it, as in max_level={high} for the largest one here, or max_level={other}."
    )


def checked_images(given: Any, max_level: int | None) -> tuple[np.ndarray, int]:
    """Checks the images of a data set and determines the level of intensity 1.

    Args:
      given: Array of floats, integers or booleans, shape `[N, *event_shape]`.
      max_level: See `decided_max_level`.

    Returns:
      images: The images as a read-only array: uint8 for booleans and for integers with a level of
        at most 255, float32 otherwise. A writable array is copied.
      max_level: The level of intensity 1.

    Raises:
      TypeError: If `given` is not a NumPy array of numbers, or `max_level` is not an integer.
      ValueError: If `given` is empty, has no event dimension, or holds masked values, NaN or
        infinity, and in the cases of `decided_max_level`.
    """
    if not isinstance(given, np.ndarray):
        raise TypeError(f"intensities must be a numpy array, got {type(given).__name__}.")
    images = checked_numbers("intensities", given, "[N, *event_shape]")
    if images.ndim < 2 or 0 in images.shape:
        raise ValueError(
            "intensities must have the shape [N, *event_shape] with at least one observation and "
            f"one event dimension, none of them 0; got {list(images.shape)}."
        )
    level = decided_max_level(images.dtype, images.min(), images.max(), max_level)
    if level > 1 and images.max() <= 1 and not np.array_equal(images, np.round(images)):
        raise ValueError(
            f"intensities hold fractions up to {images.max():g}, so they are no levels up to "
            f"{level}: leave max_level out (None)."
        )
    is_integer = np.issubdtype(images.dtype, np.integer) and level <= _LARGEST_BYTE
    kept = np.uint8 if is_integer or images.dtype == np.bool_ else np.float32
    images = np.asarray(images, kept)
    if images.flags.writeable or not images.flags.owndata:
        images = np.array(images)
        images.flags.writeable = False
    return images, level


def reject_raw_levels(x: np.ndarray, name: str = "x") -> None:
    """Rejects uint8 levels as observations of a trained model, which was trained on floats.

    Args:
      x: Observations.
      name: Name of the argument, for error messages.

    Raises:
      ValueError: If `x` is uint8 with a value above 1.
    """
    if x.dtype == np.uint8 and x.max() > 1:
        raise ValueError(
            f"{name} holds uint8 levels up to {x.max()}, and a model is trained on floats: hand in "
            "what it was trained on, a tfp_surgery.datasets.Dataset or an array scaled alike "
            f"({name}.astype('float32') if it sees the levels as they are)."
        )


def described_levels(images: np.ndarray, max_level: int) -> str:
    """Describes the levels of images; empty for images given as intensities."""
    if max_level != 1:
        return f"level {max_level} is intensity 1"
    return "levels 0 and 1" if images.dtype == np.uint8 else ""
