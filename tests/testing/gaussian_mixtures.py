"""Mixtures of Gaussians as TFP has them, and as arrays that SciPy scores."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow_probability as tfp
from scipy import stats

from tests.testing import oracles
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior

tfd = tfp.distributions

D = 4
# Correlation between all dimensions.
TRIL = np.linalg.cholesky(0.6 * np.eye(D) + 0.4) * np.array([[1.0], [0.5], [2.0], [0.8]])
MEAN = np.array([0.3, -0.2, 0.5, 0.0])


@dataclasses.dataclass
class Mixture:
    """A mixture of Gaussians as arrays, scored by SciPy."""

    loc: np.ndarray  # [N, D]
    covariance: np.ndarray  # [N, D, D]
    weights: np.ndarray  # [N]

    def components(self, z: np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
        """log q_n(z_g) of draws `[..., D]`, shape `[..., N]`."""
        chosen = z[..., list(dims)]
        return np.stack(
            [
                stats.multivariate_normal(m[list(dims)], c[np.ix_(dims, dims)]).logpdf(chosen)
                for m, c in zip(self.loc, self.covariance, strict=True)
            ],
            axis=-1,
        ).reshape(*z.shape[:-1], -1)

    def log_prob(self, z: np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
        log_densities = self.components(z, dims)
        flat = log_densities.reshape(-1, log_densities.shape[-1])
        return oracles.log_prob_and_entropy(flat, self.weights)[0].reshape(z.shape[:-1])


def posteriors(case: str, num: int = 9) -> tuple[Mixture, tfd.Distribution]:
    """Posteriors with independent dimensions."""
    loc, scale = oracles.gaussian_case(case, num, D)
    covariance = np.stack([np.diag(row**2) for row in scale])
    return Mixture(loc, covariance, np.ones(num)), tfd.MultivariateNormalDiag(loc, scale)


def correlated_posteriors(num: int = 9) -> tuple[Mixture, tfd.Distribution]:
    loc, scale = oracles.gaussian_case("overlapping", num, D)
    tril = scale[:, :, None] * np.linalg.cholesky(0.5 * np.eye(D) + 0.5)
    mixture = Mixture(loc, tril @ tril.transpose(0, 2, 1), np.ones(num))
    return mixture, tfd.MultivariateNormalTriL(loc, tril)


def prior_of(kind: str) -> tuple[Mixture, tfd.Distribution]:
    rng = np.random.default_rng(3)
    one = np.ones(1)
    if kind == "diag":
        covariance = np.diag(np.full(D, 1.44))[None]
        return Mixture(np.zeros([1, D]), covariance, one), tfd.MultivariateNormalDiag(
            np.zeros(D), np.full(D, 1.2)
        )
    if kind == "sample":
        covariance = np.diag(np.full(D, 1.44))[None]
        return Mixture(np.zeros([1, D]), covariance, one), tfd.Sample(
            tfd.Normal(np.float64(0), np.float64(1.2)), D
        )
    if kind == "tril":
        return Mixture(MEAN[None], (TRIL @ TRIL.T)[None], one), tfd.MultivariateNormalTriL(
            MEAN, TRIL
        )
    loc, scale = rng.normal(size=(3, D)), rng.uniform(0.8, 1.5, size=(3, D))
    weights = np.array([0.2, 0.5, 0.3])
    if kind == "mixture":
        covariance = np.stack([np.diag(row**2) for row in scale])
        return Mixture(loc, covariance, weights), tfd.MixtureSameFamily(
            tfd.Categorical(probs=weights), tfd.MultivariateNormalDiag(loc, scale)
        )
    if kind == "mixture of tril":
        tril = scale[:, :, None] * np.linalg.cholesky(0.5 * np.eye(D) + 0.5)
        mixture = Mixture(loc, tril @ tril.transpose(0, 2, 1), weights)
        return mixture, tfd.MixtureSameFamily(
            tfd.Categorical(probs=weights), tfd.MultivariateNormalTriL(loc, tril)
        )
    covariance = np.stack([np.diag(row**2) for row in scale])
    return Mixture(loc, covariance, np.ones(3)), AggregatePosterior(
        tfd.MultivariateNormalDiag(loc, scale)
    )


def draws_of(mixture: Mixture, num_samples: int, seed: int = 0) -> np.ndarray:
    """z_sn ~ q(z|x_n), `[S, N, D]`."""
    noise = np.random.default_rng(seed).normal(size=(num_samples, *mixture.loc.shape))
    tril = np.linalg.cholesky(mixture.covariance)
    z: np.ndarray = mixture.loc + np.einsum("nij,snj->sni", tril, noise)
    return z
