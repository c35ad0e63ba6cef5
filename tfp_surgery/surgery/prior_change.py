"""The change of the ELBO and the marginal KL when the prior of a model is replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import build_prior
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.batch_size import (
    bytes_of_parameters,
    bytes_of_row,
    equal_steps,
    rows_of_a_step,
)
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model_checks import check_codes_in_support
from tfp_surgery.measurement.result import Result, count_draws
from tfp_surgery.measurement.rounded_draws import cause, rounding_of_draws
from tfp_surgery.measurement.steps import steps
from tfp_surgery.measurement.traced import traced_for_many
from tfp_surgery.seeds import Seed
from tfp_surgery.surgery.closed_forms import closed_forms_of
from tfp_surgery.surgery.reduced_terms import reduced_terms
from tfp_surgery.surgery.scored_draws import (
    DRAWN_AT_A_TIME,
    ScoredDraws,
    describe_evaluation,
    posterior_draws,
)
from tfp_surgery.surgery.terms import control_variates

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True)
class PriorChange(Result):
    """Comparison of two priors on common draws, in nats per observation.

    The ELBO is reconstruction - I(n; z) - KL(q(z) || p(z)). The prior occurs in the last term
    alone, so that `elbo_change` = `marginal_kl_before` - `marginal_kl_after`, up to rounding. The
    estimates are those of `elbo_surgery` with the former prior: with its control variates, and with
    the average KL to each prior in closed form where TFP registers one. If it registers both, the
    change has no Monte Carlo error.

    Attributes:
      marginal_kl_before: KL(q(z) || p(z)) of the former prior.
      marginal_kl_after: KL(q(z) || p(z)) of the new prior.
      elbo_change: E_q(z)[log p_after(z) - log p_before(z)], with the standard error of the paired
        differences.
      num_observations: N.
      num_samples: Number of draws of z per observation.
      seed: Seed of the draws.
      evaluation: How log q(z) was evaluated: "exact", or within a tolerance.
      control_variates: What is known of posteriors and former prior and used; see `ElboSurgery`.
    """

    marginal_kl_before: Estimate
    marginal_kl_after: Estimate
    elbo_change: Estimate
    num_observations: int
    num_samples: int
    seed: Seed
    evaluation: str
    control_variates: tuple[str, ...] = ()

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
    """Measures the change from a former prior to others, on the same draws from q(z).

    The draws equal those of `elbo_surgery` with the same `num_samples` and seed (and no batch size
    below 2000), whose marginal KL with the former prior is `marginal_kl_before`. That with another
    prior is `marginal_kl_after` up to their errors: which control variates there are is a matter of
    the prior.
    """

    def __init__(
        self,
        aggregate_posterior: AggregatePosterior,
        former_prior: tfd.Distribution | Callable[[], tfd.Distribution],
        num_samples: int,
        seed: Seed,
        tolerance: float | None,
    ) -> None:
        """Draws codes and scores them under q(z) and the former prior.

        Args:
          aggregate_posterior: q(z), batch shape `[]`, event shape `[D]`, equal weights.
          former_prior: p(z), or a callable that returns it, evaluated with its current weights.
          num_samples: Number of draws of z per observation.
          seed: Seed of the draws.
          tolerance: Bound in nats on the error of log q(z); see `AggregatePosterior.evaluate`.

        Raises:
          ValueError: If a log density of a draw is not finite, or codes lie outside the support of
            the former prior.
        """
        self._seed = seed
        former_prior = build_prior(former_prior)
        posteriors = components_lib.broadcast(aggregate_posterior.components_distribution)
        num_observations = int(aggregate_posterior.num_components)
        everything = np.arange(num_observations)
        self._z, log_densities = posterior_draws(
            posteriors, lambda _: former_prior, everything, num_samples, seed, DRAWN_AT_A_TIME
        )
        check_codes_in_support(former_prior, self._z)
        self._log_former = checked_draws(
            "log p(z) of the former prior", log_densities["log_prior"], cause=cause(self._z)
        )
        evaluated = aggregate_posterior.evaluate(self._z, tolerance=tolerance)
        own = cause(self._z, own=True)
        log_posterior = checked_draws("log q(z|x)", log_densities["log_posterior"], cause=own)
        kl, entropy = closed_forms_of(
            posteriors, lambda _: former_prior, num_observations, DRAWN_AT_A_TIME
        )
        draws = ScoredDraws(
            z=self._z,
            index=everything,
            reconstruction=None,
            log_posterior=log_posterior,
            log_prior=self._log_former,
            log_aggregate=checked_draws("log q(z)", evaluated.log_prob, cause=own),
            index_entropy=checked_draws("H[q(n|z)]", evaluated.index_entropy, cause=own),
            closed_form_kl=kl,
            closed_form_entropy=entropy,
            num_observations=num_observations,
            seed=seed,
            data="",
            tolerance=tolerance,
            evaluation=describe_evaluation(evaluated, num_observations, tolerance),
        )
        self._posteriors, self._draws = posteriors, draws
        self._controls = control_variates(draws)
        self._before = reduced_terms(draws, self._controls)
        self._cause = rounding_of_draws(self._z.numpy(), posteriors)

    def log_prob(self, prior: tfd.Distribution | Callable[[], tfd.Distribution]) -> np.ndarray:
        """Returns log p(z) of the draws under another prior.

        Args:
          prior: p(z), or a callable that returns it.

        Returns:
          Floating array, shape `[S, N]`, in nats, not necessarily finite.
        """
        prior = build_prior(prior)
        num_samples, num_observations = self._log_former.shape
        num_codes = rows_of_a_step(bytes_of_row(self._z[0]), bytes_of_parameters(prior))
        length = equal_steps(num_observations, max(1, num_codes // num_samples))
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
        self,
        prior: tfd.Distribution | Callable[[], tfd.Distribution],
        log_prior: np.ndarray | None = None,
    ) -> PriorChange:
        """Measures the change to another prior, on the same draws.

        Args:
          prior: p(z), or a callable that returns it.
          log_prior: The value of `log_prob(prior)`; computed if None.

        Returns:
          The `PriorChange` from the former prior to this one.

        Raises:
          ValueError: If a log density of a draw is not finite.
        """
        prior = build_prior(prior)
        log_prior = self.log_prob(prior) if log_prior is None else log_prior
        log_prior = checked_draws("log p(z) of the prior", log_prior, cause=cause(self._z))
        draws, controls, before = self._draws, self._controls, self._before
        num_samples, num_observations = log_prior.shape
        kl, _ = closed_forms_of(
            self._posteriors, lambda _: prior, num_observations, DRAWN_AT_A_TIME
        )
        after = reduced_terms(
            dataclasses.replace(draws, log_prior=log_prior, closed_form_kl=kl), controls
        )
        marginal_kl_before = controls.estimate_of(before.third)
        marginal_kl_after = controls.estimate_of(after.third)
        return PriorChange(
            marginal_kl_before=marginal_kl_before,
            marginal_kl_after=marginal_kl_after,
            elbo_change=controls.estimate_of(before.average_kl - after.average_kl),
            num_observations=num_observations,
            num_samples=num_samples,
            seed=self._seed,
            evaluation=draws.evaluation,
            control_variates=controls.names,
            warnings=consistency.explained(
                [
                    *consistency.negative("Marginal KL before", marginal_kl_before),
                    *consistency.negative("Marginal KL after", marginal_kl_after),
                ],
                self._cause,
            ),
        )
