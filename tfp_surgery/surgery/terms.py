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
from tfp_surgery.measurement.control_variates import ControlVariate, ControlVariates
from tfp_surgery.surgery.elbo_surgery_result import NO_CLOSED_FORM, NO_DECODER, ElboSurgery
from tfp_surgery.surgery.reduced_terms import finite
from tfp_surgery.surgery.scored_draws import ScoredDraws
from tfp_surgery.surgery.unseen_variance import RARE_ENTROPY, unseen_of_prior, unseen_variance

_ENOUGH_DRAWS = 10  # draws per observation from which its variance can be estimated


def terms(draws: ScoredDraws, log_training_aggregate: np.ndarray | None = None) -> ElboSurgery:
    """Computes the terms from the log densities of the draws.

    Args:
      draws: The draws.
      log_training_aggregate: log q_train(z_sq), shape `[S, Q]`; None for no cross term.

    Returns:
      `ElboSurgery` without its parts.
    """
    num_observations = draws.num_observations
    left_out = draws.tolerance or 0.0  # error bound of log q(z) and H[q(n|z)]
    log_posterior = draws.log_posterior
    log_prior, log_aggregate = draws.log_prior, draws.log_aggregate
    kl = finite(draws.closed_form_kl)
    unseen = unseen_variance(draws)
    plain = ControlVariates((), num_observations, unseen)
    controls = control_variates(draws)

    absent: dict[str, str] = {}
    if draws.is_conditional:
        absent["marginal_kl"] = absent["marginal_kl_sampled"] = (
            "the prior p(z|c) depends on the condition, and there is no p(z): the third term is "
            "conditional_prior_term, which is no KL"
        )
    if draws.index_entropy is None:
        absent["index_code_mutual_information_from_entropy"] = "H[q(n|z)] is not known"
    if kl is None:
        absent["index_code_mutual_information_by_subtraction"] = NO_CLOSED_FORM

    information, sampled_information = (
        _with_error(
            way.estimate(log_posterior, -log_aggregate, truncation=left_out, unseen=1.0), draws
        )
        for way in (controls, plain)
    )
    of_prior = unseen_of_prior(draws)
    third, sampled_third = (
        _with_error(
            way.estimate(log_aggregate, -log_prior, truncation=left_out, unseen=of_prior - 1.0),
            draws,
        )
        for way in (controls, plain)
    )
    sampled_average_kl = plain.estimate(log_posterior, -log_prior, unseen=of_prior)
    elbo = reconstruction = None
    if draws.reconstruction is None:
        absent |= dict.fromkeys(("elbo", "average_reconstruction"), NO_DECODER)
    else:
        reconstruction = controls.estimate(draws.reconstruction)
        elbo = controls.estimate(draws.reconstruction, -log_posterior, log_prior, unseen=-of_prior)
    if kl is None:
        average_kl = controls.estimate(log_posterior, -log_prior, unseen=of_prior)
    else:
        average_kl = controls.exact(kl, rounding(log_posterior, log_prior))
        of_draws = np.broadcast_to(kl[draws.index], log_prior.shape)
        third = _difference_of(
            average_kl,
            information,
            controls.estimate(of_draws, -log_posterior, log_aggregate),
        )
        if reconstruction is not None:
            elbo = _difference_of(
                reconstruction, average_kl, controls.estimate(draws.reconstruction, -of_draws)
            )
    is_conditional = draws.is_conditional
    return ElboSurgery(
        elbo=elbo,
        average_reconstruction=reconstruction,
        average_kl=average_kl,
        index_code_mutual_information=information,
        marginal_kl=None if is_conditional else third,
        conditional_prior_term=third if is_conditional else None,
        average_kl_sampled=sampled_average_kl,
        index_code_mutual_information_sampled=sampled_information,
        marginal_kl_sampled=None if is_conditional else sampled_third,
        index_code_mutual_information_from_entropy=(
            None
            if draws.index_entropy is None
            else stratified_estimate(
                [np.full_like(log_aggregate, np.log(num_observations)), -draws.index_entropy],
                num_observations,
                # The entropy has the rounding error of the log densities that it averages.
                left_out + rounding(log_aggregate),
            )
        ),
        index_code_mutual_information_by_subtraction=(
            None if kl is None else _difference_of(average_kl, sampled_third)
        ),
        cross_term=(
            None
            if log_training_aggregate is None
            else controls.estimate(log_training_aggregate, -log_prior, truncation=left_out)
        ),
        num_observations=num_observations,
        num_query=len(draws.index),
        num_samples=len(log_posterior),
        seed=draws.seed,
        data=draws.data,
        evaluation=draws.evaluation,
        decoding=draws.decoding,
        control_variates=controls.names,
        outside_support=draws.outside_support,
        absent=absent,
    )


