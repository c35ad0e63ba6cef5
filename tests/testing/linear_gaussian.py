"""Linear-Gaussian models whose log evidence and posterior are known for any weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

tfd = tfp.distributions

Network = Callable[[tf.Tensor], tfd.Distribution]


class LinearGaussianModel:
    """z ~ N(0, I), x|z ~ N(W z, noise^2 I), all in float64.

    Attributes:
      prior: p(z).
      decoder: p(x|z).
      weights: W, `[E, D]`.
      noise: standard deviation of x given z.
      posterior_covariance: of every p(z|x), `[D, D]`.
    """

    def __init__(self, weights: np.ndarray, noise: float) -> None:
        self.weights = np.asarray(weights, np.float64)
        self.noise = noise
        event_size, latent_size = self.weights.shape
        self.prior = tfd.MultivariateNormalDiag(np.zeros(latent_size), np.ones(latent_size))
        self.decoder: Network = lambda z: tfd.MultivariateNormalDiag(
            z @ self.weights.T, noise * np.ones(event_size)
        )
        precision = np.eye(latent_size) + self.weights.T @ self.weights / noise**2
        self.posterior_covariance = np.linalg.inv(precision)
        self._to_code = self.weights @ self.posterior_covariance / noise**2  # [E, D]

    def simulate(self, num: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        event_size, latent_size = self.weights.shape
        z = rng.normal(size=(num, latent_size))
        return z @ self.weights.T + self.noise * rng.normal(size=(num, event_size))

    def posterior_mean(self, x: np.ndarray) -> np.ndarray:
        mean: np.ndarray = x @ self._to_code
        return mean

    def log_evidence(self, x: np.ndarray) -> np.ndarray:
        """log p(x_n) by SciPy, `[N]`."""
        covariance = self.weights @ self.weights.T + self.noise**2 * np.eye(x.shape[1])
        values: np.ndarray = stats.multivariate_normal(np.zeros(x.shape[1]), covariance).logpdf(x)
        return np.atleast_1d(values)

    def exact_encoder(self, x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalTriL(
            x @ self._to_code, np.linalg.cholesky(self.posterior_covariance)
        )

    def perturbed_encoder(self, shift: float, factor: float) -> Network:
        """Diagonal Gaussians, off by `shift` posterior deviations and with scale `factor`."""
        stddev = np.sqrt(np.diag(self.posterior_covariance))
        return lambda x: tfd.MultivariateNormalDiag(
            x @ self._to_code + shift * stddev, factor * stddev
        )


class ProbabilisticPCA(LinearGaussianModel):
    """The model at the maximum of the likelihood of data of its own (Tipping and Bishop 1999).

    Attributes:
      x: the data, of mean zero, `[N, E]`.
      retained: eigenvalues of their covariance in the space of the codes, `[D]`.
      encoder: q(z|x), the exact posteriors.
      average_log_evidence: 1/N sum_n log p(x_n), which is the ELBO.
      average_reconstruction: 1/N sum_n E_q(z|x_n)[log p(x_n|z)].
      average_kl: 1/N sum_n KL(q(z|x_n) || p(z)).
    """

    def __init__(self, num: int = 400, event_size: int = 6, latent_size: int = 2) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(num, latent_size)) @ rng.normal(size=(latent_size, event_size)) * 2
        x += 0.5 * rng.normal(size=x.shape)
        self.x = x - x.mean(axis=0)
        eigenvalues, vectors = np.linalg.eigh(self.x.T @ self.x / num)
        eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
        variance = eigenvalues[latent_size:].mean()
        self.retained = eigenvalues[:latent_size]
        weights = vectors[:, :latent_size] * np.sqrt(self.retained - variance)
        super().__init__(weights, math.sqrt(variance))
        self.encoder: Network = self.exact_encoder
        self.average_log_evidence = self.log_evidence(self.x).mean()
        # E_q |x - W z|^2 = |x - W m|^2 + tr(W S W^T)
        residual = ((self.x - self.posterior_mean(self.x) @ weights.T) ** 2).sum(axis=1).mean()
        spread = np.trace(weights @ self.posterior_covariance @ weights.T)
        self.average_reconstruction = (
            -0.5 * event_size * math.log(2 * math.pi * variance)
            - 0.5 * (residual + spread) / variance
        )
        self.average_kl = 0.5 * np.log(self.retained / variance).sum()
