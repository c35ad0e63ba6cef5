"""What exchanging the prior of a model does to its ELBO and to its marginal KL."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import build_prior
from tfp_surgery.components import components as components_lib
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model_checks import check_codes_in_support
from tfp_surgery.measurement.result import Result, count_draws
from tfp_surgery.measurement.rounded_draws import cause, rounding_of_draws
from tfp_surgery.measurement.steps import steps
from tfp_surgery.measurement.traced import traced_for_many
from tfp_surgery.seeds import Seed
from tfp_surgery.surgery.scored_draws import describe_evaluation, posterior_draws

tfd = tfp.distributions

# The default batch size of elbo_surgery, on which the draws of one seed depend.
_BATCH_SIZE = 2000


@dataclasses.dataclass(frozen=True)
class PriorChange(Result):
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
    """

    marginal_kl_before: Estimate
    marginal_kl_after: Estimate
    elbo_change: Estimate
    num_observations: int
    num_samples: int
    seed: Seed
    evaluation: str

    def _title(self) -> list[str]:
        draws = count_draws(self.num_observations, self.num_observations, self.num_samples)
        return [f"N = {self.num_observations}, {draws}; log q(z) {self.evaluation}"]

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            ("marginal KL(q(z) || p(z)) before", self.marginal_kl_before),
            ("marginal KL(q(z) || p(z)) after", self.marginal_kl_after),
            ("change in ELBO", self.elbo_change),
        ]


class PriorMeasurement:
    """The former prior, scored on draws from an aggregate posterior on which others follow it.

    The draws are those of `elbo_surgery` with the same `num_samples` and seed and its own batch
    size: its results before and after differ by this measurement's numbers, to rounding.
    """

    def __init__(
        self,
        aggregate_posterior: AggregatePosterior,
        former_prior: tfd.Distribution | Callable[[], tfd.Distribution],
        num_samples: int,
        seed: Seed,
        tolerance: float | None,
    ) -> None:
        """Draws, and scores the draws under q(z) and the former prior.

        Args:
          aggregate_posterior: q(z), over vectors, batch `[]`, of equal weights.
          former_prior: p(z), or a callable that returns it; what it is now.
          num_samples: Draws of z an observation.
          seed: Of the draws.
          tolerance: Of log q(z); see `AggregatePosterior.evaluate`.

        Raises:
          ValueError: If a log density of a draw is not finite, or codes lie outside the support of
            the former prior.
        """
        former_prior = build_prior(former_prior)
        posteriors = components_lib.broadcast(aggregate_posterior.components_distribution)
        num_observations = int(aggregate_posterior.num_components)
        self._seed = seed
        self._z, log_densities, _ = posterior_draws(
            posteriors, former_prior, np.arange(num_observations), num_samples, seed, _BATCH_SIZE
        )
        check_codes_in_support(former_prior, self._z)
        self._log_former = checked_draws(
            "log p(z) of the former prior", log_densities["log_prior"], cause=cause(self._z)
        )
        evaluated = aggregate_posterior.evaluate(self._z, tolerance=tolerance)
        self._log_aggregate = checked_draws(
            "log q(z)", evaluated.log_prob, cause=cause(self._z, own=True)
        )
        self._truncation = tolerance or 0.0
        self._cause = rounding_of_draws(self._z.numpy(), posteriors)
        self._evaluation = describe_evaluation(evaluated, num_observations, tolerance)

    def log_prob(self, prior: tfd.Distribution | Callable[[], tfd.Distribution]) -> np.ndarray:
        """Scores another prior on the same draws.

        Args:
          prior: p(z), or a callable that returns it.

        Returns:
          log p(z), `[S, N]`, whether finite or not.
        """
        prior = build_prior(prior)
        num_samples, num_observations = self._log_former.shape
        length = min(num_observations, max(1, _BATCH_SIZE // num_samples))
        shape = [num_samples, length, *self._z.shape[2:]]
        num_steps = -(-num_observations // length)
        log_prob = traced_for_many(num_steps, prior.log_prob, tf.TensorSpec(shape, self._z.dtype))
        return np.concatenate(
            [
                log_prob(self._z[:, step.shown]).numpy()[:, step.new]
                for step in steps(num_observations, length)
            ],
            axis=1,
        )

    def change_to(
        self, prior: tfd.Distribution | Callable[[], tfd.Distribution] | np.ndarray
    ) -> PriorChange:
        """Measures the change to another prior, on the same draws.

        Args:
          prior: p(z), or a callable that returns it, or what `log_prob` gave for it.

        Returns:
          The `PriorChange` from the former prior to this one.

        Raises:
          ValueError: If a log density of a draw is not finite.
        """
        log_prior = prior if isinstance(prior, np.ndarray) else self.log_prob(prior)
        log_prior = checked_draws("log p(z) of the prior", log_prior, cause=cause(self._z))
        num_samples, num_observations = log_prior.shape

        def estimate(*terms: np.ndarray, truncation: float = 0.0) -> Estimate:
            return stratified_estimate(terms, num_observations, truncation)

        before, after = (
            estimate(self._log_aggregate, -log_density, truncation=self._truncation)
            for log_density in (self._log_former, log_prior)
        )
        return PriorChange(
            marginal_kl_before=before,
            marginal_kl_after=after,
            elbo_change=estimate(log_prior, -self._log_former),
            num_observations=num_observations,
            num_samples=num_samples,
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
