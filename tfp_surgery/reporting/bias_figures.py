"""Figure of the bias of minibatch estimators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure


def minibatch_bias_figure(records: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Plots minibatch estimates against exact values, one column per method.

    The upper row shows the estimated against the exact index-code mutual information, one line per
    minibatch size with its ceiling dotted; estimates on the diagonal are unbiased. The lower row
    shows the bias of log q(z) against the minibatch size, one line per set of posteriors. Error
    bars are 2 standard errors.

    Args:
      records: One record per set of posteriors, from collapsed to separated, all with the same
        methods and minibatch sizes. Each has the exact `"mutual_information"` and `"estimates"`,
        entries with `"method"`, `"batch_size"`, `"ceiling"`, `"mutual_information"` and
        `"log_prob_bias"`. Quantities are `Estimate.to_dict()`, in nats.
      title: Title of the figure.

    Returns:
      The figure.

    Raises:
      ValueError: If there are no records, or they differ in methods or minibatch sizes.
    """
    keys = [
        [(entry["method"], entry["batch_size"]) for entry in record["estimates"]]
        for record in records
    ]
    if not keys or not keys[0] or any(other != keys[0] for other in keys):
        raise ValueError("the records must all have the same methods and minibatch sizes.")
    methods = list(dict.fromkeys(method for method, _ in keys[0]))
    sizes = list(dict.fromkeys(size for _, size in keys[0]))
    exact = np.array([record["mutual_information"]["value"] for record in records], np.float64)

    def entries(method: str) -> list[list[Mapping[str, Any]]]:
        return [
            [entry for entry in record["estimates"] if entry["method"] == method]
            for record in records
        ]

    figure = Figure(figsize=(1.5 + 3.4 * len(methods), 8.0), layout="constrained")
    panels = figure.subplots(2, len(methods), sharex="row", sharey="row", squeeze=False)
    size_colors = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(sizes)))
    record_colors = mpl.colormaps["plasma"](np.linspace(0.0, 0.85, len(records)))
    for (above, below), method in zip(panels.T, methods, strict=True):
        table = entries(method)  # [records][sizes]
        above.axline((0.0, 0.0), slope=1.0, color="black", linewidth=1.0, label="no bias")
        for number, size in enumerate(sizes):
            column = [row[number] for row in table]
            above.axhline(column[0]["ceiling"], color=size_colors[number], linestyle=":")
            above.errorbar(
                exact,
                _values(column, "mutual_information"),
                2 * _values(column, "mutual_information", "standard_error"),
                marker=".",
                color=size_colors[number],
                label=f"B = {size}",
            )
        below.axhline(0.0, color="black", linewidth=1.0)
        for number, row in enumerate(table):
            below.errorbar(
                sizes,
                _values(row, "log_prob_bias"),
                2 * _values(row, "log_prob_bias", "standard_error"),
                marker=".",
                color=record_colors[number],
                label=f"I(n; z) = {exact[number]:.2f}",
            )
        above.set_title(method)
        above.set_xlabel("exact I(n; z) [nats]")
        below.set_xscale("log", base=2)
        below.set_xlabel("minibatch size B")
    panels[0, 0].set_ylabel("estimated I(n; z) [nats]; ceilings dotted")
    panels[1, 0].set_ylabel("bias of log q(z) [nats]")
    panels[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    panels[1, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.suptitle(title, fontsize="medium")
    return figure


def _values(entries: Sequence[Mapping[str, Any]], name: str, key: str = "value") -> np.ndarray:
    return np.array([entry[name][key] for entry in entries], np.float64)
