"""Decoders: networks from codes to distributions p(x|z) over observations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.networks.likelihoods import BernoulliLikelihood, Likelihood

tfd = tfp.distributions


class _Decoder(keras.layers.Layer):
    """What decoders share: the event shape, hidden layers on the code, and the likelihood."""

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden_sizes: Sequence[int],
        activation: str,
        likelihood: Likelihood | None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.event_shape = tuple(int(size) for size in event_shape)
        if not self.event_shape or min(self.event_shape) < 1:
            raise ValueError(f"event_shape must hold positive sizes, got {event_shape}.")
        if likelihood is None:
            likelihood = BernoulliLikelihood()
        elif not isinstance(likelihood, Likelihood):
            raise TypeError(
                "likelihood must be one of tfp_surgery.networks.likelihoods, such as "
                f"GaussianLikelihood(), got {likelihood!r}."
            )
        self.likelihood = likelihood
        self.hidden_sizes = tuple(int(size) for size in hidden_sizes)
        self.activation = activation
        self.hidden_layers = [
            keras.layers.Dense(size, activation, dtype=self.dtype_policy)
            for size in self.hidden_sizes
        ]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights for codes of shape `[B, D]`."""
        for layer in self.hidden_layers:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)
        self._build_output(input_shape)
        if not self.likelihood.built:  # Keras builds the parts of a decoder that it loads
            self.likelihood.build((None, *self.event_shape, self.likelihood.parameters_per_value))

    def _build_output(self, hidden_shape: tuple[int | None, ...]) -> None:
        self.output_layer.build(hidden_shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "event_shape": self.event_shape,
            "hidden_sizes": self.hidden_sizes,
            "activation": self.activation,
            "likelihood": keras.saving.serialize_keras_object(self.likelihood),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _Decoder:
        """The layer from what `get_config` gave."""
        likelihood = keras.saving.deserialize_keras_object(config["likelihood"])
        decoder: _Decoder = super().from_config({**config, "likelihood": likelihood})
        return decoder


@keras.saving.register_keras_serializable(package="tfp_surgery")
class MLPDecoder(_Decoder):
    """Fully connected layers from the code to all pixels."""

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden_sizes: Sequence[int] = (500, 500),
        activation: str = "relu",
        likelihood: Likelihood | None = None,
        **kwargs: Any,
    ):
        """Makes the layer.

        Args:
          event_shape: The shape of one observation, of any rank from 1.
          hidden_sizes: Units of each hidden layer.
          activation: Of the hidden layers, a name that Keras knows.
          likelihood: One of `tfp_surgery.networks.likelihoods`; `BernoulliLikelihood()` if None.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If `likelihood` is something else.
          ValueError: If `event_shape` is empty or holds sizes below 1.
        """
        super().__init__(event_shape, hidden_sizes, activation, likelihood, **kwargs)
        self.output_layer = keras.layers.Dense(
            math.prod(self.event_shape) * self.likelihood.parameters_per_value,
            dtype=self.dtype_policy,
        )

    def call(self, z: tf.Tensor) -> tfd.Independent:
        """Decodes codes.

        Args:
          z: Floating Tensor of shape `[B, D]`.

        Returns:
          p(x|z) with batch shape `[B]` and the decoder's event shape, in float32 or wider.
        """
        for layer in self.hidden_layers:
            z = layer(z)
        raw = self.output_layer(z)
        raw_shape = (-1, *self.event_shape, self.likelihood.parameters_per_value)
        return self.likelihood(tf.reshape(raw, raw_shape))  # [B, *event_shape, parameters]


@keras.saving.register_keras_serializable(package="tfp_surgery")
class ConvDecoder(_Decoder):
    """Fully connected layers, then transposed convolutions with stride 2.

    Mirrors `ConvEncoder`: the sizes are those of repeated halving, rounded up, and where a
    doubling overshoots an odd size the last row and column are cut off.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        filters: Sequence[int] = (64, 32),
        kernel_size: int = 3,
        hidden_sizes: Sequence[int] = (256,),
        activation: str = "relu",
        likelihood: Likelihood | None = None,
        **kwargs: Any,
    ):
        """Makes the layer.

        Args:
          event_shape: `[height, width, channels]` of one image.
          filters: Channels of each transposed convolution; each doubles height and width.
          kernel_size: Of all convolutions.
          hidden_sizes: Units of each fully connected layer before the convolutions.
          activation: Of all but the last layer, a name that Keras knows.
          likelihood: One of `tfp_surgery.networks.likelihoods`; `BernoulliLikelihood()` if None.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If `likelihood` is something else.
          ValueError: If `event_shape` is not `[height, width, channels]`, or `filters` is empty.
        """
        super().__init__(event_shape, hidden_sizes, activation, likelihood, **kwargs)
        self.filters = tuple(int(channels) for channels in filters)
        self.kernel_size = int(kernel_size)
        if len(self.event_shape) != 3:
            raise ValueError(
                f"event_shape must be [height, width, channels], got {list(self.event_shape)}."
            )
        if not self.filters:
            raise ValueError("filters must name at least one transposed convolution.")
        # Height and width before each transposed convolution, the smallest first.
        self._sizes = [self.event_shape[:2]]
        for _ in self.filters:
            height, width = self._sizes[0]
            self._sizes.insert(0, (-(-height // 2), -(-width // 2)))
        height, width = self._sizes[0]
        self.first_layer = keras.layers.Dense(
            height * width * self.filters[0], activation, dtype=self.dtype_policy
        )
        self.convolutions = [
            keras.layers.Conv2DTranspose(
                channels,
                self.kernel_size,
                strides=2,
                padding="same",
                activation=activation,
                dtype=self.dtype_policy,
            )
            for channels in self.filters
        ]
        self.output_layer = keras.layers.Conv2D(
            self.event_shape[2] * self.likelihood.parameters_per_value,
            self.kernel_size,
            padding="same",
            dtype=self.dtype_policy,
        )

    def _build_output(self, hidden_shape: tuple[int | None, ...]) -> None:
        self.first_layer.build(hidden_shape)
        channels = self.filters[0]
        for convolution, size in zip(self.convolutions, self._sizes, strict=False):
            convolution.build((None, *size, channels))
            channels = convolution.filters
        self.output_layer.build((None, *self.event_shape[:2], channels))

    def call(self, z: tf.Tensor) -> tfd.Independent:
        """Decodes codes.

        Args:
          z: Floating Tensor of shape `[B, D]`.

        Returns:
          p(x|z) with batch shape `[B]` and the decoder's event shape, in float32 or wider.
        """
        for layer in self.hidden_layers:
            z = layer(z)
        image = tf.reshape(self.first_layer(z), (-1, *self._sizes[0], self.filters[0]))
        for convolution, (height, width) in zip(self.convolutions, self._sizes[1:], strict=True):
            image = convolution(image)[:, :height, :width, :]
        raw_shape = (-1, *self.event_shape, self.likelihood.parameters_per_value)
        return self.likelihood(tf.reshape(self.output_layer(image), raw_shape))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "filters": self.filters, "kernel_size": self.kernel_size}
