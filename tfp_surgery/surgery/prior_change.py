"""What exchanging the prior of a model does to its ELBO and to its marginal KL."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import build_prior
from tfp_surgery.components import components as components_lib
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model import check_codes_in_support, code_sampler
from tfp_surgery.measurement.rounded_draws import cause, rounding_of_draws
from tfp_surgery.surgery.elbo_surgery import describe_evaluation

tfd = tfp.distributions

# The default batch size of elbo_surgery, on which the draws of one seed depend.
_BATCH_SIZE = 2000


@dataclasses.dataclass(frozen=True)
class PriorChange:
    """Two priors under one aggregate posterior, in nats per observation, on common draws.

    The ELBO is reconstruction - I(n; z) - KL(q(z) || p(z)), and the prior occurs in the last term
    alone. Hence `elbo_change` is exactly what that term loses.

    Attributes:
      marginal_kl_before: KL(q(z) || p(z)) of the former prior.
      marginal_kl_after: KL(q(z) || p(z)) of the new one.
      elbo_change: E_q(z)[log p_after(z) - log p_before(z)]; its standard error is that of the
        differences, draw by draw.
      num_observations: N.
      num_samples: Draws of z an observation.
      seed: The seed of the draws.
      evaluation: How log q(z) was evaluated: "exact", or within which tolerance.
      warnings: Sentences on marginal KLs that are negative, and on draws that rounding moved. Empty
        where nothing was found.
    """

    marginal_kl_before: Estimate
    marginal_kl_after: Estimate
    elbo_change: Estimate
    num_observations: int
    num_samples: int
    seed: int
    evaluation: str
    warnings: tuple[str, ...] = ()


class PriorMeasurement:
    """The former prior, scored on draws from an aggregate posterior on which others follow it.

    The draws are those of `elbo_surgery` with the same `num_samples` and seed and its own batch
    size: its results before and after differ by this measurement's numbers, to rounding.
    """

    def __init__(
        self,
        aggregate: AggregatePosterior,
        former_prior: tfd.Distribution | Callable[[], tfd.Distribution],
        num_samples: int,
        seed: int,
        tolerance: float | None,
    ) -> None:
        """Draws, and scores the draws under q(z) and the former prior.

        Args:
          aggregate: q(z), over vectors, batch `[]`, of equal weights.
          former_prior: p(z), or a callable that returns it; what it is now.
          num_samples: Draws of z an observation.
          seed: Integer in [0, 2**31).
          tolerance: Of log q(z); see `AggregatePosterior.evaluate`.

        Raises:
          ValueError: If a log density of a draw is not finite.
        """
        self._posteriors = components_lib.broadcast(aggregate.components_distribution)
        self._num_observations = int(aggregate.num_components)
        self._num_samples = num_samples
        self._seed = seed
        z, log_former = self._scored(former_prior)
        self._cause_of_failure = cause(z)
        check_codes_in_support(build_prior(former_prior), z)
        self._log_former = checked_draws(
            "log p(z) of the former prior", log_former, cause=self._cause_of_failure
        )
        evaluated = aggregate.evaluate(z, tolerance=tolerance)
        self._log_aggregate = checked_draws(
            "log q(z)", evaluated.log_prob, cause=cause(z, own=True)
        )
        self._truncation = tolerance or 0.0
        self._cause = rounding_of_draws(z.numpy(), self._posteriors)
        self._evaluation = describe_evaluation(evaluated, self._num_observations, tolerance)

    def log_prob(self, prior: tfd.Distribution | Callable[[], tfd.Distribution]) -> np.ndarray:
        """Scores another prior on the same draws.

        Args:
          prior: p(z), or a callable that returns it.

        Returns:
          log p(z), `[S, N]`, whether finite or not.
        """
        return self._scored(prior)[1]

    def change_to(
        self, prior: tfd.Distribution | Callable[[], tfd.Distribution] | np.ndarray
    ) -> PriorChange:
        """The change to another prior, on the same draws.

        Args:
          prior: p(z), or a callable that returns it, or what `log_prob` gave for it.

        Returns:
          The `PriorChange` from the former prior to this one.

        Raises:
          ValueError: If a log density of a draw is not finite.
        """
        log_prior = prior if isinstance(prior, np.ndarray) else self.log_prob(prior)
        log_prior = checked_draws("log p(z) of the prior", log_prior, cause=self._cause_of_failure)

        def estimate(*terms: np.ndarray, truncation: float = 0.0) -> Estimate:
            return stratified_estimate(terms, self._num_observations, truncation)

        before, after = (
            estimate(self._log_aggregate, -log_density, truncation=self._truncation)
            for log_density in (self._log_former, log_prior)
        )
        return PriorChange(
            marginal_kl_before=before,
            marginal_kl_after=after,
            elbo_change=estimate(log_prior, -self._log_former),
            num_observations=self._num_observations,
            num_samples=self._num_samples,
            seed=self._seed,
            evaluation=self._evaluation,
            warnings=consistency.explained(
                [
                    *consistency.negative("Marginal KL before", before),
                    *consistency.negative("Marginal KL after", after),
                ],
                self._cause,
            ),
        )

    def _scored(
        self, prior: tfd.Distribution | Callable[[], tfd.Distribution]
    ) -> tuple[tf.Tensor, np.ndarray]:
        """Draws z `[S, N, D]`, the same each time, and log p(z) of them, `[S, N]`."""
        num_observations = self._num_observations
        per_step = min(num_observations, max(1, _BATCH_SIZE // self._num_samples))
        draw = code_sampler(self._posteriors, prior, self._num_samples, per_step)
        base_seed = tf.constant([self._seed, 1], tf.int32)
        z_parts, log_prob_parts = [], []
        for number, start in enumerate(range(0, num_observations, per_step)):
            # The last step repeats earlier observations, as in elbo_surgery.
            shown = min(start, num_observations - per_step)
            indices = tf.range(shown, shown + per_step)
            step_seed = tf.random.experimental.stateless_fold_in(base_seed, number)
            z, log_prob, _ = draw(indices, step_seed)
            z_parts.append(z[:, start - shown :])
            log_prob_parts.append(log_prob[:, start - shown :])
        return tf.concat(z_parts, axis=1), tf.concat(log_prob_parts, axis=1).numpy()
