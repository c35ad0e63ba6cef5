"""Tests of the figure of importance-weighted bounds."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest

from tfp_surgery.reporting.ladder_figures import ladder_figure


def rung(m: int, value: float, error: float | None = 0.1) -> dict[str, Any]:
    return {
        "num_importance_samples": m,
        "importance_weighted_elbo": {"value": value, "standard_error": error},
        "mean_effective_sample_size": math.sqrt(m),
        "least_effective_sample_size": 1.0,
        "data": "mnist/test, the first 100",
    }


def test_bounds_rise_with_m_beside_their_effective_sample_sizes() -> None:
    figure = ladder_figure([rung(50, -86.5), rung(1, -90.0), rung(5, -88.0, None)], "D = 10")
    bounds, sizes = figure.axes
    line = bounds.lines[0]
    np.testing.assert_array_equal(np.asarray(line.get_xdata(), float), [1, 5, 50])
    np.testing.assert_array_equal(np.asarray(line.get_ydata(), float), [-90, -88, -86.5])
    (bars,) = bounds.collections
    ends = [np.asarray(path.vertices, float)[:, 1] for path in bars.get_paths()]
    np.testing.assert_allclose(ends[0], [-90.2, -89.8])
    assert [text.get_text() for text in bounds.texts] == ["-90.00", "-88.00", "-86.50"]
    assert bounds.get_ylabel() == "nats per observation"
    mean, least, equal = (np.asarray(line.get_ydata(), float) for line in sizes.lines)
    np.testing.assert_allclose(mean, np.sqrt([1, 5, 50]))
    np.testing.assert_allclose(least, 1.0)
    np.testing.assert_allclose(equal, [1, 5, 50])
    assert bounds.get_xscale() == sizes.get_xscale() == sizes.get_yscale() == "log"
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_what_is_no_ladder_is_refused() -> None:
    with pytest.raises(ValueError, match="one record for each m"):
        ladder_figure([], "")
    with pytest.raises(ValueError, match="one record for each m"):
        ladder_figure([rung(5, -1.0), rung(5, -2.0)], "")
    with pytest.raises(ValueError, match="one data set"):
        ladder_figure([rung(1, -1.0), {**rung(5, -2.0), "data": "digits"}], "")
