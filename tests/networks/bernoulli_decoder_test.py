from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.networks.bernoulli_decoder import BernoulliDecoder
from tfp_surgery.surgery.saturation import saturation

EVENT = (3, 2, 1)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(5, 2)).astype(np.float32)
PIXELS = (RNG.uniform(size=(5, *EVENT)) < 0.5).astype(np.float32)


def network(activation: Any = None) -> keras.Sequential:
    layers = [keras.layers.Dense(6, activation), keras.layers.Reshape(EVENT)]
    return keras.Sequential([keras.layers.Dense(4, "tanh"), *layers])


def log_prob_by_hand(log_odds: np.ndarray) -> Any:
    """sum_i x_i log p_i + (1 - x_i) log(1 - p_i), in float64."""
    terms = -np.where(PIXELS == 1.0, np.log1p(np.exp(-log_odds)), np.log1p(np.exp(log_odds)))
    return terms.sum(axis=(1, 2, 3))


@pytest.mark.parametrize("from_logits", [True, False])
def test_the_density_is_that_of_the_output(from_logits: bool) -> None:
    raw = network(None if from_logits else "sigmoid")
    decoder = BernoulliDecoder(raw, from_logits=from_logits)
    likelihood = decoder(Z)
    assert (likelihood.batch_shape, likelihood.event_shape) == ([5], list(EVENT))
    assert likelihood.dtype == tf.float32
    output = raw(Z).numpy().astype(np.float64)
    log_odds = output if from_logits else np.log(output) - np.log1p(-output)
    np.testing.assert_allclose(likelihood.log_prob(PIXELS), log_prob_by_hand(log_odds), rtol=1e-5)
    in_training = decoder(Z, training=True)
    np.testing.assert_array_equal(in_training.log_prob(PIXELS), likelihood.log_prob(PIXELS))


@pytest.mark.parametrize("shape", [[4], [4, 1], [4, 2, 3]])
def test_the_whole_output_is_one_event(shape: list[int]) -> None:
    likelihood = BernoulliDecoder(lambda _: [tf.zeros(shape)], from_logits=True)(Z)
    assert (likelihood.batch_shape, likelihood.event_shape) == ([4], shape[1:])


SATURATED = np.array([[0.0, 1.0, 0.25]], np.float32)


def constant(values: np.ndarray) -> BernoulliDecoder:
    return BernoulliDecoder(lambda _: tf.constant(values), from_logits=False)


def test_probabilities_are_measured_as_they_are() -> None:
    likelihood = constant(SATURATED)(Z[:1])
    np.testing.assert_allclose(likelihood.log_prob([0.0, 1.0, 1.0]), [np.log(0.25)], rtol=1e-6)
    assert likelihood.log_prob([1.0, 1.0, 1.0]).numpy() == -np.inf
    assert likelihood.log_prob([0.0, 0.0, 1.0]).numpy() == -np.inf
    assert "2 of 3 probabilities" in saturation(likelihood)


@pytest.mark.parametrize("x", [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
def test_training_has_the_loss_of_keras_and_a_finite_gradient(x: list[float]) -> None:
    probs = tf.constant(SATURATED)
    decoder = BernoulliDecoder(lambda z: probs + 0.0 * tf.reduce_sum(z), from_logits=False)
    with tf.GradientTape() as tape:
        tape.watch(probs)
        log_prob = decoder(Z[:1], training=True).log_prob([x])
    clipped = np.clip(SATURATED, np.float32(1e-7), np.float32(1.0 - 1e-7)).astype(np.float64)
    expected = np.where(np.array(x) == 1.0, np.log(clipped), np.log1p(-clipped)).sum()
    np.testing.assert_allclose(log_prob, [expected], rtol=1e-6)
    loss = keras.losses.binary_crossentropy([x], tf.constant(SATURATED))
    np.testing.assert_allclose(log_prob, -3.0 * loss, rtol=1e-5)
    gradient = tape.gradient(log_prob, probs).numpy()
    np.testing.assert_allclose(gradient, [[0.0, 0.0, 4.0]], rtol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_no_probability_is_refused(training: bool) -> None:
    """TFP gives log(1.2), a number, for an observed 0 and a probability of -0.2."""
    decoder = constant(np.array([[-0.2, 0.5, 1.5]], np.float32))
    with pytest.raises(ValueError, match=r"2 of 3 lie outside \[0, 1\], from -0\.2 to 1\.5"):
        decoder(Z[:1], training=training)
    for compiled in (True, False):

        @tf.function(jit_compile=compiled)
        def log_probs(z: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
            return decoder(z, training=training).distribution.log_prob(x)

        for x in (0.0, 1.0):
            found = log_probs(Z[:1], tf.fill([1, 3], x)).numpy()
            np.testing.assert_array_equal(np.isnan(found), [[True, False, True]])


def test_a_sigmoid_gives_no_log_odds() -> None:
    inputs = keras.Input((2,))
    functional = keras.Model(inputs, network("sigmoid")(inputs))
    with_layer = keras.Sequential([keras.layers.Dense(6), keras.layers.Activation("sigmoid")])
    for sigmoid in (
        keras.layers.Dense(6, "sigmoid"),
        network("sigmoid"),
        functional,
        with_layer,
    ):
        with pytest.raises(ValueError, match="the last layer of the network is a sigmoid"):
            BernoulliDecoder(sigmoid, from_logits=True)
        assert not BernoulliDecoder(sigmoid, from_logits=False).from_logits


def test_a_sigmoid_that_is_not_last_is_none() -> None:
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(6, "sigmoid")(inputs)
    log_odds = keras.ops.log(hidden) - keras.ops.log1p(-hidden)
    for raw in (
        keras.Model(inputs, log_odds),
        keras.Sequential([keras.layers.Dense(4, "sigmoid"), keras.layers.Dense(6)]),
        keras.Sequential(),
    ):
        assert BernoulliDecoder(raw, from_logits=True).from_logits


@pytest.mark.parametrize("from_logits", [None, 1, "yes"])
def test_bad_arguments(from_logits: Any) -> None:
    with pytest.raises(TypeError, match="from_logits must be True or False, got"):
        BernoulliDecoder(network(), from_logits=from_logits)
    incomplete: Any = BernoulliDecoder
    with pytest.raises(TypeError, match="'from_logits'"):
        incomplete(network())


@pytest.mark.parametrize("output", [(tf.zeros([5, 6]), tf.zeros([5, 6])), tf.zeros([])])
def test_more_or_less_than_one_output_is_refused(output: Any) -> None:
    with pytest.raises(ValueError, match=r"one Tensor of shape \[B, \*event_shape\], and it ret"):
        BernoulliDecoder(lambda _: output, from_logits=True)(Z)
