"""A base distribution resampled by truncated rejection, as a `tfd.Distribution`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.components import components as components_lib
from tfp_surgery.tfp_internals import (
    dtype_util,
    parameter_properties,
    samplers,
    tensor_util,
)
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions

_BLOCK = 8192  # draws from the base that are scored together


class Resampled(tfd.Distribution):
    r"""The distribution of a truncated rejection sampler, of Bauer and Mnih (2019).

    The sampler draws up to T proposals z from the base pi, and returns the first that it accepts,
    each with probability a(z); the T-th is returned whatever comes. With Z = E_pi[a(z)],

        p(z) = pi(z) (a(z) (1 - (1 - Z)^(T-1)) / Z + (1 - Z)^(T-1)).

    T = 1 is the base itself, and p(z) tends to pi(z) a(z) / Z as T grows.

    Samples need no Z and are exact. The density needs it, and Z is a parameter, `log_normalizer`:
    known in closed form, by quadrature, or estimated by `with_estimated_normalizer`. It is a value:
    when `log_acceptance_fn` or the base change, the distribution must be built anew.

    #### What an estimate of Z does to the density

    All queries share one estimate, so its error does not average out over them. To first order
    log p(z) is off by the error of log Z times `normalizer_sensitivity(z)`, which is at least -1
    and near that wherever acceptance matters. One standard error of a mean of log p(z) is thus
    `log_normalizer_standard_error` times the absolute mean of the sensitivity.

    There is a bias of second order too. p(z) is convex in Z, so its mean over estimates is too
    large at every z, and the density integrates to a little more than one. Where acceptance
    matters log p(z) is too large, by half the squared standard error of log Z as T grows. Where
    a(z) is near zero, log p(z) is near (T - 1) log(1 - Z) + log pi(z) and too small instead.

    #### Examples

    ```python
    base = tfd.MultivariateNormalDiag(tf.zeros(2), tf.ones(2))
    def log_acceptance(z):  # keeps away from the origin
        return tf.math.log_sigmoid(4. * (tf.norm(z, axis=-1) - 1.5))
    p = Resampled.with_estimated_normalizer(base, log_acceptance, truncation=100)
    p.log_prob(p.sample(1000, seed=(0, 1)))      # [1000]
    p.log_normalizer, p.log_normalizer_standard_error
    ```

    #### References

    Matthias Bauer and Andriy Mnih. Resampled Priors for Variational Autoencoders. AISTATS, 2019.
    """

    def __init__(
        self,
        base_distribution: tfd.Distribution,
        log_acceptance_fn: Callable[[tf.Tensor], tf.Tensor],
        truncation: int,
        log_normalizer: Any,
        log_normalizer_standard_error: Any = 0.0,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "Resampled",
    ) -> None:
        """Makes the distribution from a known normaliser.

        Args:
          base_distribution: pi(z), a `tfd.Distribution` with batch shape `[B...]` over single
            tensors.
          log_acceptance_fn: Callable from z, shape `[S..., B..., E...]`, to log a(z), shape
            `[S..., B...]`, at most 0.
          truncation: T, the number of proposals of which the last is always accepted, at least 1.
          log_normalizer: log Z, floating `Tensor`, shape broadcastable to `[B...]`, at most 0.
          log_normalizer_standard_error: Its standard error in nats, of the same shape; 0 where
            Z is exact.
          validate_args: Python `bool`. Whether log a(z) and log Z are checked to be at most 0.
          allow_nan_stats: Python `bool`; see `tfd.Distribution`.
          name: Name of the ops.

        Raises:
          TypeError: If an argument is of the wrong kind.
          ValueError: If `truncation` is below 1.
        """
        parameters = dict(locals())
        with tf.name_scope(name) as name:
            if not isinstance(base_distribution, tfd.Distribution):
                raise TypeError(
                    "base_distribution must be a tfp.distributions.Distribution, got "
                    f"{type(base_distribution).__name__}."
                )
            if not callable(log_acceptance_fn):
                raise TypeError(f"log_acceptance_fn must be callable, got {log_acceptance_fn!r}.")
            self._base_distribution = base_distribution
            self._log_acceptance_fn = log_acceptance_fn
            self._truncation = checked_integer("truncation", truncation, 1)
            self._log_normalizer = tensor_util.convert_nonref_to_tensor(
                log_normalizer, dtype=base_distribution.dtype, name="log_normalizer"
            )
            self._log_normalizer_standard_error = tensor_util.convert_nonref_to_tensor(
                log_normalizer_standard_error,
                dtype=base_distribution.dtype,
                name="log_normalizer_standard_error",
            )
            super().__init__(
                dtype=base_distribution.dtype,
                reparameterization_type=tfd.NOT_REPARAMETERIZED,
                validate_args=validate_args,
                allow_nan_stats=allow_nan_stats,
                parameters=parameters,
                name=name,
            )

    @classmethod
    def with_estimated_normalizer(
        cls,
        base_distribution: tfd.Distribution,
        log_acceptance_fn: Callable[[tf.Tensor], tf.Tensor],
        truncation: int,
        num_samples: int = 2**16,
        seed: Any = 0,
        **kwargs: Any,
    ) -> Resampled:
        """Makes the distribution with Z estimated by the mean acceptance of draws from the base.

        See `estimate_log_normalizer`; the density has the error that the class describes.

        Args:
          base_distribution: As for the constructor, with `log_acceptance_fn` and `truncation`.
          log_acceptance_fn: As for the constructor.
          truncation: As for the constructor.
          num_samples: Number of draws from the base, at least 2.
          seed: Integer in [0, 2**31) or pair of int32: one seed gives one estimate.
          **kwargs: Passed to the constructor.

        Returns:
          The distribution. Its `log_normalizer` has a gradient to all that acceptance and base
          are made of.
        """
        log_normalizer, standard_error = estimate_log_normalizer(
            base_distribution, log_acceptance_fn, num_samples, seed
        )
        return cls(
            base_distribution,
            log_acceptance_fn,
            truncation,
            log_normalizer,
            standard_error,
            **kwargs,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> dict[str, Any]:
        return {
            "base_distribution": parameter_properties.BatchedComponentProperties(),
            "log_normalizer": parameter_properties.ParameterProperties(
                default_constraining_bijector_fn=lambda: tfp.bijectors.Chain(
                    [tfp.bijectors.Scale(tf.constant(-1.0, dtype)), tfp.bijectors.Softplus()]
                )
            ),
            "log_normalizer_standard_error": parameter_properties.ParameterProperties(
                default_constraining_bijector_fn=tfp.bijectors.Softplus
            ),
        }

    @property
    def base_distribution(self) -> tfd.Distribution:
        """The distribution of the proposals, pi(z)."""
        return self._base_distribution

    @property
    def log_acceptance_fn(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """The callable from z to log a(z)."""
        return self._log_acceptance_fn

    @property
    def truncation(self) -> int:
        """T, the most proposals that a sample costs."""
        return self._truncation

    @property
    def log_normalizer(self) -> tf.Tensor:
        """log Z, shape broadcastable to `[B...]`."""
        return self._log_normalizer

    @property
    def log_normalizer_standard_error(self) -> tf.Tensor:
        """Standard error of `log_normalizer` in nats, 0 where Z is exact."""
        return self._log_normalizer_standard_error

    def normalizer_sensitivity(self, z: Any, name: str = "normalizer_sensitivity") -> tf.Tensor:
        """Returns d log p(z) / d log Z, which turns an error of log Z into one of log p(z).

        Args:
          z: `Tensor`, shape `[S..., B..., E...]`.
          name: Name of the ops.

        Returns:
          Floating `Tensor`, shape `[S..., B...]`: between -1 and 0 where the sampler accepts, and
          down to `-(T - 1) Z / (1 - Z)` where it never does.
        """
        with self._name_and_control_scope(name, z):
            z = tf.convert_to_tensor(z, dtype=self.dtype, name="z")
            if self._truncation == 1:
                return tf.zeros_like(self._base_distribution.log_prob(z))
            accepted, forced = self._log_shares(z)
            log_z = self._clipped_log_normalizer()
            log_all_rejected = (self._truncation - 1) * tfp.math.log1mexp(log_z)
            odds = tf.exp(log_z - tfp.math.log1mexp(log_z))  # Z / (1 - Z)
            forced_slope = -(self._truncation - 1) * odds
            accepted_slope = -1 - forced_slope * tf.exp(
                log_all_rejected - tfp.math.log1mexp(log_all_rejected)
            )
            share = tf.sigmoid(accepted - forced)
            return share * accepted_slope + (1 - share) * forced_slope

    def _log_shares(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Logarithms of the two summands of p(z) / pi(z), accepted and T-th, for T above 1."""
        log_z = self._clipped_log_normalizer()
        log_all_rejected = (self._truncation - 1) * tfp.math.log1mexp(log_z)
        log_acceptance = _log_acceptance(self._log_acceptance_fn, z, self._base_distribution)
        return log_acceptance + tfp.math.log1mexp(log_all_rejected) - log_z, log_all_rejected

    def _clipped_log_normalizer(self) -> tf.Tensor:
        """log Z with Z kept one rounding error from 0 and 1, where the gradient would be NaN.

        A smaller Z makes p(z) / pi(z) no other number: it is near 1 + (T - 1) a(z).
        """
        log_z = tf.convert_to_tensor(self._log_normalizer)
        eps = dtype_util.eps(self.dtype)
        return tf.clip_by_value(log_z, np.log(eps), -eps)

    def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
        log_base = self._base_distribution.log_prob(z)
        if self._truncation == 1:
            return log_base
        return log_base + tfp.math.log_add_exp(*self._log_shares(z))

    def _sample_n(self, n: tf.Tensor, seed: Any) -> tf.Tensor:
        seed = samplers.sanitize_seed(seed, salt="Resampled")

        def propose(t: Any) -> tuple[tf.Tensor, tf.Tensor]:
            proposal_seed, uniform_seed = samplers.split_seed(samplers.fold_in(seed, t))
            z = self._base_distribution.sample(n, seed=proposal_seed)  # [n, B..., E...]
            log_acceptance = _log_acceptance(self._log_acceptance_fn, z, self._base_distribution)
            uniforms = samplers.uniform(
                ps.shape(log_acceptance), dtype=self.dtype, seed=uniform_seed
            )
            return z, tf.math.log(uniforms) < log_acceptance

        def proposals_remain(t: tf.Tensor, _: tf.Tensor, accepted: tf.Tensor) -> tf.Tensor:
            return (t < self._truncation) & ~tf.reduce_all(accepted)

        def propose_again(t: tf.Tensor, z: tf.Tensor, accepted: tf.Tensor) -> Any:
            proposal, accepted_now = propose(t)
            keep = accepted
            for _ in range(z.shape.rank - accepted.shape.rank):
                keep = keep[..., tf.newaxis]
            # What is never accepted is overwritten up to the T-th proposal.
            z_next = tf.ensure_shape(tf.where(keep, z, proposal), z.shape)
            return t + 1, z_next, tf.ensure_shape(accepted | accepted_now, accepted.shape)

        _, z, _ = tf.while_loop(
            proposals_remain,
            propose_again,
            (tf.constant(1), *propose(tf.constant(0))),
            parallel_iterations=1,
        )
        return tf.stop_gradient(z)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy with variables of its own; see `components.deep_copy`."""
        return components_lib.deep_copy(self, memo)

    def _event_shape(self) -> tf.TensorShape:
        return self._base_distribution.event_shape

    def _event_shape_tensor(self) -> tf.Tensor:
        return self._base_distribution.event_shape_tensor()

    def _default_event_space_bijector(self) -> Any:
        return self._base_distribution.experimental_default_event_space_bijector()

    def _parameter_control_dependencies(self, is_init: bool) -> list[Any]:
        if not self.validate_args or is_init == tensor_util.is_ref(self._log_normalizer):
            return []
        return [
            tf.debugging.assert_non_positive(
                self._log_normalizer, "log_normalizer must be at most 0."
            )
        ]

    def _sample_control_dependencies(self, z: tf.Tensor, **kwargs: Any) -> list[Any]:
        if not self.validate_args:
            return []
        log_acceptance = _log_acceptance(self._log_acceptance_fn, z, self._base_distribution)
        return [
            *self._base_distribution._sample_control_dependencies(z, **kwargs),
            tf.debugging.assert_non_positive(
                log_acceptance, "log_acceptance_fn must return at most 0."
            ),
        ]


def estimate_log_normalizer(
    base_distribution: tfd.Distribution,
    log_acceptance_fn: Callable[[tf.Tensor], tf.Tensor],
    num_samples: int,
    seed: Any,
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Estimates log Z, Z = E_pi[a(z)], by the mean acceptance of draws from the base.

    The mean is unbiased for Z. Its logarithm is too small on average, by half its squared standard
    error to second order.

    The estimate has a gradient to whatever acceptance and base depend on. Draws need not be
    reparameterized: the base enters by its log density, as

        d log Z / d theta = E_pi[(a(z) - Z) d log pi(z) / d theta] / Z.

    Args:
      base_distribution: pi(z), a `tfd.Distribution` with batch shape `[B...]`.
      log_acceptance_fn: Callable from z, shape `[S, B..., E...]`, to log a(z), shape `[S, B...]`.
      num_samples: S, at least 2.
      seed: Integer in [0, 2**31) or pair of int32, as a `Tensor` too. Under XLA the same seed
        gives other draws.

    Returns:
      log Z and its standard error (by the delta method, without gradient), each a floating
      `Tensor` of shape `[B...]`, in nats.

    Raises:
      TypeError: If `num_samples` is no integer, or the seed neither an integer nor a pair.
      ValueError: If `num_samples` is below 2, the seed out of range, or log a(z) not of the shape
        said.
    """
    num_samples = checked_integer("num_samples", num_samples, 2)
    seed = seeds.pair(seed, "resampled/normalizer")
    sizes = [_BLOCK] * (num_samples // _BLOCK)
    if num_samples % _BLOCK:
        sizes.append(num_samples % _BLOCK)
    log_acceptances, log_ratios = [], []
    block_seeds = samplers.split_seed(seed, n=len(sizes), salt="estimate_log_normalizer")
    for size, block_seed in zip(sizes, block_seeds, strict=True):
        z = base_distribution.sample(size, seed=block_seed)  # [size, B..., E...]
        z = tf.stop_gradient(z)
        log_acceptances.append(_log_acceptance(log_acceptance_fn, z, base_distribution))
        log_prob = base_distribution.log_prob(z)
        log_ratios.append(log_prob - tf.stop_gradient(log_prob))  # 0, with the base's gradient
    log_acceptance = tf.concat(log_acceptances, axis=0)  # [S, B...]
    log_ratio = tf.concat(log_ratios, axis=0)  # [S, B...]
    # Dividing by the sum of the ratios takes the mean off the base's score.
    log_normalizer = tf.reduce_logsumexp(log_acceptance + log_ratio, axis=0) - tf.reduce_logsumexp(
        log_ratio, axis=0
    )
    relative = tf.stop_gradient(tf.exp(log_acceptance - log_normalizer))  # a / Z, mean 1
    variance = tf.reduce_sum((relative - 1) ** 2, axis=0) / (num_samples - 1)
    return log_normalizer, tf.sqrt(variance / num_samples)


def _log_acceptance(
    log_acceptance_fn: Callable[[tf.Tensor], tf.Tensor], z: tf.Tensor, base: tfd.Distribution
) -> tf.Tensor:
    """log a(z), its shape checked as far as it is known statically."""
    log_acceptance = tf.convert_to_tensor(log_acceptance_fn(z), dtype=base.dtype)
    expected = z.shape[: z.shape.rank - components_lib.event_rank(base)]
    if not log_acceptance.shape.is_compatible_with(expected):
        raise ValueError(
            f"log_acceptance_fn must return one number a code, of shape {expected} for z of shape "
            f"{z.shape}, but gave {log_acceptance.shape}."
        )
    return log_acceptance
