from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.networks.gaussian_encoder import GaussianEncoder

tfd = tfp.distributions

D = 3
X = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
W_MEAN, W_SECOND = np.random.default_rng(1).normal(size=(2, 5, D)).astype(np.float32)


class Sampled(keras.layers.Layer):
    """Draws a code inside of the network, with a generator of its own."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(3)

    def call(self, inputs: Any) -> Any:
        mean, log_variance = inputs
        noise = keras.random.normal(keras.ops.shape(mean), seed=self.generator)
        return mean + keras.ops.exp(log_variance / 2) * noise


def dense(weights: np.ndarray) -> keras.layers.Dense:
    return keras.layers.Dense(D, kernel_initializer=keras.initializers.Constant(weights))


def functional(num_outputs: int) -> keras.Model:
    inputs = keras.Input((5,))
    outputs = [dense(W_MEAN)(inputs), dense(W_SECOND)(inputs)]
    outputs.append(Sampled()(outputs))
    return keras.Model(inputs, outputs[:num_outputs])


def of_one_tensor() -> keras.Model:
    inputs = keras.Input((5,))
    outputs = [dense(W_MEAN)(inputs), dense(W_SECOND)(inputs)]
    return keras.Model(inputs, [keras.layers.Concatenate()(outputs)])


class Subclassed(keras.Model):
    """Makes its layers without `build`; returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.second = dense(W_MEAN), dense(W_SECOND)

    def call(self, x: Any) -> Any:
        return self.mean(x), self.second(x)


JOINED = np.concatenate([W_MEAN, W_SECOND], axis=1)
NETWORKS: dict[str, Callable[[], Any]] = {
    "functional, list of two": lambda: functional(2),
    "functional, list of three": lambda: functional(3),
    "functional, list of one": of_one_tensor,
    "sequential, one tensor": lambda: keras.Sequential(
        [keras.layers.Dense(2 * D, kernel_initializer=keras.initializers.Constant(JOINED))]
    ),
    "subclassed, tuple": Subclassed,
    "function, tuple of three": lambda: lambda x: (x @ W_MEAN, x @ W_SECOND, x @ W_MEAN),
    "function, arrays": lambda: lambda x: (np.asarray(x) @ W_MEAN, np.asarray(x) @ W_SECOND),
}


def scale_by_hand(scale: str, second: np.ndarray) -> Any:
    if scale == "log_variance":
        return np.sqrt(np.exp(second))
    return np.exp(second) if scale == "exp" else np.log1p(np.exp(second))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", ["log_variance", "exp", "softplus"])
