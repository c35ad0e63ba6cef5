"""The resampled prior: another prior, corrected by a learned acceptance probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.distributions.resampled import Resampled
from tfp_surgery.priors.base import MomentPrior, Prior
from tfp_surgery.priors.condition import check_codes
from tfp_surgery.priors.standardization import Standardization, moments


@keras.saving.register_keras_serializable(package="tfp_surgery")
class ResampledPrior(Prior):
    r"""Learned accept/reject sampling (LARS) of Bauer and Mnih (2019) over a base prior pi.

    A network of tanh layers with a sigmoid at its end gives a(z), the probability that a proposal
    z ~ pi is accepted; the T-th proposal always is. The network sees standardised codes, by the
    moments that `initialize` takes, and z itself before that. See
    `tfp_surgery.distributions.resampled.Resampled` for the density, and for the effect of its
    estimated normaliser Z = E_pi[a(z)].

    #### Which draws estimate Z

    `prior()` uses the same `num_normalizer_samples` draws in each call. The density is a function
    of the weights alone: the same in each call and after loading. (Under XLA a seed gives other
    draws, and the density differs within its error.) All codes share the error of the estimate,
    `prior().log_normalizer_standard_error`. Each call scores all these draws: call once, and keep
    the distribution for many measurements.

    `prior(training=True)` uses `num_training_samples` draws, which change whenever the weights do:
    the bits of the acceptance network's weights are folded into their seed. A step of training
    needs no seed and no state, cannot learn the draws by heart, and is repeated by a resumed run.
    Training with `prior()` works too, and a step costs more. But then the draws that measure Z are
    those that trained it, and Z comes out too small: measure with another `seed`.

    The paper averages Z over steps for the value of its objective, and takes the gradient from the
    draws of the step, to which it adds the code at hand with its importance weight. Here the
    gradient is from the draws of the step, without that code (its weight needs the posterior).

    Attributes:
      base: The prior of the proposals.
    """

    def __init__(
        self,
        event_size: int,
        truncation: int = 100,
        hidden_sizes: Sequence[int] = (100, 100),
        base: Prior | None = None,
        num_normalizer_samples: int = 2**16,
        num_training_samples: int = 2**12,
        seed: Any = 0,
        **kwargs: Any,
    ):
        """Makes the layer.

        Args:
          event_size: D, the size of a code.
          truncation: T, the most proposals that a draw costs, at least 1.
          hidden_sizes: Units of each hidden layer of the acceptance network.
          base: The prior that is resampled, over codes of the same size and dtype. It is trained
            together with the acceptance network if it is trainable. If None, N(0, I), and after
            `initialize` the Gaussian of the codes' mean and variances; it is not trained.
          num_normalizer_samples: Draws from the base that estimate Z, at least 2.
          num_training_samples: The same for calls with `training=True`.
          seed: Integer in [0, 2**31) or pair of int32, of the draws that estimate Z.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If `base` is no prior layer, or a number is no integer.
          ValueError: If a number is out of range, or the base is over other codes.
        """
        super().__init__(event_size, **kwargs)
        dtype = self.density_dtype.name
        self.base = MomentPrior(self.event_size, dtype=dtype) if base is None else base
        if not isinstance(self.base, Prior):
            raise TypeError(f"base must be a prior layer, got {type(base).__name__}.")
        if (self.base.event_size, self.base.density_dtype.name) != (self.event_size, dtype):
            raise ValueError(
                f"base must be a prior over codes of size {self.event_size} in {dtype}, but it is "
                f"over codes of size {self.base.event_size} in {self.base.density_dtype.name}."
            )
        self.truncation = checked_integer("truncation", truncation, 1)
        self.hidden_sizes = tuple(
            checked_integer("each of hidden_sizes", size, 1) for size in hidden_sizes
        )
        self.num_normalizer_samples = checked_integer(
            "num_normalizer_samples", num_normalizer_samples, 2
        )
        self.num_training_samples = checked_integer("num_training_samples", num_training_samples, 2)
        self.seed = seeds.checked_seed(seed)
        self.standardization = Standardization(self.event_size, self.density_dtype)
        self.acceptance_layers = [
            *(keras.layers.Dense(size, "tanh", dtype=dtype) for size in self.hidden_sizes),
            keras.layers.Dense(1, dtype=dtype),
        ]
        for layer, size in zip(
            self.acceptance_layers, (self.event_size, *self.hidden_sizes), strict=True
        ):
            layer.build((None, size))

    @property
    def fitted_variables(self) -> Sequence[keras.Variable]:
        """Those of the base, and the weights of the acceptance network."""
        return [*self.base.fitted_variables, *self._acceptance_weights()]

    def initialize(self, codes: np.ndarray, seed: Any = 0) -> None:
        """Initialises the base, and sets the units in which the acceptance network sees codes.

        Args:
          codes: Draws from the aggregate posterior, floating `[M, D]`, M at least 2.
          seed: Integer in [0, 2**31) or pair of int32, of the base.

        Raises:
          ValueError: If the codes have another shape, or are not finite.
        """
        checked = check_codes(codes, self.event_size)
        self.base.initialize(codes, seed)
        self.standardization.assign(*moments(checked))

    def log_acceptance(self, z: tf.Tensor) -> tf.Tensor:
        """log a(z), shape `[...]`, of codes of shape `[..., D]`."""
        hidden = tf.reshape(self.standardization(z), [-1, self.event_size])  # [..., D] -> [M, D]
        for layer in self.acceptance_layers:
            hidden = layer(hidden)
        return tf.math.log_sigmoid(tf.reshape(hidden, tf.shape(z)[:-1]))  # [M, 1] -> [...]

    def call(self, condition: Any = None, training: bool = False) -> Resampled:
        """Builds the prior.

        Args:
          condition: None.
          training: Whether Z is estimated by few draws that change with the weights.

        Returns:
          p(z) with batch shape `[]` and event shape `[D]`, in float32 or wider.

        Raises:
          ValueError: If there is a condition.
        """
        if condition is not None:
            raise ValueError(
                "a ResampledPrior takes no condition: its normaliser would have to be estimated "
                "for each."
            )
        if training:
            bits = self._weight_bits()
            seed = seeds.key(self.seed, "resampled_prior/training_normalizer", bits)
        else:
            seed = seeds.key(self.seed, "resampled_prior/normalizer")
        return Resampled.with_estimated_normalizer(
            self.base(),
            self.log_acceptance,
            self.truncation,
            self.num_training_samples if training else self.num_normalizer_samples,
            seed,
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "truncation": self.truncation,
            "hidden_sizes": self.hidden_sizes,
            "base": keras.saving.serialize_keras_object(self.base),
            "num_normalizer_samples": self.num_normalizer_samples,
            "num_training_samples": self.num_training_samples,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ResampledPrior:
        """The layer from what `get_config` gave."""
        base = keras.saving.deserialize_keras_object(config["base"])
        return cls(**{**config, "base": base})

    def _acceptance_weights(self) -> list[keras.Variable]:
        return [w for layer in self.acceptance_layers for w in layer.trainable_variables]

    def _weight_bits(self) -> tf.Tensor:
        """A number below 2**31 that changes when the acceptance network does."""
        sums = []
        for layer in self.acceptance_layers:
            for weight in layer.weights:
                bits = tf.bitcast(tf.convert_to_tensor(weight), tf.int32)
                sums.append(tf.reduce_sum(tf.cast(bits, tf.int64)))
        return tf.cast(tf.math.floormod(tf.add_n(sums), 2**31), tf.int32)
