"""BernoulliDecoder: likelihoods p(x|z) from a network that returns log-odds or probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.networks.precision import at_least_float32
from tfp_surgery.networks.wrapped_network import WrappedNetwork, described_all

tfd = tfp.distributions

# Keeps the gradient of a probability finite in training; that of Keras's binary_crossentropy.
_CLIPPED = 1e-7
_RESHAPING = (
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.Flatten,
    keras.layers.Permute,
    keras.layers.Reshape,
)


@keras.saving.register_keras_serializable(package="tfp_surgery")
class BernoulliDecoder(WrappedNetwork):
    """Pixels that are 0 or 1, their log-odds or probabilities returned by a network.

    The network returns, for codes of shape `[B, D]`, one Tensor of shape `[B, *event_shape]`. All
    of its dimensions but the first are those of one observation.

    Give log-odds where you can: leave out the last sigmoid of the network, which has no weights,
    and say `from_logits=True`. In float32 a sigmoid is exactly 1 from a log-odds of 17 on, and an
    observed 0 then has log p(x|z) = -inf, which `elbo_surgery` explains. Probabilities are measured
    as they are, without clipping. Only while training (`training=True`) are they held within
    `[1e-7, 1 - 1e-7]`, as `keras.losses.binary_crossentropy` holds them, since the gradient at
    exactly 0 or 1 is NaN. A probability outside of [0, 1] is an error, in a graph NaN.

    ```python
    decoder = tfs.networks.BernoulliDecoder(network, from_logits=True)
    ```
    """

    def __init__(self, network: Callable[[Any], Any], *, from_logits: bool, **kwargs: Any):
        """Makes the layer.

        Args:
          network: Keras 3 layer or model, whose weights become those of this layer. Or any other
            callable; variables behind it are not trained.
          from_logits: Whether it returns log-odds, log p - log(1 - p); or else probabilities.
          **kwargs: Of `keras.layers.Layer`, and `conditional=True` for a layer that takes a
            condition by keyword and calls the network on `[z, condition]`.

        Raises:
          TypeError: If `network` is not callable, or `from_logits` no bool.
          ValueError: If `from_logits` is True, and the last layer of a Sequential or Functional
            network is a sigmoid.
        """
        super().__init__(network, **kwargs)
        if not isinstance(from_logits, (bool, np.bool_)):
            raise TypeError(f"from_logits must be True or False, got {from_logits!r}.")
        self.from_logits = bool(from_logits)
        if self.from_logits and _ends_in_sigmoid(network):
            raise ValueError(
                "the last layer of the network is a sigmoid, so that it returns probabilities: say "
                "from_logits=False, or leave the sigmoid out and keep from_logits=True."
            )

    def call(self, z: Any, condition: Any = None, training: bool | None = None) -> tfd.Independent:
        """Decodes codes.

        Args:
          z: Floating Tensor of shape `[B, D]`.
          condition: If the layer was made with `conditional=True`, B conditions.
          training: Reaches the network through Keras; see the class.

        Returns:
          p(x|z) with batch shape `[B]` and event shape `event_shape`, in float32 or wider.

        Raises:
          TypeError: If the network returns a distribution, or something else that is no Tensor.
          ValueError: If it returns several Tensors, or a probability known to be outside [0, 1].
        """
        outputs = self.outputs(z, condition)
        if len(outputs) != 1 or not outputs[0].shape.rank:
            raise ValueError(
                "BernoulliDecoder takes a network that returns one Tensor of shape "
                f"[B, *event_shape], and it returns {described_all(outputs)}."
            )
        output = at_least_float32(outputs[0])
        if self.from_logits:
            pixels = tfd.Bernoulli(logits=output, dtype=output.dtype)
        else:
            pixels = tfd.Bernoulli(probs=_checked(output, bool(training)), dtype=output.dtype)
        return tfd.Independent(pixels, reinterpreted_batch_ndims=output.shape.rank - 1)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, serialized."""
        return {**super().get_config(), "from_logits": self.from_logits}


def _checked(probs: tf.Tensor, training: bool) -> tf.Tensor:
    """Probabilities, with NaN in place of what is none; in training clipped."""
    outside = (probs < 0.0) | (probs > 1.0)
    if tf.executing_eagerly() and tf.reduce_any(outside):
        number = int(tf.math.count_nonzero(outside))
        raise ValueError(
            "from_logits=False says that the network returns probabilities, but "
            f"{number} of {tf.size(probs)} lie outside [0, 1], from {tf.reduce_min(probs):.6g} to "
            f"{tf.reduce_max(probs):.6g}. If they are log-odds, from_logits=True is right."
        )
    values = tf.clip_by_value(probs, _CLIPPED, 1.0 - _CLIPPED) if training else probs
    return tf.where(outside, tf.constant(float("nan"), probs.dtype), values)


def _ends_in_sigmoid(network: Any) -> bool:
    """Whether what a Sequential or Functional network computes last is a sigmoid."""
    if isinstance(network, keras.Sequential):
        operations = network.layers
    else:
        operations = getattr(network, "operations", [network])
    for operation in reversed(operations):
        if operation is not network and isinstance(operation, keras.Model):
            return _ends_in_sigmoid(operation)
        if not isinstance(operation, _RESHAPING):
            return getattr(operation, "activation", None) is keras.activations.sigmoid
    return False
