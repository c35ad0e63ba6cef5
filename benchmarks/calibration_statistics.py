"""How often intervals cover, how large the bias is, and whether reported errors are the actual."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement.bound import Bound

LEVEL = 0.95
OVER_SEEDS = "mean over the seeds"
# Errors below this part of the value (of one nat where it is smaller) are rounding.
ROUNDING = 1e-6
# Ranges that a row must lie in: 91 to 99% is what 500 seeds of a true 95% give.
_BINOMIAL_ERRORS = 4.0
MOST_BIAS = 0.2
_BIAS_ERRORS = 4.0
_ENOUGH_SEEDS = 20  # all of which lie within half a standard error by chance once in 10^8 times
MOST_TRUTH_ERROR = 0.05
_COLUMNS = (
    *("num_seeds", "truth", "truth_error", "truth_how", "mean", "mean_standard_error"),
    *("standard_deviation", "coverage", "bias", "bias_error", "ratio"),
    *("degrees_of_freedom", "largest_error", "verdict"),
)


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the intervals of an estimate refer to.

    Attributes:
      value: Its value.
      standard_error: Its own error; 0 for a closed form.
      how: How it was reached, in a few words; or why there is none, if the value is NaN.
      tells_bias: Whether it is independent of the estimates themselves.
    """

    value: float
    standard_error: float
    how: str
    tells_bias: bool = True


def no_truth(reason: str) -> Truth:
    """Returns the place of a truth that there is none of."""
    return Truth(math.nan, math.nan, reason)


def mean_over_seeds(estimates: Sequence[Estimate]) -> Truth:
    """Returns the mean of the estimates themselves, around which their intervals are counted.

    Its standard error is that of one estimate, divided by the root of the number of seeds.
    """
    values = [estimate.value for estimate in estimates]
    return Truth(float(np.mean(values)), 0.0, OVER_SEEDS, tells_bias=False)


def estimates_of(result: Any, name: str = "") -> dict[str, Estimate]:
    """Finds every estimate of a result, however deep it lies in it.

    Args:
      result: An `Estimate`, a `Bound`, a dataclass, a mapping or a sequence of these; anything else
        holds none.
      name: What the result itself is called.

    Returns:
      The estimates by dotted name: names of fields and keys, numbers of places in brackets.
    """
    if isinstance(result, Estimate):
        return {name: result}
    if isinstance(result, Bound):
        return {name: result.estimate}
    prefix = f"{name}." if name else ""
    found: dict[str, Estimate] = {}
    if isinstance(result, Mapping):
        for key, value in result.items():
            found |= estimates_of(value, f"{prefix}{key}")
    elif isinstance(result, tuple | list):
        for number, value in enumerate(result):
            found |= estimates_of(value, f"{name}[{number}]")
    elif dataclasses.is_dataclass(result):
        fields = [field.name for field in dataclasses.fields(result)]
        for field in [*fields, *getattr(result, "_derived", ())]:
            found |= estimates_of(getattr(result, field), f"{prefix}{field}")
    return found


