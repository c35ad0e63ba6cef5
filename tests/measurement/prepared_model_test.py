"""Tests of the prepared model: what it refuses before the work, and that nothing is done twice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing.models import unit_decoder
from tfp_surgery import datasets
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement.prepared_model import PreparedModel, prepared_model

tfd = tfp.distributions

X = np.random.default_rng(0).normal(size=(5, 1))
PRIOR = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))


def _encoder(x: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(x, tf.ones_like(x))


def _prepared(encoder: Any = _encoder, prior: Any = PRIOR, x: Any = X) -> PreparedModel:
    return prepared_model(x, encoder, unit_decoder, prior, 0, 100)


def test_a_model_that_does_not_fit_is_refused_before_it_is_encoded() -> None:
    shown: list[int] = []

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        shown.append(len(x))
        return _encoder(x)

    wide = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="prior"):
        _prepared(encoder, wide)
    with pytest.raises(TypeError, match="decoder must be a callable"):
        prepared_model(X, encoder, PRIOR, PRIOR, 0, 100)
    assert shown == [2, 2]
    with pytest.raises(TypeError, match=r"encoder must be a callable .* or the posteriors"):
        _prepared(X)

    def failing(x: tf.Tensor) -> tfd.Distribution:
        raise RuntimeError(f"no weights for {len(x)}")

    with pytest.raises(ValueError, match=r"encoder failed on inputs of shape \(2, 1\).*no weights"):
        _prepared(failing)


def test_it_is_encoded_once_and_its_prior_built_once() -> None:
    shown: list[int] = []
    built: list[None] = []

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        shown.append(len(x))
        return _encoder(x)

    def prior() -> tfd.Distribution:
        built.append(None)
        return PRIOR

    model = prepared_model(np.tile(X, [40, 1]), encoder, unit_decoder, prior, 0, 100)
    assert shown == [2]
    for _ in range(2):
        assert model.aggregate_posterior.num_components == 200
        assert model.posteriors.batch_shape == (200,)
    assert len(built) == 1
    assert sum(shown) - 200 <= 16


@pytest.mark.parametrize("joined", [True, False])
def test_posteriors_in_the_place_of_the_encoder(joined: bool) -> None:
    posteriors = _encoder(tf.constant(X))
    given = AggregatePosterior(posteriors) if joined else posteriors
    model = prepared_model(X, given, _encoder, PRIOR, 0, 100)
    np.testing.assert_array_equal(model.posteriors.mean(), X)
    z = tf.constant(np.random.default_rng(1).normal(size=(3, 2, 1)))
    expected = -0.5 * ((X[[4, 0]] - z.numpy()) ** 2).sum(axis=-1) - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(model.log_likelihood(z, np.array([4, 0])), expected, rtol=1e-12)


def test_posteriors_of_other_observations_are_refused() -> None:
    other = tfd.MultivariateNormalDiag(np.zeros([4, 1]), np.ones([4, 1]))
    with pytest.raises(ValueError, match="has 4 components, but x holds 5 observations"):
        _prepared(AggregatePosterior(other))
    with pytest.raises(ValueError, match=r"batch shape \[5\] for 5"):
        _prepared(other)
    posteriors = _encoder(tf.constant(X))
    with pytest.raises(ValueError, match="weight its components equally"):
        _prepared(AggregatePosterior(posteriors, weights=np.arange(1.0, 6.0)))
    with pytest.raises(ValueError, match="one distribution, got batch shape"):
        _prepared(AggregatePosterior(_encoder(tf.constant(X[None]))))


def test_posteriors_of_another_draw_of_the_binarization_are_refused() -> None:
    dataset = datasets.Dataset("noise", "test", np.full([5, 1, 1, 1], 0.5), "stochastic", 0)
    with pytest.raises(ValueError, match="belong to one draw of a stochastic binarization"):
        _prepared(_encoder(tf.constant(X)), x=dataset)


def _of_parts(cluster: Any, code: Any) -> tfd.Distribution:
    return tfd.JointDistributionNamed({"cluster": cluster, "code": code})


def _cluster_encoder(x: tf.Tensor) -> tfd.Distribution:
    return _of_parts(tfd.Categorical(logits=tf.concat([x, -x], -1)), tfd.Normal(x[:, 0], 1.0))


def _cluster_decoder(z: Any) -> tfd.Distribution:
    return unit_decoder(z["code"][:, tf.newaxis])


def test_a_code_with_a_cluster_and_a_prior_that_depends_on_it() -> None:
    """Of unknown parts nothing is said; independent parts beside them are no point masses."""
    cluster = tfd.Categorical(logits=np.zeros(2, np.float32))
    for code in (tfd.Normal(0.0, 1.0), lambda cluster: tfd.Normal(tf.cast(cluster, tf.float32), 1)):
        prior = _of_parts(cluster, code)
        x = X.astype(np.float32)
        model = prepared_model(x, _cluster_encoder, _cluster_decoder, prior, 0, 100)
        assert model.layout is not None
        assert model.layout.names == ("cluster", "code")


def test_masses_and_densities_are_told_apart_in_each_part() -> None:
    """The cluster is a mass in both, so that both are masses and densities as a whole."""
    prior = _of_parts(tfd.Categorical(logits=np.zeros(2, np.float32)), tfd.Normal(0.0, 1.0))

    def points(x: tf.Tensor) -> tfd.Distribution:
        return _of_parts(tfd.Categorical(logits=tf.concat([x, -x], -1)), tfd.Deterministic(x[:, 0]))

    with pytest.raises(ValueError, match="Deterministic puts probability on points"):
        prepared_model(X.astype(np.float32), points, _cluster_decoder, prior, 0, 100)


def test_codes_outside_the_support_of_a_conditional_prior_are_refused() -> None:
    """TFP's formula of the exponential is finite below 0."""

    def prior(condition: Any) -> tfd.Distribution:
        return tfd.Independent(tfd.Exponential(tf.exp(condition)), 1)

    def positive(x: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.LogNormal(x, np.float64(1)), 1)

    model = prepared_model(X, positive, unit_decoder, prior, 0, 100, condition=X)
    assert model.prior is None
    with pytest.raises(ValueError, match=r"draws of the posteriors .* outside the support"):
        prepared_model(X, _encoder, unit_decoder, prior, 0, 100, condition=X)


def test_scoring_x_as_it_is_is_offered_where_it_can_be_chosen() -> None:
    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Bernoulli(logits=z), 1)

    for chosen, offered in ((None, False), (True, True)):
        with pytest.raises(ValueError, match="outside the support of the likelihood") as caught:
            prepared_model(X, _encoder, decoder, PRIOR, 0, 100, validate_args=chosen)
        assert ("validate_args=False" in str(caught.value)) == offered
