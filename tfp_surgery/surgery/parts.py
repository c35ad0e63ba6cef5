"""The parts of an `ElboSurgery` other than its three terms."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfp_surgery.checks.point_mass import measures
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.information.mutual_information_bounds import mutual_information_bounds
from tfp_surgery.information.rate_distortion import empirical_entropy, rate_distortion_bounds
from tfp_surgery.measurement.prepared_model import PreparedModel
from tfp_surgery.surgery.active_units import ActiveUnits, active_units
from tfp_surgery.surgery.condition_split import condition_split
from tfp_surgery.surgery.elbo_readings import readings_of
from tfp_surgery.surgery.elbo_surgery_result import (
    NO_CONDITION,
    NO_PARTS,
    NOT_ASKED_FOR,
    PARTS,
    ElboSurgery,
)
from tfp_surgery.surgery.marginal_kl_split_result import MarginalKLSplit
from tfp_surgery.surgery.per_part import per_part
from tfp_surgery.surgery.reduced_terms import reduced_terms
from tfp_surgery.surgery.scored_draws import ScoredDraws
from tfp_surgery.surgery.split_of_draws import split_of_draws
from tfp_surgery.surgery.terms import control_variates
from tfp_surgery.surgery.unseen_variance import unseen_of_prior

# Default tolerance of log q(z_j): exact marginals of 60000 observations take minutes.
MARGINAL_TOLERANCE = 1e-5
_BATCH_SIZE = 128
_SUBSET = "it needs all components, and num_components of them were drawn"
NO_MARGINAL_KL = "the prior depends on the condition, and there is no marginal KL"


def parts_of(
    surgery: ElboSurgery,
    model: PreparedModel,
    draws: ScoredDraws,
    full: bool,
    log_evidence: np.ndarray | None,
) -> dict[str, Any]:
    """Computes the parts of an `ElboSurgery` other than its terms.

    Args:
      surgery: The terms.
      model: The model.
      draws: The draws from which the terms were computed.
      full: Whether to compute all parts, or the readings alone if there is a log evidence.
      log_evidence: log p(x_q) of the observations in the expectations, shape `[Q]`; None if
        unknown.

    Returns:
      Fields of `ElboSurgery` by name: the available parts, and `absent`.
    """
    absent: dict[str, str] = dict(surgery.absent)
    parts: dict[str, Any] = {}
    if model.conditions is None:
        absent["condition_split"] = NO_CONDITION
    elif draws.component_error is not None:
        absent["condition_split"] = _SUBSET
    else:
        split = condition_split(model, draws, control_variates(draws))
        if isinstance(split, str):
            absent["condition_split"] = split
        else:
            parts["condition_split"] = split
    is_subset = draws.component_error is not None
    of_parts = None if is_subset else per_part(model, draws)
    if is_subset:
        absent["per_part"] = _SUBSET
    elif of_parts is None:
        absent["per_part"] = NO_PARTS
    else:
        parts["per_part"] = of_parts
    if draws.reconstruction is None:
        absent["readings"] = "without a decoder there is no ELBO to read"
    elif draws.outside_support:
        absent["readings"] = "x outside of the support of the likelihood has no ELBO to read"
    elif model.prior is None:
        absent["readings"] = NO_MARGINAL_KL
    elif full or log_evidence is not None:
        parts["readings"] = readings_of(
            control_variates(draws),
            draws.reconstruction,
            draws.log_posterior,
            draws.log_prior,
            draws.log_aggregate,
            log_evidence,
            unseen_of_prior(draws),
        )
    if not full:
        absent |= {
            name: NOT_ASKED_FOR for name in PARTS if name not in parts and name not in absent
        }
        if "readings" not in parts:
            absent["readings"] = NOT_ASKED_FOR
        return {**parts, "absent": absent}
    aggregate_posterior = model.aggregate_posterior
    parts["marginal_kl_split"] = _split(model, draws, absent)
    parts["active_units"] = _units(aggregate_posterior, absent)
    if model.is_reencoded:
        absent["mutual_information_bounds"] = "they draw minibatches of joined posteriors"
    elif model.num_observations > 1:
        parts["mutual_information_bounds"] = mutual_information_bounds(
            aggregate_posterior,
            batch_size=min(_BATCH_SIZE, model.num_observations),
            seed=surgery.seed,
            prior=model.prior,
            tolerance=draws.tolerance,
        )
        if model.prior is None:
            bounds = parts["mutual_information_bounds"]
            reason = {"barber_agakov": "the prior depends on the condition"}
            parts["mutual_information_bounds"] = dataclasses.replace(
                bounds, absent={**bounds.absent, **reason}
            )
    else:
        absent["mutual_information_bounds"] = "one observation shares no information with its code"
    if surgery.elbo is None or surgery.average_reconstruction is None:
        absent["rate_distortion"] = "without a decoder there is no distortion"
        return {**parts, "absent": absent}
    if model.prior is None or "decoder" in model.taking:
        absent["rate_distortion"] = (
            "decoder or prior depend on the condition: distortion and rate bound I(X; Z|C) by "
            "H(X|C), which is not the entropy of these observations"
        )
        return {**parts, "absent": absent}
    is_discrete = measures(model.likelihood) == {"mass"} and not model.outside_support
    x = model.observations.array
    parts["rate_distortion"] = rate_distortion_bounds(
        surgery.elbo,
        surgery.average_reconstruction,
        surgery.average_kl,
        data_entropy=empirical_entropy(x) if is_discrete and x is not None else None,
        discrete=is_discrete,
    )
    return {**parts, "absent": absent}


def _split(
    model: PreparedModel, draws: ScoredDraws, absent: dict[str, str]
) -> MarginalKLSplit | None:
    if model.prior is None:
        absent["marginal_kl_split"] = NO_MARGINAL_KL
        return None
    controls = control_variates(draws)
    try:
        return split_of_draws(
            draws,
            model.aggregate_posterior,
            model.prior,
            controls,
            reduced_terms(draws, controls).third,
            tolerance=MARGINAL_TOLERANCE if draws.tolerance is None else draws.tolerance,
        )
    except NotImplementedError as error:  # the posteriors' marginals have no closed form
        absent["marginal_kl_split"] = str(error)
        return None


def _units(aggregate_posterior: AggregatePosterior, absent: dict[str, str]) -> ActiveUnits | None:
    if int(aggregate_posterior.num_components) < 2:
        absent["active_units"] = "one mean has no variance"
        return None
    try:
        return active_units(aggregate_posterior)
    except NotImplementedError as error:  # TFP implements no mean of the posteriors
        absent["active_units"] = str(error)
        return None
