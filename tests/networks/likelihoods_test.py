from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.support import check_support
from tfp_surgery.networks.likelihoods import (
    SCALE_FLOOR,
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticLikelihood,
    GaussianLikelihood,
)

tfd = tfp.distributions

EVENT = (3, 2, 1)


def raw_output(parameters: int, batch: int = 4, dtype: tf.DType = tf.float32) -> tf.Tensor:
    return tf.random.stateless_normal([batch, *EVENT, parameters], seed=(5, 6), dtype=dtype)


@pytest.mark.parametrize(
    "likelihood",
    [
        BernoulliLikelihood(),
        GaussianLikelihood(),
        GaussianLikelihood("shared"),
        GaussianLikelihood("per_pixel"),
        CategoricalLikelihood(5),
        DiscretizedLogisticLikelihood(5),
    ],
    ids=lambda likelihood: likelihood.name,
)
def test_samples_have_the_shape_and_support_of_observations(likelihood: Any) -> None:
    distribution = likelihood(raw_output(likelihood.parameters_per_value))
    assert distribution.batch_shape == [4]
    assert distribution.event_shape == list(EVENT)
    x = distribution.sample(seed=(1, 1))
    assert x.shape == [4, *EVENT]
    assert np.all(np.isfinite(distribution.log_prob(x)))
    check_support(distribution, x)
    assert distribution.mean().shape == [4, *EVENT]


def test_bernoulli_takes_log_odds() -> None:
    raw = raw_output(1)
    x = tf.cast(raw[..., 0] > 0.3, tf.float32)
    expected = -tf.reduce_sum(
        tf.nn.sigmoid_cross_entropy_with_logits(x, raw[..., 0]), axis=[1, 2, 3]
    )
    np.testing.assert_allclose(BernoulliLikelihood()(raw).log_prob(x), expected, rtol=1e-5)


def normal_log_prob(x: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> Any:
    density = -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)
    return density.sum(axis=(1, 2, 3))


@pytest.mark.parametrize("scale", [0.3, "shared", "per_pixel"])
def test_gaussian_scales(scale: Any) -> None:
    likelihood = GaussianLikelihood(scale)
    raw = raw_output(likelihood.parameters_per_value)
    distribution = likelihood(raw)
    if scale == "shared":
        (weight,) = likelihood.trainable_weights
        weight.assign(-0.7)
        distribution = likelihood(raw)  # built anew: the weight is not a snapshot
        expected_scale = math.log1p(math.exp(-0.7)) + SCALE_FLOOR
    elif scale == "per_pixel":
        expected_scale = np.log1p(np.exp(raw[..., 1])) + SCALE_FLOOR
    else:
        assert likelihood.weights == []
        expected_scale = scale
    x = np.random.default_rng(0).normal(size=(4, *EVENT)).astype(np.float32)
    expected = normal_log_prob(x, raw[..., 0].numpy(), np.asarray(expected_scale))
    np.testing.assert_allclose(distribution.log_prob(x), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [CategoricalLikelihood, DiscretizedLogisticLikelihood])
@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_levels_of_intensities_carry_all_the_mass(kind: Any, num_levels: int) -> None:
    likelihood = kind(num_levels)
    raw = raw_output(likelihood.parameters_per_value, batch=1)
    pixels = likelihood(raw).distribution
    # As 8-bit images are scaled: an integer in float32 divided by the largest.
    x = np.arange(num_levels).astype(np.float32) / np.float32(num_levels - 1)
    mass = pixels.prob(x[:, np.newaxis, np.newaxis, np.newaxis, np.newaxis])
    np.testing.assert_allclose(tf.reduce_sum(mass, axis=0), np.ones([1, *EVENT]), rtol=1e-4)


def test_categorical_gives_each_level_its_logit() -> None:
    raw = raw_output(5)
    pixels = CategoricalLikelihood(5)(raw).distribution
    log_probs = tf.nn.log_softmax(raw)
    for k in range(5):
        np.testing.assert_allclose(pixels.log_prob(k / 4), log_probs[..., k], rtol=1e-5)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_the_raw_output_sets_the_precision(dtype: tf.DType) -> None:
    expected = tf.float64 if dtype == tf.float64 else tf.float32
    for likelihood in (
        BernoulliLikelihood(),
        GaussianLikelihood("shared"),
        CategoricalLikelihood(3),
        DiscretizedLogisticLikelihood(3),
    ):
        distribution = likelihood(raw_output(likelihood.parameters_per_value, dtype=dtype))
        assert distribution.log_prob(tf.ones([4, *EVENT], expected)).dtype == expected


def test_config_round_trip() -> None:
    for likelihood in (
        BernoulliLikelihood(),
        GaussianLikelihood(0.25),
        GaussianLikelihood("shared"),
        CategoricalLikelihood(17),
        DiscretizedLogisticLikelihood(17),
    ):
        config = keras.saving.serialize_keras_object(likelihood)
        again = keras.saving.deserialize_keras_object(config)
        assert type(again) is type(likelihood)
        assert again.get_config() == likelihood.get_config()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, "learned", True, None])
def test_bad_gaussian_scales(scale: Any) -> None:
    with pytest.raises(ValueError, match="scale must be a positive number, 'shared'"):
        GaussianLikelihood(scale)


@pytest.mark.parametrize("kind", [CategoricalLikelihood, DiscretizedLogisticLikelihood])
def test_bad_numbers_of_levels(kind: Any) -> None:
    with pytest.raises(ValueError, match="num_levels must be at least 2, got 1"):
        kind(1)
    with pytest.raises(TypeError):
        kind(2.5)
