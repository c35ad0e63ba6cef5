"""Models in the manner of the examples of Keras and TensorFlow: networks that return Tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from keras import layers, ops
from scipy import special, stats

import tfp_surgery as tfs
from tests.testing.brute_force import check_close, check_surgery
from tests.testing.oracles import gaussian_log_densities

tfd = tfp.distributions

LATENT_DIM = 2
NUM = 24


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of all layers that are made in the test."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def standard_normal(dtype: str) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(tf.zeros([LATENT_DIM], dtype), tf.ones([LATENT_DIM], dtype))


def images(dtype: str) -> np.ndarray:
    grey = np.random.default_rng(0).uniform(size=(NUM, 4, 4, 1))
    return np.asarray(grey, dtype)


def of_gaussians(mean: Any, log_var: Any) -> Any:
    """log q(z_sn|x_m) of all m, and log N(z; 0, I)."""
    mean, log_var = (np.asarray(part, np.float64) for part in (mean, log_var))

    def posteriors(z: np.ndarray) -> np.ndarray:
        flat = gaussian_log_densities(z.reshape(-1, z.shape[-1]), mean, np.exp(0.5 * log_var))
        return flat.reshape(*z.shape[:2], len(mean))

    return {"posteriors": posteriors, "log_prior": lambda z: stats.norm.logpdf(z).sum(axis=-1)}


def flat_codes(z: np.ndarray, dtype: str) -> tf.Tensor:
    return tf.constant(z.reshape(-1, *z.shape[2:]), dtype)


class Sampling(layers.Layer):
    """Uses (z_mean, z_log_var) to sample z."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs: Any) -> Any:
        z_mean, z_log_var = inputs
        epsilon = keras.random.normal(ops.shape(z_mean), seed=self.seed_generator)
        return z_mean + ops.exp(0.5 * z_log_var) * ops.cast(epsilon, z_mean.dtype)


def test_vae_of_keras_with_a_sigmoid_and_grey_pixels(dtype: str) -> None:
    encoder_inputs = keras.Input(shape=(4, 4, 1))
    x = layers.Conv2D(4, 3, activation="relu", strides=2, padding="same")(encoder_inputs)
    x = layers.Dense(8, activation="relu")(layers.Flatten()(x))
    z_mean = layers.Dense(LATENT_DIM, name="z_mean")(x)
    z_log_var = layers.Dense(LATENT_DIM, name="z_log_var")(x)
    z = Sampling()([z_mean, z_log_var])
    vae_encoder = keras.Model(encoder_inputs, [z_mean, z_log_var, z], name="encoder")
    latent_inputs = keras.Input(shape=(LATENT_DIM,))
    x = layers.Reshape((2, 2, 2))(layers.Dense(8, activation="relu")(latent_inputs))
    x = layers.Conv2DTranspose(4, 3, activation="relu", strides=2, padding="same")(x)
    x = layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(x)
    vae_decoder = keras.Model(latent_inputs, x, name="decoder")
    grey = images(dtype)

    encoder = tfs.networks.GaussianEncoder(vae_encoder, latent_size=2, scale="log_variance")
    decoder = tfs.networks.BernoulliDecoder(vae_decoder, from_logits=False)

    def log_likelihood(z: np.ndarray) -> np.ndarray:
        p = vae_decoder(flat_codes(z, dtype)).numpy().astype(np.float64)
        p = p.reshape(*z.shape[:2], *grey.shape[1:])
        wide = grey.astype(np.float64)
        scores = special.xlogy(wide, p) + special.xlog1py(1 - wide, -p)
        return np.asarray(scores.sum(axis=(2, 3, 4)))

    mean, log_var, _ = vae_encoder(grey)
    arguments = (grey, encoder, decoder, standard_normal(dtype))
    surgery = check_surgery(
        *arguments,
        **of_gaussians(mean, log_var),
        log_likelihood=log_likelihood,
        validate_args=False,
    )
    assert "NOT THE ELBO OF A NORMALISED MODEL" in str(surgery)
    with pytest.raises(ValueError, match="validate_args=False"):
        tfs.elbo_surgery(*arguments)


