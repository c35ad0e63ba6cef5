"""What priors share whose components come from an encoder, and those among them made of data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.networks import check_encoder_output
from tfp_surgery.components.encoding import encode
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.distributions.leave_one_out import LeaveOneOut
from tfp_surgery.intensities import reject_raw_levels
from tfp_surgery.observations import read_array
from tfp_surgery.priors.base import Prior

tfd = tfp.distributions

_ENCODING_BLOCK = 4096


class EncoderPrior(Prior):
    """A mixture whose components are made of posteriors q(z|u) of one encoder.

    The encoder is the model's own, the same object: its weights are trained once, through the
    likelihood and through the prior, and a saved model gives back one encoder. They belong to the
    encoder: `fitted_variables` leaves them out, and so does `trainable`. The encoder is called as
    for a measurement, not as in training: dropout does not act on the prior.

    Attributes:
      encoder: As given.
      observation_shape: The shape of what it encodes.
    """

    def __init__(
        self,
        event_size: int,
        encoder: Callable[[tf.Tensor], tfd.Distribution],
        observation_shape: Sequence[int],
        **kwargs: Any,
    ):
        """Makes the layer, and the weights of the encoder if it has none yet.

        Args:
          event_size: D, the size of a code.
          encoder: Callable from x `[B, *observation_shape]` to q(z|x) with batch shape `[B]`.
          observation_shape: The shape of one observation.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If `encoder` is not callable, or gives no distribution.
          ValueError: If its codes have another size or dtype than those of the prior.
        """
        super().__init__(event_size, **kwargs)
        if not callable(encoder):
            raise TypeError(f"encoder must be callable, got {type(encoder).__name__}.")
        self.encoder: Any = encoder
        self.observation_shape = tuple(
            checked_integer("observation_shape", size, 1) for size in observation_shape
        )
        with tf.init_scope():
            probe = tf.zeros([2, *self.observation_shape], self.density_dtype)
            posterior = check_encoder_output(encoder(probe), 2)
        if posterior.event_shape != [self.event_size]:
            raise ValueError(
                f"the encoder must give codes of shape [{self.event_size}], as event_size says; "
                f"its {posterior.name} has event shape {posterior.event_shape}."
            )
        if posterior.dtype != self.density_dtype:
            raise ValueError(
                f"prior and encoder must have one dtype, but the prior's densities are "
                f"{self.density_dtype.name} and the encoder's {posterior.dtype.name}: give the "
                "prior the encoder's dtype policy, dtype=encoder.dtype_policy."
            )

    @property
    def trainable(self) -> bool:
        """Whether the weights are trained that are not the encoder's; settable."""
        return bool(self._trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        # Keras would freeze the encoder too, which is not the prior's.
        self._trainable = bool(value)
        for variable in self._trainable_variables:
            variable.trainable = self._trainable

    @property
    def fitted_variables(self) -> Sequence[keras.Variable]:
        """The trainable variables without those of the encoder."""
        of_encoder = {id(variable) for variable in getattr(self.encoder, "variables", ())}
        return [v for v in self.trainable_variables if id(v) not in of_encoder]

    def _posteriors(self, u: Any) -> tfd.Distribution:
        """q(z|u) of `[K, *observation_shape]`, batch shape `[K]`."""
        u = tf.cast(tf.convert_to_tensor(u), self.density_dtype)
        return encode(self.encoder, u, _ENCODING_BLOCK)

    def _reject(self, condition: Any) -> None:
        if condition is not None:
            raise ValueError(
                f"{type(self).__name__} is a prior of codes alone, since its components are "
                "posteriors of an encoder of observations: condition must be None."
            )

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, serialized.

        Raises:
          ValueError: If the encoder is nothing that Keras can write.
        """
        if not hasattr(self.encoder, "get_config"):
            raise ValueError(
                f"a prior whose encoder is a {type(self.encoder).__name__} cannot be written to a "
                ".keras file: make it a keras.layers.Layer with get_config, or use save_weights "
                "and load_weights."
            )
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "observation_shape": self.observation_shape,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EncoderPrior:
        """The layer from what `get_config` gave, or with the encoder itself in its place."""
        encoder = config["encoder"]
        if isinstance(encoder, dict):
            encoder = keras.saving.deserialize_keras_object(encoder)
        return cls(**{**config, "encoder": encoder})


class ObservationPrior(EncoderPrior):
    """An `EncoderPrior` with one component for each of some observations of the training data.

    An observation among them finds its own component in the prior, which in training rewards
    posteriors that keep away from each other: the model memorises. With `leaves_one_out` a
    training step leaves the component of each observation out of its prior (see
    `leave_one_out`). Measurements (`evaluate`, `elbo_surgery`) take the prior as it is.

    The observations are non-trainable weights (as bytes where they are whole numbers from 0 to
    255), so that a `.keras` file holds them; the configuration does not.

    Attributes:
      exemplars: Weight `[M, *observation_shape]`, the observations behind the components.
      indices: Weight, int32 `[M]`, increasing: which observations of the data set they are.
      leaves_one_out: Whether training asks for `leave_one_out`.
    """

    def __init__(
        self,
        event_size: int,
        encoder: Callable[[tf.Tensor], tfd.Distribution],
        x: Any,
        num_components: int | None,
        leave_one_out: bool,
        seed: Any,
        **kwargs: Any,
    ):
        """Makes the layer; the arguments are those of the subclasses."""
        x = array_of_events(x)
        reject_raw_levels(x)
        super().__init__(event_size, encoder, x.shape[1:], **kwargs)
        num_observations = len(x)
        indices = np.arange(num_observations)
        self.seed = seeds.checked_seed(seed)
        if num_components is not None:
            num_components = checked_integer("num_components", num_components, 1, num_observations)
            rng = seeds.generator(self.seed, "observation_prior/subset")
            indices = np.sort(rng.permutation(num_observations)[:num_components])
            x = x[indices]
        if leave_one_out and len(indices) == 1:
            raise ValueError(
                "leave_one_out needs at least two components: without its only one nothing is left."
            )
        self.leaves_one_out = bool(leave_one_out)
        are_bytes = x.min() >= 0 and x.max() <= 255 and np.array_equal(x, x.astype(np.uint8))
        self.exemplars = self._add_weight(
            "exemplars",
            x,
            trainable=False,
            dtype="uint8" if are_bytes else self.density_dtype.name,
        )
        self.indices = self._add_weight("indices", indices, trainable=False, dtype="int32")

    @property
    def num_components(self) -> int:
        """M, the number of observations that have a component."""
        return int(self.indices.shape[0])

    def places(self, index: Any) -> tf.Tensor:
        """Which components are those of some observations.

        Args:
          index: integer `[B]`: which observations of the data set they are.

        Returns:
          int32 `[B]`; -1 for observations without a component.
        """
        indices = tf.convert_to_tensor(self.indices)
        index = tf.cast(index, indices.dtype)
        place = tf.minimum(tf.searchsorted(indices, index), self.num_components - 1)
        return tf.where(tf.equal(tf.gather(indices, place), index), place, -1)

    def leave_one_out(self, index: Any) -> LeaveOneOut:
        """The prior of a training step: that of an observation is without its own component.

        Args:
          index: Integer `[B]`: which observations of the data set they are; those without a
            component have the whole prior.

        Returns:
          B priors, batch shape `[B]`, event shape `[D]`.
        """
        return LeaveOneOut(self(), self.places(index))

    def call(self, condition: Any = None) -> AggregatePosterior:
        """The mixture of all components; see the subclasses."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, without the data: their number and kind."""
        config = super().get_config()
        del config["observation_shape"]
        return {
            **config,
            "shape": tuple(self.exemplars.shape),
            "are_bytes": self.exemplars.dtype == "uint8",
            "leave_one_out": self.leaves_one_out,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ObservationPrior:
        """The layer from what `get_config` gave; its observations come with the weights."""
        config = dict(config)
        shape, are_bytes = config.pop("shape"), config.pop("are_bytes")
        # A number that is whole would be kept as a byte.
        x = np.broadcast_to(np.uint8(0) if are_bytes else np.float32(0.5), shape)
        layer: ObservationPrior = super().from_config({**config, "x": x})
        return layer


def array_of_events(x: Any) -> np.ndarray:
    """The observations of a data set that is one array, of settled binarization, checked."""
    array = read_array(x)
    if array.ndim < 2:
        raise ValueError(f"x must have shape [N, *event_shape], got {list(array.shape)}.")
    return array
