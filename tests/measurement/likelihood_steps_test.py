"""Tests that a graph serves the steps of a measurement only where it gives the eager values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tfp_surgery.measurement.likelihood_steps import EAGER, GRAPH, LikelihoodSteps
from tfp_surgery.measurement.prepared_model import prepared_model

tfd = tfp.distributions

N, D, S = 60, 2, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
PRIOR = tfd.MultivariateNormalDiag(tf.zeros([D]))
WEIGHTS = RNG.normal(size=(D, D)).astype(np.float32)


def encoder(x: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(0.5 * x, tf.fill([D], 0.7))


def plain(z: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(z @ WEIGHTS, tf.ones([D]))


def by_numpy(z: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(z.numpy() @ WEIGHTS, tf.ones([D]))


def by_numpy_function(z: tf.Tensor) -> tfd.Distribution:
    loc = tf.ensure_shape(tf.numpy_function(lambda z: z @ WEIGHTS, [z], tf.float32), [None, D])
    return tfd.MultivariateNormalDiag(loc, tf.ones([D]))


def by_branch(z: tf.Tensor) -> tfd.Distribution:
    return plain(z if tf.reduce_all(tf.math.is_finite(z)) else tf.zeros_like(z))


def by_mode(z: tf.Tensor) -> tfd.Distribution:
    """What is another function in a graph: the graph must not serve."""
    return plain(z) if tf.executing_eagerly() else plain(1.001 * z)


class Counting:
    """A decoder with state in Python, of which the values do not depend on it."""

    def __init__(self) -> None:
        self.last: Any = None

    def __call__(self, z: tf.Tensor) -> tfd.Distribution:
        self.last = z if self.last is None else self.last
        return plain(z)


class Layer(keras.layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(D, use_bias=False)
        self.dense.build([None, D])
        self.dense.kernel.assign(WEIGHTS)

    def call(self, z: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(self.dense(z), tf.ones([D]))


DECODERS: dict[str, tuple[Callable[[], Callable[..., Any]], str]] = {
    "function": (lambda: plain, GRAPH),
    "layer": (Layer, GRAPH),
    "state in Python": (Counting, GRAPH),
    "numpy": (lambda: by_numpy, EAGER),
    "numpy_function": (lambda: by_numpy_function, EAGER),
    "Python branch": (lambda: by_branch, EAGER),
    "another function in a graph": (lambda: by_mode, EAGER),
}


def expected(z: np.ndarray, x: np.ndarray) -> np.ndarray:
    """log N(x; z W, I) in float64, for codes `[S, B, D]`."""
    difference = x.astype(np.float64) - z.astype(np.float64) @ WEIGHTS.astype(np.float64)
    total: np.ndarray = -0.5 * (difference**2).sum(-1) - 0.5 * D * np.log(2 * np.pi)
    return total


@pytest.mark.parametrize("name", DECODERS)
def test_each_step_has_the_values_of_its_own_codes(name: str) -> None:
    make, evaluation = DECODERS[name]
    model = prepared_model(X, encoder, make(), PRIOR, 0, None)
    steps = LikelihoodSteps(model, 6)
    for start in range(0, N, 10):
        rows = slice(start, start + 10) if start % 20 else np.arange(start, start + 10)
        z = RNG.normal(size=(S, 10, D)).astype(np.float32)
        found = steps(tf.constant(z), rows)
        np.testing.assert_allclose(found, expected(z, X[start : start + 10]), rtol=1e-5, atol=1e-5)
    assert steps.evaluation == evaluation


def test_a_few_steps_are_not_worth_a_graph() -> None:
    model = prepared_model(X, encoder, plain, PRIOR, 0, None)
    steps = LikelihoodSteps(model, 2)
    for _ in range(2):
        steps(tf.zeros([S, 10, D]), slice(0, 10))
    assert steps.evaluation == EAGER


def test_a_step_of_another_length_is_computed_too() -> None:
    model = prepared_model(X, encoder, plain, PRIOR, 0, None)
    steps = LikelihoodSteps(model, 9)
    for size in (10, 10, 7, 1, 10):
        z = RNG.normal(size=(S, size, D)).astype(np.float32)
        found = steps(tf.constant(z), slice(0, size))
        np.testing.assert_allclose(found, expected(z, X[:size]), rtol=1e-5, atol=1e-5)


def test_assertions_of_a_likelihood_hold_in_a_graph() -> None:
    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Normal(z, tf.exp(z[:, :1]) - 0.1, validate_args=True), 1)

    model = prepared_model(X, lambda x: tfd.MultivariateNormalDiag(0.0 * x, tf.fill([D], 1e-3)),
                           decoder, PRIOR, 0, None)  # fmt: skip
    steps = LikelihoodSteps(model, 9)
    for _ in range(2):
        steps(tf.zeros([S, 10, D]), slice(0, 10))
    assert steps.evaluation == GRAPH
    with pytest.raises(tf.errors.InvalidArgumentError, match="positive"):
        steps(tf.fill([S, 10, D], -9.0), slice(0, 10))


def test_conditions_and_structures_go_through_a_graph() -> None:
    x = {"b": X, "a": np.abs(X[:, 0])}
    condition = (X[:, :1], X[:, 1:])

    def decoder(z: tf.Tensor, condition: Any) -> tfd.Distribution:
        shift = tf.concat(condition, axis=1)
        return tfd.JointDistributionNamed(
            {
                "a": tfd.Exponential(tf.exp(z[:, 0])),
                "b": tfd.MultivariateNormalDiag(z @ WEIGHTS + shift, tf.ones([D])),
            },
            use_vectorized_map=False,
            batch_ndims=1,
        )

    model = prepared_model(
        x, lambda x: encoder(x["b"]), decoder, PRIOR, 0, None, condition=condition
    )
    steps = LikelihoodSteps(model, 6)
    for start in range(0, N, 10):
        rows = slice(start, start + 10)
        z = RNG.normal(size=(S, 10, D)).astype(np.float32)
        rate = np.exp(z[..., 0].astype(np.float64))
        of_a = np.log(rate) - rate * x["a"][rows]
        found = steps(tf.constant(z), rows)
        np.testing.assert_allclose(found, expected(z, 0.0 * X[rows]) + of_a, rtol=1e-5, atol=1e-5)
    assert steps.evaluation == GRAPH


@pytest.mark.parametrize("name", ["function", "numpy", "another function in a graph"])
@pytest.mark.filterwarnings("ignore:the effective sample size")
def test_measurements_agree_with_and_without_a_graph(name: str) -> None:
    make, evaluation = DECODERS[name]
    model = (X, encoder, make(), PRIOR)
    draws = tfs.scored_draws(*model, batch_size=2000, seed=3)
    several = tfs.scored_draws(*model, seed=3)
    assert draws.decoding == several.decoding == EAGER  # in one step
    np.testing.assert_array_equal(draws.z, several.z)
    z, index = draws.z.numpy(), draws.index
    np.testing.assert_allclose(draws.reconstruction, expected(z, X[index]), rtol=1e-5, atol=1e-5)
    evidence = tfs.log_evidence_by_importance_sampling(
        *model, num_importance_samples=50, batch_size=100, seed=3
    )
    assert evidence.decoding == evaluation
    plain_evidence = tfs.log_evidence_by_importance_sampling(
        X, encoder, plain, PRIOR, num_importance_samples=50, batch_size=100, seed=3
    )
    np.testing.assert_allclose(evidence.values, plain_evidence.values, rtol=1e-5, atol=1e-5)
