from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.networks.gaussian_decoder import GaussianDecoder

EVENT = (3, 2)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(5, 2)).astype(np.float32)
X = RNG.normal(size=(5, *EVENT)).astype(np.float32)


def of_mean() -> keras.Sequential:
    return keras.Sequential([keras.layers.Dense(6), keras.layers.Reshape(EVENT)])


def of_mean_and_second() -> keras.Model:
    inputs = keras.Input((2,))
    return keras.Model(inputs, [of_mean()(inputs), of_mean()(inputs)])


def log_prob_by_hand(mean: Any, scale: Any) -> Any:
    mean, scale = np.float64(mean), np.float64(scale) * np.ones(EVENT)
    terms = -0.5 * ((X - mean) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)
    return terms.sum(axis=(1, 2))


@pytest.mark.parametrize("scale", [2, 0.3, np.float32(0.5)])
def test_a_fixed_scale(scale: float) -> None:
    network = of_mean()
    decoder = GaussianDecoder(network, scale=scale)
    likelihood = decoder(Z)
    assert (likelihood.batch_shape, likelihood.event_shape) == ([5], list(EVENT))
    expected = log_prob_by_hand(network(Z), scale)
    np.testing.assert_allclose(likelihood.log_prob(X), expected, rtol=1e-5)
    assert len(decoder.weights) == 2


def test_a_shared_scale_is_a_weight_of_the_layer() -> None:
    network = of_mean()
    decoder = GaussianDecoder(network, scale="shared")
    decoder(Z)
    assert len(decoder.trainable_weights) == 3
    (weight,) = [w for w in decoder.trainable_weights if w.shape == ()]
    weight.assign(-0.7)
    expected = log_prob_by_hand(network(Z), math.log1p(math.exp(-0.7)) + 1e-5)
    np.testing.assert_allclose(decoder(Z).log_prob(X), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", ["log_variance", "exp", "softplus"])
def test_a_scale_from_the_network(scale: str) -> None:
    network = of_mean_and_second()
    mean, second = (output.numpy().astype(np.float64) for output in network(Z))
    stddev = np.exp(second / 2 if scale == "log_variance" else second)
    if scale == "softplus":
        stddev = np.log1p(np.exp(second))
    likelihood = GaussianDecoder(network, scale=scale)(Z)
    np.testing.assert_allclose(likelihood.log_prob(X), log_prob_by_hand(mean, stddev), rtol=1e-5)


def test_squared_errors_are_those_of_the_scales_in_the_docstring() -> None:
    network = of_mean()
    errors = ((X - network(Z).numpy()) ** 2).reshape(5, -1)
    for scale, loss in [(math.sqrt(0.5), errors.sum(1)), (math.sqrt(6 / 2), errors.mean(1))]:
        negative = -GaussianDecoder(network, scale=scale)(Z).log_prob(X)
        constant = 6 * math.log(scale * math.sqrt(2 * math.pi))
        np.testing.assert_allclose(negative - constant, loss, rtol=1e-4)


@pytest.mark.parametrize(
    "scale", [0.0, -1.0, math.inf, math.nan, True, None, "per_pixel", "log_scale"]
)
def test_bad_scales(scale: Any) -> None:
    with pytest.raises(ValueError, match='positive number or "shared" where it returns the mean'):
        GaussianDecoder(of_mean(), scale=scale)


@pytest.mark.parametrize(
    ("scale", "network", "message"),
    [
        (1.0, of_mean_and_second, r"returns one Tensor, the mean, of shape .*returns 2 outputs"),
        (
            "shared",
            of_mean_and_second,
            r"returns one Tensor, the mean, of shape .*returns 2 outputs",
        ),
        ("exp", of_mean, r"returns \(mean, second\), both of shape .*returns a Tensor"),
        (
            "exp",
            lambda: lambda _: (tf.zeros([5, 3, 2]), tf.zeros([5, 3, 1])),
            r"\(mean, second\), both of .*\[5, 3, 2\], a Tensor of shape \[5, 3, 1\]",
        ),
        (1.0, lambda: lambda _: tf.zeros([]), r"of shape \[\]"),
    ],
)
def test_other_outputs_are_refused(scale: Any, network: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianDecoder(network(), scale=scale)(Z)


def test_a_variance_of_zero_is_refused() -> None:
    decoder = GaussianDecoder(lambda _: (tf.zeros([5, 3]), tf.zeros([5, 3])), scale="variance")
    with pytest.raises(ValueError, match="smallest value is 0, not above zero"):
        decoder(Z)
