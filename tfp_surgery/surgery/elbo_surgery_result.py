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
from tfp_surgery.surgery.per_part_result import PerPart

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

    The average KL is its closed form where TFP registers one. The index-code mutual information is
    the mean of log q(z|x_n) - log q(z) over the draws, less the `control_variates` (quantities of
    the same draws whose mean is known to be 0, each times one coefficient for the data set; see
    `ControlVariates`). The marginal KL is the difference of the two. Without a closed form, all
    three are means over the draws with the same control variates. In both cases average KL = mutual
    information + marginal KL, and ELBO = average reconstruction - average KL, up to rounding.

    That they add up is algebra and proves nothing. Other fields estimate the same quantities in
    other ways from the same draws and check them: the plain means `average_kl_sampled`,
    `index_code_mutual_information_sampled` and `marginal_kl_sampled`, and
    `index_code_mutual_information_from_entropy` and `..._by_subtraction`. With one draw an
    observation, or fewer than some thirty observations of two, no control variate is used, and
    `marginal_kl_sampled` may be sharper than `marginal_kl`.

    `standard_error` of an estimate is that of the draws, given the data. The
    `population_standard_error` of ELBO, terms and average KL is that of the data as well, taken as
    N independent draws of a population, by the infinitesimal jackknife (Efron 1982, chapter 6). Its
    square is the square of the former plus Var_n(U_n) / N with the influence

        U_n = E[log p(x_n|z)],  KL(q(z|x_n) || p(z)),  KL(q(z|x_n) || q(z)),  E[log q(z) - log p(z)]

    of observation n on average reconstruction, average KL, mutual information and marginal KL,
    where z ~ q(z|x_n), and on the ELBO their difference. It describes the spread of the estimate
    from one data set of N to the next with the networks held fixed. The mutual information of N
    observations is at most log N and lies below that of more of them; the standard error has
    nothing of this bias, and vanishes with the spread where posteriors do not overlap. To resample
    observations (a bootstrap) would not do: ties in a resampled data set lower its mutual
    information.

    Fields from `condition_split` on are None if they were not requested or do not exist for the
    model; `absent` has the reasons. Each of them has its own `absent`.

    Attributes:
      elbo: The ELBO, average reconstruction - average KL; None without a decoder.
      average_reconstruction: 1/N sum_n E_q(z|x_n)[log p(x_n|z)]; None without a decoder.
      average_kl: 1/N sum_n KL(q(z|x_n) || p(z)), or of p(z|c_n) where the prior takes the
        condition: in closed form over all N, or Monte Carlo; `average_kl_method` says which.
      index_code_mutual_information: I(n; z) under q(n, z). The quantity lies in [0, log N]; its
        estimate need not.
      marginal_kl: KL(q(z) || p(z)); None where the prior takes the condition.
      conditional_prior_term: 1/N sum_n E_q(z|x_n)[log q(z) - log p(z|c_n)], the average KL less the
        index-code mutual information, where the prior takes the condition; otherwise None. It is
        not a KL and may be negative.
      average_kl_sampled: The mean of log q(z|x_n) - log p(z) over the draws.
      index_code_mutual_information_sampled: The mean of log q(z|x_n) - log q(z).
      marginal_kl_sampled: The mean of log q(z) - log p(z); None where the prior takes the
        condition.
      index_code_mutual_information_from_entropy: log N - E_q(z) H[q(n|z)], from the same draws;
        None where H[q(n|z)] is not known.
      index_code_mutual_information_by_subtraction: `average_kl` - `marginal_kl_sampled`; None
        without a closed form of the former.
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
      decoding: How codes were decoded and scored: "by a graph", or "eagerly" where the decoder is
        no graph or steps were few; empty without a decoder.
      control_variates: What is known of posteriors and prior and used in the estimates, in words;
        empty if nothing is, if there is one draw an observation, or if observations are few.
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
    average_kl_sampled: Estimate
    index_code_mutual_information_sampled: Estimate
    marginal_kl_sampled: Estimate | Any
    index_code_mutual_information_from_entropy: Estimate | Any
    index_code_mutual_information_by_subtraction: Estimate | None
    cross_term: Estimate | None
    num_observations: int
    num_query: int
    num_samples: int
    seed: Seed | None
    data: str
    evaluation: str
    decoding: str = ""
    control_variates: tuple[str, ...] = ()
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
        return "analytic" if self.average_kl.num_draws == 0 else "monte_carlo"

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
        decoded = f"; decoded {self.decoding}" if self.decoding else ""
        return [
            f"{name} {self.data}",
            f"nats per observation; {draws}{seed}; log q(z) {self.evaluation}{decoded}",
        ]

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            (f"{'objective' if self.outside_support else 'ELBO'} = (1) - (2) - (3)", self.elbo),
            ("(1) average reconstruction", self.average_reconstruction),
            ("(2) index-code mutual information", self.index_code_mutual_information),
            ("(3) marginal KL(q(z) || p(z))", self.marginal_kl),
            ("(3) E[log q(z) - log p(z|c)], no KL", self.conditional_prior_term),
            (f"average KL = (2) + (3), {self._average_kl_words()}", self.average_kl),
            ("checks:", ""),
            ("  (2) mean of log q(z|x) - log q(z)", self.index_code_mutual_information_sampled),
            ("  (2) from the entropy of q(n|z)", self.index_code_mutual_information_from_entropy),
            (
                "  (2) average KL - mean of log q(z) - log p(z)",
                self.index_code_mutual_information_by_subtraction,
            ),
            ("  (3) mean of log q(z) - log p(z)", self.marginal_kl_sampled),
            ("  (2) + (3) mean of log q(z|x) - log p(z)", self.average_kl_sampled),
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
        errors = {
            "ELBO": self.elbo,
            "(1)": self.average_reconstruction,
            "(2)": self.index_code_mutual_information,
            "(3)": self.marginal_kl or self.conditional_prior_term,
            "average KL": self.average_kl,
        }
        words = ", ".join(
            f"{name} ± {value.population_standard_error:.2g}"
            for name, value in errors.items()
            if value is not None and value.population_standard_error is not None
        )
        if words:
            remarks.append(f"  over other data of the same size, the model held fixed: {words}")
        if self.control_variates:
            remarks.append(f"  control variates: {', '.join(self.control_variates)}")
        if self.absent.get("index_code_mutual_information_by_subtraction") == NO_CLOSED_FORM:
            remarks.append(f"  ({NO_CLOSED_FORM})")
        return remarks

    def _average_kl_words(self) -> str:
        return "closed form" if self.average_kl_method == "analytic" else "Monte Carlo"
