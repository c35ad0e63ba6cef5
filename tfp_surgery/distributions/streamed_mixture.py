"""A mixture as a `tfd.Distribution`: its shapes, draws, moments and distribution function."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import arrays
from tfp_surgery.components import components as components_lib
from tfp_surgery.components import moments
from tfp_surgery.components import weights as weights_lib
from tfp_surgery.log_density import cumulative
from tfp_surgery.tfp_internals import prefer_static as ps
from tfp_surgery.tfp_internals import samplers, tensor_util

tfd = tfp.distributions


class StreamedMixture(tfd.Distribution):
    """What TFP asks of a mixture of N components, beside its density.

    A subclass has the arguments `components_distribution` and `weights`, which it checks and keeps
    in `_components_distribution` and `_weights`, declares them, and defines `_log_prob`.
    """

    is_streamed = True  # over its components, which are never scored all at once

    _components_distribution: tfd.Distribution
    _weights: tf.Tensor | None

    @property
    def components_distribution(self) -> tfd.Distribution:
        """The posteriors q(z|x_n), batch shape `[..., N]`."""
        return self._components_distribution

    @property
    def weights(self) -> tf.Tensor | None:
        """The weights as given (not normalised), or `None` for 1/N."""
        return self._weights

    @property
    def num_components(self) -> Any:
        """N: a Python `int` where it is known statically, else a scalar `Tensor`."""
        return components_lib.num_components(self._components_distribution)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy with variables of its own; see `components.deep_copy`."""
        return components_lib.deep_copy(self, memo)

    def _event_shape(self) -> tf.TensorShape:
        return self._components_distribution.event_shape

    def _event_shape_tensor(self) -> tf.Tensor:
        return self._components_distribution.event_shape_tensor()

    def _log_weights(self) -> tf.Tensor:
        """Normalised log weights, shape `[B..., N]`."""
        return weights_lib.log_weights(self._weights, self._components_distribution)

    def _components(self) -> tfd.Distribution:
        """The posteriors, every parameter broadcast to the batch shape `[B..., N]`."""
        components = self._components_distribution
        return components_lib.broadcast(
            components, weights_lib.batch_shape(self._weights, components)
        )

    def _sample_n(self, n: tf.Tensor, seed: Any) -> tf.Tensor:
        index_seed, component_seed = samplers.split_seed(seed, salt="AggregatePosterior")
        components = self._components()
        batch_ndims = components_lib.batch_rank(components) - 1
        indices = weights_lib.sample_index(self._weights, components, n, index_seed)  # [B..., n]
        chosen = components_lib.gather(
            components, indices, axis=batch_ndims, batch_dims=batch_ndims
        )
        draws = chosen.sample(seed=component_seed)  # [B..., n, E...]
        order = ps.concat(
            [[batch_ndims], ps.range(batch_ndims), ps.range(batch_ndims + 1, ps.rank(draws))],
            axis=0,
        )
        return tf.transpose(draws, order)  # [n, B..., E...]

    def _log_cdf(self, z: tf.Tensor) -> tf.Tensor:
        return cumulative.log_cdf(self._components(), self._log_weights(), z)

    def _log_survival_function(self, z: tf.Tensor) -> tf.Tensor:
        return cumulative.log_survival_function(self._components(), self._log_weights(), z)

    def _survival_function(self, z: tf.Tensor) -> tf.Tensor:
        return tf.exp(self._log_survival_function(z))

    def _mean(self) -> tf.Tensor:
        return moments.mean(self._components(), self._log_weights())

    def _variance(self) -> tf.Tensor:
        return moments.variance(self._components(), self._log_weights())

    def _covariance(self) -> tf.Tensor:
        if components_lib.event_rank(self._components_distribution) != 1:
            raise NotImplementedError(
                f"the covariance is that of vectors, but the event shape is {self.event_shape}."
            )
        return moments.covariance(self._components(), self._log_weights())

    def _convert(self, z: Any) -> tf.Tensor:
        arrays.reject_missing("z", z)
        return tf.convert_to_tensor(z, dtype=self.dtype, name="z")

    def _default_event_space_bijector(self) -> Any:
        components = self._components_distribution
        bijector = components.experimental_default_event_space_bijector()
        if bijector is None:
            return None
        event_ndims = bijector.inverse_event_ndims(components_lib.event_rank(components))
        if bijector.experimental_batch_shape(x_event_ndims=event_ndims).rank != 0:
            raise NotImplementedError(
                f"The components ({type(components).__name__}) do not share one support: each has "
                "a bijector of its own."
            )
        return bijector

    def _parameter_control_dependencies(self, is_init: bool) -> list[Any]:
        if not self.validate_args or self._weights is None:
            return []
        if is_init == tensor_util.is_ref(self._weights):
            return []
        return weights_lib.assertions(tf.convert_to_tensor(self._weights))

    def _sample_control_dependencies(self, z: tf.Tensor, **kwargs: Any) -> list[Any]:
        return []
