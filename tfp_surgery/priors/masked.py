"""Networks with masked weights, whose outputs see only those inputs that come before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_surgery.networks.precision import at_least_float32

# Of the last layer's weights: the outputs start near their biases, with a gradient to all weights.
_OUTPUT_STDDEV = 0.01


class MaskedDense(keras.layers.Layer):
    """A dense layer in which output k sees input i only where `mask[i, k]` is true."""

    def __init__(self, mask: Any, kernel_initializer: Any = "he_normal", **kwargs: Any):
        """Makes the layer and its weights.

        Args:
          mask: Boolean array-like of shape `[inputs, units]`.
          kernel_initializer: Of the weights, as Keras takes it.
          **kwargs: Of `keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self.mask = np.asarray(mask, bool)
        self.kernel = self.add_weight(
            shape=self.mask.shape, initializer=kernel_initializer, name="kernel"
        )
        self.bias = self.add_weight(shape=self.mask.shape[1:], initializer="zeros", name="bias")
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`[..., inputs]` to `[..., units]`."""
        kernel = tf.convert_to_tensor(self.kernel)
        if not self.mask.all():
            kernel = tf.where(self.mask, kernel, tf.zeros_like(kernel))
        return tf.tensordot(inputs, kernel, axes=1) + tf.convert_to_tensor(self.bias)


class MaskedNetwork(keras.layers.Layer):
    """A residual network in which an output sees only the inputs of a lower degree.

    The masks are those of MADE (Germain et al. 2015, "MADE: masked autoencoder for distribution
    estimation", equations 8 and 9): a hidden unit of degree m sees inputs and hidden units of
    degree at most m, and an output of degree d sees hidden units of degree below d. A hidden layer
    as wide as the one before adds to it, as in ResMADE (Nash and Durkan 2019, "Autoregressive
    energy machines"), where unit k has one degree in all layers.

    A condition is seen by every unit of the first hidden layer, and so by every output.
    """

    def __init__(
        self,
        input_degrees: Sequence[int],
        output_degrees: Sequence[int],
        params_size: int,
        hidden_sizes: Sequence[int],
        activation: str = "relu",
        condition_size: int | None = None,
        **kwargs: Any,
    ):
        """Makes the network and its weights.

        Args:
          input_degrees: Of each of the inputs; for a network that is autoregressive in the order
            of the coordinates, 1 to D. Equal degrees, below those of all outputs, mask nothing.
          output_degrees: Of each of the outputs.
          params_size: P, the number of parameters that go with each output.
          hidden_sizes: Units of each hidden layer, at least one layer.
          activation: Of the hidden layers, a name that Keras knows.
          condition_size: C, the size of a condition, or None for none.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          ValueError: If there is no hidden layer, or a size is below 1.
        """
        super().__init__(**kwargs)
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise ValueError(
                f"hidden_sizes must be one or more sizes of at least 1, got {tuple(hidden_sizes)}."
            )
        if condition_size is not None and condition_size < 1:
            raise ValueError(f"condition_size must be at least 1 or None, got {condition_size}.")
        self.num_outputs, self.params_size = len(output_degrees), int(params_size)
        self.condition_size = condition_size
        self.activation = keras.activations.get(activation)

        inputs, outputs = np.asarray(input_degrees), np.asarray(output_degrees)
        # Units below all inputs see the condition alone: an output that sees no input needs them.
        highest = outputs.max() - 1
        lowest = min(inputs.min() - (condition_size is not None), highest)
        degrees = inputs
        self.hidden_layers = []
        for size in hidden_sizes:
            next_degrees = lowest + np.arange(size) * (highest - lowest + 1) // size
            mask = degrees[:, np.newaxis] <= next_degrees
            self.hidden_layers.append(MaskedDense(mask, dtype=self.dtype_policy))
            degrees = next_degrees
        self.output_layer = MaskedDense(
            degrees[:, np.newaxis] < np.repeat(outputs, self.params_size),
            kernel_initializer=keras.initializers.RandomNormal(stddev=_OUTPUT_STDDEV),
            dtype=self.dtype_policy,
        )
        self.condition_layer = None
        if condition_size is not None:
            self.condition_layer = MaskedDense(
                np.ones([condition_size, hidden_sizes[0]]), dtype=self.dtype_policy
            )
        self.built = True

    def call(self, inputs: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Computes the parameters of each output.

        Args:
          inputs: Floating Tensor of shape `[..., inputs]`.
          condition: Floating Tensor of shape `[..., C]` whose leading dimensions broadcast with
            those of the inputs, given if and only if the network has a condition size.

        Returns:
          Floating Tensor of shape `[..., outputs, P]`, in float32 or wider.
        """
        hidden = self.hidden_layers[0](inputs)
        if self.condition_layer is not None:
            hidden += self.condition_layer(condition)
        for layer in self.hidden_layers[1:]:
            added = layer(self.activation(hidden))
            hidden = hidden + added if added.shape[-1] == hidden.shape[-1] else added
        flat = at_least_float32(self.output_layer(self.activation(hidden)))
        shape = tf.concat([tf.shape(flat)[:-1], [self.num_outputs, self.params_size]], axis=0)
        params = tf.reshape(flat, shape)  # [..., outputs, P]
        params.set_shape([*flat.shape[:-1], self.num_outputs, self.params_size])
        return params
