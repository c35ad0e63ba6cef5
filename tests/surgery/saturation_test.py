from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.networks.decoders import MLPDecoder
from tfp_surgery.surgery.saturation import saturated_reconstruction, saturation

tfd = tfp.distributions

Z = np.array([[[0.1], [3.0]], [[-0.2], [-2.0]]], np.float32)  # [S, B, 1]
X = np.array([[1.0], [0.0]], np.float32)


def logits(z: tf.Tensor) -> tf.Tensor:
    return 50.0 * z


def bernoulli(z: tf.Tensor) -> tfd.Distribution:
    return tfd.Independent(tfd.Bernoulli(probs=tf.sigmoid(logits(z))), 1)


def reconstruction(decoder: Callable[[tf.Tensor], tfd.Distribution]) -> np.ndarray:
    return np.stack([decoder(z).log_prob(X).numpy() for z in tf.constant(Z)])


def test_codes_without_density_are_decoded_again_and_the_cause_is_named() -> None:
    values = reconstruction(bernoulli)
    # sigmoid(150) rounds to 1 and sigmoid(-100) to 0: only the first misses its 0.
    np.testing.assert_array_equal(np.isfinite(values), [[True, False], [True, True]])
    message = saturated_reconstruction(bernoulli, Z, ~np.isfinite(values))
    assert message.startswith("1 of 1 probabilities that the decoder gives Bernoulli are exactly")
    assert "tfd.Bernoulli(logits=...)" in message
    assert saturated_reconstruction(bernoulli, Z[:1, :1], ~np.isfinite(values[:1, :1])) == ""


def test_the_way_out_is_one() -> None:
    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Bernoulli(logits=logits(z)), 1)

    exact = -np.logaddexp(0.0, np.where(X == 1, -1, 1) * 50.0 * Z.astype(np.float64))[..., 0]
    np.testing.assert_allclose(reconstruction(decoder), exact, rtol=1e-5, atol=1e-30)
    assert saturation(decoder(tf.constant(Z[:, 1]))) == ""


@pytest.mark.parametrize(
    "likelihood",
    [
        tfd.Categorical(probs=tf.nn.softmax([[0.0, 200.0], [0.0, 1.0]])),
        tfd.OneHotCategorical(probs=tf.nn.softmax([[0.0, 200.0], [0.0, 1.0]])),
        tfd.Binomial(5.0, probs=tf.sigmoid([17.0, 0.0])),
        tfd.Multinomial(5.0, probs=tf.nn.softmax([[0.0, 200.0], [0.0, 1.0]])),
        tfd.Geometric(probs=tf.sigmoid([17.0, 0.0])),
        tfd.Sample(tfd.Bernoulli(probs=tf.sigmoid([-110.0, 0.0])), 3),
        tfd.MixtureSameFamily(
            tfd.Categorical(logits=tf.zeros([2, 2])),
            tfd.Independent(tfd.Bernoulli(probs=tf.sigmoid([[[17.0]] * 2, [[0.0]] * 2])), 1),
        ),
        tfd.Mixture(
            tfd.Categorical(logits=tf.zeros([2, 2])),
            [tfd.Bernoulli(logits=tf.zeros(2)), tfd.Bernoulli(probs=tf.sigmoid([17.0, 0.0]))],
        ),
    ],
    ids=lambda likelihood: likelihood.name,
)
def test_saturated_probabilities_are_found_inside(likelihood: tfd.Distribution) -> None:
    assert "exactly 0 or 1" in saturation(likelihood)


@pytest.mark.parametrize(
    "likelihood",
    [
        tfd.Bernoulli(probs=tf.sigmoid([16.0, -80.0])),
        tfd.Bernoulli(logits=[200.0, -200.0]),
        tfd.Normal([0.0, 1.0], 1.0),
        tfd.Categorical(logits=[[0.0, 200.0]]),
    ],
)
def test_others_are_not_accused(likelihood: tfd.Distribution) -> None:
    assert saturation(likelihood) == ""


def test_our_own_decoders_give_logits() -> None:
    assert saturation(MLPDecoder((3,), (4,))(1e4 * tf.ones([2, 1]))) == ""
