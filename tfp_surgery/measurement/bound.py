"""Bound: an estimate, what it bounds, from which side, its bias and its ceiling."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from tfp_surgery.estimate import Estimate

_STANDARD_ERRORS = 2.0
_FRACTION = 0.01


@dataclasses.dataclass(frozen=True)
class Bound:
    """An estimate whose expectation lies on a known side of a quantity, in nats.

    The standard error and the interval of `estimate` are those of the bound's own expectation, not
    of the quantity that is bounded: a biased bound covers the former alone.

    Attributes:
      estimate: The Monte Carlo estimate of the bound.
      side: `"lower"` or `"upper"` where its expectation bounds the quantity, `"unbiased"` where it
        equals it.
      quantity: What is bounded.
      bias: Its expectation minus the quantity, in words.
      ceiling: The most that its expectation can be, whatever the quantity is; None where it has no
        such limit.
    """

    estimate: Estimate
    side: Literal["lower", "upper", "unbiased"]
    quantity: str
    bias: str
    ceiling: float | None = None

    @property
    def at_ceiling(self) -> bool:
        """Whether the estimate has come to its ceiling; see `at_ceiling`."""
        return self.ceiling is not None and at_ceiling(self.estimate, self.ceiling)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain, JSON-ready values, the estimate's own among them."""
        return {
            **self.estimate.to_dict(),
            "side": self.side,
            "quantity": self.quantity,
            "bias": self.bias,
            "ceiling": self.ceiling,
            "at_ceiling": self.at_ceiling,
        }

    def __str__(self) -> str:
        """The estimate, its side, its ceiling and whether that is reached."""
        text = f"{self.estimate} ({self.side})"
        if self.ceiling is None:
            return text
        reached = ": REACHED" if self.at_ceiling else ""
        return f"{text}, ceiling {self.ceiling:.4f}{reached}"


def at_ceiling(estimate: Estimate, ceiling: float) -> bool:
    """Whether an estimate says no more than that the quantity is at least about the ceiling.

    The rule: the estimate lies within two of its standard errors of the ceiling, or within one
    per cent of it. No high-confidence lower bound from B samples that holds for every distribution
    is larger than O(log B) (McAllester and Stratos 2020); one that has come to its ceiling has
    stopped measuring.

    Args:
      estimate: The estimate.
      ceiling: The most that its expectation can be, in nats.

    #### References

    David McAllester and Karl Stratos. Formal Limitations on the Measurement of Mutual Information.
    AISTATS, 2020.
    """
    error = estimate.standard_error
    slack = 0.0 if math.isnan(error) else _STANDARD_ERRORS * error
    return estimate.value >= ceiling - max(slack, _FRACTION * abs(ceiling))


def batch_estimate(means: np.ndarray, batch_size: int, rounding: float = 0.0) -> Estimate:
    """Estimates an expectation from independent batches whose draws depend on each other.

    Args:
      means: Floating array, shape `[K]`: the mean of each batch.
      batch_size: Number of draws in each.
      rounding: That of the mean, below which no standard error is given.

    Returns:
      The mean of all draws; its standard error is that of the mean of the K batch means, NaN where
      K = 1.
    """
    means = np.asarray(means, np.float64)
    if means.size == 1:
        return Estimate(float(means[0]), math.nan, batch_size)
    error = max(float(means.std(ddof=1)) / math.sqrt(means.size), rounding)
    return Estimate(float(means.mean()), error, means.size * batch_size, means.size - 1.0)
