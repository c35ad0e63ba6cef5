"""Tests of the figures: what is drawn where, and with which units."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tfp_surgery.reporting import figures


def terms(latent_size: int, information: float, marginal: float) -> dict[str, Any]:
    def estimate(value: float) -> dict[str, float]:
        return {"value": value, "standard_error": 0.01}

    return {
        "latent_size": latent_size,
        "index_code_mutual_information": estimate(information),
        "marginal_kl": estimate(marginal),
        "average_kl": estimate(information + marginal),
        "log_num_observations": math.log(60000),
    }


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def texts(figure: Figure) -> str:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    for legend in figure.legends:
        found += [text.get_text() for text in legend.get_texts()]
    return "\n".join(found)


def test_terms_are_stacked_against_log_n() -> None:
    figure = figures.terms_figure([terms(2, 7.2, 0.21), terms(10, 10.82, 8.35)], "mnist, N = 60000")
    (axes,) = figure.axes
    bars = [
        (bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_height())
        for bar in axes.patches
        if isinstance(bar, Rectangle)
    ]
    np.testing.assert_allclose(bars, [(0, 0, 7.2), (1, 0, 10.82), (0, 7.2, 0.21), (1, 10.82, 8.35)])
    ceiling = next(line for line in axes.lines if "log N" in str(line.get_label()))
    np.testing.assert_allclose(np.asarray(ceiling.get_ydata(), float), math.log(60000))
    assert "log N = 11.002" in texts(figure)
    assert axes.get_ylabel() == "nats per observation"
    assert axes.get_title() == "mnist, N = 60000"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "10"]
    assert axes.get_ylim()[1] > 19.17
    assert png(figure).startswith(b"\x89PNG")


def test_terms_of_different_data_sets_are_not_drawn_together() -> None:
    with pytest.raises(ValueError, match="one data set"):
        figures.terms_figure([terms(2, 1, 1), {**terms(2, 1, 1), "log_num_observations": 2.0}], "")
    with pytest.raises(ValueError, match="one data set"):
        figures.terms_figure([], "")


def test_of_several_training_runs_mean_and_spread_are_drawn() -> None:
    records = [terms(2, 7.0, 0.2), terms(10, 10.0, 8.0), terms(2, 7.4, 0.4), terms(10, 10.6, 8.2)]
    figure = figures.terms_figure(records, "two runs")
    (axes,) = figure.axes
    bars = [(bar.get_y(), bar.get_height()) for bar in axes.patches if isinstance(bar, Rectangle)]
    np.testing.assert_allclose(bars, [(0, 7.2), (0, 10.3), (7.2, 0.3), (10.3, 8.1)])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "10"]
    (bars_of_error,) = (c.lines[2] for c in axes.containers if isinstance(c, ErrorbarContainer))
    ends = [segment[:, 1] for segment in bars_of_error[0].get_segments()]
    # Average KL of 7.2 and 7.8, and of 18 and 18.8: the distance over sqrt(2) to either side.
    expected = [(7.5, 0.6), (18.4, 0.8)]
    for found, (mean, distance) in zip(ends, expected, strict=True):
        np.testing.assert_allclose(found, mean + np.array([-1, 1]) * distance / math.sqrt(2))
    assert "spread of 2 runs" in texts(figure)
    with pytest.raises(ValueError, match=r"as many records each, got \{2: 2, 10: 1\}"):
        figures.terms_figure(records[:3], "")


def plane(size: int = 121) -> dict[str, np.ndarray]:
    grid = np.linspace(-4, 4, size)
    log_prior = -np.log(2 * np.pi) - 0.5 * (grid**2 + grid[:, np.newaxis] ** 2)
    rng = np.random.default_rng(0)
    return {
        "means": rng.standard_normal((50, 2)),
        "kl": rng.random(50),
        "grid": grid,
        "log_aggregate": log_prior + grid,
        "log_prior": log_prior,
    }


def test_codes_have_the_contours_of_the_prior() -> None:
    given = plane()
    levels = figures._highest_density_levels(given["log_prior"])
    # The disc that holds a mass m of a standard normal in the plane: r^2 = -2 log(1 - m).
    expected = [-np.log(2 * np.pi) + np.log1p(-mass) for mass in (0.99, 0.9, 0.5)]
    np.testing.assert_allclose(levels, expected, atol=0.05)
    figure = figures.codes_figure(**given, title="digits")
    panels = [axes for axes in figure.axes if axes.get_xlabel() == "$z_1$"]
    assert len(panels) == 3
    labels = [axes.get_ylabel() for axes in figure.axes if axes not in panels]
    assert len(labels) == 3
    assert all("[nats]" in label for label in labels)
    np.testing.assert_array_equal(panels[0].collections[0].get_offsets(), given["means"])
    # The second axis of z runs upwards: rows of the density are values of z_2.
    drawn = np.asarray(panels[2].collections[0].get_array(), float)
    np.testing.assert_allclose(drawn.reshape(121, 121)[7], np.clip(given["grid"], -3, 3))
    assert png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("means", (50, 3)), ("kl", (49,)), ("log_aggregate", (121, 120)), ("log_prior", (5, 5))],
)
def test_codes_check_shapes(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="got"):
        figures.codes_figure(**{**plane(), name: np.zeros(shape)}, title="")


def images(number: int, channels: int = 1) -> np.ndarray:
    return np.arange(1, number + 1).reshape(-1, 1, 1, 1) / number * np.ones((1, 8, 6, channels))


def test_images_are_laid_out_in_rows() -> None:
    grid = figures._image_grid(images(5), columns=3)
    assert grid.shape == (8 + 1 + 8, 6 + 1 + 6 + 1 + 6)
    np.testing.assert_allclose(grid[:8, 7:13], 2 / 5)
    np.testing.assert_allclose(grid[9:, :6], 4 / 5)
    assert figures._image_grid(images(5, channels=3), columns=2).shape == (26, 13, 3)


def test_reconstructions_stand_below_the_observations() -> None:
    figure = figures.reconstructions_figure(images(4), images(4) / 2, "digits/test")
    top, bottom = figure.axes
    assert top.get_title() == "observations"
    observed, reconstructed = (
        np.asarray(axes.images[0].get_array(), float) for axes in (top, bottom)
    )
    np.testing.assert_allclose(observed[:, :6], 1 / 4)
    np.testing.assert_allclose(reconstructed[:, :6], 1 / 8)
    assert png(figure).startswith(b"\x89PNG")


def test_samples_of_the_prior_stand_beside_those_of_the_aggregate() -> None:
    panels = {"the prior": images(9), "the aggregate posterior": images(9)[::-1]}
    figure = figures.samples_figure(panels, "digits")
    prior, aggregate = figure.axes
    assert "prior" in prior.get_title()
    assert "aggregate posterior" in aggregate.get_title()
    assert np.asarray(prior.images[0].get_array(), float)[0, 0] == pytest.approx(1 / 9)
    assert np.asarray(aggregate.images[0].get_array(), float)[0, 0] == pytest.approx(1.0)


def test_many_panels_of_samples_stand_in_rows_of_four() -> None:
    panels = {f"prior {number}": images(4) for number in range(6)}
    figure = figures.samples_figure(panels, "digits")
    shown = [axes.get_title() for axes in figure.axes if axes.images]
    assert shown == list(panels)
    assert len(figure.axes) == 8
    with pytest.raises(ValueError, match="at least one panel"):
        figures.samples_figure({}, "")


def test_images_are_checked() -> None:
    with pytest.raises(ValueError, match="one shape"):
        figures.reconstructions_figure(images(4), images(3), "")
    for wrong in (np.zeros((3, 64)), np.zeros((3, 8, 8, 2)), np.zeros((0, 8, 8, 1))):
        with pytest.raises(ValueError, match=r"\[M, height, width, channels\]"):
            figures.samples_figure({"z": wrong}, "")
