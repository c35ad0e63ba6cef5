"""Aggregate posteriors of twelve Gaussians in two dimensions, with exact entropy and moments."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow_probability as tfp
from scipy import special

from tests.testing import oracles
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior

tfd = tfp.distributions

N, D = 12, 2
STANDARD_NORMAL = (np.zeros(D), np.eye(D))

Moments = tuple[np.ndarray, np.ndarray]  # mean [D], covariance [D, D]


def aggregate(case: str, seed: int = 0, dtype: type = np.float32) -> AggregatePosterior:
    loc, scale = oracles.gaussian_case(case, N, D, seed)
    return AggregatePosterior(tfd.MultivariateNormalDiag(loc.astype(dtype), scale.astype(dtype)))


@functools.cache
def entropy(case: str, seed: int = 0) -> float:
    """H[q(z)], by quadrature or, where nothing overlaps, in closed form."""
    loc, scale = oracles.gaussian_case(case, N, D, seed)
    if case == "separated":
        entropies = np.log(scale).sum(axis=1) + 0.5 * D * np.log(2 * np.pi * np.e)
        return float(np.log(N) + entropies.mean())
    axis, step = np.linspace(-9, 9, 301, retstep=True)
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, D)
    log_prob, _ = oracles.log_prob_and_entropy(oracles.gaussian_log_densities(z, loc, scale))
    return float(special.entr(np.exp(log_prob)).sum() * step**D)


def moments(case: str, seed: int = 0) -> Moments:
    loc, scale = oracles.gaussian_case(case, N, D, seed)
    return loc.mean(axis=0), np.cov(loc.T, bias=True) + np.diag((scale**2).mean(axis=0))


def cross_entropy(q: Moments, p: Moments) -> float:
    """-E_q[log N(z; p)] for any q(z) of these moments; least, at p = q, among all Gaussians."""
    (mean, covariance), (loc, scale) = q, p
    second = covariance + np.outer(mean - loc, mean - loc)
    _, log_det = np.linalg.slogdet(2 * np.pi * scale)
    return float(0.5 * (log_det + np.trace(np.linalg.solve(scale, second))))
