"""The aggregate posterior with one component left out for each query, as a distribution."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.log_density.evaluation import checked_tolerance
from tfp_surgery.tfp_internals import (
    auto_composite_tensor,
    parameter_properties,
    samplers,
)
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions


class LeaveOneOut(tfd.Distribution):
    r"""B mixtures, each the aggregate posterior without one of its components.

    For an aggregate posterior q(z) = sum_n w_n q(z|x_n) and an index i_b, b = 1..B,

        q_{-i_b}(z) = sum_{n != i_b} w_n q(z|x_n) / (1 - w_{i_b}),

    and q(z) itself where i_b is not in [0, N): an observation without a component of its own has
    none to leave out. The component is masked inside the log-sum-exp (see
    `AggregatePosterior.leave_one_out_log_prob`), and sampling never draws it. `log_prob` takes a
    `tolerance` in nats, as that method does.

    As a prior p(z) in the training step of a batch of B observations it keeps each observation's
    own component out of its prior (Norouzi et al. 2020, section 3).

    #### Examples

    ```python
    q_z = tfs.AggregatePosterior(posteriors)                  # batch [], event [D]
    prior = LeaveOneOut(q_z, index=[3, 7, -1])                # batch [3], event [D]
    prior.log_prob(z)                                         # z [S, 3, D] -> [S, 3], in nats
    ```

    #### References

    Sajad Norouzi, David J. Fleet, Mohammad Norouzi. Exemplar VAE: linking generative models,
    nearest neighbor retrieval, and data augmentation. NeurIPS, 2020.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> LeaveOneOut:
        """Makes the result a `CompositeTensor` where the aggregate posterior is one."""
        aggregate = args[0] if args else kwargs.get("aggregate_posterior")
        composite = auto_composite_tensor.is_composite_tensor(aggregate)
        kind = _CompositeLeaveOneOut if cls is LeaveOneOut and composite else cls
        instance: LeaveOneOut = super().__new__(kind)
        return instance

    def __init__(
        self,
        aggregate_posterior: AggregatePosterior,
        index: Any,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "LeaveOneOut",
    ) -> None:
        """Makes the distribution.

        Args:
          aggregate_posterior: `AggregatePosterior` with batch shape `[]` and N >= 2 components.
          index: Integer `Tensor`, shape `[B...]`: the component to leave out; nothing is left out
            where it is not in [0, N).
          validate_args: Python `bool`; no values are checked.
          allow_nan_stats: Python `bool`; see `tfd.Distribution`.
          name: Name of the ops.

        Raises:
          TypeError: If `aggregate_posterior` is none, or `index` is not of an integer dtype.
          ValueError: If the aggregate posterior has a batch shape or a single component.
        """
        parameters = dict(locals())
        with tf.name_scope(name) as name:
            if not isinstance(aggregate_posterior, AggregatePosterior):
                raise TypeError(
                    "aggregate_posterior must be an AggregatePosterior; got "
                    f"{type(aggregate_posterior).__name__}."
                )
            if aggregate_posterior.batch_shape.rank != 0:
                raise ValueError(
                    "aggregate_posterior must be one distribution; got batch shape "
                    f"{aggregate_posterior.batch_shape}."
                )
            if tf.get_static_value(aggregate_posterior.num_components) == 1:
                raise ValueError("a mixture of one component has nothing left without it (N = 1).")
            index = tf.convert_to_tensor(index, name="index")
            if not index.dtype.is_integer:
                raise TypeError(f"index must have an integer dtype; got {index.dtype.name}.")
            self._aggregate_posterior = aggregate_posterior
            self._index = index
            super().__init__(
                dtype=aggregate_posterior.dtype,
                reparameterization_type=aggregate_posterior.reparameterization_type,
                validate_args=validate_args,
                allow_nan_stats=allow_nan_stats,
                parameters=parameters,
                name=name,
            )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> dict[str, Any]:
        return {
            "aggregate_posterior": parameter_properties.BatchedComponentProperties(),
            "index": parameter_properties.ParameterProperties(
                default_constraining_bijector_fn=parameter_properties.BIJECTOR_NOT_IMPLEMENTED
            ),
        }

    @property
    def aggregate_posterior(self) -> AggregatePosterior:
        """q(z), of which a component is left out."""
        return self._aggregate_posterior

    @property
    def index(self) -> tf.Tensor:
        """The components left out, as given, shape `[B...]`."""
        return self._index

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy with variables of its own; see `components.deep_copy`."""
        return components_lib.deep_copy(self, memo)

    def _event_shape(self) -> tf.TensorShape:
        return self._aggregate_posterior.event_shape

    def _event_shape_tensor(self) -> tf.Tensor:
        return self._aggregate_posterior.event_shape_tensor()

    def _excluded(self) -> tf.Tensor:
        """The index as int32, -1 where nothing is left out."""
        num_components = tf.cast(self._aggregate_posterior.num_components, self._index.dtype)
        is_component = (self._index >= 0) & (self._index < num_components)
        return tf.cast(tf.where(is_component, self._index, -1), tf.int32)

    def _log_prob(self, z: tf.Tensor, tolerance: float | None = None) -> tf.Tensor:
        tolerance = checked_tolerance(tolerance)
        index = self._excluded()
        event_shape = self.event_shape_tensor()
        outer_ndims = ps.rank(z) - ps.size(event_shape)
        outer_shape = ps.broadcast_shape(ps.shape(z)[:outer_ndims], ps.shape(index))  # [S..., B...]
        z = tf.broadcast_to(z, ps.concat([outer_shape, event_shape], axis=0))
        return self._aggregate_posterior._leave_one_out_log_prob(z, index, tolerance)

    def _sample_n(self, n: tf.Tensor, seed: Any) -> tf.Tensor:
        index_seed, component_seed = samplers.split_seed(seed, salt="LeaveOneOut")
        components = components_lib.broadcast(self._aggregate_posterior.components_distribution)
        excluded = self._excluded()
        # Inverts the cumulative weights in float64, on [0, 1) without the interval of the component
        # left out.
        weights = tf.exp(tf.cast(self._aggregate_posterior._log_weights(), tf.float64))
        above = tf.cumsum(weights)  # [N]
        below = tf.concat([tf.zeros([1], tf.float64), above[:-1]], axis=0)
        of_excluded = tf.maximum(excluded, 0)
        start = tf.where(excluded < 0, above[-1], tf.gather(below, of_excluded))  # [B...]
        end = tf.where(excluded < 0, above[-1], tf.gather(above, of_excluded))
        uniforms = samplers.uniform(
            ps.concat([[n], ps.shape(excluded)], axis=0), dtype=tf.float64, seed=index_seed
        )  # [n, B...]
        uniforms *= above[-1] - (end - start)
        uniforms = tf.where(uniforms < start, uniforms, end + (uniforms - start))
        flat = tf.searchsorted(above, tf.reshape(uniforms, [-1]), side="right")  # [n B...]
        chosen = tf.reshape(tf.minimum(flat, ps.shape(weights)[0] - 1), ps.shape(uniforms))
        return components_lib.gather(components, chosen).sample(seed=component_seed)

    def _default_event_space_bijector(self) -> Any:
        return self._aggregate_posterior.experimental_default_event_space_bijector()

    def _sample_control_dependencies(self, z: tf.Tensor, **kwargs: Any) -> list[Any]:
        return []


class _CompositeLeaveOneOut(LeaveOneOut, tfd.AutoCompositeTensorDistribution):
    """A `LeaveOneOut` of composite components: it passes through `tf.function`."""


# The name that users see in reprs and messages.
_CompositeLeaveOneOut.__name__ = "LeaveOneOut"
