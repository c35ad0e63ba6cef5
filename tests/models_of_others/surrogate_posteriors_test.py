"""Surrogate posteriors of `tfp.experimental.vi`: a batch of N in the place of an encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_surgery as tfs
from tests.testing.brute_force import check_surgery, check_terms
from tests.testing.oracles import gaussian_log_densities, log_prob_and_entropy

tfb = tfp.bijectors
tfd = tfp.distributions

NUM, DIM = 24, 2
LOADINGS = np.random.default_rng(3).normal(size=(DIM, 4))
pytestmark = pytest.mark.parametrize("dtype", ["float32", "float64"])


def observations(dtype: str) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(NUM, 4)).astype(dtype)


def likelihood(z: Any) -> tfd.Distribution:
    return tfd.Independent(tfd.Normal(z @ tf.constant(LOADINGS, z.dtype), tf.ones([], z.dtype)), 1)


def log_likelihood(x: np.ndarray) -> Callable[[np.ndarray], Any]:
    return lambda z: stats.norm.logpdf(x, z @ loadings(x.dtype)).sum(axis=-1)


def loadings(dtype: Any) -> np.ndarray:
    return LOADINGS.astype(dtype).astype(np.float64)


def standard_normal(dtype: str) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(tf.zeros([DIM], dtype), tf.ones([DIM], dtype))


def check_gaussians(posteriors: Any, loc: Any, scale: Any, dtype: str) -> None:
    loc, scale = (np.asarray(part, np.float64) for part in (loc, scale))
    x = observations(dtype)
    check_surgery(
        *(x, posteriors, likelihood, standard_normal(dtype)),
        posteriors=lambda z: gaussian_log_densities(z.reshape(-1, DIM), loc, scale).reshape(
            len(z), NUM, NUM
        ),
        log_prior=lambda z: stats.norm.logpdf(z).sum(axis=-1),
        log_likelihood=log_likelihood(x),
    )


def fitted(surrogate_posterior: Any, prior: tfd.Distribution, x: np.ndarray) -> Any:
    """Fits until the scales, which begin at 0.01, are those of a posterior."""
    losses = tfp.vi.fit_surrogate_posterior(
        lambda z: prior.log_prob(z) + likelihood(z).log_prob(x),
        surrogate_posterior,
        optimizer=tf.optimizers.Adam(0.1),
        num_steps=60,
        seed=1,
    )
    assert losses.shape == [60, NUM]
    return surrogate_posterior


def test_a_mean_field_surrogate_of_observations(dtype: str) -> None:
    surrogate_posterior = tfp.experimental.vi.build_factored_surrogate_posterior(
        event_shape=[DIM], batch_shape=[NUM], dtype=tf.as_dtype(dtype), seed=0
    )
    fitted(surrogate_posterior, standard_normal(dtype), observations(dtype))
    normal = surrogate_posterior.distribution
    check_gaussians(surrogate_posterior, normal.loc, normal.scale, dtype)


def test_a_surrogate_on_positive_codes(dtype: str) -> None:
    surrogate_posterior = tfp.experimental.vi.build_factored_surrogate_posterior(
        event_shape=[DIM],
        bijector=tfb.Exp(),
        batch_shape=[NUM],
        dtype=tf.as_dtype(dtype),
        seed=0,
    )
    x = observations(dtype)
    prior = tfd.Independent(tfd.Gamma(*tf.constant([[2.0, 2.0], [1.0, 1.0]], dtype)), 1)
    fitted(surrogate_posterior, prior, x)
    normal = surrogate_posterior.distribution.distribution
    loc, scale = (np.asarray(part, np.float64) for part in (normal.loc, normal.scale))

    def posteriors(z: np.ndarray) -> np.ndarray:
        log_z = np.log(z)[:, :, None]
        return np.asarray((stats.norm.logpdf(log_z, loc, scale) - log_z).sum(axis=-1))

    check_surgery(
        *(x, surrogate_posterior, likelihood, prior),
        posteriors=posteriors,
        log_prior=lambda z: stats.gamma.logpdf(z, 2.0).sum(axis=-1),
        log_likelihood=log_likelihood(x),
    )


def test_an_affine_surrogate_of_linear_operators(dtype: str) -> None:
    q = tfp.experimental.vi.build_affine_surrogate_posterior(
        event_shape=[DIM], operators="tril", batch_shape=[NUM], dtype=tf.as_dtype(dtype), seed=0
    )
    x, prior = observations(dtype), standard_normal(dtype)
    tril, loc = q.trainable_variables
    tril.assign(np.random.default_rng(2).uniform(0.3, 0.8, size=tril.shape))
    with pytest.raises(TypeError, match="elbo_surgery_from_log_probs"):
        tfs.elbo_surgery(x, q, likelihood, prior)

    z = q.sample(2, seed=(0, 1))  # [S, N, D]
    scores = {"log_posterior": q.log_prob(z), "log_posteriors": q.log_prob(z[:, :, tf.newaxis])}
    surgery = tfs.elbo_surgery_from_log_probs(
        **scores, log_prior=prior.log_prob(z), log_likelihood=likelihood(z).log_prob(x)
    )

    wide = z.numpy().astype(np.float64)
    factors = tfb.FillTriangular()(tril.numpy().astype(np.float64)).numpy()
    gap = wide[:, :, None] - loc.numpy()  # [S, N, N, D]
    u = np.linalg.solve(factors, gap[..., None])[..., 0]
    diagonal = np.diagonal(factors, axis1=1, axis2=2)
    dense = stats.norm.logpdf(u).sum(axis=-1) - np.log(diagonal).sum(axis=-1)
    check_terms(
        surgery,
        dense.diagonal(axis1=1, axis2=2),
        log_prob_and_entropy(dense)[0],
        stats.norm.logpdf(wide).sum(axis=-1),
        log_likelihood(x)(wide),
        double=dtype == "float64",
    )


def test_a_deferred_module_of_variables(dtype: str) -> None:
    rng = np.random.default_rng(5)
    loc = tf.Variable(rng.normal(size=(NUM, DIM)), dtype=dtype)
    log_scale = tf.Variable(rng.normal(size=(NUM, DIM)) - 1.0, dtype=dtype)

    def normal_from_log_scale(loc: Any, log_scale: Any) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(loc, tf.exp(log_scale))

    surrogate_posterior = tfp.experimental.util.DeferredModule(
        normal_from_log_scale, loc=loc, log_scale=log_scale
    )
    loc.assign_add(tf.ones_like(loc))  # training after the module was made
    check_gaussians(surrogate_posterior, loc, np.exp(log_scale.numpy().astype(np.float64)), dtype)


def test_automatic_structured_inference_given_its_global_variables(dtype: str) -> None:
    """The effects of N counties are codes whose posteriors and prior depend on a draw of mu."""

    def prior_model() -> Any:
        mu = yield tfd.Normal(tf.zeros([], dtype), tf.constant(2.0, dtype), name="mu")
        yield tfd.Sample(tfd.Normal(mu, tf.ones([], dtype)), [NUM], name="county")

    prior = tfd.JointDistributionCoroutineAutoBatched(prior_model)
    surrogate_posterior = tfp.experimental.vi.build_asvi_surrogate_posterior(prior=prior)
    radon = observations(dtype)[:, 0]

    def likelihood(county: Any) -> tfd.Distribution:
        return tfd.Normal(county, tf.constant(0.5, dtype))

    draw = surrogate_posterior.sample(seed=1)
    q = surrogate_posterior.sample_distributions(value=draw)[0].county.distribution
    p = prior.sample_distributions(value=draw)[0].county.distribution

    loc, scale = (np.asarray(part, np.float64) for part in (q.loc, q.scale))
    mu = float(draw.mu)
    check_surgery(
        *(radon, q, likelihood, p),
        posteriors=lambda z: stats.norm.logpdf(z[..., None], loc, scale),
        log_prior=lambda z: stats.norm.logpdf(z, mu),
        log_likelihood=lambda z: stats.norm.logpdf(radon, z, 0.5),
    )
