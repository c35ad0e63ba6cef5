"""Tests of distributions whose events are scored one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_surgery as tfs
from tfp_surgery.components.one_by_one import OneByOne, needs_one_by_one

tfb = tfp.bijectors
tfd = tfp.distributions

T = 5
DRIFT = np.random.default_rng(0).normal(size=(T - 1, 2))


def chain(drift: bool) -> tfd.Distribution:
    """A Markov chain; with a drift of each time it takes a sample dimension for that of time."""
    table = tf.constant(DRIFT)

    def transition(time: tf.Tensor, state: tf.Tensor) -> tfd.Distribution:
        loc = state + tf.gather(table, time) if drift else 0.9 * state
        return tfd.MultivariateNormalDiag(loc, np.full(2, 0.7))

    return tfd.MarkovChain(
        tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2)), transition, num_steps=T
    )


def expected(z: np.ndarray) -> np.ndarray:
    first = stats.norm.logpdf(z[..., 0, :]).sum(-1)
    steps = stats.norm.logpdf(z[..., 1:, :], z[..., :-1, :] + DRIFT, 0.7)
    return np.asarray(first + steps.sum((-1, -2)))


CODES = tf.constant(np.random.default_rng(1).normal(size=(12, T, 2)))


@pytest.mark.parametrize("shape", [[12], [3, 4], [2, 2, 3], [1, 12]])
def test_events_are_scored_one_by_one_whatever_the_shape(shape: list[int]) -> None:
    one = OneByOne(chain(drift=True))
    z = tf.reshape(CODES, [*shape, T, 2])
    np.testing.assert_allclose(one.log_prob(z), expected(z.numpy()), rtol=1e-10)
    traced = tf.function(one.log_prob)(z)
    np.testing.assert_allclose(traced, expected(z.numpy()), rtol=1e-10)


def test_it_is_needed_where_a_function_knows_no_sample_dimension() -> None:
    assert needs_one_by_one(chain(drift=True), CODES)
    assert not needs_one_by_one(chain(drift=False), CODES)
    plain = tfd.Independent(tfd.Normal(np.zeros([T, 2]), 1.0), 2)
    assert not needs_one_by_one(plain, CODES)
    shifted = tfd.TransformedDistribution(
        plain, tfb.Inline(forward_fn=lambda u: u + 1.0, inverse_fn=lambda z: z - 1.0,
                          forward_log_det_jacobian_fn=lambda u: tf.zeros([], u.dtype),
                          forward_min_event_ndims=2)
    )  # fmt: skip
    assert not needs_one_by_one(shifted, CODES)


@pytest.mark.parametrize("num", [T - 1, 7])
def test_a_prior_that_knows_no_sample_dimension_is_right_at_any_number(num: int) -> None:
    """With T - 1 observations its formula gives another number, and else it fails."""
    x = np.random.default_rng(2).normal(size=(num, 2))

    def encoder(x: Any) -> tfd.Distribution:
        return tfd.Independent(tfd.Normal(tf.tile(x[:, tf.newaxis], [1, T, 1]), np.float64(0.5)), 2)

    draws = tfs.scored_draws(x, encoder, None, chain(drift=True))
    np.testing.assert_allclose(draws.log_prior, expected(draws.z.numpy()), rtol=1e-9)
    decoder = lambda z: tfd.Independent(tfd.Normal(z[:, 0], np.float64(1.0)), 1)  # noqa: E731
    with pytest.raises(TypeError, match="does not score several codes as it scores them one by"):
        tfs.log_evidence_by_annealed_importance_sampling(x, decoder, chain(drift=True))
