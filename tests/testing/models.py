"""Models with known terms, made of plain functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tfp_surgery.components import components as components_lib

tfd = tfp.distributions

Network = Callable[[tf.Tensor], tfd.Distribution]


def table_encoder(distribution: tfd.Distribution) -> Network:
    """An encoder for observations that are their own index: x_n = [n]."""
    broadcast = components_lib.broadcast(distribution)
    return lambda x: components_lib.gather(broadcast, tf.cast(tf.round(x[:, 0]), tf.int32))


def index_data(num_observations: int, dtype: type = np.float64) -> np.ndarray:
    return np.arange(num_observations, dtype=dtype)[:, None]


def unit_decoder(z: tf.Tensor) -> tfd.Distribution:
    """A likelihood that does not look at the code."""
    return tfd.MultivariateNormalDiag(tf.zeros([len(z), 1], tf.float64), [1.0])


class LinearGaussian:
    """Probabilistic PCA (Tipping and Bishop 1999) at its optimum, with exact posteriors."""

    def __init__(self, num: int = 400, event_size: int = 6, latent_size: int = 2) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(num, latent_size)) @ rng.normal(size=(latent_size, event_size)) * 2
        x += 0.5 * rng.normal(size=x.shape)
        self.x = x - x.mean(axis=0)
        eigenvalues, vectors = np.linalg.eigh(self.x.T @ self.x / num)
        eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
        self.noise = eigenvalues[latent_size:].mean()
        self.retained = eigenvalues[:latent_size]
        weights = vectors[:, :latent_size] * np.sqrt(self.retained - self.noise)
        precision = weights.T @ weights + self.noise * np.eye(latent_size)
        to_code = weights @ np.linalg.inv(precision)
        scale_tril = np.linalg.cholesky(self.noise * np.linalg.inv(precision))
        self.encoder: Network = lambda x: tfd.MultivariateNormalTriL(x @ to_code, scale_tril)
        self.decoder: Network = lambda z: tfd.MultivariateNormalDiag(
            z @ weights.T, math.sqrt(self.noise) * np.ones(event_size)
        )
        self.prior = tfd.MultivariateNormalDiag(np.zeros(latent_size), np.ones(latent_size))
        covariance = weights @ weights.T + self.noise * np.eye(event_size)
        self.log_evidence = (
            stats.multivariate_normal(np.zeros(event_size), covariance).logpdf(self.x).mean()
        )
        # E_q |x - W z|^2 = |x - W m|^2 + tr(W S W^T)
        residual = ((self.x - self.x @ to_code @ weights.T) ** 2).sum(axis=1).mean()
        spread = np.trace(weights @ scale_tril @ scale_tril.T @ weights.T)
        self.average_reconstruction = (
            -0.5 * event_size * math.log(2 * math.pi * self.noise)
            - 0.5 * (residual + spread) / self.noise
        )
        self.average_kl = 0.5 * np.log(self.retained / self.noise).sum()
