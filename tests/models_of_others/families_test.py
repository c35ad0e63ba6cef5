"""Posteriors off the Gaussian path: spheres, simplices, relaxed categories, the unit interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

import tfp_surgery as tfs
from tests.testing.brute_force import check_surgery

tfb = tfp.bijectors
tfd = tfp.distributions

NUM, PIXELS = 24, 4
pytestmark = pytest.mark.parametrize("dtype", ["float32", "float64"])


class Networks:
    """A layer in and a layer out, with Gaussian pixels."""

    def __init__(self, num_parameters: int, num_features: int, dtype: str):
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(NUM, PIXELS)).astype(dtype)
        self.inward = tf.constant(0.4 * rng.normal(size=(PIXELS, num_parameters)), dtype)
        self.outward = tf.constant(rng.normal(size=(num_features, PIXELS)), dtype)
        self.dtype = dtype

    def parameters(self) -> Any:
        """What the encoder gives for all observations, in float64."""
        return (tf.constant(self.x) @ self.inward).numpy().astype(np.float64)

    def decode(self, z: Any) -> tfd.Distribution:
        features = tf.reshape(z, [len(z), -1])
        return tfd.MultivariateNormalDiag(features @ self.outward)

    def log_likelihood(self, z: np.ndarray) -> np.ndarray:
        pixels = z.reshape(*z.shape[:2], -1) @ self.outward.numpy().astype(np.float64)
        return np.asarray(stats.norm.logpdf(self.x, pixels).sum(axis=-1))


def softplus(x: Any) -> np.ndarray:
    return np.asarray(np.logaddexp(0.0, x))


def test_hyperspherical_codes(dtype: str) -> None:
    """Von Mises-Fisher posteriors and a uniform prior on the sphere, as in the S-VAE."""
    net = Networks(4, 3, dtype)

    def encode(x: Any) -> tfd.Distribution:
        h = x @ net.inward
        z_mean = tf.math.l2_normalize(h[:, :3], axis=-1)
        z_var = tf.nn.softplus(h[:, 3]) + 1.0
        return tfd.VonMisesFisher(z_mean, z_var)

    prior = tfd.SphericalUniform(dimension=3, dtype=tf.as_dtype(dtype))

    h = net.parameters()
    mean = h[:, :3] / np.linalg.norm(h[:, :3], axis=-1, keepdims=True)
    kappa = softplus(h[:, 3]) + 1.0
    log_norm = np.log(kappa / (4 * np.pi * np.sinh(kappa)))
    check_surgery(
        *(net.x, encode, net.decode, prior),
        posteriors=lambda z: log_norm + kappa * (z @ mean.T),
        log_prior=lambda z: np.full(z.shape[:2], -np.log(4 * np.pi)),
        log_likelihood=net.log_likelihood,
    )


def log_dirichlet(z: np.ndarray, concentration: np.ndarray) -> np.ndarray:
    log_norm = special.gammaln(concentration).sum(-1) - special.gammaln(concentration.sum(-1))
    return np.asarray(((concentration - 1.0) * np.log(z)).sum(axis=-1) - log_norm)


def test_dirichlet_codes(dtype: str) -> None:
    net = Networks(3, 3, dtype)
    encode = lambda x: tfd.Dirichlet(tf.nn.softplus(x @ net.inward) + 1.0)  # noqa: E731
    prior = tfd.Dirichlet(tf.ones([3], dtype))

    concentration = softplus(net.parameters()) + 1.0
    check_surgery(
        *(net.x, encode, net.decode, prior),
        posteriors=lambda z: log_dirichlet(z[:, :, None], concentration),
        log_prior=lambda z: np.full(z.shape[:2], np.log(2.0)),
        log_likelihood=net.log_likelihood,
    )


def log_logistic_normal(z: np.ndarray, loc: Any, scale: Any) -> np.ndarray:
    """Of the first K - 1 coordinates: the density of log(z_k / z_K) over prod z_k."""
    ratio = np.log(z[..., :-1]) - np.log(z[..., -1:])
    return np.asarray(stats.norm.logpdf(ratio, loc, scale).sum(axis=-1) - np.log(z).sum(axis=-1))


def test_logistic_normal_codes(dtype: str) -> None:
    """A topic model with Gaussians behind a softmax, as in ProdLDA."""
    net = Networks(4, 3, dtype)

    def encode(x: Any) -> tfd.Distribution:
        mu, logvar = tf.split(x @ net.inward, 2, axis=-1)
        gaussian = tfd.MultivariateNormalDiag(mu, tf.exp(0.5 * logvar))
        return tfd.TransformedDistribution(gaussian, tfb.SoftmaxCentered())

    prior = tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros([2], dtype)), tfb.SoftmaxCentered()
    )
    mu, logvar = np.split(net.parameters(), 2, axis=-1)
    # TFP's Jacobian is that of the simplex as a surface in R^3, which is sqrt(3) as large.
    shift = -0.5 * np.log(3.0)
    surgery = check_surgery(
        *(net.x, encode, net.decode, prior),
        posteriors=lambda z: shift + log_logistic_normal(z[:, :, None], mu, np.exp(0.5 * logvar)),
        log_prior=lambda z: shift + log_logistic_normal(z, 0.0, 1.0),
        log_likelihood=net.log_likelihood,
    )
    assert surgery.marginal_kl is not None


def test_gumbel_softmax_codes(dtype: str) -> None:
    """Two categories of three, relaxed at temperature 0.7 and kept as logarithms."""
    temperature, tau_prior = 0.7, 1.0
    net = Networks(6, 6, dtype)

    def relaxed(logits: Any, tau: float) -> tfd.Distribution:
        return tfd.Independent(
            tfd.ExpRelaxedOneHotCategorical(tf.constant(tau, dtype), logits=logits), 1
        )

    encode = lambda x: relaxed(tf.reshape(x @ net.inward, [-1, 2, 3]), temperature)  # noqa: E731
    prior = relaxed(tf.zeros([2, 3], dtype), tau_prior)

    def log_concrete(log_y: np.ndarray, logits: Any, tau: float) -> np.ndarray:
        """Equation 23 of Maddison, Mnih and Teh, of the logarithms of the relaxed code."""
        score = logits - tau * log_y
        size = score.shape[-1]
        log_norm = special.gammaln(size) + (size - 1) * np.log(tau)
        each = log_norm + score.sum(axis=-1) - size * special.logsumexp(score, axis=-1)
        return np.asarray(each.sum(axis=-1))

    logits = net.parameters().reshape(NUM, 2, 3)
    check_surgery(
        *(net.x, encode, net.decode, prior),
        posteriors=lambda z: log_concrete(z[:, :, None], logits, temperature),
        log_prior=lambda z: log_concrete(z, 0.0, tau_prior),
        log_likelihood=net.log_likelihood,
    )


def test_gumbel_softmax_codes_on_the_simplex(dtype: str) -> None:
    net = Networks(3, 3, dtype)
    encode = lambda x: tfd.RelaxedOneHotCategorical(  # noqa: E731
        tf.constant(1.5, dtype), logits=x @ net.inward
    )
    prior = tfd.RelaxedOneHotCategorical(tf.constant(1.5, dtype), logits=tf.zeros([3], dtype))

    def log_concrete(y: np.ndarray, logits: Any) -> np.ndarray:
        score = logits - 1.5 * np.log(y)
        log_norm = special.gammaln(3) + 2 * np.log(1.5) - np.log(y).sum(axis=-1)
        each = log_norm + score.sum(axis=-1) - 3 * special.logsumexp(score, axis=-1)
        return np.asarray(each)

    check_surgery(
        *(net.x, encode, net.decode, prior),
        posteriors=lambda z: log_concrete(z[:, :, None], net.parameters()),
        log_prior=lambda z: log_concrete(z, 0.0),
        log_likelihood=net.log_likelihood,
    )


def test_kumaraswamy_codes(dtype: str) -> None:
    """Stick-breaking fractions in (0, 1) with a Beta prior."""
    net = Networks(4, 2, dtype)

    def encode(x: Any) -> tfd.Distribution:
        a, b = tf.split(tf.nn.softplus(x @ net.inward) + 0.5, 2, axis=-1)
        return tfd.Independent(tfd.Kumaraswamy(a, b), 1)

    prior = tfd.Independent(tfd.Beta(tf.ones([2], dtype), tf.fill([2], tf.constant(2.0, dtype))), 1)
    a, b = np.split(softplus(net.parameters()) + 0.5, 2, axis=-1)

    def posteriors(z: np.ndarray) -> np.ndarray:
        v = z[:, :, None]
        each = np.log(a * b) + (a - 1) * np.log(v) + (b - 1) * np.log1p(-(v**a))
        return np.asarray(each.sum(axis=-1))

    check_surgery(
        *(net.x, encode, net.decode, prior),
        posteriors=posteriors,
        log_prior=lambda z: stats.beta.logpdf(z, 1.0, 2.0).sum(axis=-1),
        log_likelihood=net.log_likelihood,
    )


def test_simplices_of_two_measures_are_refused(dtype: str) -> None:
    """TFP's logistic-normal density has mass 1 / sqrt(K) where a Dirichlet's has 1."""
    dirichlet = tfd.Dirichlet(tf.ones([3], dtype))
    logistic_normal = tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros([1, 2], dtype)), tfb.SoftmaxCentered()
    )
    z = dirichlet.sample(2000, seed=(0, 1))
    mass = tf.exp(logistic_normal.log_prob(z[:, tf.newaxis])[:, 0] - dirichlet.log_prob(z)).numpy()
    assert abs(mass.mean() - 3**-0.5) < 5 * mass.std() / np.sqrt(2000)
    with pytest.raises(ValueError, match=r"differ by log\(K\) / 2 nats"):
        tfs.elbo_surgery(None, logistic_normal, None, dirichlet)
