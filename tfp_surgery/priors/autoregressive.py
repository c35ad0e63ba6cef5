"""The autoregressive prior: each coordinate of a code a mixture given those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.distributions.autoregressive_mixture import AutoregressiveMixture
from tfp_surgery.priors.base import Prior
from tfp_surgery.priors.condition import batch_shape_of, check_codes, check_condition
from tfp_surgery.priors.invertible_linear import WhitenedLinear
from tfp_surgery.priors.masked import MaskedNetwork

tfd = tfp.distributions

# Least scale of a conditional's component, in whitened units: the density stays bounded.
_SCALE_FLOOR = 1e-3


@keras.saving.register_keras_serializable(package="tfp_surgery")
class AutoregressivePrior(Prior):
    """A product of conditionals, each a mixture of Gaussians of K components.

        p(z) = |det W| prod_j p(u_j | u_<j),    u = W (z - loc)
        p(u_j | u_<j) = sum_k w_jk(u_<j) N(u_j; m_jk(u_<j), s_jk(u_<j)^2)

    One masked network gives the parameters of all conditionals (Germain et al. 2015, "MADE: masked
    autoencoder for distribution estimation"); mixtures for real-valued conditionals are those of
    RNADE (Uria, Murray and Larochelle 2013). `log_prob` calls the network once, sampling D times,
    one coordinate after the other. `initialize` whitens the codes by a fixed affine map, with the
    principal axes in the order of their variance; a learned one follows, which starts as the
    identity, and both are in W. All that is learned is in whitened units.

    Attributes:
      event_size: D, as given to the constructor, as are `num_components`, `hidden_sizes`,
        `activation` and `condition_size`.
    """

    def __init__(
        self,
        event_size: int,
        num_components: int = 10,
        hidden_sizes: Sequence[int] = (256, 256),
        activation: str = "relu",
        condition_size: int | None = None,
        **kwargs: Any,
    ):
        """Makes the layer and its weights.

        Args:
          event_size: D, the size of a code.
          num_components: K, of each conditional.
          hidden_sizes: Units of each hidden layer of the network.
          activation: Of the hidden layers, a name that Keras knows.
          condition_size: C, the size of the code that the prior is conditional on; None for none.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If a size is no integer.
          ValueError: If a size is below 1, or there is no hidden layer.
        """
        super().__init__(event_size, **kwargs)
        self.num_components = checked_integer("num_components", num_components, 1)
        self.hidden_sizes = tuple(checked_integer("hidden size", s, 1) for s in hidden_sizes)
        self.activation = activation
        self.condition_size = condition_size
        degrees = range(1, self.event_size + 1)
        self.network = MaskedNetwork(
            degrees,
            degrees,
            3 * self.num_components,
            self.hidden_sizes,
            activation,
            condition_size,
            dtype=self.dtype_policy,
        )
        self.linear = WhitenedLinear(self.event_size, self.density_dtype)
        rng = seeds.generator(0, "autoregressive_prior/first_quantiles")
        self._spread_components(rng.normal(size=(1000, self.event_size)))

    def initialize(self, codes: np.ndarray, seed: Any = 0) -> None:
        """Whitens, and spreads the components of each conditional over the codes' quantiles.

        Args:
          codes: Draws from the aggregate posterior, floating `[M, D]`, M at least 2.
          seed: Unused; nothing here is random.

        Raises:
          ValueError: If the codes have another shape.
        """
        del seed
        codes = check_codes(codes, self.event_size)
        self._spread_components(self.linear.whiten(codes))

    def call(self, condition: Any = None) -> tfd.TransformedDistribution:
        """Builds the prior from the current values of its weights.

        Args:
          condition: Floating Tensor `[..., C]`, given if and only if the prior has a
            `condition_size`.

        Returns:
          p(z) with batch shape `[]`, or p(z|condition) with batch shape `[...]`; event shape
          `[D]`, in float32 or wider.

        Raises:
          ValueError: If there is a condition and should not be, or the other way round, or it has
            another size.
        """
        condition = check_condition(condition, self.condition_size)

        def mixture(u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            params = tf.cast(self.network(u, condition), self.density_dtype)  # [..., D, 3 K]
            logits, loc, raw_scale = tf.split(params, 3, axis=-1)
            return logits, loc, tf.nn.softplus(raw_scale) + _SCALE_FLOOR

        return tfd.TransformedDistribution(
            AutoregressiveMixture(
                mixture, self.event_size, batch_shape_of(condition), self.density_dtype
            ),
            self.linear.bijector(),
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "num_components": self.num_components,
            "hidden_sizes": self.hidden_sizes,
            "activation": self.activation,
            "condition_size": self.condition_size,
        }

    def _spread_components(self, whitened: np.ndarray) -> None:
        """Equal weights, locations at the quantiles of each coordinate, and scales of one."""
        levels = (np.arange(self.num_components) + 0.5) / self.num_components
        bias = np.zeros([self.event_size, 3, self.num_components])
        bias[:, 1] = np.quantile(whitened, levels, axis=0).T  # [D, K]
        bias[:, 2] = np.log(np.expm1(1 - _SCALE_FLOOR))
        self.network.output_layer.bias.assign(bias.reshape(-1))  # [D * 3 * K]
