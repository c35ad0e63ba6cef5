"""Independent float64 oracles (NumPy and SciPy alone) and the three cases every estimator meets."""

from __future__ import annotations

import numpy as np
from scipy import special, stats

CASES = ("collapsed", "overlapping", "separated")


def gaussian_case(
    case: str, num_components: int, event_size: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Locations and scales, each float64 `[N, D]`, of N diagonal Gaussian posteriors.

    collapsed: every posterior is the standard normal; overlapping: neighbours share much of their
    mass; separated: the nearest two lie more than 100 standard deviations apart.
    """
    rng = np.random.default_rng(seed)
    shape = (num_components, event_size)
    if case == "collapsed":
        return np.zeros(shape), np.ones(shape)
    if case == "overlapping":
        return rng.normal(size=shape), rng.uniform(0.3, 0.9, size=shape)
    if case == "separated":
        loc = rng.normal(size=shape)
        loc[:, 0] = np.arange(num_components) - num_components / 2
        return loc, rng.uniform(0.003, 0.009, size=shape)
    raise ValueError(case)


def gaussian_log_densities(z: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """log N(z_m; loc_n, diag(scale_n^2)), float64 `[M, N]`."""
    z, loc, scale = (np.asarray(part, np.float64) for part in (z, loc, scale))
    densities: np.ndarray = stats.norm.logpdf(z[:, None, :], loc[None], scale[None]).sum(axis=-1)
    return densities


def log_prob_and_entropy(
    log_densities: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """log q(z) and H[q(n|z)] from the full matrix `[M, N]` of log q_n(z), in float64."""
    log_densities = np.asarray(log_densities, np.float64)
    num_components = log_densities.shape[-1]
    weights = np.full(num_components, 1.0) if weights is None else np.asarray(weights, np.float64)
    with np.errstate(divide="ignore"):
        scores = log_densities + np.log(weights / weights.sum())
    log_prob = special.logsumexp(scores, axis=-1)
    index_prob = np.exp(scores - log_prob[..., None])
    return log_prob, special.entr(index_prob).sum(axis=-1)