class CVAE(keras.Model):
    """Convolutional variational autoencoder whose encoder returns one tensor."""

    def __init__(self, latent_dim: int):
        super().__init__()
        self.encoder = keras.Sequential(
            [
                layers.InputLayer(shape=(4, 4, 1)),
                layers.Conv2D(filters=4, kernel_size=3, strides=(2, 2), activation="relu"),
                layers.Flatten(),
                layers.Dense(latent_dim + latent_dim),  # no activation
            ]
        )
        self.decoder = keras.Sequential(
            [
                layers.InputLayer(shape=(latent_dim,)),
                layers.Dense(units=2 * 2 * 3, activation="relu"),
                layers.Reshape(target_shape=(2, 2, 3)),
                layers.Conv2DTranspose(filters=1, kernel_size=3, strides=2, padding="same"),
            ]
        )

    def encode(self, x: Any) -> Any:
        return tf.split(self.encoder(x), num_or_size_splits=2, axis=1)

    def decode(self, z: Any, apply_sigmoid: bool = False) -> Any:
        logits = self.decoder(z)
        return tf.sigmoid(logits) if apply_sigmoid else logits


def test_convolutional_vae_of_tensorflow_with_one_tensor_split_in_two(dtype: str) -> None:
    model = CVAE(LATENT_DIM)
    binary = np.where(images(dtype) > 0.5, 1.0, 0.0).astype(dtype)

    encoder = tfs.networks.GaussianEncoder(model.encoder, latent_size=2, scale="log_variance")
    decoder = tfs.networks.BernoulliDecoder(model.decoder, from_logits=True)

    def log_likelihood(z: np.ndarray) -> np.ndarray:
        logits = model.decode(flat_codes(z, dtype)).numpy().astype(np.float64)
        logits = logits.reshape(*z.shape[:2], *binary.shape[1:])
        return np.asarray(special.log_expit((2 * binary - 1) * logits).sum(axis=(2, 3, 4)))

    check_surgery(
        *(binary, encoder, decoder, standard_normal(dtype)),
        **of_gaussians(*model.encode(binary)),
        log_likelihood=log_likelihood,
    )


def test_conditional_vae_of_two_inputs(dtype: str) -> None:
    image, label = keras.Input(shape=(16,)), keras.Input(shape=(3,))
    h = layers.Dense(8, activation="relu")(layers.Concatenate()([image, label]))
    outputs = [layers.Dense(LATENT_DIM)(h), layers.Dense(LATENT_DIM)(h)]
    cvae_encoder = keras.Model([image, label], outputs)
    code, label = keras.Input(shape=(LATENT_DIM,)), keras.Input(shape=(3,))
    h = layers.Dense(8, activation="relu")(layers.Concatenate()([code, label]))
    cvae_decoder = keras.Model([code, label], layers.Dense(16)(h))
    x = np.where(images(dtype).reshape(NUM, 16) > 0.5, 1.0, 0.0).astype(dtype)
    y = np.eye(3, dtype=dtype)[np.arange(NUM) % 3]

    encoder = tfs.networks.GaussianEncoder(
        cvae_encoder, latent_size=2, scale="log_variance", conditional=True
    )
    decoder = tfs.networks.BernoulliDecoder(cvae_decoder, from_logits=True, conditional=True)

    def log_likelihood(z: np.ndarray) -> np.ndarray:
        labels = tf.constant(np.tile(y, [len(z), 1]))
        logits = cvae_decoder([flat_codes(z, dtype), labels]).numpy().astype(np.float64)
        logits = logits.reshape(*z.shape[:2], 16)
        return np.asarray(special.log_expit((2 * x - 1) * logits).sum(axis=-1))

    surgery = check_surgery(
        x,
        encoder,
        decoder,
        standard_normal(dtype),
        **of_gaussians(*cvae_encoder([x, y])),
        log_likelihood=log_likelihood,
        condition=y,
    )
    split = surgery.condition_split
    assert split is not None
    assert split.num_values == 3
    parts = split.index_code_mutual_information.value + split.marginal_kl.value
    np.testing.assert_allclose(parts, surgery.average_kl.value, rtol=1e-5)


