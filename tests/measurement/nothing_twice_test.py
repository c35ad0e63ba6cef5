"""Tests that a measurement encodes every observation once, and builds a layer prior once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs

tfd = tfp.distributions

N, D = 300, 2
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
FOR_CHECKS = 16  # observations that may be encoded again


class CountingPrior(keras.layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.loc = self.add_weight(shape=(D,), initializer="zeros")
        self.calls = 0

    def call(self, condition: Any = None) -> tfd.Distribution:
        self.calls += 1
        return tfd.MultivariateNormalDiag(self.loc.value, tf.ones([D]))


class CountingEncoder:
    def __init__(self) -> None:
        self.shown: list[int] = []

    def __call__(self, x: tf.Tensor) -> tfd.Distribution:
        self.shown.append(len(x))
        return tfd.MultivariateNormalDiag(0.5 * x, tf.fill([D], 0.7))


def decoder(z: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(z, tf.ones([D]))


MEASUREMENTS: dict[str, Callable[..., Any]] = {
    "terms": tfs.elbo_surgery,
    "full": lambda *model, **more: tfs.elbo_surgery(*model, detail="full", **more),
    "draws": tfs.scored_draws,
    "iw": lambda *model, **more: tfs.importance_weighted_elbo(
        *model, num_importance_samples=3, **more
    ),
    "evidence": lambda *model, **more: tfs.log_evidence_by_importance_sampling(
        *model, num_importance_samples=30, **more
    ),
    "refined": lambda *model, **more: tfs.refined_posteriors(*model, num_steps=3, **more),
    "gaps": lambda *model, **more: tfs.inference_gaps(
        *model, log_evidence=np.zeros(N), num_samples=2, num_steps=3, **more
    ),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.filterwarnings("ignore:The approximation gap")
def test_every_observation_is_encoded_once_and_the_prior_built_once(name: str) -> None:
    encoder, prior = CountingEncoder(), CountingPrior()
    MEASUREMENTS[name](X, encoder, decoder, prior, batch_size=100)
    assert N <= sum(encoder.shown) <= N + FOR_CHECKS
    assert prior.calls == 1


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.filterwarnings("ignore:The approximation gap")
def test_a_second_measurement_encodes_nothing(name: str) -> None:
    encoder, prior = CountingEncoder(), CountingPrior()
    q_z = tfs.AggregatePosterior.from_encoder(encoder, X)
    encoder.shown.clear()
    given = MEASUREMENTS[name](X, q_z, decoder, prior, batch_size=100, seed=(3, 4))
    assert encoder.shown == []
    encoded = MEASUREMENTS[name](X, encoder, decoder, prior, batch_size=100, seed=(3, 4))
    if name == "refined":
        np.testing.assert_allclose(given.mean(), encoded.mean(), rtol=1e-5)
        return
    for found, expected in zip(_estimates(given), _estimates(encoded), strict=True):
        assert found.value == pytest.approx(expected.value, rel=1e-5, abs=1e-6)


def _estimates(result: Any) -> list[tfs.Estimate]:
    if isinstance(result, tfs.results.ScoredDraws):
        return [tfs.Estimate(float(result.log_aggregate.mean()), 0.0, 0)]
    if hasattr(result, "estimate"):
        return [result.estimate]
    return [value for value in vars(result).values() if isinstance(value, tfs.Estimate)]


def test_annealing_builds_the_prior_once() -> None:
    prior = CountingPrior()
    tfs.log_evidence_by_annealed_importance_sampling(
        X[:20], decoder, prior, num_temperatures=3, num_chains=2, batch_size=20
    )
    assert prior.calls == 1
    prior = CountingPrior()
    tfs.bidirectional_monte_carlo(
        decoder, prior, num_observations=4, num_temperatures=3, num_chains=2
    )
    assert prior.calls == 1
