"""The ELBO written in four ways, from one set of draws."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement.consistency import above, explained, negative, warn
from tfp_surgery.measurement.control_variates import ControlVariates
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.result import Result, describe_draws


@dataclasses.dataclass(frozen=True)
class ElboReadings(Result):
    r"""The ELBO written in four ways (Hoffman and Johnson 2016, sections 2 and 3), in nats.

        evidence     1/N sum_n log p(x_n) - 1/N sum_n KL(q(z|x_n) || p(z|x_n))
        energy       1/N sum_n E[log p(x_n, z)] + 1/N sum_n H[q(z|x_n)]
        term by term 1/N sum_n E[log p(x_n|z)] - 1/N sum_n KL(q(z|x_n) || p(z))
        surgery      1/N sum_n E[log p(x_n|z)] - I(n; z) - KL(q(z) || p(z))

    All terms, including entropy and average KL, are Monte Carlo means over the same draws; in a
    result of `elbo_surgery` with the control variates of its terms. The four readings are therefore
    equal by algebra, which does not validate the densities.

    Attributes:
      evidence_minus_posterior_kl: The first reading; None without the log evidence.
      log_evidence: 1/N sum_n log p(x_n), as given. Its standard error covers the choice of a subset
        of the observations, but not the estimation of log p(x_n).
      posterior_kl: 1/N sum_n KL(q(z|x_n) || p(z|x_n)), Monte Carlo; None without the log evidence.
      negative_energy_plus_entropy: The second reading.
      negative_energy: 1/N sum_n E_q(z|x_n)[log p(x_n, z)].
      entropy: 1/N sum_n H[q(z|x_n)], Monte Carlo: the mean of -log q(z|x_n).
      term_by_term: The third reading.
      average_reconstruction: 1/N sum_n E_q(z|x_n)[log p(x_n|z)].
      average_kl: 1/N sum_n KL(q(z|x_n) || p(z)), Monte Carlo.
      surgery: The fourth reading; its first term is `average_reconstruction`.
      index_code_mutual_information: I(n; z), Monte Carlo.
      marginal_kl: KL(q(z) || p(z)), Monte Carlo.
      num_observations: N.
      num_query: Number of observations in the expectations.
      num_samples: Number of draws of z per observation.
    """

    evidence_minus_posterior_kl: Estimate | None
    log_evidence: Estimate | None
    posterior_kl: Estimate | None
    negative_energy_plus_entropy: Estimate
    negative_energy: Estimate
    entropy: Estimate
    term_by_term: Estimate
    average_reconstruction: Estimate
    average_kl: Estimate
    surgery: Estimate
    index_code_mutual_information: Estimate
    marginal_kl: Estimate
    num_observations: int
    num_query: int
    num_samples: int

    def impossible_values(self) -> list[str]:
        """Describes estimates outside their range by many standard errors, one sentence each."""
        found = negative("Posterior KL", self.posterior_kl)
        if found:
            found.append(
                "The log evidence as given lies below the ELBO: it is not that of these "
                "observations under this model, or a lower bound that is too loose."
            )
        information = self.index_code_mutual_information
        log_num_observations = Estimate(math.log(self.num_observations), 0.0, 0)
        return [
            *found,
            *negative("Average KL", self.average_kl),
            *negative("Marginal KL", self.marginal_kl),
            *negative("Index-code mutual information", information),
            *above("Index-code mutual information", information, "log N", log_num_observations),
        ]

    def readings(self) -> dict[str, Estimate]:
        """Returns the available readings by field name, all estimates of the ELBO."""
        names = (
            "evidence_minus_posterior_kl",
            "negative_energy_plus_entropy",
            "term_by_term",
            "surgery",
        )
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _title(self) -> list[str]:
        draws = describe_draws(self.num_observations, self.num_query, self.num_samples)
        return ["Readings of the ELBO", draws]

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            ("log evidence - posterior KL", self.evidence_minus_posterior_kl),
            ("    log evidence", self.log_evidence),
            ("    KL(q(z|x) || p(z|x))", self.posterior_kl),
            ("negative energy + entropy", self.negative_energy_plus_entropy),
            ("    negative energy E[log p(x, z)]", self.negative_energy),
            ("    entropy H[q(z|x)]", self.entropy),
            ("reconstruction - average KL", self.term_by_term),
            ("    reconstruction", self.average_reconstruction),
            ("    average KL(q(z|x) || p(z))", self.average_kl),
            ("reconstruction - index-code MI - marginal KL", self.surgery),
            ("    reconstruction", self.average_reconstruction),
            ("    index-code mutual information", self.index_code_mutual_information),
            ("    marginal KL(q(z) || p(z))", self.marginal_kl),
        ]


def elbo_readings(
    reconstruction: Any,
    log_posterior: Any,
    log_prior: Any,
    log_aggregate: Any,
    num_observations: int,
    log_evidence: Any = None,
) -> ElboReadings:
    """Estimates the ELBO in four ways from the log densities of one set of draws.

    The draws are z_sq ~ q(z|x_q), S for each of Q observations: all N, or a random subset.

    Args:
      reconstruction: log p(x_q|z_sq), floats of shape `[S, Q]`, in nats.
      log_posterior: log q(z_sq|x_q), likewise.
      log_prior: log p(z_sq), likewise.
      log_aggregate: log q(z_sq) under the aggregate posterior of all N observations, likewise.
      num_observations: N, at least Q.
      log_evidence: log p(x_q), floats of shape `[Q]`; None if unknown. If it is a lower bound, the
        posterior KL is too small by the gap.

    Returns:
      `ElboReadings`. The estimates are unbiased. Their standard errors are conditional on the data,
      and include the spread between observations if Q < N (see `stratified_estimate`). They are NaN
      if S = 1.

    Raises:
      TypeError: If `num_observations` is not an integer.
      ValueError: If shapes do not fit, there are no draws, or a value is not finite.

    #### References

    Matthew D. Hoffman and Matthew J. Johnson. ELBO surgery: yet another way to carve up the
    variational evidence lower bound. NIPS Workshop in Advances in Approximate Bayesian Inference,
    2016.
    """
    reconstruction = checked_draws("reconstruction", reconstruction)
    if reconstruction.ndim != 2 or reconstruction.size == 0:
        raise ValueError(
            "reconstruction must have shape [S, Q] with at least one draw; got "
            f"{list(reconstruction.shape)}."
        )
    shape = reconstruction.shape
    log_posterior = checked_draws("log_posterior", log_posterior, shape)
    log_prior = checked_draws("log_prior", log_prior, shape)
    log_aggregate = checked_draws("log_aggregate", log_aggregate, shape)
    num_observations = checked_integer("num_observations", num_observations, shape[1])

    if log_evidence is not None:
        log_evidence = checked_draws("log_evidence", log_evidence, shape[1:])
    readings = readings_of(
        ControlVariates((), num_observations),
        reconstruction,
        log_posterior,
        log_prior,
        log_aggregate,
        log_evidence,
    )
    warn(readings.warnings, stacklevel=3)
    return readings


def readings_of(
    controls: ControlVariates,
    reconstruction: np.ndarray,
    log_posterior: np.ndarray,
    log_prior: np.ndarray,
    log_aggregate: np.ndarray,
    log_evidence: np.ndarray | None,
    unseen_of_prior: float = 0.0,
) -> ElboReadings:
    """Estimates the readings as `elbo_readings` does, with control variates of the draws.

    Args:
      controls: The control variates.
      reconstruction: See `elbo_readings`.
      log_posterior: See `elbo_readings`.
      log_prior: See `elbo_readings`.
      log_aggregate: See `elbo_readings`.
      log_evidence: See `elbo_readings`.
      unseen_of_prior: Factor of the unseen part of log q(n|z) in -log p(z).

    Returns:
      `ElboReadings`, with warnings that have not been issued.
    """
    estimate = controls.estimate
    # All readings are the same sum over the draws.
    unseen = unseen_of_prior
    elbo = estimate(reconstruction, log_prior, -log_posterior, unseen=-unseen)
    evidence: dict[str, Any]
    if log_evidence is None:
        reason = "the log evidence log p(x) was not given, and the posterior KL needs it"
        evidence = {"evidence_minus_posterior_kl": None, "log_evidence": None, "posterior_kl": None}
        absent = dict.fromkeys(evidence, reason)
    else:
        repeated = np.broadcast_to(log_evidence, reconstruction.shape)
        evidence = {
            "evidence_minus_posterior_kl": elbo,
            "log_evidence": estimate(repeated),
            "posterior_kl": estimate(
                log_posterior, -reconstruction, -log_prior, repeated, unseen=unseen
            ),
        }
        absent = {}
    readings = ElboReadings(
        **evidence,
        negative_energy_plus_entropy=elbo,
        negative_energy=estimate(reconstruction, log_prior, unseen=-unseen),
        entropy=estimate(-log_posterior),
        term_by_term=elbo,
        average_reconstruction=estimate(reconstruction),
        average_kl=estimate(log_posterior, -log_prior, unseen=unseen),
        surgery=elbo,
        index_code_mutual_information=estimate(log_posterior, -log_aggregate, unseen=1.0),
        marginal_kl=estimate(log_aggregate, -log_prior, unseen=unseen - 1.0),
        absent=absent,
        num_observations=controls.num_observations,
        num_query=reconstruction.shape[1],
        num_samples=reconstruction.shape[0],
    )
    return dataclasses.replace(readings, warnings=explained(readings.impossible_values()))
