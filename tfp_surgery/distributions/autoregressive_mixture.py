"""A density of vectors whose conditionals, each given the coordinates before, are mixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.tfp_internals import prefer_static as ps
from tfp_surgery.tfp_internals import reparameterization, samplers

tfb = tfp.bijectors
tfd = tfp.distributions


class AutoregressiveMixture(tfd.Distribution):
    """A product of conditionals that are mixtures of Gaussians.

        p(z) = prod_j p(z_j | z_1, ..., z_{j-1}),
        p(z_j | z_<j) = sum_k w_jk(z_<j) N(z_j; m_jk(z_<j), s_jk(z_<j)^2)

    as in RNADE (Uria, Murray and Larochelle 2013, "RNADE: the real-valued neural autoregressive
    density-estimator"). `log_prob` calls the network once. `sample` calls it D times, one
    coordinate after the other, and draws no more than one Gaussian a coordinate, where
    `tfd.Autoregressive` draws all of them anew each time (and knows no static shapes). Draws are
    not reparameterized: they have no gradient to the parameters.
    """

    def __init__(
        self,
        mixture_fn: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]],
        event_size: int,
        batch_shape: Any = (),
        dtype: tf.DType = tf.float32,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "AutoregressiveMixture",
    ):
        """Makes the distribution.

        Args:
          mixture_fn: Callable from z `[..., *batch_shape, D]` to logits,
            locations and scales of K components, each of shape `[..., *batch_shape, D, K]`. What
            it returns for coordinate j may depend on the coordinates before j alone.
          event_size: D.
          batch_shape: Integers or an int32 Tensor.
          dtype: Of the codes.
          validate_args: As in `tfd.Distribution`.
          allow_nan_stats: As in `tfd.Distribution`.
          name: As in `tfd.Distribution`.
        """
        parameters = dict(locals())
        self._mixture_fn = mixture_fn
        self._event_size = int(event_size)
        self._batch = ps.convert_to_shape_tensor(batch_shape, dtype=tf.int32)
        with tf.name_scope(name) as name:
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
        return {}

    def _batch_shape(self) -> tf.TensorShape:
        return tf.TensorShape(tf.get_static_value(self._batch, partial=True))

    def _batch_shape_tensor(self) -> tf.Tensor:
        return tf.convert_to_tensor(self._batch)

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([self._event_size])

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant([self._event_size])

    def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
        logits, loc, scale = self._mixture_fn(z)  # [..., D, K]
        joint = tf.nn.log_softmax(logits) + tfd.Normal(loc, scale).log_prob(z[..., tf.newaxis])
        return tf.reduce_sum(tf.reduce_logsumexp(joint, axis=-1), axis=-1)

    def _sample_n(self, n: tf.Tensor, seed: Any = None) -> tf.Tensor:
        seed = samplers.sanitize_seed(seed, salt="AutoregressiveMixture")
        batch_shape = self.batch_shape_tensor()
        shape = ps.concat([[n], batch_shape, [self._event_size]], axis=0)

        def with_next_coordinate(j: tf.Tensor, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits, loc, scale = (tf.gather(p, j, axis=-2) for p in self._mixture_fn(z))
            which, normal = samplers.split_seed(samplers.fold_in(seed, j))
            # Gumbel's maximum: works for logits of any rank.
            uniform = samplers.uniform(ps.shape(logits), minval=1e-30, dtype=self.dtype, seed=which)
            component = tf.argmax(logits - tf.math.log(-tf.math.log(uniform)), axis=-1)
            chosen = tf.one_hot(component, ps.shape(logits)[-1], dtype=self.dtype)
            loc, scale = (tf.reduce_sum(chosen * p, axis=-1) for p in (loc, scale))
            draw = loc + scale * samplers.normal(ps.shape(loc), dtype=self.dtype, seed=normal)
            return j + 1, z + draw[..., tf.newaxis] * tf.one_hot(
                j, self._event_size, dtype=self.dtype
            )

        _, z = tf.while_loop(
            lambda *_: True,
            with_next_coordinate,
            (tf.constant(0), tf.zeros(shape, self.dtype)),
            maximum_iterations=self._event_size,
        )
        return tf.stop_gradient(z)  # [n, *batch_shape, D]

    def _default_event_space_bijector(self) -> Any:
        return tfb.Identity(validate_args=self.validate_args)

    def _parameter_control_dependencies(self, is_init: bool) -> list[Any]:
        return []

    def _sample_control_dependencies(self, z: tf.Tensor, **kwargs: Any) -> list[Any]:
        return []
