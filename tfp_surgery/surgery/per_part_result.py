"""PerPart: the terms of each part of a structured code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement.result import Result


@dataclasses.dataclass(frozen=True)
class PartTerms(Result):
    """The terms of one part z_g of a structured code, in nats per observation.

    Attributes:
      index_code_mutual_information: I(n; z_g), at most log N; None if the posteriors of the part
        are not known.
      marginal_kl: KL(q(z_g) || p(z_g)); None if these are not known.
      average_kl: 1/N sum_n KL(q(z_g|x_n) || p(z_g)), their sum.
    """

    index_code_mutual_information: Estimate | None
    marginal_kl: Estimate | None
    average_kl: Estimate | None

    def _title(self) -> list[str]:
        return ["One part of a code, nats per observation"]

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            ("index-code mutual information", self.index_code_mutual_information),
            ("marginal KL", self.marginal_kl),
            ("average KL", self.average_kl),
        ]


@dataclasses.dataclass(frozen=True)
class PerPart(Result, Mapping[str, PartTerms]):
    """The terms of each part of a structured code, by the name of the part.

    The terms of parts do not add up to those of the code: the marginal KL of a code also has the
    dependence between its parts.

    Attributes:
      parts: `PartTerms` by name.
    """

    parts: Mapping[str, PartTerms] = dataclasses.field(hash=False)

    def __getitem__(self, name: str) -> PartTerms:
        """Returns the terms of a part."""
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        """Yields the names of the parts."""
        return iter(self.parts)

    def __len__(self) -> int:
        """Returns the number of parts."""
        return len(self.parts)

    def _title(self) -> list[str]:
        return ["Parts of the code, nats per observation"]

    def _rows(self) -> list[tuple[str, Any]]:
        rows: list[tuple[str, Any]] = []
        for name, terms in self.parts.items():
            rows.append((f"{name}: index-code MI", terms.index_code_mutual_information))
            rows.append((f"{name}: marginal KL", terms.marginal_kl))
        return rows

    def _remarks(self) -> list[str]:
        return [
            f"  ({name}: {', '.join(terms.absent)} absent: {next(iter(terms.absent.values()))})"
            for name, terms in self.parts.items()
            if terms.absent
        ]
