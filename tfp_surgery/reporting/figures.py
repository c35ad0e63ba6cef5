"""Figures of the terms of the ELBO, of codes and of images.

The functions return a `matplotlib.figure.Figure`. They need no display and do not use the global
state of pyplot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

_MUTUAL_INFORMATION_COLOR = "#4477aa"
_MARGINAL_KL_COLOR = "#d95f3b"
_PRIOR_COLOR = "#cc3311"
_PRIOR_MASSES = (0.5, 0.9, 0.99)


def terms_figure(records: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Plots index-code mutual information and marginal KL, stacked to the average KL, and log N.

    Args:
      records: One `ElboSurgery.to_dict()` with the entry `"latent_size"` per model, all of one data
        set. Several of one latent size are training runs, as many of each.
      title: Title of the figure.

    Returns:
      The figure. Error bars of the average KL are 2 standard errors; of several training runs,
      whose means are shown, the sample standard deviation over the runs.

    Raises:
      ValueError: If there are no records, they differ in N, or latent sizes differ in the number of
        records.
    """
    ceilings = {record["log_num_observations"] for record in records}
    if len(ceilings) != 1:
        raise ValueError(f"the records must be of one data set, but log N is {sorted(ceilings)}.")
    (ceiling,) = ceilings
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["latent_size"], []).append(record)
    counts = {size: len(group) for size, group in groups.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"latent sizes must have as many records each, got {counts}.")
    num_runs = len(records) // len(groups)
    figure = Figure(figsize=(max(6.0, 2.6 + 1.3 * len(groups)), 4.8), layout="constrained")
    axes = figure.subplots()
    positions = range(len(groups))

    def values(name: str, key: str = "value") -> np.ndarray:
        """Returns the numbers of all runs, shape `[latent sizes, runs]`."""
        return np.array(
            [[record[name][key] for record in group] for group in groups.values()], np.float64
        )

    information = values("index_code_mutual_information").mean(axis=1)
    marginal = values("marginal_kl").mean(axis=1)
    total = values("average_kl").mean(axis=1)
    if num_runs == 1:
        errors = 2 * values("average_kl", "standard_error")[:, 0]
        error_label = "average KL ± 2 standard errors"
    else:
        errors = values("average_kl").std(axis=1, ddof=1)
        error_label = f"average KL ± spread of {num_runs} runs"
    axes.bar(
        positions,
        information,
        0.6,
        color=_MUTUAL_INFORMATION_COLOR,
        label="index-code mutual information I(n; z)",
    )
    axes.bar(
        positions,
        marginal,
        0.6,
        bottom=information,
        color=_MARGINAL_KL_COLOR,
        label="marginal KL(q(z) || p(z))",
    )
    axes.errorbar(
        positions,
        total,
        errors,
        fmt="none",
        ecolor="black",
        capsize=4,
        label=error_label,
    )
    axes.axhline(ceiling, color="black", linestyle="--", label=f"log N = {ceiling:.3f}")
    highest = max(total.max(), ceiling)
    for position, mi, kl, rate in zip(positions, information, marginal, total, strict=True):
        axes.text(position, mi / 2, f"{mi:.2f}", ha="center", va="center", color="white")
        axes.text(
            position + 0.33,
            mi + kl / 2,
            f"{kl:.2f}",
            ha="left",
            va="center",
            color=_MARGINAL_KL_COLOR,
        )
        axes.text(position, rate + 0.02 * highest, f"{rate:.2f}", ha="center", va="bottom")
    axes.set_xticks(positions, [str(size) for size in groups])
    axes.set_xlim(-0.6, len(groups) - 0.2)
    axes.set_ylim(min(0.0, 1.1 * marginal.min()), 1.12 * highest)
    axes.set_xlabel("latent size D")
    axes.set_ylabel("nats per observation")
    axes.set_title(title, fontsize="medium")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def codes_figure(
    means: np.ndarray,
    kl: np.ndarray,
    grid: np.ndarray,
    log_aggregate: np.ndarray,
    log_prior: np.ndarray,
    title: str,
) -> Figure:
    """Plots two-dimensional codes, log q(z) and log q(z) - log p(z).

    Args:
      means: Means of the posteriors q(z|x_n), shape `[M, 2]`.
      kl: KL(q(z|x_n) || p(z)) in nats, shape `[M]`, shown as the colours of the means.
      grid: Increasing positions along both axes, shape `[G]`.
      log_aggregate: log q(z) in nats, shape `[G, G]`; rows run along the second axis of z.
      log_prior: log p(z) in nats, likewise.
      title: Title of the figure.

    Returns:
      The figure.

    Raises:
      ValueError: If the shapes do not match.
    """
    size = len(grid)
    if means.ndim != 2 or means.shape[1] != 2 or kl.shape != means.shape[:1]:
        raise ValueError(
            f"means must be [M, 2] and kl [M], got {list(means.shape)} and {list(kl.shape)}."
        )
    if log_aggregate.shape != (size, size) or log_prior.shape != (size, size):
        raise ValueError(
            f"the densities must be [{size}, {size}] like the grid, got "
            f"{list(log_aggregate.shape)} and {list(log_prior.shape)}."
        )
    figure = Figure(figsize=(15.0, 5.2), layout="constrained")
    codes, density, difference = figure.subplots(1, 3)

    size_of_point = float(np.clip(15_000 / len(means), 1.5, 8.0))
    points = codes.scatter(
        means[:, 0],
        means[:, 1],
        c=kl,
        s=size_of_point,
        cmap="viridis",
        linewidths=0,
        rasterized=True,
        vmin=float(np.quantile(kl, 0.01)),
        vmax=float(np.quantile(kl, 0.99)),
    )
    codes.set_title("means of the posteriors q(z|x_n)")
    figure.colorbar(points, ax=codes, label="KL(q(z|x_n) || p(z)) [nats]", extend="both")

    peak = float(log_aggregate.max())
    image = density.pcolormesh(
        grid, grid, np.maximum(log_aggregate, peak - 8.0), cmap="magma", rasterized=True
    )
    density.set_title("aggregate posterior q(z)")
    figure.colorbar(image, ax=density, label="log q(z) [nats]", extend="min")

    image = difference.pcolormesh(
        grid,
        grid,
        np.clip(log_aggregate - log_prior, -3.0, 3.0),
        cmap="RdBu_r",
        vmin=-3.0,
        vmax=3.0,
        rasterized=True,
    )
    difference.set_title("holes: blue where q(z) < p(z)")
    figure.colorbar(image, ax=difference, label="log q(z) - log p(z) [nats]", extend="both")

    levels = _highest_density_levels(log_prior)
    for axes, color in ((codes, _PRIOR_COLOR), (density, "white"), (difference, "black")):
        axes.contour(
            grid, grid, log_prior, levels=levels, colors=color, linewidths=1.2, linestyles="solid"
        )
        axes.set_xlim(grid[0], grid[-1])
        axes.set_ylim(grid[0], grid[-1])
        axes.set_aspect("equal")
        axes.set_xlabel("$z_1$")
        axes.set_ylabel("$z_2$")
    masses = ", ".join(f"{mass:.0%}" for mass in _PRIOR_MASSES)
    codes.legend(
        [Line2D([], [], color=_PRIOR_COLOR)],
        [f"prior p(z): {masses} of its mass"],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        frameon=False,
    )
    figure.suptitle(title, fontsize="medium")
    return figure


