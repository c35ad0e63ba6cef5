"""Encoders: networks from observations to diagonal Gaussian posteriors q(z|x)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.networks.precision import at_least_float32

tfd = tfp.distributions

# Keeps the posterior scale from reaching zero, where its density has no bound.
SCALE_FLOOR = 1e-5


class _GaussianEncoder(keras.layers.Layer):
    """The last layer that encoders share: location and scale of a diagonal Gaussian.

    The scale is `softplus(raw) + 1e-5`: it grows linearly, so a large raw value does not
    overflow, and never is zero.
    """

    def __init__(
        self, latent_size: int, hidden_sizes: Sequence[int], activation: str, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if latent_size < 1:
            raise ValueError(f"latent_size must be at least 1, got {latent_size}.")
        self.latent_size = int(latent_size)
        self.hidden_sizes = tuple(int(size) for size in hidden_sizes)
        self.activation = activation
        self.flatten = keras.layers.Flatten(dtype=self.dtype_policy)
        self.hidden_layers = [
            keras.layers.Dense(size, activation, dtype=self.dtype_policy)
            for size in self.hidden_sizes
        ]
        self.output_layer = keras.layers.Dense(2 * self.latent_size, dtype=self.dtype_policy)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights for features of the given shape."""
        for layer in (self.flatten, *self.hidden_layers, self.output_layer):
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def posterior(self, features: tf.Tensor) -> tfd.MultivariateNormalDiag:
        """q(z|x) with batch shape `[B]` from features of shape `[B, ...]`."""
        hidden = self.flatten(features)
        for layer in self.hidden_layers:
            hidden = layer(hidden)
        loc, raw_scale = tf.split(at_least_float32(self.output_layer(hidden)), 2, axis=-1)
        return tfd.MultivariateNormalDiag(loc, tf.nn.softplus(raw_scale) + SCALE_FLOOR)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "latent_size": self.latent_size,
            "hidden_sizes": self.hidden_sizes,
            "activation": self.activation,
        }


@keras.saving.register_keras_serializable(package="tfp_surgery")
class MLPEncoder(_GaussianEncoder):
    """Fully connected layers on the flattened observation."""

    def __init__(
        self,
        latent_size: int,
        hidden_sizes: Sequence[int] = (500, 500),
        activation: str = "relu",
        **kwargs: Any,
    ):
        """Makes the layer.

        Args:
          latent_size: D, the size of a code.
          hidden_sizes: Units of each hidden layer.
          activation: Of the hidden layers, a name that Keras knows.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          ValueError: If `latent_size` is below 1.
        """
        super().__init__(latent_size, hidden_sizes, activation, **kwargs)

    def call(self, x: tf.Tensor) -> tfd.MultivariateNormalDiag:
        """Encodes observations.

        Args:
          x: Floating Tensor of shape `[B, *event_shape]`.

        Returns:
          q(z|x) with batch shape `[B]` and event shape `[D]`, in float32 or wider.
        """
        return self.posterior(x)


@keras.saving.register_keras_serializable(package="tfp_surgery")
class ConvEncoder(_GaussianEncoder):
    """Convolutions with stride 2, then fully connected layers."""

    def __init__(
        self,
        latent_size: int,
        filters: Sequence[int] = (32, 64),
        kernel_size: int = 3,
        hidden_sizes: Sequence[int] = (256,),
        activation: str = "relu",
        **kwargs: Any,
    ):
        """Makes the layer.

        Args:
          latent_size: D, the size of a code.
          filters: Channels of each convolution; each halves height and width, rounded up.
          kernel_size: Of all convolutions.
          hidden_sizes: Units of each fully connected layer after the convolutions.
          activation: Of all but the last layer, a name that Keras knows.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          ValueError: If `latent_size` is below 1.
        """
        super().__init__(latent_size, hidden_sizes, activation, **kwargs)
        self.filters = tuple(int(channels) for channels in filters)
        self.kernel_size = int(kernel_size)
        self.convolutions = [
            keras.layers.Conv2D(
                channels,
                self.kernel_size,
                strides=2,
                padding="same",
                activation=activation,
                dtype=self.dtype_policy,
            )
            for channels in self.filters
        ]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights for images of shape `[B, height, width, channels]`."""
        if len(input_shape) != 4:
            raise ValueError(
                "ConvEncoder takes images of shape [B, height, width, channels], got "
                f"{tuple(input_shape)}."
            )
        for convolution in self.convolutions:
            convolution.build(input_shape)
            input_shape = convolution.compute_output_shape(input_shape)
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tfd.MultivariateNormalDiag:
        """Encodes images.

        Args:
          x: Floating Tensor of shape `[B, height, width, channels]`.

        Returns:
          q(z|x) with batch shape `[B]` and event shape `[D]`, in float32 or wider.

        Raises:
          ValueError: If `x` has another rank.
        """
        for convolution in self.convolutions:
            x = convolution(x)
        return self.posterior(x)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "filters": self.filters, "kernel_size": self.kernel_size}
