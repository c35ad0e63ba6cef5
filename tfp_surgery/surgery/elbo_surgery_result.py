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
from tfp_surgery.surgery.elbo_readings import ElboReadings
from tfp_surgery.surgery.marginal_kl_split_result import MarginalKLSplit

PARTS = (
    "readings",
    "marginal_kl_split",
    "active_units",
    "rate_distortion",
    "mutual_information_bounds",
)
NOT_ASKED_FOR = 'not asked for: detail="full" adds it'


@dataclasses.dataclass(frozen=True)
class ElboSurgery(Result):
    r"""The three terms of Hoffman and Johnson (2016), in nats per observation.

        ELBO = average reconstruction - index-code mutual information - marginal KL

    `average_kl`, `index_code_mutual_information` and `marginal_kl` are means of
    log q(z|x_n) - log p(z), log q(z|x_n) - log q(z) and log q(z) - log p(z) over the same draws, so
    that they add up to rounding error by algebra. Other fields estimate the same quantities in
    other ways and validate them: `average_kl_analytic`,
    `index_code_mutual_information_from_entropy` and `index_code_mutual_information_by_subtraction`.

    Fields from `readings` on are None if they were not requested or do not exist for the model;
    `absent` has the reasons. Each of them has its own `absent`.

    Attributes:
      elbo: ELBO from the same draws: average reconstruction - average KL.
      average_reconstruction: 1/N sum_n E_q(z|x_n)[log p(x_n|z)].
      average_kl: 1/N sum_n KL(q(z|x_n) || p(z)), Monte Carlo.
      index_code_mutual_information: I(n; z) under q(n, z), Monte Carlo. The quantity lies in
        [0, log N]; its estimate need not.
      marginal_kl: KL(q(z) || p(z)), Monte Carlo.
      average_kl_analytic: The average KL in closed form; None if TFP registers none for this pair
        of distributions.
      index_code_mutual_information_from_entropy: log N - E_q(z) H[q(n|z)], from the same draws.
      index_code_mutual_information_by_subtraction: `average_kl_analytic` - `marginal_kl`; None
        without the former.
      cross_term: E_q(z)[log q_train(z) - log p(z)], where q(z) is the aggregate posterior of this
        data set and q_train is `training_aggregate_posterior`; None without one. It is not a KL and
        may be negative.
      num_observations: N.
      num_query: Number of observations in the expectations. If it is less than N, standard errors
        include the spread between observations.
      num_samples: Number of draws of z per observation.
      seed: Seed of the draws of z and of the subset of observations.
      data: Description of the data set: its name, N and binarization.
      evaluation: How log q(z) and H[q(n|z)] were evaluated: "exact", or within a tolerance.
      readings: The ELBO written in four ways.
      marginal_kl_split: Total correlation, dimension-wise KL and prior factorization.
      active_units: The active and collapsed dimensions.
      rate_distortion: H - D <= I <= R.
      mutual_information_bounds: Bounds from minibatches, with their ceilings.
    """

    _derived: ClassVar[tuple[str, ...]] = ("log_num_observations", "average_kl_method")

    elbo: Estimate
    average_reconstruction: Estimate
    average_kl: Estimate
    index_code_mutual_information: Estimate
    marginal_kl: Estimate
    average_kl_analytic: Estimate | None
    index_code_mutual_information_from_entropy: Estimate
    index_code_mutual_information_by_subtraction: Estimate | None
    cross_term: Estimate | None
    num_observations: int
    num_query: int
    num_samples: int
    seed: Seed
    data: str
    evaluation: str
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
        left_out = {name for name, reason in self.absent.items() if reason == NOT_ASKED_FOR}
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
            if reason != NOT_ASKED_FOR
        ]
        return "\n\n".join(parts)

    def _title(self) -> list[str]:
        draws = count_draws(self.num_observations, self.num_query, self.num_samples)
        return [
            f"ELBO surgery of {self.data}",
            f"nats per observation; {draws}, seed {self.seed}; log q(z) {self.evaluation}",
        ]

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            ("ELBO = (1) - (2) - (3)", self.elbo),
            ("(1) average reconstruction", self.average_reconstruction),
            ("(2) index-code mutual information", self.index_code_mutual_information),
            ("      from the entropy of q(n|z)", self.index_code_mutual_information_from_entropy),
            (
                "      average KL (analytic) - (3)",
                self.index_code_mutual_information_by_subtraction,
            ),
            ("(3) marginal KL(q(z) || p(z))", self.marginal_kl),
            ("average KL = (2) + (3), Monte Carlo", self.average_kl),
            ("average KL, analytic", self.average_kl_analytic),
            ("cross term E[log q_train(z) - log p(z)]", self.cross_term),
            ("log N", f"{self.log_num_observations:.4f}"),
        ]

    def _remarks(self) -> list[str]:
        if self.average_kl_analytic is not None:
            return []
        return ["  (TFP registers no closed-form KL for this posterior and prior)"]
