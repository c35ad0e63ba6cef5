"""Models that depend on more than x and z: counts with library size and batch, missing data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

import tfp_surgery as tfs
from tests.testing.brute_force import check_surgery
from tests.testing.oracles import gaussian_log_densities

tfd = tfp.distributions

NUM, GENES, LATENT, BATCHES = 24, 6, 2, 2
pytestmark = pytest.mark.parametrize("dtype", ["float32", "float64"])


def weights(seed: int, *shape: int, dtype: str) -> tf.Tensor:
    return tf.constant(0.5 * np.random.default_rng(seed).normal(size=shape), dtype)


def pairwise(z: np.ndarray, loc: Any, scale: Any) -> np.ndarray:
    flat = gaussian_log_densities(z.reshape(-1, z.shape[-1]), loc, scale)
    return flat.reshape(*z.shape[:2], len(loc))


def softmax(z: np.ndarray) -> np.ndarray:
    return np.asarray(special.softmax(z, axis=-1))


class SingleCell:
    """Counts of genes whose means are proportional to the library size, as in scVI."""

    def __init__(self, dtype: str):
        rng = np.random.default_rng(0)
        self.dtype = dtype
        self.counts = rng.negative_binomial(2, 0.2, size=(NUM, GENES)).astype(dtype)
        self.batch_index = (np.arange(NUM) % BATCHES).astype(np.int32)
        self.library = self.counts.sum(axis=1)
        self.z_encoder = weights(1, GENES, 2 * LATENT, dtype=dtype)
        self.l_encoder = weights(2, GENES, 2, dtype=dtype)
        self.factor_regressor = weights(3, LATENT + BATCHES, GENES, dtype=dtype)
        self.px_r = weights(4, BATCHES, GENES, dtype=dtype)
        self.library_log_means = tf.constant([3.5, 3.7], dtype)

    def qz(self, x: Any) -> tfd.Distribution:
        mean, pre_scale = tf.split(0.3 * tf.math.log1p(x) @ self.z_encoder, 2, axis=-1)
        return tfd.MultivariateNormalDiag(mean, tf.exp(0.5 * pre_scale))

    def ql(self, x: Any) -> tfd.Distribution:
        mean, pre_scale = tf.unstack(0.3 * tf.math.log1p(x) @ self.l_encoder, axis=-1)
        return tfd.LogNormal(3.5 + mean, tf.exp(0.5 * pre_scale - 1.0))

    def px(
        self, z: Any, library: Any, batch_index: Any, zero_inflated: bool = False
    ) -> tfd.Distribution:
        one_hot = tf.one_hot(batch_index, BATCHES, dtype=self.dtype)
        px_scale = tf.nn.softmax(tf.concat([z, one_hot], axis=-1) @ self.factor_regressor)
        dispersion = tf.exp(-tf.gather(self.px_r, batch_index))
        counts = tfd.NegativeBinomial.experimental_from_mean_dispersion(
            library[:, tf.newaxis] * px_scale, dispersion
        )
        if zero_inflated:
            counts = tfd.Inflated(
                counts,
                inflated_loc_probs=tf.fill(tf.shape(px_scale), tf.constant(0.3, self.dtype)),
                inflated_loc=tf.zeros([], self.dtype),
            )
        return tfd.Independent(counts, 1)

    def log_likelihood(
        self, z: np.ndarray, library: np.ndarray, zero_inflated: bool = False
    ) -> np.ndarray:
        table = self.factor_regressor.numpy().astype(np.float64)
        rate = softmax(z @ table[:LATENT] + table[LATENT:][self.batch_index])
        rate = rate * library[..., None]
        theta = np.exp(self.px_r.numpy().astype(np.float64))[self.batch_index]
        scores = stats.nbinom.logpmf(self.counts, theta, theta / (theta + rate))
        if zero_inflated:
            scores = np.log(0.3 * (self.counts == 0) + 0.7 * np.exp(scores))
        return np.asarray(scores.sum(axis=-1))

    def standard_normal(self) -> tfd.Distribution:
        zero = tf.zeros([LATENT], self.dtype)
        return tfd.MultivariateNormalDiag(zero, tf.ones_like(zero))


def parameters(*tensors: Any) -> list[np.ndarray]:
    return [np.asarray(tensor, np.float64) for tensor in tensors]


@pytest.mark.parametrize(("sparse", "zero_inflated"), [(False, False), (True, True)])
def test_negative_binomial_counts_of_observed_library_and_batch(
    dtype: str, sparse: bool, zero_inflated: bool
) -> None:
    model = SingleCell(dtype)
    counts: Any = scipy.sparse.csr_matrix(model.counts) if sparse else model.counts

    condition = {"library": model.library, "batch_index": model.batch_index}
    decoder = lambda z, condition: model.px(z, **condition, zero_inflated=zero_inflated)  # noqa: E731

    posterior = model.qz(tf.constant(model.counts))
    loc, scale = parameters(posterior.mean(), posterior.stddev())
    surgery = check_surgery(
        *(counts, model.qz, decoder, model.standard_normal()),
        posteriors=lambda z: pairwise(z, loc, scale),
        log_prior=lambda z: stats.norm.logpdf(z).sum(axis=-1),
        log_likelihood=lambda z: model.log_likelihood(
            z, model.library.astype(np.float64), zero_inflated
        ),
        condition=condition,
    )
    assert "condition given to decoder" in surgery.data


def test_negative_binomial_counts_of_a_latent_library(dtype: str) -> None:
    """Codes (z, l) with a log-normal l, whose prior depends on the batch."""
    model = SingleCell(dtype)

    def prior(condition: Any) -> tfd.Distribution:
        ones = tf.ones_like(condition, dtype)
        library = tfd.LogNormal(tf.gather(model.library_log_means, condition), 0.5 * ones)
        z = tfd.MultivariateNormalDiag(tf.zeros([LATENT], dtype) * ones[:, tf.newaxis])
        return tfd.JointDistributionNamed({"z": z, "library": library})

    encoder = lambda x: tfd.JointDistributionNamed({"z": model.qz(x), "library": model.ql(x)})  # noqa: E731
    decoder = lambda code, condition: model.px(code["z"], code["library"], condition)  # noqa: E731

    x = tf.constant(model.counts)
    loc, scale, log_l, width = parameters(
        *(model.qz(x).mean(), model.qz(x).stddev(), model.ql(x).loc, model.ql(x).scale)
    )
    means = model.library_log_means.numpy().astype(np.float64)[model.batch_index]

    def lognormal(library: np.ndarray, mean: Any, width: Any) -> np.ndarray:
        return np.asarray(stats.norm.logpdf(np.log(library), mean, width) - np.log(library))

    surgery = check_surgery(  # the code is the vector (library, z)
        *(model.counts, encoder, decoder, prior),
        posteriors=lambda z: (
            pairwise(z[..., 1:], loc, scale) + lognormal(z[:, :, None, 0], log_l, width)
        ),
        log_prior=lambda z: (
            stats.norm.logpdf(z[..., 1:]).sum(axis=-1) + lognormal(z[..., 0], means, 0.5)
        ),
        log_likelihood=lambda z: model.log_likelihood(z[..., 1:], z[..., 0]),
        condition=model.batch_index,
    )
    assert surgery.marginal_kl is None
    assert surgery.conditional_prior_term is not None
    split = surgery.condition_split
    assert split is not None
    total = split.index_code_mutual_information.value + split.marginal_kl.value
    np.testing.assert_allclose(total, surgery.average_kl.value, rtol=1e-5)
    assert surgery.per_part is not None


def test_data_with_missing_values(dtype: str) -> None:
    """A likelihood of the pixels that were seen; what stands in the others does not matter."""
    rng = np.random.default_rng(0)
    mask = rng.uniform(size=(NUM, GENES)) < 0.7
    x = np.where(mask, rng.normal(size=(NUM, GENES)), 0.0).astype(dtype)
    inward, outward = (
        weights(1, 2 * GENES, LATENT, dtype=dtype),
        weights(2, LATENT, GENES, dtype=dtype),
    )

    def encoder(x: Any, condition: Any) -> tfd.Distribution:
        h = tf.concat([x, tf.cast(condition, dtype)], axis=-1) @ inward
        return tfd.MultivariateNormalDiag(h, 0.5 + 0.1 * tf.tanh(h))

    def decoder(z: Any, condition: Any) -> tfd.Distribution:
        pixels = tfd.Normal(z @ outward, tf.constant(0.5, dtype))
        return tfd.Independent(tfd.Masked(pixels, validity_mask=condition), 1)

    prior = tfd.MultivariateNormalDiag(tf.zeros([LATENT], dtype), tf.ones([LATENT], dtype))
    posterior = encoder(tf.constant(x), mask)
    loc, scale = parameters(posterior.mean(), posterior.stddev())

    def log_likelihood(z: np.ndarray) -> np.ndarray:
        scores = stats.norm.logpdf(x, z @ outward.numpy().astype(np.float64), 0.5)
        return np.asarray(np.where(mask, scores, 0.0).sum(axis=-1))

    surgery = check_surgery(
        *(x, encoder, decoder, prior),
        posteriors=lambda z: pairwise(z, loc, scale),
        log_prior=lambda z: stats.norm.logpdf(z).sum(axis=-1),
        log_likelihood=log_likelihood,
        condition=mask,
    )
    filled = tfs.elbo_surgery(
        np.where(mask, x, 7.0).astype(dtype),
        encoder(tf.constant(x), mask),
        decoder,
        prior,
        condition=mask,
    )
    assert filled.elbo == surgery.elbo
