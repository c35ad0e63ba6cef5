from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.networks.decoders import ConvDecoder, MLPDecoder
from tfp_surgery.networks.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticLikelihood,
    GaussianLikelihood,
    Likelihood,
)

tfd = tfp.distributions

IMAGES = [(28, 28, 1), (8, 8, 1), (32, 32, 3), (7, 5, 2)]


def small(kind: type, shape: tuple[int, ...] = (7, 5, 2), **kwargs: Any) -> keras.layers.Layer:
    if kind is ConvDecoder:
        return ConvDecoder(shape, filters=(6, 4), hidden_sizes=(8,), **kwargs)
    return MLPDecoder(shape, hidden_sizes=(8, 7), **kwargs)


def likelihoods() -> list[Likelihood]:
    return [
        BernoulliLikelihood(),
        GaussianLikelihood(scale="shared"),
        GaussianLikelihood(scale="per_pixel"),
        CategoricalLikelihood(5),
        DiscretizedLogisticLikelihood(5),
    ]


def codes(batch: int) -> tf.Tensor:
    return tf.random.stateless_normal([batch, 3], seed=(3, 4))


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("kind", [MLPDecoder, ConvDecoder])
def test_one_distribution_over_images_a_code(kind: type, shape: tuple[int, ...]) -> None:
    distribution = small(kind, shape)(codes(4))
    assert distribution.batch_shape == [4]
    assert distribution.event_shape == list(shape)
    assert isinstance(distribution.distribution, tfd.Bernoulli)  # the default likelihood


def test_an_mlp_gives_events_of_any_rank() -> None:
    for shape in [(5,), (4, 3), (2, 2, 2, 2)]:
        assert MLPDecoder(shape, (6,))(codes(3)).event_shape == list(shape)


@pytest.mark.parametrize("kind", [MLPDecoder, ConvDecoder])
def test_gradients_reach_every_weight_under_every_likelihood(kind: type) -> None:
    for likelihood in likelihoods():
        decoder = small(kind, likelihood=likelihood)
        x = tf.cast(tf.random.stateless_uniform([6, 7, 5, 2], (1, 2)) < 0.5, tf.float32)
        with tf.GradientTape() as tape:
            log_prob = decoder(codes(6)).log_prob(x)
        assert log_prob.shape == [6]
        gradients = tape.gradient(log_prob, decoder.trainable_weights)
        for weight, gradient in zip(decoder.trainable_weights, gradients, strict=True):
            assert np.any(gradient.numpy() != 0.0), (likelihood.name, weight.path)


def test_codes_are_decoded_one_by_one() -> None:
    for kind in (MLPDecoder, ConvDecoder):
        decoder, z = small(kind), codes(4)
        together = decoder(z).mean()
        apart = tf.concat([decoder(z[i : i + 1]).mean() for i in range(4)], axis=0)
        np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [MLPDecoder, ConvDecoder])
@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("mixed_float16", tf.float32), ("mixed_bfloat16", tf.float32), ("float64", tf.float64)],
)
def test_likelihoods_are_never_half_precision(kind: type, policy: str, dtype: tf.DType) -> None:
    for likelihood in likelihoods():
        distribution = small(kind, likelihood=likelihood, dtype=policy)(codes(2))
        assert distribution.dtype == dtype
        assert distribution.log_prob(tf.ones([7, 5, 2], dtype)).dtype == dtype


@pytest.mark.parametrize("kind", [MLPDecoder, ConvDecoder])
def test_config_round_trip(kind: type) -> None:
    for likelihood in likelihoods():
        decoder = small(kind, likelihood=likelihood)
        expected = decoder(codes(2)).mean()
        config = keras.saving.serialize_keras_object(decoder)
        again = keras.saving.deserialize_keras_object(config)
        again.set_weights(decoder.get_weights())
        np.testing.assert_array_equal(again(codes(2)).mean(), expected)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"event_shape must be \[height, width, channels\]"):
        ConvDecoder((8, 8))
    with pytest.raises(ValueError, match="at least one transposed convolution"):
        ConvDecoder((8, 8, 1), filters=())
    kinds: list[Any] = [MLPDecoder, ConvDecoder]
    for kind in kinds:
        with pytest.raises(ValueError, match="positive sizes"):
            kind((8, 0, 1))
        with pytest.raises(TypeError, match="likelihood must be one of"):
            kind((8, 8, 1), likelihood="bernoulli")
