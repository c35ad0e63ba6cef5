from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tfp_surgery.log_density import online_softmax


def _run(scores: np.ndarray, num_blocks: int) -> tuple[np.ndarray, np.ndarray]:
    state = online_softmax.start([scores.shape[1]], tf.as_dtype(scores.dtype))
    for block in np.array_split(scores, num_blocks):
        state = online_softmax.add(state, tf.constant(block), axis=0)
    log_sum, entropy = online_softmax.finish(state)
    return log_sum.numpy(), entropy.numpy()


@pytest.mark.parametrize("spread", [0.0, 1.0, 300.0])
@pytest.mark.parametrize("num_blocks", [1, 4, 13])
def test_blocks_in_any_number_give_log_sum_exp_and_entropy(spread: float, num_blocks: int) -> None:
    scores = spread * np.random.default_rng(0).normal(size=(13, 5)) - 700.0
    log_sum, entropy = _run(scores, num_blocks)
    np.testing.assert_allclose(log_sum, special.logsumexp(scores, axis=0), rtol=1e-14)
    expected = special.entr(special.softmax(scores, axis=0)).sum(axis=0)
    np.testing.assert_allclose(entropy, expected, atol=1e-13)


def test_scores_of_minus_infinity_add_nothing() -> None:
    scores = np.array([[-np.inf, -np.inf], [2.0, -np.inf], [2.0, -np.inf]])
    log_sum, entropy = _run(scores, 3)
    np.testing.assert_allclose(log_sum, [2.0 + math.log(2.0), -np.inf])
    np.testing.assert_allclose(entropy, [math.log(2.0), np.nan])


def test_one_infinite_density_takes_all() -> None:
    log_sum, entropy = _run(np.array([[0.0], [np.inf], [1.0]]), 3)
    assert log_sum == np.inf
    assert entropy == 0.0


def test_the_gradient_is_that_of_autodiff() -> None:
    scores = tf.constant(np.random.default_rng(1).normal(size=(7, 3)))
    upstream = (tf.constant([1.0, 2.0, 0.0], tf.float64), tf.constant([0.5, 0.0, -3.0], tf.float64))
    with tf.GradientTape() as tape:
        tape.watch(scores)
        log_sum = tf.reduce_logsumexp(scores, axis=0)
        log_index_probs = scores - log_sum
        entropy = -tf.reduce_sum(tf.exp(log_index_probs) * log_index_probs, axis=0)
        target = tf.reduce_sum(log_sum * upstream[0] + entropy * upstream[1])
    np.testing.assert_allclose(
        online_softmax.score_gradient(scores, (log_sum, entropy), upstream),
        tape.gradient(target, scores),
        atol=1e-14,
    )
