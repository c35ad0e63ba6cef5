"""The terms of the ELBO from scored draws, and the comparison of what must agree."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tfp_surgery.estimate import (
    Estimate,
    exact_strata_estimate,
    rounding,
    stratified_estimate,
)
from tfp_surgery.log_density.component_subset import NUM_GROUPS
from tfp_surgery.measurement import consistency
from tfp_surgery.surgery.elbo_surgery_result import NO_CLOSED_FORM, NO_DECODER, ElboSurgery
from tfp_surgery.surgery.scored_draws import ScoredDraws

# Used by the comparisons. Below this entropy of q(n|z), one component has more than 80% of it.
_RARE_ENTROPY = 0.5
_ENOUGH_DRAWS = 10  # draws per observation from which its variance can be estimated


def terms(draws: ScoredDraws, log_training_aggregate: np.ndarray | None = None) -> ElboSurgery:
    """Computes the terms from the log densities of the draws.

    Args:
      draws: The draws.
      log_training_aggregate: log q_train(z_sq), shape `[S, Q]`; None for no cross term.

    Returns:
      `ElboSurgery` without its parts.
    """
    num_observations, kl = draws.num_observations, draws.closed_form_kl
    left_out = draws.tolerance or 0.0  # error bound of log q(z) and H[q(n|z)]
    log_posterior = draws.log_posterior
    log_prior, log_aggregate = draws.log_prior, draws.log_aggregate

    def estimate(*summands: np.ndarray, truncation: float = 0.0) -> Estimate:
        return stratified_estimate(summands, num_observations, truncation)

    absent: dict[str, str] = {}
    elbo = reconstruction = None
    if draws.reconstruction is None:
        absent |= dict.fromkeys(("elbo", "average_reconstruction"), NO_DECODER)
    else:
        reconstruction = estimate(draws.reconstruction)
        elbo = estimate(draws.reconstruction, -log_posterior, log_prior)
    third = _with_error(estimate(log_aggregate, -log_prior, truncation=left_out), draws)
    if draws.is_conditional:
        absent["marginal_kl"] = (
            "the prior p(z|c) depends on the condition, and there is no p(z): the third term is "
            "conditional_prior_term, which is no KL"
        )
    if kl is None:
        absent["average_kl_analytic"] = NO_CLOSED_FORM
    if draws.index_entropy is None:
        absent["index_code_mutual_information_from_entropy"] = "H[q(n|z)] is not known"
    return ElboSurgery(
        elbo=elbo,
        average_reconstruction=reconstruction,
        average_kl=estimate(log_posterior, -log_prior),
        index_code_mutual_information=_with_error(
            estimate(log_posterior, -log_aggregate, truncation=left_out), draws
        ),
        marginal_kl=None if draws.is_conditional else third,
        conditional_prior_term=third if draws.is_conditional else None,
        average_kl_analytic=None if kl is None else exact_strata_estimate(kl, num_observations),
        index_code_mutual_information_from_entropy=(
            None
            if draws.index_entropy is None
            else estimate(
                np.full_like(log_aggregate, np.log(num_observations)),
                -draws.index_entropy,
                # The entropy has the rounding error of the log densities that it averages.
                truncation=left_out + rounding(log_aggregate),
            )
        ),
        index_code_mutual_information_by_subtraction=(
            None
            if kl is None
            else _with_error(
                estimate(
                    np.broadcast_to(kl, log_prior.shape),
                    -log_aggregate,
                    log_prior,
                    truncation=left_out,
                ),
                draws,
            )
        ),
        cross_term=(
            None
            if log_training_aggregate is None
            else estimate(log_training_aggregate, -log_prior, truncation=left_out)
        ),
        num_observations=num_observations,
        num_query=len(draws.index),
        num_samples=len(log_posterior),
        seed=draws.seed,
        data=draws.data,
        evaluation=draws.evaluation,
        outside_support=draws.outside_support,
        absent=absent,
    )


def _with_error(estimate: Estimate, draws: ScoredDraws) -> Estimate:
    """Adds the error of log q(z) from a subset of the components to a standard error."""
    if draws.component_error is None:
        return estimate
    error = math.hypot(estimate.standard_error, draws.component_error)
    freedom = min(estimate.degrees_of_freedom, NUM_GROUPS - 1.0)
    return dataclasses.replace(estimate, standard_error=error, degrees_of_freedom=freedom)


def disagreements(surgery: ElboSurgery, draws: ScoredDraws) -> list[str]:
    """Describes terms that contradict each other, one sentence each.

    Args:
      surgery: The terms.
      draws: The draws that they were computed from.

    Returns:
      The sentences; empty if there are none.
    """
    found = []
    log_posterior, kl = draws.log_posterior, draws.closed_form_kl
    if surgery.average_kl_analytic is not None and kl is not None:
        found += consistency.apart(
            "Average KL",
            "by Monte Carlo",
            surgery.average_kl,
            "in closed form",
            surgery.average_kl_analytic,
            _difference(log_posterior, -draws.log_prior, np.broadcast_to(-kl, log_posterior.shape)),
        )
    name, information = "Index-code mutual information", surgery.index_code_mutual_information
    from_entropy = surgery.index_code_mutual_information_from_entropy
    if from_entropy is not None and draws.index_entropy is not None:
        unseen = _unseen(draws.index_entropy, surgery.log_num_observations)
        error = math.hypot(information.standard_error, from_entropy.standard_error, unseen)
        found += consistency.apart(
            name,
            "from log q(z)",
            information,
            "from the entropy of q(n|z)",
            from_entropy,
            dataclasses.replace(
                information, value=information.value - from_entropy.value, standard_error=error
            ),
        )
    ceiling = Estimate(surgery.log_num_observations, 0.0, 0)
    found += consistency.negative(name, information)
    found += consistency.above(name, information, "log N", ceiling)
    found += consistency.negative("Marginal KL", surgery.marginal_kl)
    found += consistency.negative("Average KL", surgery.average_kl)
    found += consistency.negative("Average KL in closed form", surgery.average_kl_analytic)
    if (
        surgery.cross_term is not None and surgery.marginal_kl is not None
    ):  # the marginal KL minus KL(q(z) || q_train(z))
        found += consistency.above(
            "Cross term", surgery.cross_term, "Marginal KL", surgery.marginal_kl
        )
    return found


def _difference(*terms: np.ndarray) -> Estimate:
    """Estimates the difference of two estimates whose expectations agree in every stratum.

    A few draws per observation underestimate the variance if a single observation dominates it. The
    standard error is then at least that of the stratum means around their expectation 0.
    """
    num_samples, num_query = terms[0].shape
    estimate = stratified_estimate(terms, num_query)
    if num_samples >= _ENOUGH_DRAWS:
        return estimate
    means = np.sum([term.astype(np.float64) for term in terms], axis=0).mean(axis=0)
    error = max(math.sqrt(np.square(means).sum()) / num_query, rounding(*terms))
    if estimate.standard_error > error:
        return estimate
    return dataclasses.replace(estimate, standard_error=error, degrees_of_freedom=float(num_query))


def _unseen(index_entropy: np.ndarray, log_num_observations: float) -> float:
    """Returns the part of the standard error of E[log q(n|z)] that the draws do not show.

    If one component has nearly all of q(n|z), draws from the others are too rare to occur, and the
    sample variance of log q(n|z) is too small. The variance given z is at most about
    2 H (1 + log N - log H) with H = H[q(n|z)].
    """
    rare = np.asarray(index_entropy, np.float64)
    rare = np.where(rare < _RARE_ENTROPY, rare, 0.0)
    variance = 2.0 * rare * (1.0 + log_num_observations - np.log(np.maximum(rare, 1e-300)))
    return math.sqrt(variance.mean() / variance.size)
