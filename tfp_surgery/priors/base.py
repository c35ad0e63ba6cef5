"""Priors p(z) as Keras layers: they own weights, if any, and build the distribution each call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.priors.standardization import Standardization, moments

tfd = tfp.distributions


class Prior(keras.layers.Layer):
    """What all priors share; each defines `call(self, condition=None)`.

    A prior creates its weights in the constructor, so that `prior()` needs no input to build it.

    Attributes:
      event_size: D, the size of a code.
      condition_size: C, the size of what the prior is conditional on; None if it is on nothing.
    """

    condition_size: int | None = None

    def __init__(self, event_size: int, **kwargs: Any):
        """Makes the layer.

        Args:
          event_size: D, the size of a code.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If `event_size` is no integer.
          ValueError: If it is below 1.
        """
        super().__init__(**kwargs)
        self.event_size = checked_integer("event_size", event_size, 1)

    @property
    def density_dtype(self) -> tf.DType:
        """The dtype of codes and densities: that of computations, or float32 if that is wider."""
        dtype = tf.as_dtype(self.compute_dtype)
        return tf.float32 if dtype.size < 4 else dtype

    @property
    def fitted_variables(self) -> Sequence[keras.Variable]:
        """The trainable variables that belong to the prior alone, not to an encoder it uses."""
        variables: list[keras.Variable] = self.trainable_variables
        return variables

    def initialize(self, codes: np.ndarray, seed: Any = 0) -> None:
        """Sets the weights to where training against these codes starts well; here, nothing.

        Args:
          codes: Draws from the aggregate posterior, floating `[M, D]`.
          seed: Integer in [0, 2**31) or pair of int32.
        """

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "event_size": self.event_size}

    def _add_weight(self, name: str, value: Any, **kwargs: Any) -> keras.Variable:
        """A weight with a first value, in the dtype of densities."""
        value = np.asarray(value)
        kwargs = {"dtype": self.density_dtype.name, "autocast": False, **kwargs}
        weight = self.add_weight(shape=value.shape, initializer="zeros", name=name, **kwargs)
        weight.assign(value)
        if not self._trainable:
            weight.trainable = False
        return weight


@keras.saving.register_keras_serializable(package="tfp_surgery")
class StandardNormalPrior(Prior):
    """The fixed prior N(0, I), without weights."""

    def call(self, condition: Any = None) -> tfd.MultivariateNormalDiag:
        """Builds the prior.

        Args:
          condition: Unused; Keras calls no layer whose `call` takes no argument.

        Returns:
          p(z) with batch shape `[]` and event shape `[D]`, in float32 or wider.
        """
        del condition
        zeros = tf.zeros([self.event_size], self.density_dtype)
        return tfd.MultivariateNormalDiag(zeros, tf.ones_like(zeros))


@keras.saving.register_keras_serializable(package="tfp_surgery")
class MomentPrior(Prior):
    """N(m, diag(s^2)) with the moments of the codes, which are not trained; N(0, I) at first."""

    def __init__(self, event_size: int, **kwargs: Any):
        """Makes the layer.

        Args:
          event_size: D, the size of a code.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If `event_size` is no integer.
          ValueError: If it is below 1.
        """
        super().__init__(event_size, **kwargs)
        self.standardization = Standardization(self.event_size, self.density_dtype)

    def initialize(self, codes: np.ndarray, seed: Any = 0) -> None:
        """Takes mean and standard deviation of each dimension from the codes.

        Args:
          codes: Draws from the aggregate posterior, floating `[M, D]`.
          seed: Unused; nothing here is random.
        """
        del seed
        self.standardization.assign(*moments(codes))

    def call(self, condition: Any = None) -> tfd.MultivariateNormalDiag:
        """Builds the prior.

        Args:
          condition: Unused; Keras calls no layer whose `call` takes no argument.

        Returns:
          p(z) with batch shape `[]` and event shape `[D]`, in float32 or wider.
        """
        del condition
        return tfd.MultivariateNormalDiag(
            tf.convert_to_tensor(self.standardization.loc),
            tf.convert_to_tensor(self.standardization.scale),
        )