def reconstructions_figure(
    originals: np.ndarray, reconstructions: np.ndarray, title: str
) -> Figure:
    """Plots observations in one row and their reconstructions below.

    Args:
      originals: Images in [0, 1], shape `[M, height, width, channels]`.
      reconstructions: Means of p(x|z), of the same shape.
      title: Title of the figure.

    Returns:
      The figure.

    Raises:
      ValueError: If the shapes differ or are not those of images.
    """
    if originals.shape != reconstructions.shape:
        raise ValueError(
            f"originals and reconstructions must have one shape, got {list(originals.shape)} and "
            f"{list(reconstructions.shape)}."
        )
    number = len(originals)
    figure = Figure(figsize=(max(6.0, 0.8 * number), 2.7), layout="constrained")
    rows = figure.subplots(2, 1)
    _show_images(rows[0], originals, number, "observations")
    _show_images(rows[1], reconstructions, number, "mean of p(x|z) at the mean of q(z|x)")
    figure.suptitle(title, fontsize="medium")
    return figure


def samples_figure(panels: Mapping[str, np.ndarray], title: str) -> Figure:
    """Plots decoded images, one panel per distribution of codes.

    Args:
      panels: Means of p(x|z), images of shape `[M, height, width, channels]`, by the label of the
        distribution of their codes.
      title: Title of the figure.

    Returns:
      The figure, with at most four panels in a row.

    Raises:
      ValueError: If the shapes are not those of images, or there are none.
    """
    if not panels:
        raise ValueError("a figure of samples needs at least one panel.")
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.8 * columns, 0.4 + 4.8 * rows), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (label, images) in zip(all_axes, panels.items(), strict=False):
        _show_images(axes, images, math.ceil(math.sqrt(len(images))), label)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize="medium")
    return figure


def _highest_density_levels(log_density: np.ndarray) -> list[float]:
    """Returns increasing log density levels whose highest-density regions have `_PRIOR_MASSES`."""
    descending = np.sort(log_density.ravel())[::-1]
    mass = np.cumsum(np.exp(descending - descending[0]))
    indices = np.searchsorted(mass / mass[-1], sorted(_PRIOR_MASSES, reverse=True))
    return sorted(set(descending[indices].tolist()))


def _show_images(axes: Axes, images: np.ndarray, columns: int, label: str) -> None:
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) == 0:
        raise ValueError(
            "images must have the shape [M, height, width, channels] with 1 or 3 channels, got "
            f"{list(images.shape)}."
        )
    axes.imshow(_image_grid(images, columns), cmap="gray_r", vmin=0.0, vmax=1.0)
    axes.set_axis_off()
    axes.set_title(label, fontsize="medium")


def _image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Arranges images `[M, H, W, C]` in rows of `columns` as one image with gaps."""
    count, height, width, channels = images.shape
    rows, gap = -(-count // columns), max(1, height // 14)
    grid = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 0.3, np.float32
    )
    for number, image in enumerate(images):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid[..., 0] if channels == 1 else grid