class VectorQuantizer(layers.Layer):
    """Replaces every vector of a feature map by the nearest of `num_embeddings`."""

    def __init__(self, num_embeddings: int, embedding_dim: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_embeddings = num_embeddings
        self.embeddings = self.add_weight(
            shape=(embedding_dim, num_embeddings), initializer="random_uniform", name="embeddings"
        )

    def call(self, x: Any) -> Any:
        return ops.matmul(
            ops.one_hot(self.get_code_indices(x), self.num_embeddings, dtype=x.dtype),
            ops.transpose(self.embeddings),
        )

    def get_code_indices(self, inputs: Any) -> Any:
        similarity = ops.matmul(inputs, self.embeddings)
        distances = ops.sum(self.embeddings**2, axis=0) - 2 * similarity
        return ops.argmin(distances, axis=-1)


@pytest.mark.parametrize("family", [tfd.Deterministic, tfd.Categorical])
def test_vq_vae_of_keras_with_codes_of_points(dtype: str, family: Any) -> None:
    """q(z|x) is one code, so that I(n; z) is the entropy of its use and the average KL 2 log K."""
    num_embeddings = 3
    vq_encoder = keras.Sequential(
        [layers.InputLayer(shape=(4, 4, 1)), layers.Conv2D(2, (4, 2), strides=(4, 2))]
    )
    vq_layer = VectorQuantizer(num_embeddings, 2)
    vq_decoder = keras.Sequential(
        [layers.InputLayer(shape=(1, 2, 2)), layers.Conv2DTranspose(1, (4, 2), strides=(4, 2))]
    )
    x = images(dtype) - np.asarray(0.5, dtype)

    def codes(x: Any) -> Any:
        return tf.cast(vq_layer.get_code_indices(vq_encoder(x)), tf.int32)  # [B, 1, 2]

    def encoder(x: Any) -> tfd.Distribution:
        if family is tfd.Deterministic:
            return tfd.Independent(tfd.Deterministic(codes(x)), 2)
        return tfd.Independent(tfd.Categorical(probs=tf.one_hot(codes(x), num_embeddings)), 2)

    def decoder(z: Any) -> tfd.Distribution:
        quantized = tf.gather(tf.transpose(vq_layer.embeddings), z)
        return tfd.Independent(tfd.Normal(vq_decoder(quantized), tf.ones([], dtype)), 3)

    prior = tfd.Independent(tfd.Categorical(logits=tf.zeros([1, 2, num_embeddings])), 2)
    surgery = tfs.elbo_surgery(x, encoder, decoder, prior)

    _, counts = np.unique(codes(x).numpy().reshape(NUM, 2), axis=0, return_counts=True)
    assert 2 < len(counts) < NUM
    entropy = stats.entropy(counts)
    reconstruction = stats.norm.logpdf(x, vq_decoder(vq_layer(vq_encoder(x)))).sum(axis=(1, 2, 3))
    expected = {
        "average_reconstruction": reconstruction.mean(),
        "index_code_mutual_information": entropy,
        "index_code_mutual_information_from_entropy": entropy,
        "marginal_kl": 2 * np.log(num_embeddings) - entropy,
        "average_kl": 2 * np.log(num_embeddings),
    }
    for name, value in expected.items():
        check_close(getattr(surgery, name).value, value, double=False)


def test_vq_vae_of_points_in_space_has_no_kl_to_a_density(dtype: str) -> None:
    vq_layer = VectorQuantizer(3, 2)
    x = np.random.default_rng(0).normal(size=(NUM, 2)).astype(dtype)

    def encoder(x: Any) -> tfd.Distribution:
        return tfd.VectorDeterministic(vq_layer(x))

    with pytest.raises(ValueError, match="one-hot codes go with a prior of probability masses"):
        tfs.elbo_surgery(x, encoder, None, standard_normal(dtype))

    def one_hot(x: Any) -> tfd.Distribution:
        codes = vq_layer.get_code_indices(x)
        return tfd.OneHotCategorical(probs=tf.one_hot(codes, 3, dtype=dtype), dtype=dtype)

    uniform = tfd.OneHotCategorical(logits=tf.zeros([3], dtype), dtype=dtype)
    with pytest.raises(ValueError, match="as those of a VQ-VAE"):
        tfs.elbo_surgery(x, one_hot, None, uniform)
