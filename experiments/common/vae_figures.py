"""The figures of one trained VAE: images, and the plane of codes where D = 2."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from matplotlib.figure import Figure

from tfp_surgery import seeds
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.models.vae import VAE
from tfp_surgery.reporting import figures

tfd = tfp.distributions

_NUM_RECONSTRUCTIONS = 12
_NUM_SAMPLES = 64
_NUM_CODES = 10_000
_GRID_SIZE = 160


def reconstructions(vae: VAE, aggregate: AggregatePosterior, x: np.ndarray, title: str) -> Figure:
    """Observations at even distances through `x`, and their reconstructions.

    Args:
      vae: the trained model.
      aggregate: q(z) over `x`.
      x: observations `[N, height, width, channels]`.
      title: of the figure.

    Returns:
      The figure.
    """
    chosen = np.linspace(0, len(x) - 1, min(_NUM_RECONSTRUCTIONS, len(x))).astype(int)
    z = tf.gather(aggregate.components_distribution.mean(), chosen)
    return figures.reconstructions_figure(x[chosen], vae.decoder(z).mean().numpy(), title)


def samples(
    vae: VAE, prior: tfd.Distribution, aggregate: AggregatePosterior, seed: int, title: str
) -> Figure:
    """Images decoded from the prior, beside those decoded from q(z).

    Args:
      vae: the trained model.
      prior: p(z).
      aggregate: q(z) over the training set.
      seed: of the draws.
      title: of the figure.

    Returns:
      The figure.
    """
    prior_codes = prior.sample(
        _NUM_SAMPLES, seed=seeds.key(seed, "experiments/vae_figures/prior_codes")
    )
    codes = aggregate.sample(
        _NUM_SAMPLES, seed=seeds.key(seed, "experiments/vae_figures/aggregate_codes")
    )
    panels = {
        "z from the prior p(z)": vae.decoder(prior_codes).mean().numpy(),
        "z from the aggregate posterior q(z)": vae.decoder(codes).mean().numpy(),
    }
    return figures.samples_figure(panels, title)


def codes(prior: tfd.Distribution, aggregate: AggregatePosterior, seed: int, title: str) -> Figure:
    """The plane of two-dimensional codes: posteriors, q(z), and q(z) against the prior.

    Args:
      prior: p(z).
      aggregate: q(z) over the training set.
      seed: of the random subset of codes that is shown of a large data set.
      title: of the figure.

    Returns:
      The figure.
    """
    posteriors = aggregate.components_distribution
    means = posteriors.mean().numpy()
    kl = tfd.kl_divergence(posteriors, prior).numpy()
    number = min(_NUM_CODES, len(means))
    rng = seeds.generator(seed, "experiments/vae_figures/subset")
    chosen = rng.choice(len(means), number, replace=False)
    reach = max(3.5, 1.05 * float(np.quantile(np.abs(means), 0.999)))
    grid = np.linspace(-reach, reach, _GRID_SIZE, dtype=np.float32)
    points = tf.constant(np.stack(np.meshgrid(grid, grid), axis=-1))  # [G, G, 2]
    return figures.codes_figure(
        means[chosen],
        kl[chosen],
        grid,
        aggregate.log_prob(points).numpy(),
        prior.log_prob(points).numpy(),
        title,
    )
