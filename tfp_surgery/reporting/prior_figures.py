"""Figure of the marginal KL of learned priors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

_COLORS = ("#4477aa", "#d95f3b", "#228833", "#aa3377", "#ccbb44", "#66ccee", "#777777")


def marginal_kl_figure(records: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Plots the marginal KL of priors on training and test data, one row per mode.

    Args:
      records: One record per prior with `mode`, `prior`, `family`, `num_components` (None for
        families without components), and `ElboSurgery.to_dict()` under `train` and `test`.
      title: Title of the figure.

    Returns:
      The figure. On the left, it shows the marginal KL against the number of components, if that
      varies within a family. On the right, it shows two bars per prior. N(0, I) (the family
      `standard`) appears in all rows.

    Raises:
      ValueError: If there are no records.
    """
    if not records:
        raise ValueError("a figure of marginal KLs needs at least one record.")
    baselines = [record for record in records if record["family"] == "standard"]
    others = [record for record in records if record["family"] != "standard"]
    modes = list(dict.fromkeys(record["mode"] for record in others or baselines))
    figure = Figure(figsize=(13.0, 0.4 + 4.6 * len(modes)), layout="constrained")
    all_axes = figure.subplots(len(modes), 2, squeeze=False, width_ratios=[1.0, 1.4])
    for (power, bars), mode in zip(all_axes, modes, strict=True):
        of_mode = [*baselines, *(record for record in others if record["mode"] == mode)]
        families = [r["family"] for r in of_mode if r["num_components"] is not None]
        if len(set(families)) < len(families):
            _draw_power(power, of_mode)
            power.set_title(f"{mode}: against the number of components", fontsize="medium")
        else:
            power.set_axis_off()
        _draw_bars(bars, of_mode)
        bars.set_title(f"{mode}: every prior", fontsize="medium")
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_power(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    families = dict.fromkeys(
        record["family"] for record in records if record["num_components"] is not None
    )
    for family, color in zip(families, itertools.cycle(_COLORS)):
        of_family = sorted(
            (record for record in records if record["family"] == family),
            key=lambda record: record["num_components"],
        )
        numbers = [record["num_components"] for record in of_family]
        for split, style in (("train", "o--"), ("test", "o-")):
            axes.errorbar(
                numbers,
                [record[split]["marginal_kl"]["value"] for record in of_family],
                [2.0 * record[split]["marginal_kl"]["standard_error"] for record in of_family],
                fmt=style,
                color=color,
                capsize=3,
                markersize=5 if split == "test" else 3,
                label=f"{family}, {split}",
            )
    axes.set_xscale("log")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False, fontsize="x-small"
    )
    axes.set_xlabel("components K of the prior")
    axes.set_ylabel("marginal KL(q(z) || p(z)) [nats]")


def _draw_bars(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    positions = range(len(records))
    for split, offset, color in (("train", 0.2, "#bbbbbb"), ("test", -0.2, "#4477aa")):
        values = [record[split]["marginal_kl"]["value"] for record in records]
        errors = [2.0 * record[split]["marginal_kl"]["standard_error"] for record in records]
        axes.barh(
            [position + offset for position in positions],
            values,
            0.38,
            xerr=errors,
            color=color,
            label=f"{split}, its own q(z), ± 2 standard errors",
        )
        for position, value in zip(positions, values, strict=True):
            axes.annotate(
                f"{value:.2f}",
                (max(value, 0.0), position + offset),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize="x-small",
            )
    axes.set_yticks(positions, [record["prior"] for record in records])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("marginal KL(q(z) || p(z)) [nats]")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False, fontsize="small"
    )
