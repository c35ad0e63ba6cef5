"""The normalizing-flow prior: RealNVP, masked autoregressive or neural spline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.priors.base import Prior
from tfp_surgery.priors.condition import batch_shape_of, check_codes, check_condition
from tfp_surgery.priors.coupling import Coupling, kept_for_one_more_call
from tfp_surgery.priors.elementwise import affine, spline
from tfp_surgery.priors.invertible_linear import InvertibleLinear, WhitenedLinear
from tfp_surgery.priors.masked import MaskedNetwork
from tfp_surgery.tfp_internals import prefer_static as ps

tfb = tfp.bijectors
tfd = tfp.distributions

KINDS = ("realnvp", "maf", "neural_spline")


@keras.saving.register_keras_serializable(package="tfp_surgery")
class FlowPrior(Prior):
    """N(0, I) seen through learned invertible layers.

        p(z) = N(f^-1(z); 0, I) |det df^-1/dz|,    f = A_1 T_1 A_2 T_2 ... A_L T_L

    The A are learned affine maps (of full rank, by their LU factorization). The first starts as
    the identity, after a fixed affine map that `initialize` sets to whiten the codes: all that is
    learned is in whitened units. The others start as random rotations. The T are of one of these
    kinds:

    - `"realnvp"`: affine couplings (Dinh, Sohl-Dickstein and Bengio 2017, "Density estimation using
      Real NVP"). One half of the coordinates sets scale and shift of the other.
    - `"maf"`: masked autoregressive layers (Papamakarios, Pavlakou and Murray 2017, "Masked
      autoregressive flow for density estimation"). The coordinates before it set scale and shift
      of each; `log_prob` is as fast as that of couplings, sampling takes D runs of each network.
    - `"neural_spline"`: couplings of monotone rational-quadratic splines, the identity outside an
      interval (Durkan et al. 2019, "Neural spline flows").

    Attributes:
      event_size: D, as given to the constructor, as are `kind`, `num_layers`, `hidden_sizes`,
        `activation`, `num_bins`, `tail_bound` and `condition_size`.
    """

    def __init__(
        self,
        event_size: int,
        kind: str = "neural_spline",
        num_layers: int = 6,
        hidden_sizes: Sequence[int] = (128, 128),
        activation: str = "relu",
        num_bins: int = 8,
        tail_bound: float = 5.0,
        condition_size: int | None = None,
        **kwargs: Any,
    ):
        """Makes the layer and its weights.

        Args:
          event_size: D, the size of a code; at least 2 for couplings.
          kind: `"realnvp"`, `"maf"` or `"neural_spline"`.
          num_layers: L.
          hidden_sizes: Units of each hidden layer of each network.
          activation: Of the hidden layers, a name that Keras knows.
          num_bins: Of a spline, at least 2.
          tail_bound: Splines act on [-tail_bound, tail_bound], in whitened units.
          condition_size: C, the size of the code that the prior is conditional on; None for none.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If a size is no integer.
          ValueError: If `kind` is another, a size is too small, there is no hidden layer, or
            `tail_bound` is not positive and finite.
        """
        super().__init__(event_size, **kwargs)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
        if kind != "maf" and self.event_size < 2:
            raise ValueError(f"couplings need an event_size of at least 2, got {event_size}.")
        if not (np.isfinite(tail_bound) and tail_bound > 0):
            raise ValueError(f"tail_bound must be positive and finite, got {tail_bound}.")
        self.kind = kind
        self.num_layers = checked_integer("num_layers", num_layers, 1)
        self.hidden_sizes = tuple(checked_integer("hidden size", s, 1) for s in hidden_sizes)
        self.activation = activation
        self.num_bins = checked_integer("num_bins", num_bins, 2)
        self.tail_bound = float(tail_bound)
        self.condition_size = condition_size
        self.networks = [self._network() for _ in range(self.num_layers)]
        size, dtype = self.event_size, self.density_dtype
        self.linears = [
            WhitenedLinear(size, dtype),
            *(InvertibleLinear(size, dtype) for _ in range(self.num_layers - 1)),
        ]

    @property
    def _num_masked(self) -> int:
        return self.event_size // 2

    def _network(self) -> MaskedNetwork:
        if self.kind == "maf":
            inputs = outputs = list(range(1, self.event_size + 1))
        else:
            inputs = [1] * self._num_masked
            outputs = [2] * (self.event_size - self._num_masked)
        params_size = 3 * self.num_bins - 1 if self.kind == "neural_spline" else 2
        return MaskedNetwork(
            inputs,
            outputs,
            params_size,
            self.hidden_sizes,
            self.activation,
            self.condition_size,
            dtype=self.dtype_policy,
        )

    def initialize(self, codes: np.ndarray, seed: Any = 0) -> None:
        """Sets the fixed affine map to whiten the codes, and the first learned one to the identity.

        Args:
          codes: Draws from the aggregate posterior, floating `[M, D]`, M at least 2.
          seed: Unused; nothing here is random.

        Raises:
          ValueError: If the codes have another shape.
        """
        del seed
        self.linears[0].whiten(check_codes(codes, self.event_size))

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
        layers = []
        for linear, network in zip(self.linears, self.networks, strict=True):
            layers += [linear.bijector(), self._bijector(network, condition)]
        shape = ps.concat([batch_shape_of(condition), [self.event_size]], axis=0)
        base = tfd.MultivariateNormalDiag(
            tf.zeros(shape, self.density_dtype), tf.ones([self.event_size], self.density_dtype)
        )
        return tfd.TransformedDistribution(base, tfb.Chain(layers))

    def _bijector(self, network: MaskedNetwork, condition: tf.Tensor | None) -> tfb.Bijector:
        def elementwise(u: tf.Tensor) -> tfb.Bijector:
            params = network(u, condition)
            if self.kind == "neural_spline":
                return spline(params, self.tail_bound)
            return affine(params)

        if self.kind == "maf":
            return tfb.MaskedAutoregressiveFlow(bijector_fn=kept_for_one_more_call(elementwise))
        return Coupling(self._num_masked, elementwise)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "kind": self.kind,
            "num_layers": self.num_layers,
            "hidden_sizes": self.hidden_sizes,
            "activation": self.activation,
            "num_bins": self.num_bins,
            "tail_bound": self.tail_bound,
            "condition_size": self.condition_size,
        }
