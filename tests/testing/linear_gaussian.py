"""Linear-Gaussian models whose log evidence and posterior are known for any weights."""

from __future__ import annotations

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
      posterior_covariance: of every p(z|x), `[D, D]`.
    """

    def __init__(self, weights: np.ndarray, noise: float) -> None:
        self._weights = np.asarray(weights, np.float64)  # [E, D]
        self._noise = noise
        event_size, latent_size = self._weights.shape
        self.prior = tfd.MultivariateNormalDiag(np.zeros(latent_size), np.ones(latent_size))
        self.decoder: Network = lambda z: tfd.MultivariateNormalDiag(
            z @ self._weights.T, noise * np.ones(event_size)
        )
        precision = np.eye(latent_size) + self._weights.T @ self._weights / noise**2
        self.posterior_covariance = np.linalg.inv(precision)
        self._to_code = self._weights @ self.posterior_covariance / noise**2  # [E, D]

    def simulate(self, num: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        event_size, latent_size = self._weights.shape
        z = rng.normal(size=(num, latent_size))
        return z @ self._weights.T + self._noise * rng.normal(size=(num, event_size))

    def posterior_mean(self, x: np.ndarray) -> np.ndarray:
        mean: np.ndarray = x @ self._to_code
        return mean

    def log_evidence(self, x: np.ndarray) -> np.ndarray:
        """log p(x_n) by SciPy, `[N]`."""
        covariance = self._weights @ self._weights.T + self._noise**2 * np.eye(x.shape[1])
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
