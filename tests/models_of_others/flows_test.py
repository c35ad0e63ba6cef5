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
        layers = [np.asarray(weight, np.float64) for weight in self.made.get_weights()]
        loc, log_scale = np.split(self.x.astype(np.float64) @ wide(self.inward), 2, axis=-1)
        out: Any = 0
        return out


def wide(tensor: Any) -> np.ndarray:
    return np.asarray(tensor, np.float64)


@pytest.mark.parametrize("with_context", [False, True])
def test_inverse_autoregressive_flow(floatx: str, with_context: bool) -> None:
    flow = Flow(floatx, with_context)
    flow.encode(tf.constant(flow.x)).sample(seed=(0, 1))
    print([w.name + str(w.shape) for w in flow.made.weights])
    print([type(l) for l in flow.made._network.layers])
    assert 0
