"""The codes that are measured on: posteriors of trained VAEs, and what is made of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


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
      num_components: N; the file's first ones, or, if `jitter`, any number of them resampled.
      num_queries: M, at most N.
      shrink: number that every standard deviation is divided by.
      jitter: 0, or the spread of resampled means about the file's, in their standard deviations.
      dimensions: how many of the D dimensions to keep; None for all.
      seed: of resampling and of the queries.
    """

    path: str
    num_components: int
    num_queries: int
    shrink: float = 1.0
    jitter: float = 0.0
    dimensions: int | None = None
    seed: int = 0

    def load(self) -> Codes:
        """Makes the codes."""
        with np.load(self.path) as file:
            loc, scale = file["loc"], file["scale"]
        rng = np.random.default_rng([self.seed, self.num_components])
        if self.jitter:
            chosen = rng.integers(len(loc), size=self.num_components)
            loc, scale = loc[chosen], scale[chosen]
            loc += np.float32(self.jitter) * scale * _normal(rng, scale.shape)
        loc, scale = loc[: self.num_components], scale[: self.num_components]
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


def write_encoded(path: Path, checkpoint: Path, x: np.ndarray, seed: int = 0) -> None:
    """Writes the posteriors of a trained VAE, in random order.

    Args:
      path: file to write.
      checkpoint: of the VAE, see `tfp_surgery.training.checkpoint`.
      x: the observations, `[N, *event_shape]`.
      seed: of the order.
    """
    from tfp_surgery.components.encoding import encode
    from tfp_surgery.training.checkpoint import load_checkpoint

    posterior = encode(load_checkpoint(checkpoint).model.encoder, x, batch_size=2000)
    order = np.random.default_rng(seed).permutation(len(x))
    np.savez(path, loc=posterior.mean().numpy()[order], scale=posterior.stddev().numpy()[order])


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

    settings = workdir.read_json(run / workdir.CONFIG_FILE)["config"]
    return load_dataset(settings, "train", data_dir, manual_dir)


def checkpoint_of(run: Path, latent_size: int) -> Path:
    """The checkpoint of a latent size in a run of `experiments.elbo_surgery`."""
    return run / f"latent_{latent_size:02d}" / "checkpoint.keras"


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)
