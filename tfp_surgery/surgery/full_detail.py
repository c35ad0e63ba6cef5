"""FullElboSurgery: what a surgery's draws tell beside its three terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.point_mass import measures
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate
from tfp_surgery.information.mutual_information_bounds import (
    MutualInformationBounds,
    mutual_information_bounds,
)
from tfp_surgery.information.rate_distortion import (
    RateDistortionBounds,
    empirical_entropy,
    rate_distortion_bounds,
)
from tfp_surgery.surgery.active_units import ActiveUnits, active_units
from tfp_surgery.surgery.elbo_readings import ElboReadings, elbo_readings
from tfp_surgery.surgery.elbo_surgery_result import ElboSurgery
from tfp_surgery.surgery.marginal_kl_split import marginal_kl_split
from tfp_surgery.surgery.marginal_kl_split_result import MarginalKLSplit

tfd = tfp.distributions

# Of log q(z_j) where a surgery has none: exact marginals of 60000 observations take minutes.
MARGINAL_TOLERANCE = 1e-5
_BATCH_SIZE = 128


@dataclasses.dataclass(frozen=True)
class FullElboSurgery(ElboSurgery):
    """The terms of an ELBO with its readings, splits and bounds, in nats per observation.

    Readings and split are means over the draws of the surgery; the bounds of the mutual information
    have draws of their own, in minibatches. What this model does not have is None, with the reason
    in `absent`; results that are there have an `absent` of their own.

    Attributes:
      readings: The ELBO read in four ways.
      marginal_kl_split: Total correlation, dimension-wise KL and prior factorization.
      active_units: The dimensions whose posterior mean moves with the observation, and the others.
      rate_distortion: H - D <= I <= R.
      mutual_information_bounds: Bounds from minibatches, with their ceilings.
      absent: Why what is None is None, by field name.
    """

    readings: ElboReadings
    marginal_kl_split: MarginalKLSplit | None
    active_units: ActiveUnits | None
    rate_distortion: RateDistortionBounds
    mutual_information_bounds: MutualInformationBounds | None
    absent: Mapping[str, str]

    @property
    def total_correlation(self) -> Estimate | None:
        """KL(q(z) || prod_j q(z_j)); None without a split."""
        return None if self.marginal_kl_split is None else self.marginal_kl_split.total_correlation

    @property
    def dimension_wise_kl(self) -> tuple[Estimate, ...] | None:
        """KL(q(z_j) || p(z_j)) of each dimension; None where the prior's marginals are unknown."""
        return None if self.marginal_kl_split is None else self.marginal_kl_split.dimension_wise_kl

    @property
    def prior_factorization(self) -> Estimate | None:
        """E_q(z)[sum_j log p(z_j) - log p(z)]; None where the prior's marginals are unknown."""
        split = self.marginal_kl_split
        return None if split is None else split.prior_factorization

    @property
    def dimension_wise_mutual_information(self) -> tuple[Estimate, ...] | None:
        """Index-code mutual information I(n; z_j) of each dimension; None without a split."""
        split = self.marginal_kl_split
        return None if split is None else split.dimension_wise_mutual_information

    def __str__(self) -> str:
        """The table of the terms, then that of each part."""
        parts = [super().__str__()]
        for name in _PARTS:
            part = getattr(self, name)
            if hasattr(part, "warnings"):  # they stand above
                part = dataclasses.replace(part, warnings=())
            parts += [] if part is None else [str(part)]
        parts += [f"{name}: absent, {reason}" for name, reason in self.absent.items()]
        return "\n\n".join(parts)


_PARTS = (
    "readings",
    "marginal_kl_split",
    "active_units",
    "rate_distortion",
    "mutual_information_bounds",
)


