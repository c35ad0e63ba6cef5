from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing.models import unit_decoder
from tfp_surgery import datasets
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement import model
from tfp_surgery.measurement.model import check_codes_in_support
from tfp_surgery.surgery.elbo_surgery import elbo_surgery

tfd = tfp.distributions


def _encoder(x: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(x, tf.ones_like(x))


def test_observations_say_what_they_are() -> None:
    x, text = model.observations_of([[1.0], [2.0]], seed=0)
    np.testing.assert_array_equal(x, [[1.0], [2.0]])
    assert text == "an array, N = 2, binarization not stated"
    _, text = model.observations_of(np.array([[0], [200]], np.uint8), seed=0)
    assert text == "an array, N = 2, uint8 from 0 to 200 taken as they are, binarization not stated"
    dataset = datasets.load("digits", binarization="stochastic")
    first, text = model.observations_of(dataset, seed=3)
    np.testing.assert_array_equal(first, dataset.observations(draw_seed=3))
    assert text == dataset.describe(draw_seed=3)


def test_a_model_that_fits_passes_and_others_do_not() -> None:
    x = np.zeros([5, 1])
    prior = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))
    model.check_model(x, _encoder, unit_decoder, prior)
    aggregate = AggregatePosterior(_encoder(tf.zeros([3, 1], tf.float64)))
    model.check_model(x, _encoder, unit_decoder, prior, aggregate)
    with pytest.raises(TypeError, match="must be callables"):
        model.check_model(x, prior, unit_decoder, prior)
    wide = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="prior"):
        model.check_model(x, _encoder, unit_decoder, wide)
    other = AggregatePosterior(_encoder(tf.zeros([3, 2], tf.float64)))
    with pytest.raises(ValueError, match=r"over codes of shape \(1,\)"):
        model.check_model(x, _encoder, unit_decoder, prior, other)

    def failing(x: tf.Tensor) -> tfd.Distribution:
        raise RuntimeError(f"no weights for {len(x)}")

    with pytest.raises(ValueError, match=r"encoder failed on inputs of shape \(2, 1\).*no weights"):
        model.check_model(x, failing, unit_decoder, prior)


def test_nan_parameters_are_counted() -> None:
    loc = np.zeros([4, 2])
    model.check_no_nan(AggregatePosterior(_encoder(tf.constant(loc))))
    loc[1, 0] = loc[3, 1] = math.nan
    with pytest.raises(ValueError, match="NaN parameters for 2 of 4 observations"):
        model.check_no_nan(AggregatePosterior(_encoder(tf.constant(loc))))


def test_reconstruction_scores_each_code_with_its_own_observation() -> None:
    rng = np.random.default_rng(0)
    z, x = rng.normal(size=(3, 4, 2)), rng.normal(size=(4, 2))
    values = model.reconstruction_log_prob(_encoder, tf.constant(z), tf.constant(x))
    expected = -0.5 * ((x - z) ** 2).sum(axis=-1) - math.log(2 * math.pi)
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_many_models_are_traced_without_warnings(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tensorflow"):
        for factor in range(8):

            def double(x: tf.Tensor, factor: int = factor) -> dict[str, tf.Tensor]:
                return {"value": factor * x, "nothing": None}

            graph = model.traced(double, tf.TensorSpec([2], tf.float32))
            result = graph(tf.constant([1.0, 2.0]))
            np.testing.assert_array_equal(result["value"], [factor, 2 * factor])
            assert result["nothing"] is None
    assert "retracing" not in caplog.text


@pytest.mark.parametrize(
    ("prior", "inside"),
    [
        (tfd.Exponential(1.0), tf.abs),
        (tfd.Gamma(1.0, 1.0), tf.abs),
        (tfd.Chi2(2.0), tf.abs),
        (tfd.Weibull(1.0, 1.0), tf.abs),
        (tfd.GeneralizedPareto(0.0, 1.0, 0.1), tf.abs),
        (tfd.Beta(1.0, 1.0), tf.sigmoid),
        (tfd.Independent(tfd.Exponential([1.0]), 1), tf.abs),
        (tfd.Dirichlet([1.0, 1.0, 1.0]), tf.nn.softmax),
        (tfd.SphericalUniform(3), lambda z: tf.math.l2_normalize(z, axis=-1)),
        (tfd.VonMisesFisher([1.0, 0.0], 2.0), lambda z: tf.math.l2_normalize(z, axis=-1)),
        (tfd.PowerSpherical([1.0, 0.0], 2.0), lambda z: tf.math.l2_normalize(z, axis=-1)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_density_outside_the_support_is_refused(prior: tfd.Distribution, inside: Any) -> None:
    """TFP's formulas are finite there, and the KL would be a number."""
    codes = np.random.default_rng(0).normal(size=(50, 2, *prior.event_shape))
    codes = tf.constant(codes.astype(np.float32))
    assert np.isfinite(prior.log_prob(codes).numpy()).any()
    with pytest.raises(ValueError, match="lie outside the support of the prior"):
        check_codes_in_support(prior, codes)
    check_codes_in_support(prior, inside(codes))


@pytest.mark.parametrize(
    "prior",
    [
        tfd.Normal(0.0, 1.0),
        tfd.Uniform(-0.1, 0.1),
        tfd.VonMises(0.0, 1.0),
        tfd.Categorical(probs=[0.5, 0.5], dtype=tf.float32),
        tfd.MixtureSameFamily(
            tfd.Categorical(probs=[0.5, 0.5]), tfd.Normal([-1.0, 1.0], [1.0, 1.0])
        ),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_what_is_inside_or_has_no_density_passes(prior: tfd.Distribution) -> None:
    codes = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    check_codes_in_support(prior, tf.constant(codes))


def test_a_surgery_refuses_codes_outside_the_support_of_its_prior() -> None:
    with pytest.raises(ValueError, match="of the prior Exponential, whose log_prob is finite"):
        elbo_surgery(
            np.ones([4, 1], np.float32),
            lambda x: tfd.Normal(x[:, 0], 1.0),
            lambda z: tfd.Independent(tfd.Normal(z[:, tf.newaxis], 1.0), 1),
            tfd.Exponential(1.0),
        )


@pytest.mark.parametrize(
    "prior",
    [
        # Their maps do not reach the support, or take other things than a code.
        tfd.WishartTriL(5.0, np.eye(2, dtype=np.float32)),
        tfd.SphericalUniform(3),
        tfd.Blockwise([tfd.Normal([0.0], 1.0), tfd.Normal([0.0], 1.0)]),
        tfd.Blockwise(
            [
                tfd.Independent(tfd.Normal([0.0], 1.0), 1),
                tfd.OneHotCategorical([0.0, 0.0], dtype=tf.float32),
            ]
        ),
    ],
    ids=["WishartTriL", "SphericalUniform", "Blockwise", "Blockwise of both"],
)
def test_draws_of_a_prior_lie_in_its_support(prior: tfd.Distribution) -> None:
    check_codes_in_support(prior, prior.sample([50, 2], seed=(0, 1)))