def test_the_density_is_that_of_the_outputs(name: str, scale: str) -> None:
    posterior = GaussianEncoder(NETWORKS[name](), latent_size=D, scale=scale)(X)
    assert isinstance(posterior, tfd.MultivariateNormalDiag)
    assert (posterior.batch_shape, posterior.event_shape) == ([6], [D])
    mean = X.astype(np.float64) @ W_MEAN
    stddev = scale_by_hand(scale, X.astype(np.float64) @ W_SECOND)
    z = mean + stddev * np.random.default_rng(2).normal(size=mean.shape)
    terms = -0.5 * ((z - mean) / stddev) ** 2 - np.log(stddev) - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(posterior.log_prob(z), terms.sum(axis=1), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(posterior.stddev(), stddev, rtol=1e-5)


@pytest.mark.parametrize("name", ["functional, list of three", "subclassed, tuple"])
def test_gradients_reach_every_weight(name: str) -> None:
    encoder = GaussianEncoder(NETWORKS[name](), latent_size=D, scale="log_variance")
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(encoder(X).sample(seed=(0, 1)) ** 3)
    weights = encoder.trainable_weights
    assert len(weights) == 4
    for weight, gradient in zip(weights, tape.gradient(total, weights), strict=True):
        assert np.any(gradient.numpy() != 0.0), weight.path


def outputs_of(*shapes: list[int]) -> Any:
    outputs = tuple(tf.zeros(shape) for shape in shapes)
    return lambda _: outputs if len(outputs) > 1 else outputs[0]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (outputs_of([6, D]), r"one Tensor of shape \[B, 6\], .* a Tensor of shape \[6, 3\]\."),
        (outputs_of([6, 8]), r"of shape \[B, 6\], .* of shape \[6, 8\]\. Is it latent_size=4\?"),
        (outputs_of([6, D], [6, D - 1]), r"each of shape \[B, 3\], .*\[6, 2\]\)\."),
        (outputs_of([6, 2, D]), r"one Tensor of shape \[B, 6\], .* of shape \[6, 2, 3\]\."),
        (outputs_of([2 * D]), r"one Tensor of shape \[B, 6\], .* a Tensor of shape \[6\]\."),
        (outputs_of([]), r"one Tensor of shape \[B, 6\], .* a Tensor of shape \[\]\."),
        (
            outputs_of([6, 4], [6, 4]),
            r"each of shape \[B, 3\], .*\[6, 4\]\)\. Is it latent_size=4\?",
        ),
        (outputs_of([6, D], [6, 1]), r"each of shape \[B, 3\], .*\[6, 3\], .*\[6, 1\]\)\."),
        (outputs_of([6, D], [1, D]), r"each of shape \[B, 3\], .*\[6, 3\], .*\[1, 3\]\)\."),
        (outputs_of([6, D], [6, D], [6, 1]), r"each of shape \[B, 3\], .* returns 3 outputs \("),
        (outputs_of([6, D], [6, 1, D]), r"each of shape \[B, 3\], .*\[6, 1, 3\]\)\."),
        (outputs_of(*[[6, D]] * 4), r"\(mean, second\) or \(mean, second, z\), .* 4 outputs"),
    ],
)
def test_other_shapes_are_refused(network: Any, message: str) -> None:
    encoder = GaussianEncoder(network, latent_size=D, scale="exp")
    with pytest.raises(ValueError, match=message) as caught:
        encoder(X)
    assert ("Is it latent_size" in str(caught.value)) == ("Is it" in message)


def test_a_negative_scale_is_refused() -> None:
    """TFP takes its absolute value: the logarithm of a variance would pass for a scale."""
    encoder = GaussianEncoder(functional(2), latent_size=D, scale="scale")
    with pytest.raises(ValueError, match=r"smallest value is -.*scale=\"log_variance\" or"):
        encoder(X)
    assert np.isnan(tf.function(encoder)(X).stddev()).any()


@pytest.mark.parametrize(("order", "place"), [((2, 0, 1), "first"), ((0, 2, 1), "second")])
def test_a_code_that_does_not_come_last_is_found_out(order: Any, place: str) -> None:
    network = functional(3)
    encoder = GaussianEncoder(
        lambda x: [network(x)[i] for i in order], latent_size=D, scale="log_variance"
    )
    with pytest.raises(ValueError, match=rf"the {place} .* drawn at random.*\(mean, second, z"):
        encoder(X)


def test_the_order_is_looked_at_once_and_not_in_training() -> None:
    calls: list[int] = []

    def network(x: Any) -> Any:
        calls.append(len(calls))
        return x[:, :D], x[:, :D], x[:, :D]

    encoder = GaussianEncoder(network, latent_size=D, scale="exp")
    for training, expected in [(True, 1), (False, 3), (False, 4), (True, 5)]:
        encoder(tf.constant(X), training=training)
        assert len(calls) == expected


@pytest.mark.parametrize("size", [0, -1])
def test_bad_latent_sizes(size: int) -> None:
    with pytest.raises(ValueError, match=f"latent_size must be at least 1, got {size}"):
        GaussianEncoder(functional(2), latent_size=size, scale="exp")
    with pytest.raises(TypeError, match=r"latent_size must be an integer, got 2\.5"):
        GaussianEncoder(functional(2), latent_size=2.5, scale="exp")  # type: ignore[arg-type]


def test_size_and_scale_must_be_said() -> None:
    incomplete: Any = GaussianEncoder
    with pytest.raises(TypeError, match="'scale'"):
        incomplete(functional(2), latent_size=D)
    with pytest.raises(TypeError, match="'latent_size'"):
        incomplete(functional(2), scale="exp")
    with pytest.raises(ValueError, match="scale must say what the second output"):
        GaussianEncoder(functional(2), latent_size=D, scale="log_var")
