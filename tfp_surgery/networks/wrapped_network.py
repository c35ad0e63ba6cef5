"""WrappedNetwork: a layer around a network that returns Tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.raw_outputs import described

tfd = tfp.distributions


def described_all(outputs: list[tf.Tensor]) -> str:
    """Says how many Tensors a network returned, and of which shapes.

    Args:
      outputs: From `WrappedNetwork.outputs`.

    Returns:
      A noun phrase.
    """
    if len(outputs) == 1:
        return described(outputs[0])
    return f"{len(outputs)} outputs ({', '.join(map(described, outputs))})"


class WrappedNetwork(keras.layers.Layer):
    """Base of the layers that make a distribution of what a network returns.

    The network computes in its own dtype policy, which is that of the layer too, and creates its
    weights when it is first called.
    """

    def __init__(self, network: Callable[[Any], Any], *, conditional: bool = False, **kwargs: Any):
        """Makes the layer.

        Args:
          network: Keras 3 layer or model, whose weights become those of this layer, or a callable.
          conditional: Whether the layer takes a condition, with which the network is called on
            `[inputs, condition]`.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If `network` is not callable.
        """
        if isinstance(network, keras.layers.Layer):
            kwargs.setdefault("dtype", network.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        if not callable(network):
            raise TypeError(
                "network must be a Keras 3 layer or model, or a callable, got "
                f"{described(network)}."
            )
        self.network = network
        self.is_conditional = bool(conditional)

    def build(self, input_shape: Any) -> None:
        """Leaves the weights to the network, which creates them when it is first called."""

    def outputs(self, inputs: Any, condition: Any = None) -> list[tf.Tensor]:
        """Calls the network; `training` reaches it through Keras.

        Args:
          inputs: What the layer was called with.
          condition: Likewise; None for none.

        Returns:
          The Tensors that the network returned, at least one.

        Raises:
          TypeError: If it returned a distribution, or anything but floating Tensors or arrays; or
            if there is a condition and the layer takes none, or the other way round.
        """
        name = type(self).__name__
        if self.is_conditional == (condition is None):
            raise TypeError(
                f"this {name} was made with conditional=True and needs condition=."
                if self.is_conditional
                else f"this {name} takes no condition: made with conditional=True, it calls its "
                "network on [inputs, condition]."
            )
        returned = self.network([inputs, condition] if self.is_conditional else inputs)
        parts = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        if any(isinstance(part, tfd.Distribution) for part in parts):
            raise TypeError(
                f"the network returns a distribution already and needs no {name}: hand it in as "
                "it is."
            )
        try:
            tensors = [tf.convert_to_tensor(part) for part in parts]
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name} takes a network that returns Tensors, and it returns "
                f"{described(returned)}."
            ) from error
        if not tensors or not all(tensor.dtype.is_floating for tensor in tensors):
            dtypes = ", ".join(tensor.dtype.name for tensor in tensors) or "none"
            raise TypeError(
                f"{name} takes a network that returns floating Tensors, and it returns "
                f"{described(returned)}, dtypes: {dtypes}."
            )
        return tensors

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, serialized.

        Raises:
          ValueError: If the network is nothing that Keras can write.
        """
        if not hasattr(self.network, "get_config"):
            raise ValueError(
                f"a {type(self).__name__} whose network is a {type(self.network).__name__} cannot "
                "be written to a .keras file: make it a keras.layers.Layer with get_config, or use "
                "save_weights and load_weights."
            )
        network = keras.saving.serialize_keras_object(self.network)
        return {**super().get_config(), "network": network, "conditional": self.is_conditional}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WrappedNetwork:
        """The layer from what `get_config` gave."""
        network = keras.saving.deserialize_keras_object(config["network"])
        return cls(**{**config, "network": network})
