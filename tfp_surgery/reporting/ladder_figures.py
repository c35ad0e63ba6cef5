"""Figure of importance-weighted bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

_BOUND_COLOR = "#4477aa"
_SIZE_COLOR = "#d95f3b"


def ladder_figure(records: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Plots the bounds IW_m (the ELBO at m = 1) and their effective sample sizes against m.

    Args:
      records: Records of `experiments.importance_weighting`, one per m, of one data set.
      title: Title of the figure.

    Returns:
      The figure: on the left the bounds with 2 standard errors if known, on the right the mean and
      the smallest effective sample sizes.

    Raises:
      ValueError: If there are no records, two records of one m, or different data sets.
    """
    records = sorted(records, key=lambda record: record["num_importance_samples"])
    numbers = [record["num_importance_samples"] for record in records]
    if not records or len(set(numbers)) != len(numbers):
        raise ValueError(f"a ladder needs one record for each m, got those of m = {numbers}.")
    data = {record["data"] for record in records}
    if len(data) != 1:
        raise ValueError(f"the records must be of one data set, got {sorted(data)}.")

    def values(key: str) -> np.ndarray:
        entries = [record["importance_weighted_elbo"][key] for record in records]
        return np.array(entries, np.float64)  # None becomes NaN

    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    bounds, sizes = figure.subplots(1, 2)
    # matplotlib draws no bar if the error is NaN.
    bounds.errorbar(
        numbers,
        values("value"),
        2.0 * values("standard_error"),
        color=_BOUND_COLOR,
        marker="o",
        capsize=4,
        label="± 2 standard errors",
    )
    for number, bound in zip(numbers, values("value"), strict=True):
        bounds.annotate(
            f"{bound:.2f}",
            (number, bound),
            xytext=(7, -13),  # below the increasing line
            textcoords="offset points",
            fontsize="small",
        )
    bounds.set_ylabel("nats per observation")
    bounds.set_title("lower bounds on log p(x): ELBO at m = 1, IW$_m$", fontsize="medium")
    bounds.legend(loc="lower right", frameon=False)
    bounds.margins(x=0.15, y=0.15)

    for key, style, label in (
        ("mean_effective_sample_size", "o-", "mean"),
        ("least_effective_sample_size", "v:", "least"),
    ):
        sizes.plot(
            numbers, [record[key] for record in records], style, color=_SIZE_COLOR, label=label
        )
    sizes.plot(numbers, numbers, "--", color="black", linewidth=1.0, label="m: equal weights")
    sizes.set_yscale("log")
    sizes.set_ylabel("effective sample size")
    sizes.set_title("draws that carry a bound", fontsize="medium")
    sizes.legend(loc="upper left", frameon=False)
    for axes in (bounds, sizes):
        axes.set_xscale("log")
        axes.set_xlabel("importance samples m")
    figure.suptitle(title, fontsize="medium")
    return figure
