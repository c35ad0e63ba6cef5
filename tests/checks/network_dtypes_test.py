"""Networks that compute in another dtype than that of what they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tfp_surgery.checks.network_dtypes import dtype_hint, other_dtype

tfd = tfp.distributions

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)
PRIOR = tfd.MultivariateNormalDiag(tf.zeros(2))


def encoder(x: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(x @ W, tf.ones([len(x), 2]))


def decoder(z: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(z @ W.T)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint8, np.float16])
def test_the_dtype_of_x_is_named_with_the_way_out(dtype: type) -> None:
    x: Any = np.abs(np.round(X)).astype(dtype)
    name = np.dtype(dtype).name
    message = rf"it takes float32 and x is {name}: x\.astype\('float32'\) works"
    with pytest.raises(ValueError, match=message):
        tfs.elbo_surgery(x, encoder, decoder, PRIOR)
    with pytest.raises(ValueError, match=message):
        tfs.importance_weighted_elbo(x, encoder, decoder, PRIOR, num_importance_samples=2)
    with pytest.raises(ValueError, match=message):
        tfs.AggregatePosterior.from_encoder(encoder, x)
    # It does work.
    tfs.elbo_surgery(x.astype("float32"), encoder, decoder, PRIOR)


def test_a_model_in_float64_asks_for_float64() -> None:
    with pytest.raises(ValueError, match=r"takes float64 and x is float32: x\.astype\('float64'\)"):
        tfs.elbo_surgery(
            X,
            lambda x: tfd.MultivariateNormalDiag(x @ tf.constant(W, tf.float64)),
            decoder,
            tfd.MultivariateNormalDiag(np.zeros(2)),
        )


def test_a_decoder_in_half_precision_is_told_to_cast() -> None:
    def half(z: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.cast(z @ tf.constant(W.T, tf.float16), tf.float32))

    with pytest.raises(ValueError, match=r"tf\.cast\(z, 'float16'\) inside the decoder works"):
        tfs.elbo_surgery(X, encoder, half, PRIOR)
    tfs.elbo_surgery(X, encoder, lambda z: half(tf.cast(z, "float16")), PRIOR)


def test_other_failures_are_not_blamed_on_the_dtype() -> None:
    def failing(_: tf.Tensor) -> tfd.Distribution:
        raise RuntimeError("no weights")

    assert other_dtype(failing, tf.constant(X)) is None
    assert dtype_hint("encoder", failing, tf.constant(X)) == ""
    with pytest.raises(ValueError, match=r"encoder failed .* dtype float\d\d: no weights$"):
        tfs.AggregatePosterior.from_encoder(failing, X)


def test_nothing_is_tried_while_a_graph_is_made() -> None:
    calls = []

    def failing(x: tf.Tensor) -> tfd.Distribution:
        calls.append(x.dtype)
        raise RuntimeError("no weights")

    @tf.function(autograph=False)
    def graph(x: tf.Tensor) -> tf.Tensor:
        return tfs.AggregatePosterior.from_encoder(failing, x).mean()

    with pytest.raises(ValueError, match=r"encoder failed on .*: no weights"):
        graph(tf.constant(X))
    assert calls == [tf.float32]
