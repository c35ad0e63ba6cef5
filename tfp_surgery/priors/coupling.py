"""The coupling bijector, and the parameters that its inverse and log-determinant share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

tfb = tfp.bijectors


def kept_for_one_more_call(function: Callable[[tf.Tensor], Any]) -> Callable[[tf.Tensor], Any]:
    """Makes `function` return its last value once more for the same `Tensor`.

    The inverse of a flow's layer and then its log-determinant need the same parameters. No compiler
    removes the second run of the network, since gradients flow through both. The value is forgotten
    after the second call: one that was computed outside a `tf.GradientTape` is not used inside.

    Args:
      function: Of one Tensor.

    Returns:
      The function that keeps.
    """
    kept: list[tuple[tf.Tensor, Any]] = []

    def call(x: tf.Tensor) -> Any:
        if kept and kept[0][0] is x:
            return kept.pop()[1]
        value = function(x)
        kept[:] = [(x, value)]
        return value

    return call


class Coupling(tfb.Bijector):
    """Leaves the first coordinates as they are, and transforms the rest given these.

    This is `tfb.RealNVP` with a `bijector_fn` (Dinh, Sohl-Dickstein and Bengio 2017, "Density
    estimation using Real NVP", section 3.2), and runs the network once a density instead of twice.
    """

    def __init__(
        self,
        num_masked: int,
        bijector_fn: Callable[[tf.Tensor], tfb.Bijector],
        validate_args: bool = False,
        name: str = "coupling",
    ):
        """Makes the bijector.

        Args:
          num_masked: The number of coordinates that stay, the first ones.
          bijector_fn: Callable from these, `[..., num_masked]`, to a bijector of scalars with
            batch shape `[..., D - num_masked]`.
          validate_args: As in `tfb.Bijector`.
          name: As in `tfb.Bijector`.
        """
        parameters = dict(locals())
        self._num_masked = num_masked
        self._bijector_fn = bijector_fn
        self._inverse_parts = kept_for_one_more_call(self._parts)
        with tf.name_scope(name) as name:
            super().__init__(
                forward_min_event_ndims=1,
                validate_args=validate_args,
                parameters=parameters,
                name=name,
            )

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {}

    def _parts(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tfb.Bijector]:
        first, rest = x[..., : self._num_masked], x[..., self._num_masked :]
        return first, rest, self._bijector_fn(first)

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        first, rest, bijector = self._parts(x)
        return _joined(first, bijector.forward(rest))

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        first, rest, bijector = self._inverse_parts(y)
        return _joined(first, bijector.inverse(rest))

    def _inverse_log_det_jacobian(self, y: tf.Tensor) -> tf.Tensor:
        _, rest, bijector = self._inverse_parts(y)
        return bijector.inverse_log_det_jacobian(rest, event_ndims=1)


def _joined(first: tf.Tensor, rest: tf.Tensor) -> tf.Tensor:
    """`[..., D]`: a condition may have given `rest` dimensions that `first` is without."""
    shape = tf.concat([tf.shape(rest)[:-1], tf.shape(first)[-1:]], axis=0)
    return tf.concat([tf.broadcast_to(first, shape), rest], axis=-1)
