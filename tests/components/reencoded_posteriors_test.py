"""Tests of posteriors that are encoded again: densities, draws and moments of families by row."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

import tfp_surgery as tfs
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors, picked, scored

tfb = tfp.bijectors
tfd = tfp.distributions

N, D = 13, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))
# Collapsed, overlapping and separated posteriors.
CASES = {"collapsed": (0.0, 1.0), "overlapping": (1.0, 0.5), "separated": (100.0, 0.5)}


def operator_encoder(case: str) -> Any:
    """Gaussians with a linear operator, whose parameters cannot be joined."""
    spread, scale = CASES[case]
    return lambda x: tfd.MultivariateNormalLinearOperator(
        spread * tf.convert_to_tensor(x), tf.linalg.LinearOperatorDiag(scale * tf.ones_like(x))
    )


def closure_encoder(case: str) -> Any:
    """The same with context in a closure, which joins z and x and takes one code a row."""
    spread, scale = CASES[case]

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        def shift(z: tf.Tensor) -> tf.Tensor:
            return tf.concat([z, spread * x], axis=-1)[..., D:]

        return tfd.TransformedDistribution(
            tfd.MultivariateNormalDiag(tf.zeros_like(x), scale * tf.ones_like(x)),
            tfb.Inline(
                forward_fn=lambda u: u + shift(u),
                inverse_fn=lambda z: z - shift(z),
                forward_log_det_jacobian_fn=lambda u: tf.zeros([], u.dtype),
                forward_min_event_ndims=1,
            ),
        )

    return encoder


def numpy_encoder(case: str) -> Any:
    """The same by numpy, as of another library: it can be no graph."""
    spread, scale = CASES[case]
    return lambda x: tfd.MultivariateNormalDiag(spread * np.asarray(x), np.full([len(x), D], scale))


ENCODERS = {"operator": operator_encoder, "closure": closure_encoder, "numpy": numpy_encoder}


def scores_of(case: str, z: np.ndarray) -> np.ndarray:
    spread, scale = CASES[case]
    scores: np.ndarray = stats.norm.logpdf(z[..., None, :], spread * X, scale).sum(-1)
    return scores


@pytest.mark.parametrize("batch_size", [4, 100])
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("case", CASES)
def test_densities_are_those_of_numpy(case: str, kind: str, batch_size: int) -> None:
    q_z = tfs.AggregatePosterior.from_encoder(
        ENCODERS[kind](case), X, batch_size=batch_size, reencode=True
    )
    z = q_z.sample([3, 2], seed=(0, 1))
    assert z.shape == [3, 2, D]
    scores = scores_of(case, z.numpy())
    log_q = special.logsumexp(scores, axis=-1) - np.log(N)
    evaluated = q_z.evaluate(z, index=tf.constant([[5, 1]] * 3))
    np.testing.assert_allclose(evaluated.log_prob, log_q, rtol=1e-9)
    entropy = special.entr(special.softmax(scores, axis=-1)).sum(-1)
    np.testing.assert_allclose(evaluated.index_entropy, entropy, atol=1e-9)
    own = np.take_along_axis(scores, np.array([[[5], [1]]] * 3), axis=-1)[..., 0]
    assert evaluated.component_log_prob is not None
    np.testing.assert_allclose(evaluated.component_log_prob, own, rtol=1e-9)
    np.testing.assert_allclose(
        q_z.index_log_probs(z), special.log_softmax(scores, axis=-1), rtol=1e-9, atol=1e-9
    )
    left_out = np.array(scores)
    left_out[..., 3] = -np.inf
    np.testing.assert_allclose(
        q_z.leave_one_out_log_prob(z, 3),
        special.logsumexp(left_out, axis=-1) - np.log(N - 1),
        rtol=1e-9,
    )


@pytest.mark.parametrize("case", CASES)
def test_draws_and_moments_are_those_of_the_mixture(case: str) -> None:
    q_z = tfs.AggregatePosterior.from_encoder(operator_encoder(case), X, reencode=True)
    spread, scale = CASES[case]
    np.testing.assert_allclose(q_z.mean(), spread * X.mean(0), atol=1e-9)
    np.testing.assert_allclose(q_z.variance(), scale**2 + spread**2 * X.var(0), rtol=1e-9)
    draws = q_z.sample(2000, seed=(0, 1)).numpy()
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - spread * X.mean(0)) < 5 * error).all()


def test_gradients_reach_the_weights_of_the_encoder() -> None:
    layer = keras.layers.Dense(D, dtype="float64")
    layer.build((None, D))

    def log_prob(encoder: Any, reencode: bool) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            q_z = tfs.AggregatePosterior.from_encoder(encoder, X, batch_size=4, reencode=reencode)
            value = tf.reduce_sum(q_z.log_prob(X[:5]))
        gradients = tape.gradient(value, [weight.value for weight in layer.trainable_variables])
        return [gradient.numpy() for gradient in gradients]

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(layer(x), tf.ones([D], tf.float64))

    for found, expected in zip(log_prob(encoder, True), log_prob(encoder, False), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_rows_are_picked_as_any_components() -> None:
    q_z = tfs.AggregatePosterior.from_encoder(operator_encoder("overlapping"), X, reencode=True)
    posteriors = q_z.components_distribution
    assert isinstance(posteriors, ReencodedPosteriors)
    chosen = components_lib.gather(posteriors, tf.constant([[4, 0], [4, 7]]))
    assert chosen.batch_shape == [2, 2]
    z = chosen.sample(seed=(0, 1))
    expected = stats.norm.logpdf(z.numpy(), X[[[4, 0], [4, 7]]], 0.5).sum(-1)
    np.testing.assert_allclose(chosen.log_prob(z), expected, rtol=1e-9)
    own = picked(posteriors, tf.constant([4, 0])).distribution
    assert isinstance(own, tfd.MultivariateNormalLinearOperator)
    np.testing.assert_allclose(own.loc, X[[4, 0]])


def test_a_wrong_density_of_several_draws_is_not_used() -> None:
    class Confused(tfd.MultivariateNormalDiag):
        def _log_prob(self, z: Any) -> tf.Tensor:  # sums over the draws where there are several
            value = super()._log_prob(z)
            return value if value.shape.rank == 1 else tf.reduce_sum(value, 0) + 0.0 * value

    z = tf.constant(RNG.normal(size=(3, N, D)))
    scores = scored(Confused(X, np.ones(D)), z)
    np.testing.assert_allclose(scores, stats.norm.logpdf(z.numpy(), X, 1.0).sum(-1), rtol=1e-9)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            lambda x: tfd.MultivariateNormalDiag(x + tf.random.normal(x.shape, dtype=x.dtype)),
            "when it is called again",
        ),
        (
            lambda x: tfd.MultivariateNormalDiag(x - tf.reduce_mean(x, axis=0)),
            "alone than in a batch",
        ),
        (lambda x: tfd.MultivariateNormalDiag(tf.transpose(x)), "batch shape"),
    ],
    ids=["draws", "compares", "transposed"],
)
def test_an_encoder_must_be_a_function_of_each_observation(encoder: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tfs.AggregatePosterior.from_encoder(encoder, X, reencode=True)


def test_half_precision_is_refused() -> None:
    encoder = lambda x: tfd.MultivariateNormalDiag(tf.cast(x, tf.float16))  # noqa: E731
    with pytest.raises(TypeError, match="float16: cast"):
        tfs.AggregatePosterior.from_encoder(encoder, X, reencode=True)
