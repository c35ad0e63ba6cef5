"""Likelihoods p(x|z): layers that turn the raw output of a decoder into a distribution over x.

Values of x are intensities in [0, 1] in all of them. `BernoulliLikelihood` takes binarized ones,
0 or 1; `CategoricalLikelihood` and `DiscretizedLogisticLikelihood` the levels
`k / (num_levels - 1)`, as 8-bit images have them after a division by 255; `GaussianLikelihood`
any real number.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.distributions.discretized_logistic import DiscretizedLogistic
from tfp_surgery.networks.precision import at_least_float32

tfd = tfp.distributions

# Keeps a learned scale from reaching zero, where the density has no bound.
SCALE_FLOOR = 1e-5


class Likelihood(keras.layers.Layer):
    """Base of the likelihoods.

    `call` takes Tensors of shape `[B, *event_shape, parameters_per_value]` and returns a
    `tfd.Independent` with batch shape `[B]`, in float32 or wider.
    """

    parameters_per_value: int

    def __init__(self, **kwargs: Any):
        """Makes the layer; it takes raw outputs in the precision they come in."""
        super().__init__(autocast=False, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights, for those that have any."""

    def call(self, raw: tf.Tensor) -> tfd.Distribution:
        """Builds p(x|z) from the raw output of a network."""
        values = self.distribution_of_values(at_least_float32(raw))
        return tfd.Independent(values, reinterpreted_batch_ndims=len(raw.shape) - 2)

    def distribution_of_values(self, raw: tf.Tensor) -> tfd.Distribution:
        """The distribution with batch shape `[B, *event_shape]` and scalar events."""
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="tfp_surgery")
class BernoulliLikelihood(Likelihood):
    """Pixels that are 0 or 1; the network gives the log-odds."""

    parameters_per_value = 1

    def distribution_of_values(self, raw: tf.Tensor) -> tfd.Distribution:
        """Bernoulli with the log-odds `raw[..., 0]`."""
        return tfd.Bernoulli(logits=raw[..., 0], dtype=raw.dtype)


@keras.saving.register_keras_serializable(package="tfp_surgery")
class GaussianLikelihood(Likelihood):
    """Real pixels; the network gives the mean, and the scale where asked.

    A learned scale is `softplus(raw) + 1e-5`. It has no other floor: data with pixels that never
    vary drives a scale per pixel to the floor, and the ELBO up with it.
    """

    def __init__(self, scale: float | str = 1.0, **kwargs: Any):
        """Makes the layer.

        Args:
          scale: A positive number: fixed; "shared": one learned number, a weight of this layer;
            "per_pixel": a number for each pixel from the network.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          ValueError: If `scale` is none of these.
        """
        super().__init__(**kwargs)
        is_number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
        if scale not in ("shared", "per_pixel") and not (
            is_number and 0.0 < float(scale) < math.inf
        ):
            raise ValueError(
                f"scale must be a positive number, 'shared' or 'per_pixel', got {scale!r}."
            )
        self.scale = scale
        self.parameters_per_value = 2 if scale == "per_pixel" else 1

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weight of a shared scale."""
        del input_shape
        if self.scale == "shared":
            self.raw_scale = self.add_weight(
                shape=(), initializer="zeros", autocast=False, name="raw_scale"
            )

    def distribution_of_values(self, raw: tf.Tensor) -> tfd.Distribution:
        """Normal with the mean `raw[..., 0]`."""
        if self.scale == "per_pixel":
            scale = tf.nn.softplus(raw[..., 1]) + SCALE_FLOOR
        elif self.scale == "shared":
            scale = tf.nn.softplus(tf.cast(self.raw_scale, raw.dtype)) + SCALE_FLOOR
        else:
            scale = tf.constant(self.scale, raw.dtype)
        return tfd.Normal(loc=raw[..., 0], scale=scale)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "scale": self.scale}


class _LevelLikelihood(Likelihood):
    """A likelihood of the levels `k / (num_levels - 1)`."""

    def __init__(self, num_levels: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_levels = operator.index(num_levels)
        if self.num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, got {num_levels}.")

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "num_levels": self.num_levels}


@keras.saving.register_keras_serializable(package="tfp_surgery")
class CategoricalLikelihood(_LevelLikelihood):
    """Pixels at one of `num_levels` levels; the network gives a log-probability for each.

    Takes intensities `k / (num_levels - 1)` and not the integers k. Memory is
    `num_levels` numbers a pixel.
    """

    @property
    def parameters_per_value(self) -> int:  # type: ignore[override]
        """One logit a level."""
        return self.num_levels

    def distribution_of_values(self, raw: tf.Tensor) -> tfd.Distribution:
        """FiniteDiscrete over the levels, with the logits `raw`."""
        levels = tf.range(self.num_levels, dtype=raw.dtype) / (self.num_levels - 1)
        return tfd.FiniteDiscrete(levels, logits=raw)


@keras.saving.register_keras_serializable(package="tfp_surgery")
class DiscretizedLogisticLikelihood(_LevelLikelihood):
    """Pixels at one of `num_levels` levels; the network gives a location and a scale for each.

    The location is `0.5 + raw`, the scale `softplus(raw) / 4` and a floor: both start out near the
    middle of the unit interval and broad.
    """

    parameters_per_value = 2

    def distribution_of_values(self, raw: tf.Tensor) -> tfd.Distribution:
        """DiscretizedLogistic, its location from `raw[..., 0]`, its scale from `raw[..., 1]`."""
        scale = 0.25 * tf.nn.softplus(raw[..., 1]) + SCALE_FLOOR
        return DiscretizedLogistic(0.5 + raw[..., 0], scale, self.num_levels)
