"""Bound: an estimate with the quantity it bounds, its side, bias and ceiling."""

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

    The standard error and interval of `estimate` refer to the expectation of the bound, not to the
    bounded quantity: the interval of a biased bound need not cover the quantity.

    Attributes:
      estimate: The Monte Carlo estimate of the bound.
      side: `"lower"` or `"upper"` if the expectation bounds the quantity, `"unbiased"` if it equals
        the quantity.
      quantity: The bounded quantity.
      bias: The expectation minus the quantity, in words.
      ceiling: The largest possible expectation, whatever the quantity; None if there is none.
    """

    estimate: Estimate
    side: Literal["lower", "upper", "unbiased"]
    quantity: str
    bias: str
    ceiling: float | None = None

    @property
    def at_ceiling(self) -> bool:
        """Whether the estimate has reached its ceiling; see `at_ceiling`."""
        return self.ceiling is not None and at_ceiling(self.estimate, self.ceiling)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values, including those of the estimate."""
        return {
            **self.estimate.to_dict(),
            "side": self.side,
            "quantity": self.quantity,
            "bias": self.bias,
            "ceiling": self.ceiling,
            "at_ceiling": self.at_ceiling,
        }

    def __str__(self) -> str:
        """Returns the estimate, its side, its ceiling and whether it is reached, as text."""
        text = f"{self.estimate} ({self.side})"
        if self.ceiling is None:
            return text
        reached = ": REACHED" if self.at_ceiling else ""
        return f"{text}, ceiling {self.ceiling:.4f}{reached}"


def at_ceiling(estimate: Estimate, ceiling: float) -> bool:
    """Returns whether an estimate has reached its ceiling.

    An estimate has reached its ceiling if it lies within two standard errors or within 1% of it. It
    then shows only that the quantity is at least about the ceiling. Any distribution-free
    high-confidence lower bound on mutual information from B samples is at most O(log B)
    (McAllester and Stratos 2020).

    Args:
      estimate: The estimate.
      ceiling: The largest possible expectation of the estimate, in nats.

    Returns:
      A bool.

    #### References

    David McAllester and Karl Stratos. Formal Limitations on the Measurement of Mutual Information.
    AISTATS, 2020.
    """
    error = estimate.standard_error
    slack = 0.0 if math.isnan(error) else _STANDARD_ERRORS * error
    return estimate.value >= ceiling - max(slack, _FRACTION * abs(ceiling))


def batch_estimate(means: np.ndarray, batch_size: int, rounding: float = 0.0) -> Estimate:
    """Estimates an expectation from independent batches of dependent draws.

    Args:
      means: Means of the K batches, floating array, shape `[K]`.
      batch_size: Number of draws in each batch.
      rounding: Rounding error of the mean, the smallest standard error reported.

    Returns:
      The mean of all draws. Its standard error is computed from the K batch means, and is NaN if
      K = 1.
    """
    means = np.asarray(means, np.float64)
    if means.size == 1:
        return Estimate(float(means[0]), math.nan, batch_size)
    error = max(float(means.std(ddof=1)) / math.sqrt(means.size), rounding)
    return Estimate(float(means.mean()), error, means.size * batch_size, means.size - 1.0)
