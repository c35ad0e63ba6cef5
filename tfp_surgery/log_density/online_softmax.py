"""Log-sum-exp and entropy of scores that arrive block by block (Milakov and Gimelshein 2018).

For scores s_1, s_2, ... the state holds top = max s, mass = sum exp(s - top) and moment =
sum exp(s - top) (s - top); a new block rescales what is there to the new maximum.

#### References

Maxim Milakov and Natalia Gimelshein. Online normalizer calculation for softmax. arXiv:1805.02867,
2018.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import tensorflow as tf


class State(NamedTuple):
    """The running sums over the scores so far, all of one shape."""

    top: tf.Tensor
    mass: tf.Tensor
    moment: tf.Tensor


def start(shape: Any, dtype: tf.DType) -> State:
    """Returns the state before the first score."""
    zeros = tf.zeros(shape, dtype)
    return State(tf.fill(shape, tf.constant(dtype.min, dtype)), zeros, zeros)


def add(state: State, scores: tf.Tensor, axis: int) -> State:
    """Returns the state after more scores along `axis`; `-inf` scores add nothing."""
    zero = tf.zeros([], scores.dtype)
    top = tf.maximum(state.top, tf.reduce_max(scores, axis=axis))
    peak = tf.expand_dims(top, axis)
    # A density may be infinite (a Beta at 0), and infinity minus infinity is NaN.
    shift = tf.where(tf.equal(scores, peak), zero, scores - peak)
    ratio = tf.exp(shift)
    drop = tf.where(tf.equal(state.top, top), zero, state.top - top)
    rescale = tf.exp(drop)
    moment = tf.where(rescale > 0, rescale * (state.moment + drop * state.mass), zero)
    moment += tf.reduce_sum(tf.where(ratio > 0, ratio * shift, zero), axis=axis)
    return State(top, rescale * state.mass + tf.reduce_sum(ratio, axis=axis), moment)


def finish(state: State) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log-sum-exp and entropy in nats; `-inf` and `NaN` if every score was `-inf`."""
    dtype = state.mass.dtype
    outside = tf.equal(state.mass, 0)  # every score was -inf
    mass = tf.where(outside, tf.ones([], dtype), state.mass)
    log_mass = tf.math.log(mass)
    log_sum = tf.where(outside, tf.constant(-math.inf, dtype), state.top + log_mass)
    entropy = tf.where(outside, tf.constant(math.nan, dtype), log_mass - state.moment / mass)
    # H >= 0, but rounding may make it slightly negative.
    return log_sum, tf.where(entropy < 0, tf.zeros([], dtype), entropy)


def score_gradient(
    scores: tf.Tensor,
    results: tuple[tf.Tensor, tf.Tensor],
    upstream: tuple[tf.Tensor, tf.Tensor],
) -> tf.Tensor:
    """Returns the gradient to the scores: d log q / d s_n = p_n, d H / d s_n = -p_n (log p_n + H).

    Args:
      scores: Those of a block; `-inf` for components that take no part.
      results: Log-sum-exp and entropy, broadcasting against the scores; finite.
      upstream: The gradients to these.

    Returns:
      `Tensor` of the shape of the scores.
    """
    log_index_prob = scores - results[0]
    index_prob = tf.exp(log_index_prob)
    surprise = tf.where(index_prob > 0, log_index_prob + results[1], tf.zeros([], scores.dtype))
    return index_prob * (upstream[0] - surprise * upstream[1])
