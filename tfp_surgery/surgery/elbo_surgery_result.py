"""ElboSurgery: the terms of the ELBO of one model on one data set."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement.consistency import warning_lines
from tfp_surgery.measurement.presentation import aligned_rows, count_draws, record


@dataclasses.dataclass(frozen=True)
class ElboSurgery:
    r"""The three terms of Hoffman and Johnson (2016), in nats per observation.

        ELBO = average reconstruction - index-code mutual information - marginal KL

    `average_kl`, `index_code_mutual_information` and `marginal_kl` are means of
    log q(z|x_n) - log p(z), log q(z|x_n) - log q(z) and log q(z) - log p(z) over the same draws:
    they add up to rounding error by algebra. What tests them are the fields that reach the same
    quantities on another way: `average_kl_analytic`,
    `index_code_mutual_information_from_entropy` and `index_code_mutual_information_by_subtraction`.

    Attributes:
      elbo: ELBO, from the same draws: average reconstruction - average KL.
      average_reconstruction: 1/N sum_n E_q(z|x_n)[log p(x_n|z)].
      average_kl: 1/N sum_n KL(q(z|x_n) || p(z)), Monte Carlo.
      index_code_mutual_information: I(n; z) under q(n, z), Monte Carlo; the quantity, though not
        its estimate, lies in [0, log N].
      marginal_kl: KL(q(z) || p(z)), Monte Carlo.
      average_kl_analytic: The average KL in closed form, where TFP registers one for this pair of
        distributions; None otherwise.
      index_code_mutual_information_from_entropy: log N - E_q(z) H[q(n|z)], from the same draws.
      index_code_mutual_information_by_subtraction: `average_kl_analytic` - `marginal_kl`; None
        without the former.
      cross_term: E_q(z)[log q_train(z) - log p(z)] with q(z) the aggregate posterior of this data
        set and q_train the one handed in as `training_aggregate_posterior`; no KL, may be
        negative; None without one.
      num_observations: N.
      num_query: Number of observations the expectations were taken over; N unless a subset was
        asked for. Standard errors then contain the spread between observations.
      num_samples: Draws of z an observation.
      seed: The seed of the draws of z (and of the subset).
      data: What data set this is: its name, N and binarization.
      evaluation: How log q(z) and H[q(n|z)] were evaluated: "exact", or within which tolerance.
      warnings: Sentences on what cannot all be right: ways to one number that disagree, values that
        their quantity cannot have, draws that rounding moved. Empty where nothing was found.
    """

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
    seed: int
    data: str
    evaluation: str
    warnings: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def log_num_observations(self) -> float:
        """log N, the ceiling of the index-code mutual information, in nats."""
        return math.log(self.num_observations)

    @property
    def average_kl_method(self) -> str:
        """How the average KL is known: "analytic" (beside Monte Carlo) or "monte_carlo" alone."""
        return "monte_carlo" if self.average_kl_analytic is None else "analytic"

    def estimates(self) -> dict[str, Estimate]:
        """Returns the estimates there are, by field name, in the order of the fields."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Estimate)
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns plain, JSON-ready values: every estimate as `{"value", "standard_error"}`.

        Quantities that this model does not have are None.
        """
        return {
            **record(self),
            "log_num_observations": self.log_num_observations,
            "average_kl_method": self.average_kl_method,
        }

    def __str__(self) -> str:
        """A table: each term with its standard error, beside log N."""
        rows: list[tuple[str, Estimate | None]] = [
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
        ]
        draws = count_draws(self.num_observations, self.num_query, self.num_samples)
        *terms, ceiling = aligned_rows(
            [
                *((label, value) for label, value in rows if value is not None),
                ("log N", f"{self.log_num_observations:.4f}"),
            ]
        )
        lines = [
            f"ELBO surgery of {self.data}",
            f"nats per observation; {draws}, seed {self.seed}; log q(z) {self.evaluation}",
            *terms,
        ]
        if self.average_kl_analytic is None:
            lines.append("  (TFP registers no closed-form KL for this posterior and prior)")
        return "\n".join([*lines, ceiling, *warning_lines(self.warnings)])
