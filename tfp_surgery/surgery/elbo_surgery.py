"""elbo_surgery: the three terms of the ELBO over a whole data set, with standard errors."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.arrays import reject_missing
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import (
    Estimate,
    exact_strata_estimate,
    rounding,
    stratified_estimate,
)
from tfp_surgery.log_density.evaluation import checked_tolerance
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model_checks import check_aggregate_posterior
from tfp_surgery.measurement.prepared_model import prepared_model
from tfp_surgery.measurement.rounded_draws import cause, rounding_of_draws
from tfp_surgery.surgery.elbo_surgery_result import ElboSurgery
from tfp_surgery.surgery.parts import parts_of
from tfp_surgery.surgery.scored_draws import ScoredDraws, chosen_observations, score_draws

tfd = tfp.distributions

# Used by the comparisons. Below this entropy of q(n|z), one component has more than 80% of it.
_RARE_ENTROPY = 0.5
_ENOUGH_DRAWS = 10  # draws per observation from which its variance can be estimated


def elbo_surgery(
    x: Any,
    encoder: Callable[[Any], tfd.Distribution] | tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    num_samples: int = 2,
    num_query: int | None = None,
    seed: Any = 0,
    batch_size: int = 2000,
    training_aggregate_posterior: AggregatePosterior | None = None,
    tolerance: float | None = None,
    detail: Literal["terms", "full"] = "terms",
    log_evidence: Any = None,
) -> ElboSurgery:
    r"""Decomposes the ELBO of a latent-variable model into its three terms, over a whole data set.

    With q(n) = 1/N, q(z|n) = q(z|x_n) and q(z) = 1/N sum_n q(z|x_n) (Hoffman and Johnson 2016,
    equation 8 and following):

        ELBO = 1/N sum_n E_q(z|x_n)[log p(x_n|z)]      (1) average reconstruction
               - I(n; z)                               (2) index-code mutual information
               - KL(q(z) || p(z))                      (3) marginal KL

    log q(z) is exact over all N components. The expectations over z are Monte Carlo averages over
    `num_samples` draws from every q(z|x_n), stratified by observation. Standard errors are
    conditional on the data. With `num_query`, the expectations run over a random subset of the
    observations, and standard errors include the spread between observations; the aggregate
    posterior remains that of all N. All estimates are unbiased, up to rounding in the dtype of the
    model.

    The index-code mutual information is a property of this finite data set, and at most log N. It
    is not the mutual information of X and Z in the population. A held-out data set is decomposed
    with its own aggregate posterior; `training_aggregate_posterior` adds the cross term with the
    aggregate posterior of the training set.

    Args:
      x: The data set: array-like or `Tensor` of shape `[N, *event_shape]`, or a
        `tfp_surgery.datasets.Dataset`. A stochastic binarization is drawn once, from `seed`.
      encoder: Callable from observations `[B, *event_shape]` to a `tfd.Distribution` over codes
        with batch shape `[B]`. Or the posteriors of x, which are then not encoded again: an
        `AggregatePosterior`, or a `tfd.Distribution` with batch shape `[N]`.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations with
        batch shape `[B]` and event shape `event_shape`.
      prior: `tfd.Distribution` over codes with batch shape `[]`, or a callable that returns one.
      num_samples: Number of draws of z per observation, at least 1. With 1, the standard errors of
        the sampled estimates are NaN.
      num_query: Number of observations in the expectations; None for all N.
      seed: Integer in [0, 2**31), or a TFP seed (pair of int32). The same seed and `batch_size`
        give the same draws.
      batch_size: Number of observations encoded, and of codes decoded and scored, at a time (at
        least the `num_samples` codes of one observation).
      training_aggregate_posterior: Aggregate posterior of another data set over the same codes,
        batch shape `[]`.
      tolerance: Bound in nats on the error of log q(z) and H[q(n|z)] from a certified tree over the
        components; see `AggregatePosterior.evaluate`. None for exact values. The field `evaluation`
        of the result says how log q(z) was evaluated.
      detail: `"full"` adds more quantities to the terms: the four readings of the ELBO, the split
        of the marginal KL over dimensions (log q(z_j) within `tolerance`, or 1e-5 nats), active
        units, and bounds on the mutual information (from their own draws). Quantities that do not
        exist for this model are None, with the reason in `absent`. If the likelihood is a
        probability mass function, H in H - D <= I is the entropy of these observations.
      log_evidence: log p(x_n) of the observations, array-like of shape `[N]`, in nats, for the
        first of the four readings; for instance
        `log_evidence_by_importance_sampling(...).per_observation`. The result then has `readings`,
        whatever `detail` is.

    Returns:
      `ElboSurgery`, in nats per observation.

    Raises:
      TypeError: If encoder, decoder or prior do not return distributions.
      ValueError: If x is empty, not finite or outside the support of the likelihood, if shapes do
        not fit, if a number is out of range, if codes lie outside the support of the prior, if
        posterior and prior are a point mass and a density, or if a log density is not finite.

    Warns:
      UserWarning: If numbers of the result contradict each other, as listed in its `warnings` (see
        `docs/when-numbers-disagree.md`), or if standard errors are unknown.
    """
    num_samples = checked_integer("num_samples", num_samples, 1)
    batch_size = checked_integer("batch_size", batch_size, 1)
    seed = seeds.checked_seed(seed)
    tolerance = checked_tolerance(tolerance)
    if detail not in ("terms", "full"):
        raise ValueError(f'detail must be "terms" or "full"; got {detail!r}.')
    reject_missing("log_evidence", log_evidence)
    model = prepared_model(x, encoder, decoder, prior, seed, batch_size)
    index = chosen_observations(model.num_observations, num_query, seed)
    if training_aggregate_posterior is not None:
        _check_same_codes(training_aggregate_posterior, model.prior)
    if log_evidence is not None:
        log_evidence = checked_draws("log_evidence", log_evidence, (model.num_observations,))
        log_evidence = log_evidence[index]
    if num_samples == 1 or (len(index) == 1 and model.num_observations > 1):
        warnings.warn(
            "with num_samples=1 or num_query=1 the standard errors are unknown (NaN).",
            stacklevel=2,
        )

    draws = score_draws(model, index, num_samples, seed, batch_size, tolerance)
    log_training_aggregate = None
    if training_aggregate_posterior is not None:
        log_training_aggregate = checked_draws(
            "log training aggregate",
            training_aggregate_posterior.log_prob(draws.z, tolerance=tolerance),
            cause=cause(draws.z),
        )
    surgery = _terms(draws, log_training_aggregate)
    found = consistency.explained(
        _disagreements(surgery, draws), rounding_of_draws(draws.z.numpy(), model.posteriors)
    )
    with consistency.silent():
        parts = parts_of(surgery, model, draws, detail == "full", log_evidence)
    for part in parts.values():
        found += getattr(part, "warnings", ())
    found = tuple(dict.fromkeys(found))  # each once
    consistency.warn(found, stacklevel=3)
    return dataclasses.replace(surgery, **parts, warnings=found)


def _check_same_codes(aggregate_posterior: Any, prior: tfd.Distribution) -> None:
    check_aggregate_posterior(aggregate_posterior, "training_aggregate_posterior")
    if aggregate_posterior.event_shape != prior.event_shape:
        raise ValueError(
            "training_aggregate_posterior must be over the codes of this model, of shape "
            f"{prior.event_shape}; got event shape {aggregate_posterior.event_shape}."
        )


def _terms(draws: ScoredDraws, log_training_aggregate: np.ndarray | None) -> ElboSurgery:
    """Computes the terms from the log densities of the draws."""
    num_observations, kl = draws.num_observations, draws.closed_form_kl
    left_out = draws.tolerance or 0.0  # error bound of log q(z) and H[q(n|z)]
    reconstruction, log_posterior = draws.reconstruction, draws.log_posterior
    log_prior, log_aggregate = draws.log_prior, draws.log_aggregate

    def estimate(*terms: np.ndarray, truncation: float = 0.0) -> Estimate:
        return stratified_estimate(terms, num_observations, truncation)

    return ElboSurgery(
        elbo=estimate(reconstruction, -log_posterior, log_prior),
        average_reconstruction=estimate(reconstruction),
        average_kl=estimate(log_posterior, -log_prior),
        index_code_mutual_information=estimate(log_posterior, -log_aggregate, truncation=left_out),
        marginal_kl=estimate(log_aggregate, -log_prior, truncation=left_out),
        average_kl_analytic=None if kl is None else exact_strata_estimate(kl, num_observations),
        index_code_mutual_information_from_entropy=estimate(
            np.full_like(log_aggregate, np.log(num_observations)),
            -draws.index_entropy,
            # The entropy has the rounding error of the log densities that it averages.
            truncation=left_out + rounding(log_aggregate),
        ),
        index_code_mutual_information_by_subtraction=(
            None
            if kl is None
            else estimate(
                np.broadcast_to(kl, log_prior.shape),
                -log_aggregate,
                log_prior,
                truncation=left_out,
            )
        ),
        cross_term=(
            None
            if log_training_aggregate is None
            else estimate(log_training_aggregate, -log_prior, truncation=left_out)
        ),
        num_observations=num_observations,
        num_query=len(draws.index),
        num_samples=len(reconstruction),
        seed=draws.seed,
        data=draws.data,
        evaluation=draws.evaluation,
    )


def _disagreements(surgery: ElboSurgery, draws: ScoredDraws) -> list[str]:
    """Describes terms that contradict each other, one sentence each."""
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
    found += consistency.apart(
        name,
        "from log q(z)",
        information,
        "from the entropy of q(n|z)",
        from_entropy,
        dataclasses.replace(
            information,
            value=information.value - from_entropy.value,
            standard_error=math.hypot(
                information.standard_error,
                from_entropy.standard_error,
                _unseen(draws.index_entropy, surgery.log_num_observations),
            ),
        ),
    )
    ceiling = Estimate(surgery.log_num_observations, 0.0, 0)
    found += consistency.negative(name, information)
    found += consistency.above(name, information, "log N", ceiling)
    found += consistency.negative("Marginal KL", surgery.marginal_kl)
    found += consistency.negative("Average KL", surgery.average_kl)
    found += consistency.negative("Average KL in closed form", surgery.average_kl_analytic)
    if surgery.cross_term is not None:  # the marginal KL minus KL(q(z) || q_train(z))
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
