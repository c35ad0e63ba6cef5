"""GaussianDecoder: likelihoods p(x|z) from a network that returns the mean of real pixels."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.networks.likelihoods import GaussianLikelihood
from tfp_surgery.networks.scales import checked_scale, gaussian_parameters
from tfp_surgery.networks.wrapped_network import WrappedNetwork, described_all

tfd = tfp.distributions


@keras.saving.register_keras_serializable(package="tfp_surgery")
class GaussianDecoder(WrappedNetwork):
    """Real pixels, their mean, and their scale where asked, returned by a network.

    All dimensions of the mean but the first are those of one observation. `scale` is

    - a positive number: the scale of every pixel. The network returns the mean, one Tensor of shape
      `[B, *event_shape]`. A mean squared error of sum_i (x_i - mean_i)^2 is that of scale
      sqrt(1/2), and one averaged over n pixels that of scale sqrt(n/2);
    - "shared": one learned number, a weight of this layer, `softplus(raw) + 1e-5`, as in
      `GaussianLikelihood`. The network returns the mean;
    - what the second output of a network is that returns `(mean, second)`, both of shape
      `[B, *event_shape]`: "log_variance", "exp", "softplus", "variance" or "scale", with the
      meaning that they have for `GaussianEncoder`.

    It has no default: there is none that would suit data of every unit. Nothing keeps a scale that
    the network returns from zero.

    ```python
    decoder = tfs.networks.GaussianDecoder(network, scale="shared")
    ```
    """

    def __init__(self, network: Callable[[Any], Any], *, scale: float | str, **kwargs: Any):
        """Makes the layer.

        Args:
          network: Keras 3 layer or model, whose weights become those of this layer. Or any other
            callable; variables behind it are not trained.
          scale: See the class.
          **kwargs: Of `keras.layers.Layer`, and `conditional=True` for a layer that takes a
            condition by keyword and calls the network on `[z, condition]`.

        Raises:
          TypeError: If `network` is not callable.
          ValueError: If `scale` is none of these.
        """
        super().__init__(network, **kwargs)
        is_number = isinstance(scale, numbers.Real) and not isinstance(scale, bool)
        self.likelihood: GaussianLikelihood | None = None
        if scale == "shared" or (is_number and 0.0 < float(scale) < math.inf):
            self.scale: float | str = scale if isinstance(scale, str) else float(scale)
            self.likelihood = GaussianLikelihood(self.scale, dtype=self.dtype_policy)
        else:
            others = ', or be a positive number or "shared" where it returns the mean alone'
            self.scale = checked_scale(scale, others)

    def call(self, z: Any, condition: Any = None, training: bool | None = None) -> tfd.Independent:
        """Decodes codes.

        Args:
          z: Floating Tensor of shape `[B, D]`.
          condition: If the layer was made with `conditional=True`, B conditions.
          training: Reaches the network through Keras.

        Returns:
          p(x|z) with batch shape `[B]` and event shape `event_shape`, in float32 or wider.

        Raises:
          TypeError: If the network returns a distribution, or something else that is no Tensor.
          ValueError: If it returns another number of Tensors than `scale` says or Tensors of
            several shapes, or if a variance or scale is known not to be above
            zero.
        """
        del training
        outputs = self.outputs(z, condition)
        wanted = 1 if self.likelihood is not None else 2
        shapes = {tuple(output.shape) for output in outputs if output.shape.rank}
        if len(outputs) != wanted or len(shapes) != 1:
            expected = "one Tensor, the mean," if wanted == 1 else "(mean, second), both"
            raise ValueError(
                f"GaussianDecoder with scale={self.scale!r} takes a network that returns "
                f"{expected} of shape [B, *event_shape], and it returns {described_all(outputs)}."
            )
        if self.likelihood is not None:
            return self.likelihood(outputs[0][..., tf.newaxis])
        mean, scale = gaussian_parameters(outputs[0], outputs[1], str(self.scale))
        return tfd.Independent(tfd.Normal(mean, scale), mean.shape.rank - 1)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, serialized."""
        return {**super().get_config(), "scale": self.scale}
