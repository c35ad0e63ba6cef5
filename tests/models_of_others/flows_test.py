"""Inverse autoregressive flows as posteriors, with and without features of x as context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as tfk
from scipy import stats

import tfp_surgery as tfs
from tests.testing.brute_force import check_surgery

tfb = tfp.bijectors
tfd = tfp.distributions

NUM, DIM, PIXELS = 20, 3, 4


@pytest.fixture(name="floatx", params=["float32", "float64"])
def of_tf_keras(request: pytest.FixtureRequest) -> Iterator[str]:
    """The dtype of all layers of tf_keras that are made in the test."""
    before = tfk.backend.floatx()
    tfk.backend.set_floatx(request.param)
    yield request.param
    tfk.backend.set_floatx(before)


class Flow:
    """Gaussians of x, sent through an inverse autoregressive flow."""

    def __init__(self, dtype: str, with_context: bool):
        rng = np.random.default_rng(0)
        tfk.utils.set_random_seed(7)
        self.dtype = dtype
        self.x = rng.normal(size=(NUM, PIXELS)).astype(dtype)
        self.inward = tf.constant(0.4 * rng.normal(size=(PIXELS, 2 * DIM)), dtype)
        self.outward = tf.constant(rng.normal(size=(DIM, PIXELS)), dtype)
        self.with_context = with_context
        context: Any = {"conditional": True, "conditional_event_shape": (PIXELS,)}
        self.made = tfb.AutoregressiveNetwork(
            params=2,
            event_shape=[DIM],
            hidden_units=[6],
            activation="tanh",
            kernel_initializer="glorot_normal",
            **context if with_context else {},
        )
        self.made.build([None, DIM])

    def encode(self, x: Any) -> tfd.Distribution:
        loc, log_scale = tf.split(x @ self.inward, 2, axis=-1)

        def shift_and_log_scale(y: Any) -> Any:
            made = self.made(y, conditional_input=x) if self.with_context else self.made(y)
            return tf.unstack(0.5 * made, axis=-1)

        iaf = tfb.Invert(tfb.MaskedAutoregressiveFlow(shift_and_log_scale))
        gaussian = tfd.MultivariateNormalDiag(loc, tf.exp(0.5 * log_scale))
        return tfd.TransformedDistribution(gaussian, iaf)

    def decode(self, z: Any) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(z @ self.outward)

    def posteriors(self, z: np.ndarray) -> np.ndarray:
        """The flow inverted dimension by dimension, with the network's weights in NumPy."""
        layers = [wide(weight) for weight in self.made.get_weights()]
        x = wide(self.x)
        first = last = np.zeros([1])
        if self.with_context:
            kernel1, bias1, context1, kernel2, bias2, context2 = layers
            first, last = x @ context1, x @ context2
        else:
            kernel1, bias1, kernel2, bias2 = layers
        loc, log_scale = np.split(x @ wide(self.inward), 2, axis=-1)
        z = np.repeat(z[:, :, None], NUM, axis=2)  # [S, N, N, D]
        u = np.zeros_like(z)
        for _ in range(DIM):  # u_i needs those before it
            h = np.tanh(u @ kernel1 + bias1 + first)
            made = 0.5 * (h @ kernel2 + bias2 + last).reshape(*z.shape, 2)
            u = z * np.exp(made[..., 1]) + made[..., 0]
        base = stats.norm.logpdf(u, loc, np.exp(0.5 * log_scale))
        return np.asarray((base + made[..., 1]).sum(axis=-1))

    def log_likelihood(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(stats.norm.logpdf(self.x, z @ wide(self.outward)).sum(axis=-1))


def wide(tensor: Any) -> np.ndarray:
    return np.asarray(tensor, np.float64)


def check(flow: Flow, **options: Any) -> None:
    prior = tfd.MultivariateNormalDiag(tf.zeros([DIM], flow.dtype))
    check_surgery(
        *(flow.x, flow.encode, flow.decode, prior),
        posteriors=flow.posteriors,
        log_prior=lambda z: stats.norm.logpdf(z).sum(axis=-1),
        log_likelihood=flow.log_likelihood,
        **options,
    )


def test_inverse_autoregressive_flow_that_all_observations_share(floatx: str) -> None:
    check(Flow(floatx, with_context=False))


def test_inverse_autoregressive_flow_with_context_in_a_closure(floatx: str) -> None:
    flow = Flow(floatx, with_context=True)
    check(flow, reencode=True)
    with pytest.raises(TypeError, match=r"what a function closes over.*reencode=True"):
        tfs.AggregatePosterior.from_encoder(flow.encode, flow.x)
