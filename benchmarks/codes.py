"""The codes that are measured on: posteriors of trained VAEs, for images and for shifted images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# (down, right) in pixels: none, then one and two to each of the eight neighbours.
SHIFTS = [(0, 0)] + [
    (distance * down, distance * right)
    for distance in (1, 2)
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
    if (down, right) != (0, 0)
]


class Codes(NamedTuple):
    """Diagonal Gaussian posteriors and queries.

    Attributes:
      loc: means, float32 `[N, D]`.
      scale: standard deviations, float32 `[N, D]`.
      z: queries, float32 `[M, D]`: a draw from each of the first M posteriors. The posteriors are
        in random order, so that the first queries are a random sample of them all.
    """

    loc: np.ndarray
    scale: np.ndarray
    z: np.ndarray


@dataclasses.dataclass(frozen=True)
class Source:
    """Codes by how they are made, so that another process can make the same.

    Attributes:
      path: `.npz` file with `loc` and `scale`.
      num_components: N, the file's first ones.
      num_queries: M, at most N.
      shrink: number that every standard deviation is divided by.
      dimensions: how many of the D dimensions to keep; None for all.
      seed: of the queries.
    """

    path: str
    num_components: int
    num_queries: int
    shrink: float = 1.0
    dimensions: int | None = None
    seed: int = 0

    def load(self) -> Codes:
        """Makes the codes."""
        with np.load(self.path) as file:
            loc, scale = (file[name][: self.num_components] for name in ("loc", "scale"))
        rng = np.random.default_rng([self.seed, self.num_components])
        scale = scale / np.float32(self.shrink)
        own = slice(self.num_queries)
        z = loc[own] + scale[own] * _normal(rng, scale[own].shape)
        kept = slice(self.dimensions)
        return Codes(*(np.ascontiguousarray(array[:, kept]) for array in (loc, scale, z)))


def write_synthetic(path: Path, num: int, latent_size: int, seed: int = 0) -> None:
    """Writes posteriors that no VAE was trained for: N(0, 1) means, scales from 0.05 to 0.3."""
    rng = np.random.default_rng([seed, latent_size])
    loc = _normal(rng, (num, latent_size))
    scale = rng.uniform(0.05, 0.3, loc.shape).astype(np.float32)
    np.savez(path, loc=loc, scale=scale)


def write_encoded(
    path: Path,
    checkpoint: Path,
    images: np.ndarray,
    shifts: Sequence[tuple[int, int]] = SHIFTS[:1],
    seed: int = 0,
) -> None:
    """Writes the posteriors that a trained VAE has for shifted images, in random order.

    Args:
      path: file to write.
      checkpoint: of the VAE, see `tfp_surgery.training.checkpoint`.
      images: `[N, height, width, channels]`.
      shifts: see `shifted`; the file has N posteriors for each.
      seed: of the order.
    """
    from tfp_surgery.components.encoding import encode
    from tfp_surgery.training.checkpoint import load_checkpoint

    encoder = load_checkpoint(checkpoint).model.encoder
    loc, scale = [], []
    for down, right in shifts:
        posterior = encode(encoder, shifted(images, down, right), batch_size=2000)
        loc.append(posterior.mean().numpy())
        scale.append(posterior.stddev().numpy())
    order = np.random.default_rng(seed).permutation(len(shifts) * len(images))
    np.savez(path, loc=np.concatenate(loc)[order], scale=np.concatenate(scale)[order])


def shifted(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moves images `[N, height, width, channels]` by some pixels; zeros come in at the edges."""
    height, width = images.shape[1:3]
    moved = np.zeros_like(images)
    to_rows, to_columns = (
        slice(max(by, 0), size + min(by, 0)) for by, size in ((down, height), (right, width))
    )
    rows, columns = (
        slice(max(-by, 0), size - max(by, 0)) for by, size in ((down, height), (right, width))
    )
    moved[:, to_rows, to_columns] = images[:, rows, columns]
    return moved


def training_set(run: Path, data_dir: str | None, manual_dir: str | None) -> Any:
    """The `tfp_surgery.datasets.Dataset` that a run of `experiments.elbo_surgery` trained on.

    Args:
      run: folder of the run.
      data_dir: see `tfp_surgery.datasets.load`, as for `manual_dir`.
      manual_dir: likewise.

    Returns:
      The data set.
    """
    from experiments.common import workdir
    from experiments.common.trained_model import load_dataset

    settings = workdir.settings_of("codes_run", run, "elbo_surgery")
    return load_dataset(settings, "train", data_dir, manual_dir)


def checkpoint_of(run: Path, latent_size: int) -> Path:
    """The checkpoint of a latent size in a run of `experiments.elbo_surgery`, first training seed.

    Raises:
      ValueError: if the folder holds no such run, or one of another version.
    """
    from experiments.common import workdir
    from experiments.common.trained_model import model_folder

    settings = workdir.settings_of("codes_run", run, "elbo_surgery")
    folder = model_folder(settings["training_seeds"][0], latent_size)
    return run / folder / "checkpoint.keras"


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)
