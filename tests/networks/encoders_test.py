from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.networks.encoders import SCALE_FLOOR, ConvEncoder, MLPEncoder

tfd = tfp.distributions

IMAGES = [(28, 28, 1), (8, 8, 1), (32, 32, 3), (7, 5, 2)]


def small(kind: type, latent_size: int = 3, **kwargs: Any) -> keras.layers.Layer:
    if kind is ConvEncoder:
        return ConvEncoder(latent_size, filters=(4, 6), hidden_sizes=(8,), **kwargs)
    return MLPEncoder(latent_size, hidden_sizes=(8, 7), **kwargs)


def images(batch: int, shape: tuple[int, ...]) -> tf.Tensor:
    return tf.random.stateless_uniform([batch, *shape], seed=(3, 4))


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("kind", [MLPEncoder, ConvEncoder])
def test_one_posterior_an_observation(kind: type, shape: tuple[int, ...]) -> None:
    posterior = small(kind)(images(4, shape))
    assert isinstance(posterior, tfd.MultivariateNormalDiag)
    assert posterior.batch_shape == [4]
    assert posterior.event_shape == [3]
    assert posterior.dtype == tf.float32


def test_an_mlp_takes_events_of_any_rank() -> None:
    for shape in [(5,), (4, 3), (2, 2, 2, 2)]:
        assert MLPEncoder(2, (6,))(images(3, shape)).batch_shape == [3]
    assert MLPEncoder(2, ())(images(3, (5,))).event_shape == [2]


def test_the_mlp_computes_what_its_weights_say() -> None:
    encoder = MLPEncoder(2, hidden_sizes=(4,), activation="tanh")
    x = images(3, (2, 2))
    posterior = encoder(x)
    kernel, bias, output_kernel, output_bias = (w.numpy() for w in encoder.weights)
    raw = np.tanh(x.numpy().reshape(3, 4) @ kernel + bias) @ output_kernel + output_bias
    np.testing.assert_allclose(posterior.mean(), raw[:, :2], rtol=1e-5, atol=1e-6)
    expected_scale = np.log1p(np.exp(raw[:, 2:])) + SCALE_FLOOR
    np.testing.assert_allclose(posterior.stddev(), expected_scale, rtol=1e-5)


@pytest.mark.parametrize("kind", [MLPEncoder, ConvEncoder])
def test_the_scale_stays_positive_and_finite(kind: type) -> None:
    encoder = small(kind)
    encoder(images(2, (8, 8, 1)))
    for bias, low, high in [(-1e4, SCALE_FLOOR, 2 * SCALE_FLOOR), (1e4, 0.9e4, 1.1e4)]:
        encoder.output_layer.bias.assign(tf.fill([6], bias))
        scale = encoder(images(2, (8, 8, 1))).stddev().numpy()
        assert np.all((scale >= 0.99 * low) & (scale <= high))


@pytest.mark.parametrize("kind", [MLPEncoder, ConvEncoder])
def test_gradients_reach_every_weight(kind: type) -> None:
    encoder = small(kind)
    with tf.GradientTape() as tape:
        posterior = encoder(images(8, (8, 8, 1)))
        total = tf.reduce_sum(posterior.sample(seed=(0, 1)) ** 3)
    gradients = tape.gradient(total, encoder.trainable_weights)
    for weight, gradient in zip(encoder.trainable_weights, gradients, strict=True):
        assert np.any(gradient.numpy() != 0.0), weight.path


@pytest.mark.parametrize("kind", [MLPEncoder, ConvEncoder])
@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("mixed_float16", tf.float32), ("mixed_bfloat16", tf.float32), ("float64", tf.float64)],
)
def test_posteriors_are_never_half_precision(kind: type, policy: str, dtype: tf.DType) -> None:
    assert small(kind, dtype=policy)(images(2, (8, 8, 1))).dtype == dtype


@pytest.mark.parametrize("kind", [MLPEncoder, ConvEncoder])
def test_config_round_trip(kind: type) -> None:
    encoder = small(kind)
    x = images(2, (8, 8, 1))
    expected = encoder(x)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(encoder))
    again.set_weights(encoder.get_weights())
    np.testing.assert_array_equal(again(x).mean(), expected.mean())
    np.testing.assert_array_equal(again(x).stddev(), expected.stddev())


@pytest.mark.parametrize("kind", [MLPEncoder, ConvEncoder])
def test_bad_arguments(kind: type) -> None:
    with pytest.raises(ValueError, match="latent_size must be at least 1, got 0"):
        small(kind, latent_size=0)


def test_a_convolution_needs_channels() -> None:
    with pytest.raises(ValueError, match=r"\[B, height, width, channels\]"):
        small(ConvEncoder)(images(2, (8, 8)))