def full_detail(
    surgery: ElboSurgery,
    x: np.ndarray,
    likelihood: tfd.Distribution,
    samples: Mapping[str, np.ndarray],
    z: tf.Tensor,
    queries: np.ndarray,
    aggregate: AggregatePosterior,
    prior: tfd.Distribution,
    tolerance: float | None,
    log_evidence: np.ndarray | None,
) -> FullElboSurgery:
    """Adds readings, splits and bounds to a surgery.

    Args:
      surgery: Its terms.
      x: The observations `[N, *event_shape]`.
      likelihood: p(x|z) of some codes: whether it is a probability mass function counts.
      samples: Log densities of the draws by name, float64 `[S, Q]`.
      z: The draws `[S, Q, *code_shape]`.
      queries: Which observations they are of, `[Q]`.
      aggregate: q(z) of all N observations.
      prior: p(z).
      tolerance: That of the surgery.
      log_evidence: log p(x_n) of the observations that were looked at, `[Q]`, where it is known.

    Returns:
      `FullElboSurgery`.
    """
    absent: dict[str, str] = {}
    split = units = bounds = None
    if aggregate.event_shape.rank == 1:
        split = _split(samples, z, queries, aggregate, prior, tolerance, absent)
        units = _units(aggregate, absent)
    else:
        reason = f"codes of shape {aggregate.event_shape} have no dimensions j = 1, ..., D"
        absent |= dict.fromkeys(("marginal_kl_split", "active_units"), reason)
    if surgery.num_observations > 1:
        bounds = mutual_information_bounds(
            aggregate,
            batch_size=min(_BATCH_SIZE, surgery.num_observations),
            seed=surgery.seed,
            prior=prior,
        )
    else:
        absent["mutual_information_bounds"] = "one observation shares no information with its code"
    is_discrete = _is_discrete(likelihood)
    parts: dict[str, Any] = {
        "readings": elbo_readings(
            samples["reconstruction"],
            samples["log_posterior"],
            samples["log_prior"],
            samples["log_aggregate"],
            surgery.num_observations,
            log_evidence,
        ),
        "marginal_kl_split": split,
        "active_units": units,
        "rate_distortion": rate_distortion_bounds(
            surgery.elbo,
            surgery.average_reconstruction,
            surgery.average_kl,
            data_entropy=empirical_entropy(x) if is_discrete else None,
            discrete=is_discrete,
        ),
        "mutual_information_bounds": bounds,
    }
    fields: dict[str, Any] = {
        field.name: getattr(surgery, field.name) for field in dataclasses.fields(surgery)
    }
    for part in parts.values():
        fields["warnings"] += getattr(part, "warnings", ())
    fields["warnings"] = tuple(dict.fromkeys(fields["warnings"]))  # each once
    return FullElboSurgery(**fields, **parts, absent=absent)


def _split(
    samples: Mapping[str, np.ndarray],
    z: tf.Tensor,
    queries: np.ndarray,
    aggregate: AggregatePosterior,
    prior: tfd.Distribution,
    tolerance: float | None,
    absent: dict[str, str],
) -> MarginalKLSplit | None:
    try:
        return marginal_kl_split(
            z,
            queries,
            aggregate,
            prior,
            tolerance=MARGINAL_TOLERANCE if tolerance is None else tolerance,
            log_aggregate=samples["log_aggregate"],
            log_prior=samples["log_prior"],
        )
    except NotImplementedError as error:  # the posteriors' marginals have no closed form
        absent["marginal_kl_split"] = str(error)
        return None


def _units(aggregate: AggregatePosterior, absent: dict[str, str]) -> ActiveUnits | None:
    if int(aggregate.num_components) < 2:
        absent["active_units"] = "one mean has no variance"
        return None
    try:
        return active_units(aggregate)
    except NotImplementedError as error:  # TFP knows no mean of the posteriors
        absent["active_units"] = str(error)
        return None


def _is_discrete(likelihood: Any) -> bool:
    """Whether a likelihood is known to be a probability mass function."""
    return measures(likelihood) == {"mass"}