def control_variates(draws: ScoredDraws) -> ControlVariates:
    """Returns the control variates that are known for a model.

    The means over all N observations of the expectations over z ~ q(z|x_n) of

        log q(z|x_n),  log q(z|x_n) - log p(z)  and  log q(z|x_n) - log q(z) - log N + H[q(n|z)]

    are -1/N sum_n H[q(z|x_n)], 1/N sum_n KL(q(z|x_n) || p(z)) and 0.

    Args:
      draws: The scored draws.

    Returns:
      `ControlVariates`, of those that can be used.
    """
    log_posterior, log_prior = draws.log_posterior, draws.log_prior
    left_out = draws.tolerance or 0.0
    entropy, kl = finite(draws.closed_form_entropy), finite(draws.closed_form_kl)
    candidates = []
    for name, known, *summands in (
        ("H[q(z|x)]", None if entropy is None else -entropy, log_posterior),
        ("KL(q(z|x) || p(z))", kl, log_posterior, -log_prior),
    ):
        if known is not None:
            candidates.append(ControlVariate.of_known(name, known, draws.index, *summands))
    if draws.index_entropy is not None and draws.component_error is None:
        candidates.append(
            ControlVariate.of(
                "H[q(n|z)]",
                log_posterior,
                -draws.log_aggregate,
                np.full_like(log_posterior, -math.log(draws.num_observations)),
                draws.index_entropy,
                truncation=2.0 * left_out + rounding(draws.log_aggregate),
                unseen=1.0,
            )
        )
    return ControlVariates(candidates, draws.num_observations, unseen_variance(draws))


def _difference_of(
    first: Estimate, second: Estimate, influence: Estimate | None = None
) -> Estimate:
    """Returns first - second, one of which has no Monte Carlo error.

    Args:
      first: An estimate.
      second: An estimate.
      influence: An estimate of the difference, for its population standard error.

    Returns:
      The `Estimate`.
    """
    sampled = second if first.num_draws == 0 else first
    return dataclasses.replace(
        sampled,
        value=first.value - second.value,
        standard_error=math.hypot(first.standard_error, second.standard_error),
        population_standard_error=(
            None if influence is None else influence.population_standard_error
        ),
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
    log_posterior = draws.log_posterior
    for name, closed_form, *summands in (
        ("Average KL", draws.closed_form_kl, log_posterior, -draws.log_prior),
        ("Average entropy of q(z|x)", draws.closed_form_entropy, -log_posterior),
    ):
        if closed_form is None:
            continue
        exact = closed_form[draws.index]
        if not np.isfinite(exact).all():
            # TFP's entropies are NaN for some parameters that are right, such as infinite ones.
            if closed_form is draws.closed_form_kl:
                found.append(
                    f"{name} in closed form is not finite for {np.sum(~np.isfinite(exact))} of "
                    f"{exact.size} observations, and is not used."
                )
            continue
        found += consistency.apart(
            name,
            "by Monte Carlo",
            stratified_estimate(summands, len(exact)),
            "in closed form",
            exact_strata_estimate(exact, len(exact)),
            _difference(*summands, np.broadcast_to(-exact, log_posterior.shape)),
        )
    name, information = (
        "Index-code mutual information",
        surgery.index_code_mutual_information_sampled,
    )
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
    for value in (surgery.index_code_mutual_information, information):
        found += consistency.above(name, value, "log N", ceiling)
    for term, value, sampled in (
        ("Index-code mutual information", surgery.index_code_mutual_information, information),
        ("Marginal KL", surgery.marginal_kl, surgery.marginal_kl_sampled),
        ("Average KL", surgery.average_kl, surgery.average_kl_sampled),
    ):
        found += consistency.negative(term, value) or consistency.negative(term, sampled)
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
    rare = np.where(rare < RARE_ENTROPY, rare, 0.0)
    variance = 2.0 * rare * (1.0 + log_num_observations - np.log(np.maximum(rare, 1e-300)))
    return math.sqrt(variance.mean() / variance.size)
