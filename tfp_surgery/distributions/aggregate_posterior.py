"""The aggregate posterior q(z) = sum_n w_n q(z|x_n) as a `tfd.Distribution`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import arrays
from tfp_surgery.components import components as components_lib
from tfp_surgery.components import fidelity, named_component
from tfp_surgery.components import marginals as marginals_lib
from tfp_surgery.components import weights as weights_lib
from tfp_surgery.components.encoding import encode
from tfp_surgery.components.gaussians_from_arrays import gaussians_from_arrays
from tfp_surgery.distributions.streamed_mixture import StreamedMixture
from tfp_surgery.log_density import evaluation
from tfp_surgery.log_density.evaluation import Evaluation
from tfp_surgery.log_density.queries import check_event_shape
from tfp_surgery.tfp_internals import (
    auto_composite_tensor,
    dtype_util,
    parameter_properties,
    tensor_util,
)
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions


class AggregatePosterior(StreamedMixture):
    r"""The aggregate posterior of Hoffman and Johnson (2016).

    For posteriors `q(z|x_n)`, n = 1..N, with weights `w_n` (1/N unless given),

        q(z) = sum_n w_n q(z|x_n).

    It is a mixture of as many components as there are observations. Unlike
    `tfd.MixtureSameFamily` it never builds an array of queries times components: `log_prob` and
    `index_entropy` stream over blocks of components, forward and backward (see `streamed_pass`).
    `sample` draws from the chosen components alone. Where codes are scalars, as in `marginals()`,
    `cdf` and `survival_function` and their logarithms are exact in both tails if the components'
    are.

    Densities and entropies are exact unless a `tolerance` in nats is given: then a tree over the
    components bounds what it leaves out (see `evaluate`); `log_prob` of Gaussian `marginals()` is
    interpolated within it, without derivatives. All are in nats. `log_prob` and `index_entropy`
    have first derivatives only; asking for second ones raises `LookupError`.

    #### Examples

    ```python
    posteriors = tfd.MultivariateNormalDiag(loc=codes, scale_diag=scales)   # batch [N], event [D]
    q_z = tfs.AggregatePosterior(posteriors)
    z = q_z.sample(1000, seed=(0, 1))      # [1000, D]
    q_z.log_prob(z)                        # [1000], exact over all N
    q_z.index_entropy(z)                   # [1000], H[q(n|z)]
    ```

    Sampling is reparameterized if the components are and no weights are given. A draw is then a
    differentiable function of the parameters of the component it comes from.

    #### References

    Matthew D. Hoffman and Matthew J. Johnson. ELBO surgery: yet another way to carve up the
    variational evidence lower bound. NIPS Workshop in Advances in Approximate Bayesian Inference,
    2016.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> AggregatePosterior:
        """Makes the result a `CompositeTensor` where the components are one."""
        kind = cls
        if cls is AggregatePosterior:
            components = args[0] if args else kwargs.get("components_distribution")
            if auto_composite_tensor.is_composite_tensor(components):
                kind = _CompositeAggregatePosterior
        instance: AggregatePosterior = super().__new__(kind)
        return instance

    def __init__(
        self,
        components_distribution: tfd.Distribution,
        weights: Any = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "AggregatePosterior",
    ) -> None:
        """Makes the aggregate of a batch of posteriors.

        Args:
          components_distribution: `tfd.Distribution` with batch shape `[..., N]`; the rightmost
            batch dimension indexes the observations. Its events are single tensors. Parameters in
            float16 or bfloat16 are cast to float32.
          weights: Optional non-negative floating `Tensor`, shape broadcastable to `[..., N]`, or
            `[B..., N]` with batch dimensions that the components do not have; they are normalised
            to sum to one. `None` means 1/N. The gradient to a weight of exactly zero is NaN.
          validate_args: Python `bool`. Whether values (weights, indices) are checked at run time.
          allow_nan_stats: Python `bool`; see `tfd.Distribution`.
          name: Name of the ops.

        Raises:
          TypeError: If `components_distribution` is no distribution, or does not declare its
            parameters (eagerly also those that a function closes over); if weights are integers.
          ValueError: If it has no batch dimension, N = 0, or weights that are masked or do not fit.
        """
        parameters = dict(locals())
        with tf.name_scope(name) as name:
            components_distribution = components_lib.prepare(
                components_distribution, "components_distribution"
            )
            if components_lib.batch_rank(components_distribution) < 1:
                raise ValueError(
                    "components_distribution needs a rightmost batch dimension that indexes the "
                    f"observations; got batch shape {components_distribution.batch_shape}."
                )
            if components_distribution.batch_shape[-1] == 0:
                raise ValueError("components_distribution has no components (N = 0).")
            components_lib.event_rank(components_distribution)
            fidelity.check_components(components_distribution)
            self._components_distribution = components_distribution
            arrays.reject_missing("weights", weights)
            weights_lib.check_dtype(weights)
            self._weights = tensor_util.convert_nonref_to_tensor(
                weights, dtype=components_lib.dtype_of(components_distribution), name="weights"
            )
            if self._weights is not None:
                weights_lib.check_shape(self._weights.shape, components_distribution.batch_shape)
            super().__init__(
                dtype=components_distribution.dtype,
                reparameterization_type=(
                    components_distribution.reparameterization_type
                    if weights is None
                    else tfd.NOT_REPARAMETERIZED
                ),
                validate_args=validate_args,
                allow_nan_stats=allow_nan_stats,
                parameters=parameters,
                name=name,
            )

    @classmethod
    def from_encoder(
        cls,
        encoder: Callable[[Any], tfd.Distribution],
        x: Any,
        batch_size: int | None = None,
        *,
        condition: Any = None,
        reencode: bool = False,
        **kwargs: Any,
    ) -> AggregatePosterior:
        """Encodes a data set batch by batch and joins the N posteriors.

        `reencode=True` serves posteriors whose parameters cannot be joined (context in closures,
        `tfd.MarkovChain`, state-space models, dependent parts of a joint distribution): densities
        of M codes, still exact, take one pass of the encoder over the data set and M N densities
        of its distributions. Codes of joint distributions are vectors of concatenated parts.

        Args:
          encoder: Callable from `[B, ...]` observations to a `tfd.Distribution` with batch `[B]`.
          x: The observations, N known statically; see `read_observations`. Gradients flow to a
            `Tensor` or `tf.Variable`; inside a `tf.function` its values are not checked.
          batch_size: Number of observations encoded at a time; None for as many as fit in 32 MiB by
            their shape.
          condition: Conditions of the observations, which the encoder takes by keyword, or None.
          reencode: Whether to call the encoder again, in place of joining its posteriors.
          **kwargs: Passed to the constructor.

        Returns:
          The aggregate posterior over all N observations, batch shape `[]`.

        Raises:
          ValueError: If x is empty or not finite, `batch_size` is not positive, or the encoder's
            batch is not that of the observations it was given; or if it gives an observation
            another posterior on a second call (two of them are encoded again).
          TypeError: If the encoder does not return a distribution, or not always of one kind, or
            one with parameters that it does not declare.
        """
        return cls(encode(encoder, x, batch_size, condition, reencode), **kwargs)

    @classmethod
    def from_arrays(
        cls,
        *,
        loc: Any,
        scale: Any = None,
        variance: Any = None,
        log_variance: Any = None,
        scale_tril: Any = None,
        weights: Any = None,
    ) -> AggregatePosterior:
        """Makes the aggregate of N Gaussian posteriors from arrays of any library.

        Args:
          loc: The means: floating, shape `[N, D]`, or `[N]` for codes that are scalars. Lists
            count as float32.
          scale: Standard deviations, shape of `loc`. Of this and the next three exactly one is
            given; see `gaussians_from_arrays`, also for what is accepted as an array.
          variance: Squared standard deviations, shape of `loc`.
          log_variance: Natural logarithms of the variances, shape of `loc`.
          scale_tril: Cholesky factors of the covariances, shape `[N, D, D]`.
          weights: Optional non-negative numbers, shape `[N]`; None means 1/N.

        Returns:
          The aggregate posterior over all N, batch shape `[]`.

        Raises:
          TypeError: If not exactly one width is given; if an argument is no array of
            floating-point numbers, or a variable; if dtypes differ.
          ValueError: If a shape or a value is none of those above.
        """
        posteriors = gaussians_from_arrays(
            loc=loc,
            scale=scale,
            variance=variance,
            log_variance=log_variance,
            scale_tril=scale_tril,
        )
        if weights is not None:
            weights = weights_lib.weights_from_array(weights, int(posteriors.batch_shape[0]))
        return cls(posteriors, weights)

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> dict[str, Any]:
        return {
            "components_distribution": parameter_properties.BatchedComponentProperties(
                event_ndims=1
            ),
            "weights": parameter_properties.ParameterProperties(
                event_ndims=1,
                default_constraining_bijector_fn=lambda: tfp.bijectors.Softplus(
                    low=dtype_util.eps(dtype)
                ),
            ),
        }

    def _log_prob(self, z: tf.Tensor, tolerance: float | None = None) -> tf.Tensor:
        tolerance = evaluation.checked_tolerance(tolerance)
        return evaluation.log_prob(self._components(), self._log_weights(), z, tolerance)

    def evaluate(
        self, z: Any, index: Any = None, tolerance: float | None = None, name: str = "evaluate"
    ) -> Evaluation:
        """Returns log q(z) and H[q(n|z)] from one pass over the components.

        Without a tolerance all N components are accounted for: only terms below the rounding unit
        of the sum may be skipped. With a tolerance, a tree over the components (see
        `component_tree`) leaves out components whose total effect it bounds by the tolerance, and
        `num_visited` says how many it needed. The tree needs numba
        (`pip install 'tfp-surgery[fast]'`), eager execution, batch shape `[]` and Gaussian
        components with independent dimensions; otherwise the streamed pass answers exactly and
        `num_visited` is N. numba compiles the tree once for each dtype and keeps it in its cache;
        this takes some 10 seconds of the first call.

        Args:
          z: `Tensor`, shape `[S..., B..., E...]`.
          index: Optional integer `Tensor`, shape broadcastable to `[S..., B...]`: the component
            whose own log density is returned too.
          tolerance: Positive Python number: bound on the truncation error of log q(z) and of
            H[q(n|z)], in nats, beside rounding; None for none.
          name: Name of the ops.

        Returns:
          `Evaluation`.

        Raises:
          TypeError: If `index` is not of an integer dtype, or the tolerance is no number.
          ValueError: If `index` is known statically and not in [0, N), or the tolerance is not
            positive and finite.
        """
        tolerance = evaluation.checked_tolerance(tolerance)
        if index is not None:
            index = named_component.checked_index(index, self.num_components)
        with self._name_and_control_scope(name, z):
            z = self._convert(z)
            components = self._components()
            log_prob, entropy, num_visited = evaluation.evaluate(
                components, self._log_weights(), z, tolerance=tolerance
            )
            own = None
            if index is not None:
                with tf.control_dependencies(self._index_assertions(index)):
                    own = named_component.log_prob(
                        components, z, tf.broadcast_to(index, ps.shape(log_prob))
                    )
            return Evaluation(log_prob, entropy, own, num_visited)

    def _index_assertions(self, index: tf.Tensor) -> list[Any]:
        return named_component.assertions(index, self.num_components) if self.validate_args else []

    def index_entropy(
        self, z: Any, tolerance: float | None = None, name: str = "index_entropy"
    ) -> tf.Tensor:
        """Returns H[q(n|z)] = - sum_n q(n|z) log q(n|z), streamed over the components.

        With uniform weights it lies in [0, log N], and the index-code mutual information is
        log N - E_q(z) H[q(n|z)].

        Args:
          z: `Tensor`, shape `[S..., B..., E...]`.
          tolerance: See `evaluate`.
          name: Name of the ops.

        Returns:
          Floating `Tensor`, shape `[S..., B...]`, in nats.
        """
        return self.evaluate(z, tolerance=tolerance, name=name).index_entropy

    def index_log_probs(self, z: Any, name: str = "index_log_probs") -> tf.Tensor:
        """Returns log q(n|z) = log w_n + log q(z|x_n) - log q(z) for every n.

        The result has N entries a query; for statistics of q(n|z) over many queries use
        `index_entropy`, which streams.

        Args:
          z: `Tensor`, shape `[S..., B..., E...]`.
          name: Name of the ops.

        Returns:
          Floating `Tensor`, shape `[S..., B..., N]`, in nats; `NaN` where no component has z in
          its support.
        """
        with self._name_and_control_scope(name, z):
            z = self._convert(z)
            components = self._components()
            check_event_shape(z, components)
            event_ndims = components_lib.event_rank(components)
            scores = components.log_prob(tf.expand_dims(z, -1 - event_ndims))  # [S..., B..., N]
            return tf.nn.log_softmax(scores + self._log_weights(), axis=-1)

    def leave_one_out_log_prob(
        self,
        z: Any,
        index: Any,
        tolerance: float | None = None,
        name: str = "leave_one_out_log_prob",
    ) -> tf.Tensor:
        """Returns log q_{-i}(z), the aggregate of all components but i.

        q_{-i}(z) = sum_{n != i} w_n q(z|x_n) / (1 - w_i). The component is masked inside the
        log-sum-exp; subtracting it afterwards would lose every digit where it dominates.

        Args:
          z: `Tensor`, shape `[S..., B..., E...]`.
          index: Integer `Tensor`, shape broadcastable to `[S..., B...]`: the component left out of
            each query's aggregate.
          tolerance: Positive Python number: bound on the truncation error in nats; None for none.
            See `evaluate`.
          name: Name of the ops.

        Returns:
          Floating `Tensor`, shape `[S..., B...]`, in nats; `-inf` where N = 1.

        Raises:
          TypeError: If `index` is not of an integer dtype, or the tolerance is no number.
          ValueError: If `index` is known statically and not in [0, N), or the tolerance is not
            positive and finite.
        """
        tolerance = evaluation.checked_tolerance(tolerance)
        index = named_component.checked_index(index, self.num_components)
        with self._name_and_control_scope(name, z):
            z = self._convert(z)
            with tf.control_dependencies(self._index_assertions(index)):
                return self._leave_one_out_log_prob(z, index, tolerance)

    def _leave_one_out_log_prob(
        self, z: tf.Tensor, index: tf.Tensor, tolerance: float | None
    ) -> tf.Tensor:
        """See `leave_one_out_log_prob`; leaves nothing out where the int32 index is negative."""
        log_weights = self._log_weights()
        log_prob, *_ = evaluation.evaluate(self._components(), log_weights, z, index, tolerance)
        index = tf.broadcast_to(index, ps.shape(log_prob))
        log_rest = weights_lib.log_remaining(log_weights, index)
        return tf.where(tf.math.is_inf(log_prob), log_prob, log_prob - log_rest)

    def marginals(self, name: str = "marginals") -> AggregatePosterior:
        """Returns the D one-dimensional aggregate posteriors q(z_j), as one batched distribution.

        Available where the components' own marginals are: Gaussians, `tfd.Independent` over one
        dimension, `tfd.Dirichlet` (Beta marginals).

        Args:
          name: Name of the ops.

        Returns:
          `AggregatePosterior` with batch shape `[B..., D]` and scalar events.

        Raises:
          ValueError: If the events are not vectors.
          NotImplementedError: If the components' marginals have no closed form here.
        """
        with self._name_and_control_scope(name):
            components = marginals_lib.one_dimensional_marginals(self._components())
            weights = self._weights
            if weights is not None:
                shape = weights_lib.batch_shape(weights, self._components_distribution)
                weights = tf.broadcast_to(weights, shape)[..., tf.newaxis, :]  # [B..., 1, N]
            return AggregatePosterior(
                components,
                weights=weights,
                validate_args=self.validate_args,
                allow_nan_stats=self.allow_nan_stats,
            )


class _CompositeAggregatePosterior(AggregatePosterior, tfd.AutoCompositeTensorDistribution):
    """An `AggregatePosterior` of composite components: it passes through `tf.function`."""


# The name that users see in reprs and messages.
_CompositeAggregatePosterior.__name__ = "AggregatePosterior"
