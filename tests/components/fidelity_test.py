"""Joined and picked posteriors are those that the encoder gave, or an error says why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tfp_surgery.components import fidelity
from tfp_surgery.components.encoding import encode
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior

tfb = tfp.bijectors
tfd = tfp.distributions

N, D = 12, 2
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)

Encoder = Callable[[tf.Tensor], tfd.Distribution]


def _base(x: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(tf.convert_to_tensor(x), tf.fill([D], 0.3))


def _shifted(x: tf.Tensor) -> tfb.Bijector:
    x = tf.convert_to_tensor(x)
    return tfb.Inline(
        forward_fn=lambda u: u + x,
        inverse_fn=lambda z: z - x,
        forward_log_det_jacobian_fn=lambda _: tf.zeros([]),
        forward_min_event_ndims=1,
    )


class Widened(tfd.Distribution):
    """A Gaussian that declares its location and holds its scale."""

    def __init__(self, loc: Any, scale: Any, name: str = "Widened"):
        parameters = dict(locals())
        self.loc, self.scale = tf.convert_to_tensor(loc), scale
        super().__init__(
            tf.float32,
            tfd.FULLY_REPARAMETERIZED,
            validate_args=False,
            allow_nan_stats=True,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> dict[str, Any]:
        return {"loc": tfp.util.ParameterProperties(event_ndims=1)}

    def _event_shape(self) -> tf.TensorShape:
        return self.loc.shape[-1:]

    def _normal(self) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(self.loc, self.scale)

    def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
        return self._normal().log_prob(z)

    def _sample_n(self, n: Any, seed: Any = None) -> tf.Tensor:
        return self._normal().sample(n, seed=seed)


CLOSURES: dict[str, Encoder] = {
    "bijector of functions": lambda x: tfd.TransformedDistribution(_base(x), _shifted(x)),
    "deep inside": lambda x: tfd.TransformedDistribution(
        _base(x), tfb.Chain([tfb.Scale(2.0), tfb.Invert(_shifted(x)), tfb.Shift([1.0, 2.0])])
    ),
    "conditional flow": lambda x: tfd.TransformedDistribution(
        _base(x),
        tfb.RealNVP(num_masked=1, bijector_fn=lambda z, n, **_: tfb.Shift(z + x[..., :n])),
    ),
    "masked autoregressive flow": lambda x: tfd.TransformedDistribution(
        _base(x), tfb.MaskedAutoregressiveFlow(lambda z: (tf.tanh(x) + 0.0 * z, 0.1 * x))
    ),
    "bijectors of a Blockwise": lambda x: tfd.TransformedDistribution(
        _base(x), tfb.Blockwise([tfb.Shift(x[..., :1]), tfb.Scale(tf.exp(x[..., 1:]))])
    ),
    "class of a user": lambda x: Widened(x, tf.exp(tf.convert_to_tensor(x))),
}
BATCHES = {"one batch": N, "batches": 5, "two equal ones": 6, "of two": 2, "of one": 1}


@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("closure", CLOSURES)
def test_parameters_that_are_not_declared_are_found(closure: str, batch_size: str) -> None:
    with pytest.raises(TypeError, match="parameters that they do not declare"):
        AggregatePosterior.from_encoder(CLOSURES[closure], X, batch_size=BATCHES[batch_size])


@pytest.mark.parametrize("num", [2, N])
@pytest.mark.parametrize("closure", CLOSURES)
def test_they_are_found_in_components_that_are_given(closure: str, num: int) -> None:
    with pytest.raises(TypeError, match="parameters that they do not declare"):
        AggregatePosterior(CLOSURES[closure](X[:num]))


def test_proposals_and_batches_of_mixtures_are_looked_at() -> None:
    proposals = CLOSURES["bijector of functions"](X)
    decoder, prior = lambda z: tfd.Independent(tfd.Normal(z, 1.0), 1), _base(tf.zeros(D))
    with pytest.raises(TypeError, match="parameters that they do not declare"):
        tfs.log_evidence_by_importance_sampling(X, proposals, decoder, prior)
    two_mixtures = CLOSURES["bijector of functions"](X.reshape(2, N // 2, D))
    with pytest.raises(TypeError, match="parameters that they do not declare"):
        AggregatePosterior(two_mixtures)


def test_every_measurement_says_it() -> None:
    decoder, prior = lambda z: tfd.Independent(tfd.Normal(z, 1.0), 1), _base(tf.zeros(D))
    encoder = CLOSURES["bijector of functions"]
    settings: list[dict[str, Any]] = [{}, {"num_query": 3}, {"batch_size": 1}, {"batch_size": 5}]
    for keywords in settings:
        with pytest.raises(TypeError, match="forward_fn of Inline"):
            tfs.elbo_surgery(X, encoder, decoder, prior, **keywords)
    with pytest.raises(TypeError, match="forward_fn of Inline"):
        tfs.importance_weighted_elbo(X, encoder, decoder, prior, num_importance_samples=3)


_MADE = tfb.AutoregressiveNetwork(params=2, hidden_units=[8], event_shape=[D], activation="tanh")
_WEIGHT = tf.Variable([0.5, -0.3])


def _network(dtype: str, scale: float, factor: float = 1.0) -> Encoder:
    """A network that computes in some precision, of posteriors as narrow as they come."""
    rng = np.random.default_rng(1)
    hidden = tf.constant(rng.normal(size=(D, 64)), dtype)
    out = tf.constant(factor * rng.normal(size=(64, D)) / 8.0, dtype)

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        h = tf.nn.relu(tf.cast(x, dtype) @ hidden) @ out
        return tfd.MultivariateNormalDiag(tf.cast(h, tf.float32), tf.fill([D], scale))

    return encoder


HARMLESS: dict[str, Encoder] = {
    "constants in functions": lambda x: tfd.TransformedDistribution(
        _base(x), _shifted(tf.constant([1.0, 2.0]))
    ),
    "a shared variable": lambda x: tfd.TransformedDistribution(
        _base(x), tfb.MaskedAutoregressiveFlow(lambda z: (_WEIGHT + 0.0 * z, None))
    ),
    "a flow with a network": lambda x: tfd.TransformedDistribution(
        _base(x), tfb.Invert(tfb.MaskedAutoregressiveFlow(_MADE))
    ),
    "two steps and a permutation": lambda x: tfd.TransformedDistribution(
        _base(x),
        tfb.Chain(
            [
                tfb.MaskedAutoregressiveFlow(_MADE),
                tfb.Permute([1, 0]),
                tfb.MaskedAutoregressiveFlow(_MADE),
            ]
        ),
    ),
    "a bijector that saturates": lambda x: tfd.TransformedDistribution(
        tfd.TransformedDistribution(
            tfd.MultivariateNormalDiag(100.0 * tf.convert_to_tensor(x)), tfb.Sigmoid()
        ),
        _shifted(tf.zeros([D])),
    ),
    "declared": lambda x: Widened(x, tf.constant([1.0, 2.0])),
    "sharp and far": _network("float32", 1e-4, factor=1e3),
    "bfloat16": _network("bfloat16", 1e-2),
    "float16": _network("float16", 1e-3),
    "half precision distributions": lambda x: tfd.MultivariateNormalDiag(
        tf.cast(x, tf.bfloat16), tf.fill([D], tf.constant(0.1, tf.bfloat16))
    ),
    "points": lambda x: tfd.VectorDeterministic(tf.round(tf.convert_to_tensor(x))),
    "a sharp flow": lambda x: tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(1e3 * tf.convert_to_tensor(x), tf.fill([D], 1e-3)),
        tfb.Invert(tfb.MaskedAutoregressiveFlow(_MADE)),
    ),
    "all alike": lambda x: tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros_like(x)), _shifted(tf.zeros([D]))
    ),
}


@pytest.mark.parametrize(("num", "batch_size"), [(1, 1), (2, 1), (3, 3), (700, 300)])
@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_right_passes(name: str, num: int, batch_size: int) -> None:
    x = 3.0 * np.random.default_rng(2).normal(size=(num, D)).astype(np.float32)
    encode(HARMLESS[name], x, batch_size)
    AggregatePosterior(HARMLESS[name](x))


_HIDDEN = tf.constant(np.random.default_rng(3).normal(size=(D, 32)), tf.float32)
_DROPOUT = keras.layers.Dropout(0.05, seed=1)
_NORMALIZATION = keras.layers.BatchNormalization()


@pytest.mark.parametrize("batch_size", [N, 5])
@pytest.mark.parametrize(
    "encoder",
    [
        lambda x: _base(_DROPOUT(x @ _HIDDEN, training=True) @ tf.transpose(_HIDDEN)),
        lambda x: _base(x + 0.1 * tf.random.normal(tf.shape(x))),
        lambda x: _base(tf.round(x + tf.random.uniform(tf.shape(x)))),
        lambda x: tfd.MultivariateNormalDiag(
            tf.convert_to_tensor(x), tf.exp(0.1 * tf.random.normal(tf.shape(x)))
        ),
    ],
)
def test_an_encoder_that_draws_is_named(encoder: Encoder, batch_size: int) -> None:
    tf.random.set_seed(0)  # two draws of a rounded code may be equal
    with pytest.raises(ValueError, match="it draws at random"):
        encode(encoder, X, batch_size)


@pytest.mark.parametrize(
    "encoder",
    [
        lambda x: _base(_NORMALIZATION(x, training=True)),
        lambda x: _base(x - tf.reduce_mean(x, axis=0)),
        lambda x: _base(tf.cast(tf.argsort(tf.argsort(x, axis=0), axis=0), tf.float32)),
    ],
)
def test_an_encoder_that_compares_observations_is_named(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="batch normalisation may run in training mode"):
        encode(encoder, X, N)
    encode(lambda x: _base(_NORMALIZATION(x, training=False)), X, N)


def test_two_observations_are_encoded_again_twice() -> None:
    for num, batch_size in ((N, 5), (N, N), (2, 1), (1, 1)):
        sizes: list[int] = []

        def encoder(x: tf.Tensor, sizes: list[int] = sizes) -> tfd.Distribution:
            sizes.append(len(x))
            return _base(x)

        encode(encoder, X[:num], batch_size)
        assert sum(sizes) <= num + 4


def test_an_encoder_of_one_batch_size_stays() -> None:
    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return _base(tf.ensure_shape(x, [N, D]))

    assert encode(encoder, X, N).batch_shape == (N,)


def test_a_graph_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("nothing may be compared in a graph")

    monkeypatch.setattr(fidelity, "_witness", fail)
    monkeypatch.setattr(fidelity, "check_encoder_repeats", fail)
    encoder = HARMLESS["a flow with a network"]

    @tf.function
    def log_prob(x: tf.Tensor) -> tf.Tensor:
        return AggregatePosterior.from_encoder(encoder, x, batch_size=5).log_prob(tf.zeros([1, D]))

    assert np.isfinite(log_prob(tf.constant(X))).all()


def test_declared_parameters_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("all parameters are declared")

    monkeypatch.setattr(fidelity, "_witness", fail)
    x = tf.constant(X)
    for components in (
        _base(x),
        tfd.Independent(tfd.Normal(x, 1.0), 1),
        tfd.MultivariateNormalTriL(x, tf.eye(D)),
        tfd.TransformedDistribution(_base(x), tfb.Chain([tfb.Exp(), tfb.Shift(x)])),
        tfd.LogNormal(x[:, 0], 1.0),
        tfd.MixtureSameFamily(
            tfd.Categorical(logits=x), tfd.MultivariateNormalDiag(tf.stack([x, -x], axis=1))
        ),
        tfd.VonMisesFisher(tf.math.l2_normalize(x, axis=-1), 2.0),
        tfd.Sample(tfd.Normal(x[:, 0], 1.0), 3),
    ):
        AggregatePosterior(components)
