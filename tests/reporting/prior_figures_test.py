"""Tests of the figure of marginal KLs."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from tfp_surgery.reporting.prior_figures import marginal_kl_figure


def record(mode: str, family: str, number: int | None, train: float, test: float) -> dict[str, Any]:
    return {
        "mode": mode,
        "prior": family if number is None else f"{family}:{number}",
        "family": family,
        "num_components": number,
        "train": {"marginal_kl": {"value": train, "standard_error": 0.1}},
        "test": {"marginal_kl": {"value": test, "standard_error": 0.2}},
    }


RECORDS = [
    record("joint", "standard", None, 9.0, 10.0),
    record("posthoc", "mog", 100, 7.0, 8.5),
    record("posthoc", "mog", 10, 8.0, 9.0),
    record("posthoc", "aggregate", None, 0.0, 28.0),
]


def test_families_with_components_are_drawn_against_their_number() -> None:
    figure = marginal_kl_figure(RECORDS, "D = 10")
    power, bars = figure.axes
    train, test = power.lines[0], power.lines[3]
    for line, expected in ((train, [8.0, 7.0]), (test, [9.0, 8.5])):
        np.testing.assert_array_equal(np.asarray(line.get_xdata(), float), [10, 100])
        np.testing.assert_array_equal(np.asarray(line.get_ydata(), float), expected)
    assert power.get_xscale() == "log"
    assert [label.get_text() for label in bars.get_yticklabels()] == [
        "standard",
        "mog:100",
        "mog:10",
        "aggregate",
    ]
    widths = [patch.get_width() for patch in bars.patches if isinstance(patch, Rectangle)]
    assert sorted(widths) == [0.0, 7.0, 8.0, 8.5, 9.0, 9.0, 10.0, 28.0]
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_one_number_of_components_is_no_curve() -> None:
    figure = marginal_kl_figure([*RECORDS[:2], RECORDS[3]], "D = 10")
    power, bars = figure.axes
    assert not power.lines
    assert not power.axison
    assert len([patch for patch in bars.patches if isinstance(patch, Rectangle)]) == 6


def test_a_row_for_each_mode_with_the_baseline_in_all() -> None:
    vamp = record("joint", "vamp", 5, 7.0, 8.0)
    figure = marginal_kl_figure([*RECORDS, vamp], "D = 10")
    labels = [[text.get_text() for text in axes.get_yticklabels()] for axes in figure.axes[1::2]]
    assert labels == [["standard", "mog:100", "mog:10", "aggregate"], ["standard", "vamp:5"]]
    alone = marginal_kl_figure(RECORDS[:1], "D = 10")
    assert [text.get_text() for text in alone.axes[1].get_yticklabels()] == ["standard"]


def test_no_records_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one record"):
        marginal_kl_figure([], "")