def calibration(estimates: Sequence[Estimate], truth: Truth) -> dict[str, Any]:
    """Compares the estimates of many seeds with what their intervals refer to.

    Args:
      estimates: One for each seed, at least 2.
      truth: What they estimate.

    Returns:
      JSON-ready values by name:
        truth, truth_error, truth_how: Of the `Truth`.
        mean_standard_error: Mean over seeds of the reported standard errors.
        standard_deviation: Of estimate - truth over the seeds (divided by their number less 1).
        coverage: Part of the 95% intervals (`Estimate.interval`) that hold the truth.
        bias: Mean of estimate - truth over the seeds, divided by `mean_standard_error`; None where
          the truth is the mean over the seeds.
        bias_error: Its standard error: of the mean over seeds, and of the truth.
        ratio: `mean_standard_error` / `standard_deviation`.
        degrees_of_freedom: Median over seeds.
        largest_error: The largest |estimate - truth|.
        verdict: See `verdict_of`.
      Values that do not exist are None.
    """
    values = np.array([estimate.value for estimate in estimates])
    errors = np.array([estimate.standard_error for estimate in estimates])
    if math.isnan(truth.value):
        known: dict[str, Any] = {
            "num_seeds": len(values),
            "truth_how": truth.how,
            "mean": float(values.mean()),
            "mean_standard_error": float(errors.mean()),
            "verdict": "no truth",
        }
        return {name: known.get(name) for name in _COLUMNS}
    freedom = np.array([estimate.degrees_of_freedom for estimate in estimates])
    off = values - truth.value
    num = len(values)
    mean_error, deviation = float(errors.mean()), float(off.std(ddof=1))
    has_error = mean_error > 0.0  # False for NaN, too
    low, high = np.transpose([estimate.interval(LEVEL) for estimate in estimates])
    row: dict[str, Any] = {
        "num_seeds": num,
        "truth": truth.value,
        "truth_error": truth.standard_error,
        "truth_how": truth.how,
        "mean": float(values.mean()),
        "mean_standard_error": mean_error,
        "standard_deviation": deviation,
        "coverage": float(np.mean((low <= truth.value) & (truth.value <= high))),
        "bias": math.nan,
        "bias_error": math.nan,
        "ratio": mean_error / deviation if deviation > 0.0 else math.nan,
        "degrees_of_freedom": float(np.median(freedom)),
        "largest_error": float(np.abs(off).max()),
    }
    if has_error and truth.tells_bias:
        row["bias"] = float(off.mean()) / mean_error
        bias_error = math.hypot(deviation / math.sqrt(num), truth.standard_error)
        row["bias_error"] = bias_error / mean_error
    row["verdict"] = verdict_of(row)
    return {
        name: None if isinstance(row[name], float) and not math.isfinite(row[name]) else row[name]
        for name in _COLUMNS
    }


def verdict_of(row: Mapping[str, Any]) -> str:
    """Judges a row of `calibration`.

    Args:
      row: The row, numbers as floats.

    Returns:
      "exact" for values without a standard error that are the truth up to rounding;
      "rounding" where standard errors are at most 1e-6 of the value (of one nat, for smaller
      values); "bound" where they are bounds on rounding or on a tolerance, so that no estimate of
      all seeds is off by more than half of one; "good"; or what is wrong, of "not exact", "standard
      error unknown", "coverage" (more than 4 binomial standard errors from 95%: 91 to 99% for 500
      seeds), "bias" (more than 0.2 standard errors, and more than 4 of its own) and "truth" (its
      own error is more than 5% of the standard error), separated by commas.
    """
    truth, error = row["truth"], row["mean_standard_error"]
    if math.isnan(error):
        return "standard error unknown"
    unit = max(1.0, abs(truth))
    if error == 0.0:
        allowed = ROUNDING * unit + 4.0 * row["truth_error"]
        return "exact" if row["largest_error"] <= allowed else "not exact"
    if error <= ROUNDING * unit:
        allowed = 10.0 * ROUNDING * unit + 4.0 * row["truth_error"]
        return "rounding" if row["largest_error"] <= allowed else "not exact"
    if row["largest_error"] <= 0.5 * error and row["num_seeds"] >= _ENOUGH_SEEDS:
        return "bound"
    wrong = []
    low, high = coverage_range(row["num_seeds"])
    if not low <= row["coverage"] <= high:
        wrong.append("coverage")
    if abs(row["bias"]) > max(MOST_BIAS, _BIAS_ERRORS * row["bias_error"]):
        wrong.append("bias")
    if row["truth_error"] > MOST_TRUTH_ERROR * error:
        wrong.append("truth")
    return ", ".join(wrong) or "good"


def coverage_range(num_seeds: int) -> tuple[float, float]:
    """Returns the range that the coverage of right 95% intervals lies in."""
    width = _BINOMIAL_ERRORS * math.sqrt(LEVEL * (1.0 - LEVEL) / num_seeds)
    return LEVEL - width, min(1.0, LEVEL + width)
