"""The VampPrior: a mixture of posteriors of pseudo-inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.components.weights import weights_from_logits
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.priors.encoder_prior import EncoderPrior, array_of_events

tfd = tfp.distributions


@keras.saving.register_keras_serializable(package="tfp_surgery")
class VampPrior(EncoderPrior):
    r"""The variational mixture of posteriors of Tomczak and Welling (2018, equation 9).

        p(z) = sum_k w_k q(z|u_k),   u_k = hardtanh(v_k) = min(max(v_k, 0), 1)

    for K pseudo-inputs u_k that are learned in the space of observations, and w_k = 1/K unless
    `weighted`. It is the aggregate posterior of K observations that do not exist: learned, they
    cost what K posteriors cost.

    The gradient of the hard-tanh is zero outside [0, 1], where a pixel would stay for ever. So v is
    projected onto [0, 1] after each step of a Keras optimizer, by a weight constraint. On the
    closed interval the gradient is that of u itself: pixels that are exactly 0 or 1, as those drawn
    from binary data, learn from the first step, and one that has been pushed to the border can come
    back.

    #### References

    Jakub M. Tomczak and Max Welling. VAE with a VampPrior. AISTATS, 2018.
    """

    def __init__(
        self,
        event_size: int,
        encoder: Callable[[tf.Tensor], tfd.Distribution],
        observation_shape: Sequence[int],
        num_components: int,
        *,
        pseudo_inputs: Any = None,
        weighted: bool = False,
        seed: Any = 0,
        **kwargs: Any,
    ):
        """Makes the layer; `trainable=False` fixes pseudo-inputs and weights.

        Args:
          event_size: D, the size of a code.
          encoder: Callable from x `[B, *observation_shape]` to q(z|x) with batch shape `[B]`: the
            model's own.
          observation_shape: The shape of one observation, whose values lie in [0, 1].
          num_components: K.
          pseudo_inputs: Where to start: array or `tfp_surgery.datasets.Dataset` of at least K
            observations; K of them, drawn by `seed`, where there are more. Uniform noise if None,
            whose posteriors differ little at first.
          weighted: Whether w is learned.
          seed: Integer in [0, 2**31) or pair of int32, of what is drawn.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If an argument is of the wrong kind.
          ValueError: If the pseudo-inputs are too few, of another shape, or leave [0, 1]; or if the
            encoder does not fit.
        """
        super().__init__(event_size, encoder, observation_shape, **kwargs)
        self.num_components = checked_integer("num_components", num_components, 1)
        self.weighted = bool(weighted)
        self.seed = seeds.checked_seed(seed)
        self.free_pseudo_inputs = self._add_weight(
            "free_pseudo_inputs", self._first_pseudo_inputs(pseudo_inputs), constraint=_clipped
        )
        self.logits: Any = None
        if self.weighted:
            self.logits = self._add_weight("logits", np.zeros(self.num_components))

    @property
    def pseudo_inputs(self) -> tf.Tensor:
        """u, `[K, *observation_shape]`, in [0, 1]."""
        return _clipped(tf.convert_to_tensor(self.free_pseudo_inputs))

    def call(self, condition: Any = None) -> AggregatePosterior:
        """Builds the prior.

        Args:
          condition: None.

        Returns:
          p(z) with batch shape `[]` and event shape `[D]`, in float32 or wider.

        Raises:
          ValueError: If `condition` is not None.
        """
        self._reject(condition)
        weights = None
        if self.logits is not None:
            weights = weights_from_logits(tf.convert_to_tensor(self.logits))
        return AggregatePosterior(self._posteriors(self.pseudo_inputs), weights)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, without the pseudo-inputs, which are a weight."""
        return {
            **super().get_config(),
            "num_components": self.num_components,
            "weighted": self.weighted,
            "seed": self.seed,
        }

    def _first_pseudo_inputs(self, given: Any) -> np.ndarray:
        rng = seeds.generator(self.seed, "vamp_prior/pseudo_inputs")
        shape = (self.num_components, *self.observation_shape)
        given = rng.uniform(size=shape) if given is None else array_of_events(given)
        if len(given) < self.num_components or given.shape[1:] != self.observation_shape:
            raise ValueError(
                f"pseudo_inputs must be at least {self.num_components} observations of shape "
                f"{list(self.observation_shape)}, got shape {list(given.shape)}."
            )
        if given.min() < 0 or given.max() > 1:
            raise ValueError(
                f"pseudo_inputs must lie in [0, 1], got values from {given.min():g} to "
                f"{given.max():g}; a tfp_surgery.datasets.Dataset divides levels by their maximum."
            )
        if len(given) > self.num_components:
            given = given[np.sort(rng.permutation(len(given))[: self.num_components])]
        pseudo_inputs: np.ndarray = given
        return pseudo_inputs


def _clipped(values: Any) -> tf.Tensor:
    return tf.clip_by_value(tf.convert_to_tensor(values), 0.0, 1.0)
