"""How often the 95% intervals of repeated measurements hold what they are around."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tfp_surgery.estimate import Estimate
from tfp_surgery.evidence.log_evidence import LogEvidence

STANDARD_ERRORS = 4.5


def covered(estimates: list[Estimate], truth: float | np.ndarray) -> float:
    """The part of the 95% intervals that hold the truth.

    Args:
      estimates: independent ones.
      truth: of all, or of each.
    """
    low, high = np.transpose([estimate.interval(0.95) for estimate in estimates])
    return float(np.mean((low <= truth) & (truth <= high)))


def check_coverage(found: float, num: int, low: float = 0.95, high: float = 0.95) -> None:
    """Raises unless a coverage is in a range, within 4.5 of its binomial standard errors.

    Args:
      found: part of the intervals that covered.
      num: of them.
      low: end of the range.
      high: likewise.
    """
    error, upper_error = (math.sqrt(part * (1 - part) / num) for part in (low, high))
    assert low - STANDARD_ERRORS * error <= found <= high + STANDARD_ERRORS * upper_error, found


def estimates_of_groups(evidence: LogEvidence, size: int) -> list[Estimate]:
    """What data sets of `size` observations each would have given.

    Args:
      evidence: of the observations of all of them.
      size: observations in one.
    """
    starts = range(0, len(evidence.per_observation), size)
    return [
        dataclasses.replace(
            evidence,
            values=evidence.values[:, start : start + size],
            standard_errors=evidence.standard_errors[start : start + size],
        ).estimate
        for start in starts
    ]
