"""Models in the manner of the examples of TensorFlow Probability."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as tfk
from scipy import special, stats

import tfp_surgery as tfs
from tests.testing.brute_force import check_surgery
from tests.testing.oracles import gaussian_log_densities

tfb = tfp.bijectors
tfd = tfp.distributions
tfkl = tfk.layers
tfpl = tfp.layers

NUM = 24
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def pairwise(z: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    flat = gaussian_log_densities(z.reshape(-1, z.shape[-1]), loc, scale)
    return flat.reshape(*z.shape[:2], -1)


@pytest.fixture(name="floatx", params=["float32", "float64"])
def of_tf_keras(request: pytest.FixtureRequest) -> Iterator[str]:
    """The dtype of all layers of tf_keras that are made in the test."""
    before = tfk.backend.floatx()
    tfk.backend.set_floatx(request.param)
    yield request.param
    tfk.backend.set_floatx(before)


def test_vae_of_probabilistic_layers(floatx: str) -> None:
    encoded_size, input_shape = 2, (4, 4, 1)
    prior = tfd.Independent(
        tfd.Normal(loc=tf.zeros(encoded_size, floatx), scale=tf.ones([], floatx)),
        reinterpreted_batch_ndims=1,
    )
    encoder = tfk.Sequential(
        [
            tfkl.InputLayer(input_shape=input_shape),
            tfkl.Lambda(lambda x: tf.cast(x, floatx) - 0.5),
            tfkl.Conv2D(4, 3, strides=2, padding="same", activation=tf.nn.leaky_relu),
            tfkl.Flatten(),
            tfkl.Dense(tfpl.MultivariateNormalTriL.params_size(encoded_size), activation=None),
            tfpl.MultivariateNormalTriL(
                encoded_size, activity_regularizer=tfpl.KLDivergenceRegularizer(prior)
            ),
        ]
    )
    decoder = tfk.Sequential(
        [
            tfkl.InputLayer(input_shape=[encoded_size]),
            tfkl.Reshape([1, 1, encoded_size]),
            tfkl.Conv2DTranspose(4, 4, strides=1, padding="valid", activation=tf.nn.leaky_relu),
            tfkl.Conv2D(1, 3, strides=1, padding="same", activation=None),
            tfkl.Flatten(),
            tfpl.IndependentBernoulli(input_shape, tfd.Bernoulli.logits),
        ]
    )
    x = np.random.default_rng(0).integers(2, size=(NUM, *input_shape)).astype(floatx)

    params = tfk.Model(encoder.inputs, encoder.layers[-2].output)(x).numpy().astype(np.float64)
    logits_of = tfk.Model(decoder.inputs, decoder.layers[-2].output)
    loc, first, corner, last = params[:, :2], params[:, 2], params[:, 3], params[:, 4]
    first, last = (np.logaddexp(0.0, each) + 1e-5 for each in (first, last))

    def posteriors(z: np.ndarray) -> np.ndarray:
        gap = z[:, :, None] - loc  # [S, N, N, 2]
        u = gap[..., 0] / last
        v = (gap[..., 1] - corner * u) / first
        return np.asarray(stats.norm.logpdf(u) + stats.norm.logpdf(v) - np.log(first * last))

    def log_likelihood(z: np.ndarray) -> np.ndarray:
        logits = logits_of(tf.constant(z.reshape(-1, 2), floatx)).numpy().astype(np.float64)
        signs = 2 * x.reshape(NUM, 16) - 1
        scores = special.log_expit(signs * logits.reshape(*z.shape[:2], 16))
        return np.asarray(scores.sum(axis=-1))

    surgery = check_surgery(
        *(x, encoder, decoder, prior),
        posteriors=posteriors,
        log_prior=lambda z: stats.norm.logpdf(z).sum(axis=-1),
        log_likelihood=log_likelihood,
    )
    assert surgery.average_kl_method == "analytic"


def dirichlet_logpdf(z: np.ndarray, concentration: np.ndarray) -> np.ndarray:
    log_norm = special.gammaln(concentration).sum(-1) - special.gammaln(concentration.sum(-1))
    return np.asarray(special.xlogy(concentration - 1.0, z).sum(axis=-1) - log_norm)


@DTYPES
@pytest.mark.parametrize("likelihood", ["as trained", "multinomial"])
def test_latent_dirichlet_allocation_of_amortized_inference(dtype: str, likelihood: str) -> None:
    num_topics, num_words = 3, 12
    rng = np.random.default_rng(1)
    bag_of_words = rng.poisson(1.5, size=(NUM, num_words)).astype(dtype)
    bag_of_words[:, 0] += 1
    weights = tf.constant(0.05 * rng.normal(size=(num_words, num_topics)), dtype)
    topics_words_logits = tf.constant(rng.normal(size=(num_topics, num_words)), dtype)
    logit_concentration = tf.constant(np.full([1, num_topics], 0.7), dtype)

    def encoder_net(bag_of_words: Any) -> Any:
        return tf.clip_by_value(tf.math.softplus(bag_of_words @ weights), 1e-3, 1e3)

    def make_encoder(bag_of_words: Any) -> tfd.Distribution:
        return tfd.Dirichlet(concentration=encoder_net(bag_of_words), name="topics_posterior")

    def word_probs(topics: Any) -> Any:
        return tf.matmul(topics, tf.nn.softmax(topics_words_logits, axis=-1))

    def make_decoder(topics: Any) -> tfd.Distribution:
        # The observations are bags of words and therefore not one-hot. However, log_prob of
        # OneHotCategorical computes the probability correctly in this case.
        return tfd.OneHotCategorical(probs=word_probs(topics), name="bag_of_words", dtype=dtype)

    def make_prior() -> tfd.Distribution:
        concentration = tf.clip_by_value(tf.math.softplus(logit_concentration), 1e-3, 1e3)
        return tfd.Dirichlet(concentration=concentration, name="topics_prior")

    def log_likelihood(z: np.ndarray) -> np.ndarray:
        topics = special.softmax(topics_words_logits.numpy().astype(np.float64), axis=-1)
        scores = special.xlogy(bag_of_words, z @ topics).sum(axis=-1)
        if likelihood == "multinomial":
            counts = bag_of_words.astype(np.float64)
            scores += special.gammaln(counts.sum(-1) + 1) - special.gammaln(counts + 1).sum(-1)
        return np.asarray(scores)

    check = functools.partial(
        check_surgery,
        posteriors=lambda z: dirichlet_logpdf(z[:, :, None], encoder_net(bag_of_words).numpy()),
        log_prior=lambda z: dirichlet_logpdf(
            z, np.logaddexp(0.0, logit_concentration.numpy()[0].astype(np.float64))
        ),
        log_likelihood=log_likelihood,
    )
    if likelihood == "as trained":
        surgery = check(bag_of_words, make_encoder, make_decoder, make_prior, validate_args=False)
        assert "OneHotCategorical" not in surgery.data
        assert surgery.outside_support
        with pytest.raises(ValueError, match=r"a single 1 among 0s.*validate_args=False"):
            tfs.elbo_surgery(bag_of_words, make_encoder, make_decoder, make_prior)
    else:
        length = bag_of_words.sum(axis=1)

        def multinomial(topics: Any, condition: Any) -> tfd.Distribution:
            return tfd.Multinomial(total_count=condition, probs=word_probs(topics))

        surgery = check(bag_of_words, make_encoder, multinomial, make_prior, condition=length)
        assert not surgery.outside_support


@DTYPES
def test_probabilistic_pca_with_its_surrogate_posterior(dtype: str) -> None:
    """The observations are the columns of x, as in the tutorial."""
    data_dim, latent_dim, num_datapoints, stddv_datapoints = 4, 2, NUM, 0.5
    rng = np.random.default_rng(0)
    x_train = tf.constant(rng.normal(size=(data_dim, num_datapoints)), dtype)

    def probabilistic_pca(
        data_dim: int, latent_dim: int, num_datapoints: int, stddv_datapoints: Any
    ) -> Any:
        w = yield tfd.Normal(
            loc=tf.zeros([data_dim, latent_dim], dtype),
            scale=2.0 * tf.ones([data_dim, latent_dim], dtype),
            name="w",
        )
        z = yield tfd.Normal(
            loc=tf.zeros([latent_dim, num_datapoints], dtype),
            scale=tf.ones([latent_dim, num_datapoints], dtype),
            name="z",
        )
        yield tfd.Normal(loc=tf.matmul(w, z), scale=stddv_datapoints, name="x")

    model = tfd.JointDistributionCoroutineAutoBatched(
        functools.partial(
            probabilistic_pca,
            data_dim=data_dim,
            latent_dim=latent_dim,
            num_datapoints=num_datapoints,
            stddv_datapoints=tf.constant(stddv_datapoints, dtype),
        )
    )
    qw_mean = tf.Variable(rng.normal(size=[data_dim, latent_dim]), dtype=dtype)
    qz_mean = tf.Variable(rng.normal(size=[latent_dim, num_datapoints]), dtype=dtype)
    qw_stddv = tfp.util.TransformedVariable(
        tf.fill([data_dim, latent_dim], tf.constant(1e-2, dtype)), bijector=tfb.Softplus()
    )
    qz_stddv = tfp.util.TransformedVariable(
        tf.fill([latent_dim, num_datapoints], tf.constant(0.5, dtype)), bijector=tfb.Softplus()
    )

    def factored_normal_variational_model() -> Any:
        yield tfd.Normal(loc=qw_mean, scale=qw_stddv, name="qw")
        yield tfd.Normal(loc=qz_mean, scale=qz_stddv, name="qz")

    surrogate_posterior = tfd.JointDistributionCoroutineAutoBatched(
        factored_normal_variational_model
    )
    assert surrogate_posterior.sample(seed=(0, 1)).qz.shape == [latent_dim, num_datapoints]
    assert model.log_prob(w=qw_mean, z=qz_mean, x=x_train).shape == []

    posteriors = tfd.MultivariateNormalDiag(tf.transpose(qz_mean), tf.transpose(qz_stddv))
    likelihood = lambda z: tfd.MultivariateNormalDiag(  # noqa: E731
        z @ tf.transpose(qw_mean), tf.fill([data_dim], tf.constant(stddv_datapoints, dtype))
    )
    prior = tfd.MultivariateNormalDiag(tf.zeros([latent_dim], dtype), tf.ones([latent_dim], dtype))

    loc, scale, w, x = (part.numpy() for part in (qz_mean, qz_stddv + 0, qw_mean, x_train))

    def log_likelihood(z: np.ndarray) -> np.ndarray:
        return np.asarray(
            stats.norm.logpdf(x.T, z @ w.T.astype(np.float64), stddv_datapoints).sum(axis=-1)
        )

    check_surgery(
        *(tf.transpose(x_train), posteriors, likelihood, prior),
        posteriors=lambda z: pairwise(z, loc.T, scale.T),
        log_prior=lambda z: stats.norm.logpdf(z).sum(axis=-1),
        log_likelihood=log_likelihood,
    )
