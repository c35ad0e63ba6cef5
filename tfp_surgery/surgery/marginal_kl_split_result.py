"""MarginalKLSplit: the terms of the marginal KL of a model on a data set."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement.consistency import above, negative
from tfp_surgery.measurement.result import Result, describe_draws


@dataclasses.dataclass(frozen=True)
class GroupSplit:
    r"""The marginal KL split between and within groups g of dimensions, in nats.

        KL(q(z) || p(z)) = E[log q(z) - sum_g log q(z_g)]
                           + E[sum_g log p(z_g) - log p(z)]
                           + sum_g KL(q(z_g) || p(z_g))

        KL(q(z_g) || p(z_g)) = E[log q(z_g) - sum_{j in g} log q(z_j)]
                               + E[sum_{j in g} log p(z_j) - log p(z_g)]
                               + sum_{j in g} KL(q(z_j) || p(z_j))

    Attributes:
      dimensions: The dimensions of each group.
      total_correlation: Total correlation between the groups.
      prior_factorization: E_q(z)[sum_g log p(z_g) - log p(z)]; 0 for priors with independent
        groups, None if the prior's marginals are not known.
      group_wise_kl: KL(q(z_g) || p(z_g)) of each group; None likewise.
      within_total_correlation: Total correlation within each group.
      within_prior_factorization: E_q(z)[sum_{j in g} log p(z_j) - log p(z_g)] of each group; None
        likewise.
    """

    dimensions: tuple[tuple[int, ...], ...]
    total_correlation: Estimate
    prior_factorization: Estimate | None
    group_wise_kl: tuple[Estimate, ...] | None
    within_total_correlation: tuple[Estimate, ...]
    within_prior_factorization: tuple[Estimate, ...] | None

    def rows(self) -> list[tuple[str, Estimate]]:
        """Returns the rows of a table as pairs of label and estimate."""
        rows = [("between groups: total correlation", self.total_correlation)]
        if self.prior_factorization is not None:
            rows.append(("between groups: prior factorization", self.prior_factorization))
        for number, group in enumerate(self.dimensions):
            name = f"group {{{', '.join(map(str, group))}}}"
            if self.group_wise_kl is not None:
                rows.append((f"{name}: KL(q(z_g) || p(z_g))", self.group_wise_kl[number]))
            rows.append((f"{name}: total correlation", self.within_total_correlation[number]))
            if self.within_prior_factorization is not None:
                within = self.within_prior_factorization[number]
                rows.append((f"{name}: prior factorization", within))
        return rows


@dataclasses.dataclass(frozen=True)
class MarginalKLSplit(Result):
    r"""The terms of the marginal KL, in nats (see `marginal_kl_split`).

    All estimates are means over the same draws, so that the terms add up to rounding error by
    algebra, which does not validate them.

    Attributes:
      marginal_kl: KL(q(z) || p(z)).
      total_correlation: KL(q(z) || prod_j q(z_j)).
      dimension_wise_kl: KL(q(z_j) || p(z_j)) of each of the D dimensions; None if the prior's
        marginals are not known.
      summed_dimension_wise_kl: The sum of `dimension_wise_kl` with its standard error; None
        likewise.
      prior_factorization: E_q(z)[sum_j log p(z_j) - log p(z)]; 0 for priors that factorize, None
        likewise. It is not a KL and may be negative.
      dimension_wise_mutual_information: Index-code mutual information I(n; z_j) of each of the D
        dimensions. Each quantity lies in [0, log N]; its estimate need not.
      groups: The split between and within groups; None without groups.
      num_observations: N.
      num_query: Number of observations in the expectations.
      num_samples: Number of draws of z per observation.
    """

    marginal_kl: Estimate
    total_correlation: Estimate
    dimension_wise_kl: tuple[Estimate, ...] | None
    summed_dimension_wise_kl: Estimate | None
    prior_factorization: Estimate | None
    dimension_wise_mutual_information: tuple[Estimate, ...]
    groups: GroupSplit | None
    num_observations: int
    num_query: int
    num_samples: int

    def impossible_values(self) -> list[str]:
        """Describes estimates outside their range by many standard errors, one sentence each."""
        log_num_observations = Estimate(math.log(self.num_observations), 0.0, 0)
        divergences = {
            "Marginal KL": self.marginal_kl,
            "Total correlation": self.total_correlation,
        }
        for j, value in enumerate(self.dimension_wise_kl or ()):
            divergences[f"KL(q(z_{j}) || p(z_{j}))"] = value
        for j, value in enumerate(self.dimension_wise_mutual_information):
            divergences[f"I(n; z_{j})"] = value
        if self.groups is not None:
            # Prior factorizations may be negative.
            divergences |= {
                label: value
                for label, value in self.groups.rows()
                if not label.endswith("prior factorization")
            }
        found = [text for name, value in divergences.items() for text in negative(name, value)]
        for j, value in enumerate(self.dimension_wise_mutual_information):
            found += above(f"I(n; z_{j})", value, "log N", log_num_observations)
        return found

    def _title(self) -> list[str]:
        draws = describe_draws(self.num_observations, self.num_query, self.num_samples)
        return ["Split of the marginal KL", draws]

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            ("marginal KL = (1) + (2) + (3)", self.marginal_kl),
            ("(1) total correlation", self.total_correlation),
            ("(2) sum_j KL(q(z_j) || p(z_j))", self.summed_dimension_wise_kl),
            ("(3) prior factorization", self.prior_factorization),
            *(self.groups.rows() if self.groups is not None else []),
        ]

    def _remarks(self) -> list[str]:
        header = ("j", "I(n; z_j)", "KL(q(z_j) || p(z_j))")
        divergences = self.dimension_wise_kl or ("-",) * len(self.dimension_wise_mutual_information)
        cells = [
            (str(j), *map(str, pair))
            for j, pair in enumerate(
                zip(self.dimension_wise_mutual_information, divergences, strict=True)
            )
        ]
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        return super()._remarks() + [
            "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in (header, *cells)
        ]
