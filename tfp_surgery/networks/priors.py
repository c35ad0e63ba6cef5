"""Priors p(z) as Keras layers: they own weights, if any, and build the distribution each call."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


@keras.saving.register_keras_serializable(package="tfp_surgery")
class StandardNormalPrior(keras.layers.Layer):
    """The fixed prior N(0, I), without weights."""

    def __init__(self, event_size: int, **kwargs: Any):
        """Makes the layer.

        Args:
          event_size: D, the size of a code.
          **kwargs: of `keras.layers.Layer`.

        Raises:
          ValueError: if `event_size` is below 1.
        """
        super().__init__(**kwargs)
        if event_size < 1:
            raise ValueError(f"event_size must be at least 1, got {event_size}.")
        self.event_size = int(event_size)

    def call(self, condition: Any = None) -> tfd.MultivariateNormalDiag:
        """Builds the prior.

        Args:
          condition: unused; Keras calls no layer whose `call` takes no argument.

        Returns:
          p(z) with batch shape `[]` and event shape `[D]`, in float32 or wider.
        """
        del condition
        dtype = tf.as_dtype(self.compute_dtype)
        dtype = tf.float32 if dtype.size < 4 else dtype
        zeros = tf.zeros([self.event_size], dtype)
        return tfd.MultivariateNormalDiag(zeros, tf.ones_like(zeros))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "event_size": self.event_size}
