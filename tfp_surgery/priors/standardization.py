"""Location and scale of codes as fixed weights: the units in which a prior's own weights live."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf


class Standardization(keras.layers.Layer):
    """The map u = (z - loc) / scale, which is not trained: the identity until `assign`.

    A prior whose parameters are those of u learns the same in every unit of z: a step of an
    optimizer, the floor of a scale and the random start of a network all count in standard
    deviations of the codes.

    Attributes:
      loc: Weight `[D]`.
      scale: Weight `[D]`, positive.
    """

    def __init__(self, event_size: int, dtype: tf.DType, **kwargs: Any):
        """Makes the layer.

        Args:
          event_size: D.
          dtype: Of the weights.
          **kwargs: Of `keras.layers.Layer`.
        """
        super().__init__(dtype=dtype.name, **kwargs)
        # Not trainable as weights: what freezes and thaws the layer around them leaves them so.
        settings: dict[str, Any] = {"trainable": False, "autocast": False}
        self.loc = self.add_weight((event_size,), "zeros", name="loc", **settings)
        self.scale = self.add_weight((event_size,), "ones", name="scale", **settings)
        self.built = True

    def assign(self, loc: np.ndarray, scale: np.ndarray) -> None:
        """Sets loc and scale, each `[D]`."""
        self.loc.assign(loc)
        self.scale.assign(scale)

    def call(self, z: tf.Tensor) -> tf.Tensor:
        """u of codes z `[..., D]`."""
        return (z - tf.convert_to_tensor(self.loc)) / tf.convert_to_tensor(self.scale)


def moments(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each dimension of codes.

    A dimension in which all codes are equal has no scale of its own: it gets the root mean square
    of the others' standard deviations, and 1 where no dimension varies.

    Args:
      codes: Floating `[M, D]`, finite.

    Returns:
      Two float64 arrays `[D]`; the second is positive.
    """
    codes = np.asarray(codes, np.float64)
    varies = np.ptp(codes, axis=0) > 0  # of equal numbers the deviation may be a rounding error
    scale = codes.std(axis=0)
    others = np.sqrt(np.mean(scale[varies] ** 2)) if varies.any() else 1.0
    return codes.mean(axis=0), np.where(varies, scale, others)
