"""The page of a calibration: what was measured, what is out of range and why, and all rows."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.calibration_measurements import MEASUREMENTS
from benchmarks.calibration_statistics import MOST_TRUTH_ERROR, coverage_range

Row = Mapping[str, Any]

_FINE = ("good", "exact", "rounding", "bound", "no truth")
_OF_A_SUBSET = (
    "log q(z) of a random half of the components is biased, the mutual information upwards and the "
    "marginal KL downwards, as `elbo_surgery` says of `num_components`. The standard error has the "
    "bias in it, and the intervals are wide for it: they cover more than they claim."
)
_FAR_FROM_THE_PRIOR = (
    "50 temperatures do not bring chains from the prior to posteriors 500 times as narrow. What is "
    "left is skewed from pair to pair, and the mean of 40 pairs is not normal."
)
# Measurement, estimate and regime (patterns of fnmatch), and why they are out of range.
EXCEPTIONS = (
    ("component_subset", "*", "*", _OF_A_SUBSET),
    ("bidirectional_monte_carlo", "*", "separated", _FAR_FROM_THE_PRIOR),
)


def markdown(results: Mapping[str, Any]) -> str:
    """Returns the page of a run.

    Args:
      results: The content of its `results.json`.

    Returns:
      Markdown.
    """
    rows, config = results["rows"], results["config"]
    sections = [
        "# Calibration of the standard errors",
        _introduction(results),
        "## Summary",
        _summary(rows),
        "## Out of range",
        _exceptions(rows),
    ]
    for name in config["measurements"]:
        of_one = [row for row in rows if row["measurement"] == name]
        if of_one:
            sections += [f"## {MEASUREMENTS[name].label}", _table(of_one, config["regimes"])]
    return "\n\n".join(sections) + "\n"


def explained(row: Row) -> str | None:
    """Returns why a row is out of range; None if nobody has said so."""
    for measurement, estimate, regime, reason in EXCEPTIONS:
        pairs = (
            (row["measurement"], measurement),
            (row["estimate"], estimate),
            (row["regime"], regime),
        )
        if all(fnmatch.fnmatchcase(name, pattern) for name, pattern in pairs):
            return reason
    return None


def counted(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows whose standard errors are a matter of sampling."""
    return [row for row in rows if row["verdict"] not in ("exact", "rounding", "bound", "no truth")]


def _introduction(results: Mapping[str, Any]) -> str:
    config = results["config"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    minutes = sum(results["cpu_seconds"].values()) / 60.0
    num, dear, query = (config[name] for name in ("num_seeds", "num_dear_seeds", "num_query"))
    low, high = (100.0 * end for end in coverage_range(num))
    return f"""* Command: `{results["command"]}`
* {results["date"]}; {minutes:.0f} minutes of one core
* Versions: {versions}

Every public estimate is computed with {num} seeds ({dear} where one takes seconds), in float64,
on N = {config["num_observations"]} observations of a linear-Gaussian model with 3 latent and 5
observed dimensions and diagonal Gaussian posteriors that are off the exact ones. Its noise makes
the posteriors *collapsed* (nearly the prior), *overlapping*, or *separated* (the nearest two more
than 60 standard deviations apart). "all" averages over all observations, "{query}" over a random
subset of so many (`num_query`). Each cell holds

* the coverage in percent: of the 95% intervals (`Estimate.interval()`), how many hold the truth.
  Right intervals give {low:.1f} to {high:.1f} with {num} seeds (4 binomial standard errors);
* the bias: the mean of estimate - truth over the seeds, divided by the mean reported standard
  error. Its own error is {num**-0.5:.2f} with {num} seeds, {dear**-0.5:.2f} with {dear};
* the ratio: the mean reported standard error, divided by the standard deviation of the estimates
  over the seeds.

*exact* stands where there is no standard error and the value is the truth within 1e-6; *rounding*
where the standard error is at most 1e-6 of the value, or of one nat; *bound* where it is a bound
on rounding or on a tolerance, of which no seed used more than half; *no truth* where the column
says why. The truth of a bound is the expectation of the bound, since that is what its interval
refers to. It is in closed form, or computed in float64 by NumPy alone, with an error of its own
below {100 * MOST_TRUTH_ERROR:.0f}% of the standard error; where it is the mean over the seeds, a
bias cannot be told. Estimates of which each observation depends on no other
(`importance_weighted_elbo`, importance sampling, AIS, bidirectional Monte Carlo) were made of data
sets behind one another in one call."""


def _summary(rows: Sequence[Row]) -> str:
    known = [row for row in counted(rows) if row["mean_standard_error"] is not None]
    if not known:
        return f"{len(rows)} rows, none of which has a standard error from sampling."
    good = sum(row["verdict"] == "good" for row in known)

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in known if row[name] is not None])

    coverage, ratio = column("coverage"), column("ratio")
    bias = np.abs(column("bias"))
    errors = column("truth_error") / column("mean_standard_error")
    low, mean, high = (
        f"{100 * part:.1f}%" for part in (coverage.min(), coverage.mean(), coverage.max())
    )
    lines = [
        f"{len(rows)} rows, of which {len(known)} have a standard error from sampling",
        f"mean coverage {mean}, from {low} to {high}",
        f"reported / actual standard deviation {np.median(ratio):.3f} in the median",
        f"the same from {ratio.min():.3f} to {ratio.max():.3f}",
        f"largest error of a truth: {100 * errors.max():.1f}% of the standard error",
        f"in range: {good} of {len(known)}",
    ]
    if bias.size:
        lines += [f"|bias| {bias.mean():.3f} standard errors on average, at most {bias.max():.3f}"]
    return "\n".join(f"* {line}" for line in lines)


def _exceptions(rows: Sequence[Row]) -> str:
    wrong = [row for row in rows if row["verdict"] not in _FINE]
    if not wrong:
        return "Nothing."
    by_reason: dict[str, list[Row]] = {}
    for row in wrong:
        by_reason.setdefault(explained(row) or "NOT EXPLAINED", []).append(row)
    blocks = []
    for reason, of_reason in by_reason.items():
        lines = [
            f"  * {MEASUREMENTS[row['measurement']].label}: `{row['estimate']}`, {row['regime']}, "
            f"{_observations(row)}: {row['verdict']} ({_cell(row)})"
            for row in of_reason
        ]
        blocks.append("\n".join([f"* {reason}", *lines]))
    return "\n".join(blocks)


def _table(rows: Sequence[Row], regimes: Sequence[str]) -> str:
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault((row["estimate"], _observations(row)), {})[row["regime"]] = row
    header = ["estimate", "observations", "truth", *regimes]
    cells = [header, ["---"] * len(header)]
    for (name, observations), by_regime in lines.items():
        first = next(iter(by_regime.values()))
        cells.append(
            [
                f"`{name}`",
                observations,
                first["truth_how"],
                *(_cell(by_regime[regime]) if regime in by_regime else "" for regime in regimes),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _observations(row: Row) -> str:
    return "all" if row["num_query"] is None else str(row["num_query"])


def _cell(row: Row) -> str:
    if row["verdict"] in ("exact", "rounding", "bound", "no truth"):
        return str(row["verdict"])
    bias = "–" if row["bias"] is None else f"{row['bias']:+.2f}"
    ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
    numbers = f"{100 * row['coverage']:.1f} / {bias} / {ratio}"
    return numbers if row["verdict"] == "good" else f"**{numbers}**"
