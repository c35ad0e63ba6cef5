"""Tests of the figure of minibatch biases: what is drawn where."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from tfp_surgery.reporting.bias_figures import minibatch_bias_figure


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "standard_error": 0.1}


def record(information: float) -> dict[str, Any]:
    return {
        "mutual_information": estimate(information),
        "estimates": [
            {
                "method": method,
                "batch_size": size,
                "ceiling": ceiling + np.log(size),
                "mutual_information": estimate(information + offset * size),
                "log_prob_bias": estimate(-offset * size),
            }
            for method, offset, ceiling in (("mws", 0.1, 8.0), ("batch", -0.2, 0.0))
            for size in (4, 16)
        ],
    }


def line(axes: Any, label: str) -> np.ndarray:
    (container,) = [found for found in axes.containers if found.get_label() == label]
    return np.asarray(container[0].get_xydata(), float)


def test_estimates_stand_above_and_biases_below() -> None:
    figure = minibatch_bias_figure([record(0.0), record(3.0)], "N = 3000")
    mws, batch, mws_bias, batch_bias = figure.axes
    assert [axes.get_title() for axes in (mws, batch)] == ["mws", "batch"]
    np.testing.assert_allclose(line(mws, "B = 16"), [(0.0, 1.6), (3.0, 4.6)])
    np.testing.assert_allclose(line(batch, "B = 4"), [(0.0, -0.8), (3.0, 2.2)])
    np.testing.assert_allclose(line(mws_bias, "I(n; z) = 3.00"), [(4, -0.4), (16, -1.6)])
    np.testing.assert_allclose(line(batch_bias, "I(n; z) = 0.00"), [(4, 0.8), (16, 3.2)])
    ceilings = [
        float(np.asarray(drawn.get_ydata(), float)[0])
        for drawn in mws.lines
        if drawn.get_linestyle() == ":"
    ]
    np.testing.assert_allclose(ceilings, [8.0 + np.log(4), 8.0 + np.log(16)])
    (bars,) = mws.containers[0][2]
    np.testing.assert_allclose(bars.get_segments()[1][:, 1], [3.4 - 0.2, 3.4 + 0.2])
    assert "nats" in mws.get_ylabel()
    assert "nats" in mws_bias.get_ylabel()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_records_must_go_together() -> None:
    other = record(1.0)
    other["estimates"] = other["estimates"][1:]
    for records in ([], [record(0.0), other]):
        with pytest.raises(ValueError, match="same methods and minibatch sizes"):
            minibatch_bias_figure(records, "")
