"""ElboSurgery: the terms of the ELBO of a model on a data set."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from tfp_surgery.estimate import Estimate
from tfp_surgery.information.mutual_information_bounds import MutualInformationBounds
from tfp_surgery.information.rate_distortion import RateDistortionBounds
from tfp_surgery.measurement.result import Result, count_draws
from tfp_surgery.seeds import Seed
from tfp_surgery.surgery.active_units import ActiveUnits
from tfp_surgery.surgery.condition_split import ConditionSplit
from tfp_surgery.surgery.elbo_readings import ElboReadings
from tfp_surgery.surgery.marginal_kl_split_result import MarginalKLSplit
from tfp_surgery.surgery.per_part import PerPart

PARTS = (
    "condition_split",
    "per_part",
    "readings",
    "marginal_kl_split",
    "active_units",
    "rate_distortion",
    "mutual_information_bounds",
)
NO_CONDITION = "there is no condition"
NO_PARTS = "a code has no parts"
NOT_ASKED_FOR = 'not asked for: detail="full" adds it'
NO_DECODER = "decoder is None"
NO_CLOSED_FORM = "TFP registers no closed-form KL for this posterior and prior"
ONLY_LOG_DENSITIES = "log densities alone do not give it"
_SELF_EVIDENT = (NO_CONDITION, NO_PARTS, NOT_ASKED_FOR, ONLY_LOG_DENSITIES)


@dataclasses.dataclass(frozen=True)
class ElboSurgery(Result):
    r"""The three terms of Hoffman and Johnson (2016), in nats per observation.

        ELBO = average reconstruction - index-code mutual information - marginal KL

    `average_kl`, `index_code_mutual_information` and `marginal_kl` are means of
    log q(z|x_n) - log p(z), log q(z|x_n) - log q(z) and log q(z) - log p(z) over the same draws, so
    that they add up to rounding error by algebra. Other fields estimate the same quantities in
    other ways and validate them: `average_kl_analytic`,
    `index_code_mutual_information_from_entropy` and `index_code_mutual_information_by_subtraction`.

    Fields from `condition_split` on are None if they were not requested or do not exist for the
    model; `absent` has the reasons. Each of them has its own `absent`.

    Attributes:
      elbo: ELBO from the same draws: average reconstruction - average KL; None without a decoder.
      average_reconstruction: 1/N sum_n E_q(z|x_n)[log p(x_n|z)]; None without a decoder.
      average_kl: 1/N sum_n KL(q(z|x_n) || p(z)), Monte Carlo; of p(z|c_n) where the prior takes the
        condition.
      index_code_mutual_information: I(n; z) under q(n, z), Monte Carlo. The quantity lies in
        [0, log N]; its estimate need not.
      marginal_kl: KL(q(z) || p(z)), Monte Carlo; None where the prior takes the condition.
      conditional_prior_term: 1/N sum_n E_q(z|x_n)[log q(z) - log p(z|c_n)], the average KL less the
        index-code mutual information, where the prior takes the condition; otherwise None. It is
        not a KL and may be negative.
      average_kl_analytic: The average KL in closed form; None if TFP registers none for this pair
        of distributions.
      index_code_mutual_information_from_entropy: log N - E_q(z) H[q(n|z)], from the same draws;
        None where H[q(n|z)] is not known.
      index_code_mutual_information_by_subtraction: `average_kl_analytic` - `marginal_kl`; None
        without the former.
      cross_term: E_q(z)[log q_train(z) - log p(z)], where q(z) is the aggregate posterior of this
        data set and q_train is `training_aggregate_posterior`; None without one. It is not a KL and
        may be negative.
      num_observations: N.
      num_query: Number of observations in the expectations. If it is less than N, standard errors
        include the spread between observations.
      num_samples: Number of draws of z per observation.
      seed: Seed of the draws of z and of the subset of observations; None if log densities were
        given.
      data: Description of the data set: its name, N and binarization.
      evaluation: How log q(z) and H[q(n|z)] were evaluated: "exact", or within a tolerance.
      outside_support: What of x is outside of the support of the likelihood, in words; then the sum
        of the terms is an objective, and not the ELBO of a normalised model. Empty otherwise.
      condition_split: The average KL given a discrete condition.
      per_part: Index-code mutual information and marginal KL of each part of a structured code.
      readings: The ELBO written in four ways.
      marginal_kl_split: Total correlation, dimension-wise KL and prior factorization.
      active_units: The active and collapsed dimensions.
      rate_distortion: H - D <= I <= R.
      mutual_information_bounds: Bounds from minibatches, with their ceilings.
    """

    _derived: ClassVar[tuple[str, ...]] = ("log_num_observations", "average_kl_method")

    # None where `absent` says why; `| Any`, as in typeshed, asks no check where they are known.
    elbo: Estimate | Any
    average_reconstruction: Estimate | Any
    average_kl: Estimate
    index_code_mutual_information: Estimate
    marginal_kl: Estimate | Any
    average_kl_analytic: Estimate | None
    index_code_mutual_information_from_entropy: Estimate | Any
    index_code_mutual_information_by_subtraction: Estimate | None
    cross_term: Estimate | None
    num_observations: int
    num_query: int
    num_samples: int
    seed: Seed | None
    data: str
    evaluation: str
    conditional_prior_term: Estimate | None = None
    outside_support: str = ""
    condition_split: ConditionSplit | None = None
    per_part: PerPart | None = None
    readings: ElboReadings | None = None
    marginal_kl_split: MarginalKLSplit | None = None
    active_units: ActiveUnits | None = None
    rate_distortion: RateDistortionBounds | None = None
    mutual_information_bounds: MutualInformationBounds | None = None

    @property
    def log_num_observations(self) -> float:
        """The ceiling log N of the index-code mutual information, in nats."""
        return math.log(self.num_observations)

    @property
    def average_kl_method(self) -> str:
        """The string "analytic" if the average KL is known in closed form, else "monte_carlo"."""
        return "monte_carlo" if self.average_kl_analytic is None else "analytic"

    @property
    def total_correlation(self) -> Estimate | None:
        """The total correlation KL(q(z) || prod_j q(z_j)); None without a split."""
        return None if self.marginal_kl_split is None else self.marginal_kl_split.total_correlation

    @property
    def dimension_wise_kl(self) -> tuple[Estimate, ...] | None:
        """KL(q(z_j) || p(z_j)) for each dimension; None if the prior's marginals are unknown."""
        return None if self.marginal_kl_split is None else self.marginal_kl_split.dimension_wise_kl

    @property
    def prior_factorization(self) -> Estimate | None:
        """E_q(z)[sum_j log p(z_j) - log p(z)]; None if the prior's marginals are unknown."""
        split = self.marginal_kl_split
        return None if split is None else split.prior_factorization

    @property
    def dimension_wise_mutual_information(self) -> tuple[Estimate, ...] | None:
        """The index-code mutual information I(n; z_j) of each dimension; None without a split."""
        split = self.marginal_kl_split
        return None if split is None else split.dimension_wise_mutual_information

    def estimates(self) -> dict[str, Estimate]:
        """Returns the available estimates by field name, in the order of the fields."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Estimate)
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values, without parts that were not requested."""
        left_out = {name for name, reason in self.absent.items() if reason in _SELF_EVIDENT}
        result = {name: value for name, value in super().to_dict().items() if name not in left_out}
        result["absent"] = {name: why for name, why in self.absent.items() if name not in left_out}
        return result

    def __str__(self) -> str:
        """Returns the table of the terms, followed by those of the available parts."""
        parts = [super().__str__()]
        for name in PARTS:
            part = getattr(self, name)
            if part is not None:  # its warnings are printed above
                parts.append(str(dataclasses.replace(part, warnings=())))
        parts += [
            f"{name}: absent, {reason}"
            for name, reason in self.absent.items()
            if reason not in (*_SELF_EVIDENT, NO_CLOSED_FORM)
        ]
        return "\n\n".join(parts)

    def _title(self) -> list[str]:
        draws = count_draws(self.num_observations, self.num_query, self.num_samples)
        seed = "" if self.seed is None else f", seed {self.seed}"
        name = "Surgery of an objective on" if self.outside_support else "ELBO surgery of"
        return [
            f"{name} {self.data}",
            f"nats per observation; {draws}{seed}; log q(z) {self.evaluation}",
        ]

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            (f"{'objective' if self.outside_support else 'ELBO'} = (1) - (2) - (3)", self.elbo),
            ("(1) average reconstruction", self.average_reconstruction),
            ("(2) index-code mutual information", self.index_code_mutual_information),
            ("      from the entropy of q(n|z)", self.index_code_mutual_information_from_entropy),
            (
                "      average KL (analytic) - (3)",
                self.index_code_mutual_information_by_subtraction,
            ),
            ("(3) marginal KL(q(z) || p(z))", self.marginal_kl),
            ("(3) E[log q(z) - log p(z|c)], no KL", self.conditional_prior_term),
            ("average KL = (2) + (3), Monte Carlo", self.average_kl),
            ("average KL, analytic", self.average_kl_analytic),
            ("cross term E[log q_train(z) - log p(z)]", self.cross_term),
            ("log N", f"{self.log_num_observations:.4f}"),
        ]

    def _remarks(self) -> list[str]:
        remarks = []
        if self.outside_support:
            remarks.append(
                "  NOT THE ELBO OF A NORMALISED MODEL, but an objective, scored with "
                f"validate_args=False: {self.outside_support}"
            )
        if self.absent.get("average_kl_analytic") == NO_CLOSED_FORM:
            remarks.append(f"  ({NO_CLOSED_FORM})")
        return remarks
