"""The logistic distribution collected into evenly spaced levels of the unit interval."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.tfp_internals import (
    DiscreteDistributionMixin,
    assert_util,
    dtype_util,
    parameter_properties,
    reparameterization,
    samplers,
    tensor_util,
)

tfb = tfp.bijectors
tfd = tfp.distributions


class DiscretizedLogistic(DiscreteDistributionMixin, tfd.Distribution):
    """A distribution over the levels `k / (num_levels - 1)`, `k = 0, ..., num_levels - 1`.

    Level k has the mass that a logistic distribution puts within half a step of it; the first and
    the last level take all that lies beyond them (Kingma et al. 2016, "Improving variational
    inference with inverse autoregressive flow"; Salimans et al. 2017, "PixelCNN++"). With
    `a` and `b` the standardized upper and lower edge of the bin,

        log P(k) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)),

    in which nothing cancels, however far the level is from `loc`.
    """

    def __init__(
        self,
        loc: Any,
        scale: Any,
        num_levels: int,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "DiscretizedLogistic",
    ):
        """Makes a batch of distributions.

        Args:
          loc: Floating Tensor, the location of the logistic; levels lie in [0, 1].
          scale: Floating Tensor, positive, broadcasts with `loc`.
          num_levels: Int, at least 2 (256 for 8-bit images).
          validate_args: Whether to check parameters and values at run time.
          allow_nan_stats: As in `tfd.Distribution`.
          name: As in `tfd.Distribution`.

        Raises:
          ValueError: If `num_levels` is below 2.
        """
        parameters = dict(locals())
        if num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, got {num_levels}.")
        self._num_levels = int(num_levels)
        with tf.name_scope(name) as name:
            dtype = dtype_util.common_dtype([loc, scale], dtype_hint=tf.float32)
            self._loc = tensor_util.convert_nonref_to_tensor(loc, dtype=dtype, name="loc")
            self._scale = tensor_util.convert_nonref_to_tensor(scale, dtype=dtype, name="scale")
            super().__init__(
                dtype=dtype,
                reparameterization_type=reparameterization.NOT_REPARAMETERIZED,
                validate_args=validate_args,
                allow_nan_stats=allow_nan_stats,
                parameters=parameters,
                name=name,
            )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> dict[str, Any]:
        del num_classes
        return {
            "loc": parameter_properties.ParameterProperties(),
            "scale": parameter_properties.ParameterProperties(
                default_constraining_bijector_fn=lambda: tfb.Softplus(low=dtype_util.eps(dtype))
            ),
            "num_levels": parameter_properties.ShapeParameterProperties(),
        }

    @property
    def loc(self) -> tf.Tensor:
        """The location of the underlying logistic."""
        return self._loc

    @property
    def scale(self) -> tf.Tensor:
        """The scale of the underlying logistic."""
        return self._scale

    @property
    def num_levels(self) -> int:
        """The number of levels."""
        return self._num_levels

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([])

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant([], dtype=tf.int32)

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        loc, scale = tf.convert_to_tensor(self.loc), tf.convert_to_tensor(self.scale)
        half_step = 0.5 / (self.num_levels - 1)
        log_mass_below_upper = tf.math.log_sigmoid((x + half_step - loc) / scale)
        log_mass_above_lower = tf.math.log_sigmoid((loc - x + half_step) / scale)
        width = 2.0 * half_step / scale
        inner = log_mass_below_upper + log_mass_above_lower + tfp.math.log1mexp(width)
        is_first, is_last = x < half_step, x > 1.0 - half_step
        log_prob = tf.where(
            is_first, log_mass_below_upper, tf.where(is_last, log_mass_above_lower, inner)
        )
        return tf.where(self._is_level(x), log_prob, tf.constant(-float("inf"), self.dtype))

    def _sample_n(self, n: tf.Tensor, seed: Any = None) -> tf.Tensor:
        loc, scale = tf.convert_to_tensor(self.loc), tf.convert_to_tensor(self.scale)
        shape = tf.concat([[n], self._batch_shape_tensor(loc=loc, scale=scale)], axis=0)
        tiny = dtype_util.as_numpy_dtype(self.dtype)(1e-7)
        uniform = samplers.uniform(shape, tiny, 1.0, dtype=self.dtype, seed=seed)
        return self._nearest_level(loc + scale * (tf.math.log(uniform) - tf.math.log1p(-uniform)))

    def _mean(self) -> tf.Tensor:
        """E[X], the sum of P(X >= level) over all levels but the first, times the step."""
        loc, scale = tf.convert_to_tensor(self.loc), tf.convert_to_tensor(self.scale)
        step = 1.0 / (self.num_levels - 1)
        lower_edges = (tf.range(1, self.num_levels, dtype=self.dtype) - 0.5) * step
        # A fold and not a reduce_sum: num_levels values a pixel would not fit for a batch.
        total = tf.foldl(
            lambda mass, edge: mass + tf.math.sigmoid((loc - edge) / scale),
            lower_edges,
            initializer=tf.zeros(self._batch_shape_tensor(loc=loc, scale=scale), self.dtype),
        )
        return step * total

    def _mode(self) -> tf.Tensor:
        # The outer levels take the tails: compare both with the level that is nearest to loc.
        shape = self._batch_shape_tensor()
        nearest = tf.broadcast_to(self._nearest_level(self.loc), shape)
        candidates = tf.stack([nearest, tf.zeros_like(nearest), tf.ones_like(nearest)])
        best = tf.argmax(self._log_prob(candidates), axis=0, output_type=tf.int32)
        return tf.where(best == 0, nearest, tf.cast(best == 2, self.dtype))

    def _nearest_level(self, x: tf.Tensor) -> tf.Tensor:
        steps = self.num_levels - 1
        return tf.round(tf.clip_by_value(x, 0.0, 1.0) * steps) / steps

    def _is_level(self, x: tf.Tensor) -> tf.Tensor:
        # Relative to a step; rounding of k / (num_levels - 1) in float32 stays far below.
        return tf.abs(x - self._nearest_level(x)) * (self.num_levels - 1) < 1e-3

    def _default_event_space_bijector(self) -> None:
        return None

    def _parameter_control_dependencies(self, is_init: bool) -> list[Any]:
        if not self.validate_args or is_init == tensor_util.is_ref(self._scale):
            return []
        return [assert_util.assert_positive(self._scale, message="scale must be positive.")]

    def _sample_control_dependencies(self, x: tf.Tensor) -> list[Any]:
        if not self.validate_args:
            return []
        message = f"values must be one of {self.num_levels} levels, k / {self.num_levels - 1}."
        return [assert_util.assert_equal(self._is_level(x), True, message=message)]
