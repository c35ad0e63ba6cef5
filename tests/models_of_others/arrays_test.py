"""Posteriors and decoders of another library, of which TensorFlow sees arrays alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

import tfp_surgery as tfs
from tests.testing import oracles
from tests.testing.brute_force import check_surgery, check_terms

tfd = tfp.distributions

NUM, LATENT, PIXELS = 30, 3, 8
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


class Linear:
    """A layer as PyTorch's: weights `[out, in]`."""

    def __init__(self, in_features: int, out_features: int, rng: np.random.Generator, dtype: str):
        self.weight = rng.normal(0.0, in_features**-0.5, [out_features, in_features]).astype(dtype)
        self.bias = rng.normal(0.0, 0.1, [out_features]).astype(dtype)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ self.weight.T + self.bias)


class VAE:
    """The networks of PyTorch's basic VAE example, in NumPy."""

    def __init__(self, dtype: str):
        rng = np.random.default_rng(0)
        sizes = [(PIXELS, 12), (12, LATENT), (12, LATENT), (LATENT, 12), (12, PIXELS)]
        self.fc1, self.fc21, self.fc22, self.fc3, self.fc4 = (
            Linear(*size, rng, dtype) for size in sizes
        )

    def encode(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h1 = np.maximum(self.fc1(x), 0.0)
        return self.fc21(h1), self.fc22(h1)

    def decode(self, z: np.ndarray) -> np.ndarray:
        h3 = np.maximum(self.fc3(z), 0.0)
        return np.asarray(special.expit(self.fc4(h3)))


def binary_cross_entropy(recon_x: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.asarray(-(special.xlogy(x, recon_x) + special.xlog1py(1 - x, -recon_x)).sum(axis=-1))


@DTYPES
def test_arrays_of_means_and_log_variances(dtype: str) -> None:
    model = VAE(dtype)
    x = np.random.default_rng(1).integers(2, size=(NUM, PIXELS)).astype(dtype)
    mu, logvar = model.encode(x)

    q_z = tfs.AggregatePosterior.from_arrays(loc=mu, log_variance=logvar)
    decoder = lambda z: tfd.Independent(tfd.Bernoulli(probs=model.decode(z.numpy())), 1)  # noqa: E731

    prior = tfd.MultivariateNormalDiag(tf.zeros([LATENT], dtype), tf.ones([LATENT], dtype))
    scale = np.exp(0.5 * logvar.astype(np.float64))
    check_surgery(
        *(x, q_z, decoder, prior),
        posteriors=lambda z: oracles.gaussian_log_densities(
            z.reshape(-1, LATENT), mu, scale
        ).reshape(*z.shape[:2], NUM),
        log_prior=lambda z: stats.norm.logpdf(z).sum(axis=-1),
        log_likelihood=lambda z: (
            -binary_cross_entropy(model.decode(z.astype(dtype)).astype(np.float64), x)
        ),
    )


@DTYPES
def test_log_densities_alone(dtype: str) -> None:
    """Draws and densities of the other library, in the shapes that it makes of them."""
    model = VAE(dtype)
    x = np.random.default_rng(1).integers(2, size=(NUM, PIXELS)).astype(dtype)
    mu, logvar = model.encode(x)
    std = np.exp(0.5 * logvar)
    z = mu + std * np.random.default_rng(2).normal(size=(2, NUM, LATENT)).astype(dtype)
    log_likelihood = -binary_cross_entropy(model.decode(z), x)
    log_prior = stats.norm.logpdf(z).sum(axis=-1).astype(dtype)

    scores = stats.norm.logpdf(z[:, :, None], mu, std).sum(axis=-1).astype(dtype)  # [S, N, N]
    own = scores.diagonal(axis1=1, axis2=2)
    surgery = tfs.elbo_surgery_from_log_probs(
        log_posterior=own,
        log_prior=log_prior,
        log_posteriors=scores,
        log_likelihood=log_likelihood,
    )

    wide = [np.asarray(part, np.float64) for part in (own, scores, log_prior, log_likelihood)]
    aggregate, entropy = oracles.log_prob_and_entropy(wide[1])
    check_terms(surgery, wide[0], aggregate, wide[2], wide[3], double=dtype == "float64")
    information = surgery.index_code_mutual_information_from_entropy
    np.testing.assert_allclose(information.value, np.log(NUM) - entropy.mean(), rtol=1e-5)
    for name in ("log_posteriors", "log_aggregate"):
        given: Any = {"log_posterior": own, "log_prior": log_prior}
        given[name] = scores if name == "log_posteriors" else aggregate
        without = tfs.elbo_surgery_from_log_probs(**given)
        assert without.elbo is None
        for term in ("marginal_kl_sampled", "average_kl_sampled"):
            value = surgery.estimates()[term].value
            assert without.estimates()[term].value == pytest.approx(value, rel=1e-6)
        # The scores of all posteriors give H[q(n|z)], the aggregate alone gives nothing.
        is_known = name == "log_posteriors"
        assert without.control_variates == (("H[q(n|z)]",) if is_known else ())
        same = surgery.marginal_kl if is_known else surgery.marginal_kl_sampled
        assert without.marginal_kl.value == pytest.approx(same.value, rel=1e-6)
