"""What the terms of the ELBO and of the marginal KL refer to in a case, by names of estimates."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from benchmarks import calibration_references as references
from benchmarks.calibration_cases import GROUPS, LATENT_SIZE, Case
from benchmarks.calibration_references import Means, average_kl, average_reconstruction, exact
from benchmarks.calibration_statistics import Truth

BATCH_SIZE = 128  # of the mutual information bounds in elbo_surgery(..., detail="full")


def elbo_terms(of: Case, means: Means) -> dict[str, Truth]:
    """What the terms of `ElboSurgery` refer to, and the same under older names."""

    def truth(*terms: str, constant: float = 0.0) -> Truth:
        return references.truth_of(means, *terms, constant=constant)

    variance = of.scale**2
    reconstruction = average_reconstruction(of, of.loc, variance)
    divergence = average_kl(of.loc, variance)
    information, third = truth("+own", "-aggregate"), truth("+aggregate", "-prior")
    kl = exact(divergence)
    return {
        "elbo": exact(reconstruction - divergence),
        "average_reconstruction": exact(reconstruction),
        "average_kl": kl,
        "average_kl_sampled": kl,
        "index_code_mutual_information": information,
        "index_code_mutual_information_sampled": information,
        "index_code_mutual_information_from_entropy": information,
        "index_code_mutual_information_by_subtraction": information,
        "marginal_kl": third,
        "marginal_kl_sampled": third,
        "cross_term": truth("+training", "-prior"),
    }


def reading_terms(of: Case, means: Means) -> dict[str, Truth]:
    terms = elbo_terms(of, means)
    evidence = float(of.log_evidence.mean())
    elbo, reconstruction = float(terms["elbo"].value), terms["average_reconstruction"]
    entropy = float(np.mean(0.5 * (references.LOG_2PI + 1.0) + np.log(of.scale))) * LATENT_SIZE
    readings = {
        "evidence_minus_posterior_kl": exact(elbo),
        "log_evidence": exact(evidence),
        "posterior_kl": exact(evidence - elbo),
        "negative_energy_plus_entropy": exact(elbo),
        "negative_energy": exact(elbo - entropy),
        "entropy": exact(entropy),
        "term_by_term": exact(elbo),
        "surgery": exact(elbo),
        "average_reconstruction": reconstruction,
        "average_kl": terms["average_kl"],
        "index_code_mutual_information": terms["index_code_mutual_information"],
        "marginal_kl": terms["marginal_kl"],
    }
    return {f"readings.{name}": truth for name, truth in readings.items()}


def split_terms(means: Means, prior: str) -> dict[str, Truth]:
    """What a split of the marginal KL refers to, for a prior by its name in `Means`."""

    def truth(*terms: str) -> Truth:
        return references.truth_of(means, *terms)

    dimensions = range(LATENT_SIZE)
    found = {
        "marginal_kl": truth("+aggregate", f"-{prior}"),
        "total_correlation": truth("+aggregate", *(f"-aggregate_{j}" for j in dimensions)),
        "summed_dimension_wise_kl": truth(
            *(f"+aggregate_{j}" for j in dimensions), *(f"-{prior}_{j}" for j in dimensions)
        ),
        "prior_factorization": truth(*(f"+{prior}_{j}" for j in dimensions), f"-{prior}"),
    }
    for j in dimensions:
        found[f"dimension_wise_kl[{j}]"] = truth(f"+aggregate_{j}", f"-{prior}_{j}")
        found[f"dimension_wise_mutual_information[{j}]"] = truth(f"+own_{j}", f"-aggregate_{j}")
    numbers = range(len(GROUPS))
    found["groups.total_correlation"] = truth("+aggregate", *(f"-aggregate_g{g}" for g in numbers))
    found["groups.prior_factorization"] = truth(*(f"+{prior}_g{g}" for g in numbers), f"-{prior}")
    for g, group in enumerate(GROUPS):
        found[f"groups.group_wise_kl[{g}]"] = truth(f"+aggregate_g{g}", f"-{prior}_g{g}")
        found[f"groups.within_total_correlation[{g}]"] = truth(
            f"+aggregate_g{g}", *(f"-aggregate_{j}" for j in group)
        )
        found[f"groups.within_prior_factorization[{g}]"] = truth(
            *(f"+{prior}_{j}" for j in group), f"-{prior}_g{g}"
        )
    return found


def bound_terms(of: Case, means: Means) -> dict[str, Truth]:
    def plus(first: Truth, second: Truth) -> Truth:
        error = math.hypot(first.standard_error, second.standard_error)
        return Truth(first.value + second.value, error, second.how)

    information = references.truth_of(means, "+own", "-aggregate")
    gaps = references.contrastive_gaps(of, min(BATCH_SIZE, len(of.x)))
    softplus = 0.5 * (means["softplus_own"] + means["softplus_all"])
    found = {
        "index_code_mutual_information": information,
        "nguyen_wainwright_jordan": information,
        "info_nce": plus(information, gaps["info_nce"]),
        "leave_one_out": plus(information, gaps["leave_one_out"]),
        "barber_agakov": exact(average_kl(of.loc, of.scale**2)),
        "jensen_shannon": references.truth_of({"s": softplus}, "-s", constant=math.log(2.0)),
        "aggregate_entropy": references.truth_of(means, "-aggregate"),
        "conditional_entropy": references.truth_of(means, "-own"),
    }
    return {f"mutual_information_bounds.{name}": truth for name, truth in found.items()}


def rate_distortion_terms(of: Case, entropy: float | None) -> dict[str, Truth]:
    rate = average_kl(of.loc, of.scale**2)
    reconstruction = average_reconstruction(of, of.loc, of.scale**2)
    found = {"rate": rate, "upper_bound": rate, "distortion": -reconstruction}
    if entropy is not None:
        found["data_entropy"] = entropy
        found["lower_bound"] = entropy + reconstruction
        found["elbo_gap"] = rate - reconstruction - entropy
    return {name: exact(value) for name, value in found.items()}


def prefixed(prefix: str, truths: Mapping[str, Truth]) -> dict[str, Truth]:
    return {f"{prefix}.{name}": truth for name, truth in truths.items()}
