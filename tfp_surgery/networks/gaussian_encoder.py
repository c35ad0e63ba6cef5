"""GaussianEncoder: posteriors q(z|x) from a network that returns their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.networks.scales import checked_scale, gaussian_parameters
from tfp_surgery.networks.wrapped_network import WrappedNetwork, described_all

tfd = tfp.distributions


@keras.saving.register_keras_serializable(package="tfp_surgery")
class GaussianEncoder(WrappedNetwork):
    """Diagonal Gaussian posteriors from the mean and the scale that a network returns.

    The network returns, for x of shape `[B, *event_shape]`, one of

    - `(mean, second)`, a tuple or list of two Tensors of shape `[B, D]`;
    - `(mean, second, z)`, as in the VAE example of Keras: the code z that the network has drawn
      is ignored, since codes are drawn from q(z|x);
    - one Tensor of shape `[B, 2 D]`, the mean in its first half and `second` in the other.

    `scale` says what `second` is:

    - "log_variance": scale = exp(second / 2);
    - "exp": scale = exp(second), so that it is the logarithm of the scale;
    - "softplus": scale = softplus(second);
    - "variance": scale = sqrt(second);
    - "scale": scale = second.

    It has no default: a variance that is taken for a scale is still a posterior, but another one.
    Nothing is added to a scale. The mean comes first: two outputs in the wrong order have the right
    shapes too, and cannot be told apart. Of three, one that is drawn at random must be the last,
    which is checked where the network is first run outside of a graph.

    What the network adds to the loss itself (`add_loss`) remains a penalty beside the objective of
    `VAE`; a KL divergence among it would count twice.

    ```python
    encoder = tfs.networks.GaussianEncoder(network, latent_size=2, scale="log_variance")
    ```
    """

    def __init__(
        self, network: Callable[[Any], Any], *, latent_size: int, scale: str, **kwargs: Any
    ):
        """Makes the layer.

        Args:
          network: Keras 3 layer or model, whose weights become those of this layer. Or any other
            callable; variables behind it are not trained.
          latent_size: D, the size of a code, with which the outputs are compared.
          scale: What the second output is: "log_variance", "exp", "softplus", "variance" or
            "scale".
          **kwargs: Of `keras.layers.Layer`, and `conditional=True` for a layer that takes a
            condition by keyword and calls the network on `[x, condition]`.

        Raises:
          TypeError: If `network` is not callable or `latent_size` no integer.
          ValueError: If `latent_size` is below 1, or `scale` none of these.
        """
        super().__init__(network, **kwargs)
        self.latent_size = checked_integer("latent_size", latent_size, 1)
        self.scale = checked_scale(scale)
        self._has_repeated = False

    def call(
        self, x: Any, condition: Any = None, training: bool | None = None
    ) -> tfd.MultivariateNormalDiag:
        """Encodes observations.

        Args:
          x: What the network takes, for B observations.
          condition: If the layer was made with `conditional=True`, B conditions.
          training: Reaches the network through Keras.

        Returns:
          q(z|x) with batch shape `[B]` and event shape `[D]`, in float32 or wider.

        Raises:
          TypeError: If the network returns a distribution, or something else that is no Tensor.
          ValueError: If the shapes of what it returns are none of those above, if a variance or
            scale is known not to be above zero, or if of three outputs one of the first two is
            drawn at random.
        """
        outputs = self.outputs(x, condition)
        mean, second = self._mean_and_second(outputs)
        if len(outputs) == 3 and not training and tf.executing_eagerly() and not self._has_repeated:
            self._check_order(x, condition, mean, second)
        return tfd.MultivariateNormalDiag(*gaussian_parameters(mean, second, self.scale))

    def _mean_and_second(self, outputs: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        size = self.latent_size
        ranks = {output.shape.rank for output in outputs}
        lasts = {output.shape[-1] for output in outputs} if ranks == {2} else set()
        if len(outputs) == 1 and lasts == {2 * size}:
            mean, second = tf.split(outputs[0], 2, axis=-1)
            return mean, second
        batches = {output.shape[0] for output in outputs if lasts} - {None}
        if len(outputs) in (2, 3) and lasts == {size} and len(batches) <= 1:
            return outputs[0], outputs[1]
        wanted = (
            f"one Tensor of shape [B, {2 * size}], the mean and then {self.scale!r}"
            if len(outputs) == 1
            else f"(mean, second) or (mean, second, z), each of shape [B, {size}]"
        )
        raise ValueError(
            f"with latent_size={size} the network must return {wanted}, but it returns "
            f"{described_all(outputs)}.{self._other_size(outputs, lasts)}"
        )

    def _other_size(self, outputs: list[tf.Tensor], lasts: set[int | None]) -> str:
        """The `latent_size` that would fit the last dimension of the outputs, as a question."""
        if len(lasts) != 1 or len(outputs) > 3:
            return ""
        size = max(last or 0 for last in lasts)
        if len(outputs) == 1:
            size = 0 if size % 2 else size // 2
        return f" Is it latent_size={size}?" if size not in (0, self.latent_size) else ""

    def _check_order(self, x: Any, condition: Any, mean: tf.Tensor, second: tf.Tensor) -> None:
        """Checks, once, that (mean, second, z) is not (z, mean, second): z is drawn anew."""
        again = self._mean_and_second(self.outputs(x, condition))
        for place, values, repeated in zip(("first", "second"), (mean, second), again, strict=True):
            first, other = np.asarray(values, np.float64), np.asarray(repeated, np.float64)
            if not np.allclose(first, other, rtol=1e-2, atol=1e-5, equal_nan=True):
                raise ValueError(
                    f"the {place} of the network's three outputs changes from call to call: it is "
                    "drawn at random. They must be (mean, second, z), in this order."
                )
        self._has_repeated = True

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, serialized."""
        return {**super().get_config(), "latent_size": self.latent_size, "scale": self.scale}
