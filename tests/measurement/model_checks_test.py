from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components.flat_joint import flattened
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement.model_checks import check_codes_in_support, check_no_nan
from tfp_surgery.surgery.elbo_surgery import elbo_surgery

tfd = tfp.distributions


def _encoder(x: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(x, tf.ones_like(x))


def test_nan_parameters_are_counted() -> None:
    loc = np.zeros([4, 2])
    check_no_nan(AggregatePosterior(_encoder(tf.constant(loc))))
    loc[1, 0] = loc[3, 1] = math.nan
    with pytest.raises(ValueError, match="NaN parameters for 2 of 4 observations"):
        check_no_nan(AggregatePosterior(_encoder(tf.constant(loc))))


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


def test_the_support_is_that_of_each_observation_with_its_condition() -> None:
    """The counts of a multinomial sum to a number of their own in each row."""
    x = np.array([[1, 2], [0, 4], [3, 2]], np.float32)

    def multinomial(z: tf.Tensor, condition: tf.Tensor) -> tfd.Distribution:
        return tfd.Multinomial(condition, probs=tf.nn.softmax(z))

    prior = tfd.MultivariateNormalDiag(tf.zeros(2), tf.ones(2))
    surgery = elbo_surgery(x, _encoder, multinomial, prior, condition=x.sum(axis=1))
    assert not surgery.outside_support
    wrong = x.sum(axis=1) + np.array([0, 0, 1], np.float32)
    with pytest.raises(ValueError, match="counts must sum to"):
        elbo_surgery(x, _encoder, multinomial, prior, condition=wrong)
    unchecked = elbo_surgery(x, _encoder, multinomial, prior, condition=wrong, validate_args=False)
    assert "counts must sum to" in unchecked.outside_support


@pytest.mark.parametrize("is_dependent", [False, True])
def test_parts_of_structured_codes_are_in_the_support_of_their_own_prior(
    is_dependent: bool,
) -> None:
    rate = tfd.Exponential(1.0)
    other = (lambda rate: tfd.Normal(rate, 1.0)) if is_dependent else tfd.Normal(0.0, 1.0)
    cluster = tfd.Categorical([0.0, 0.0])
    prior = flattened(
        tfd.JointDistributionNamed({"cluster": cluster, "other": other, "rate": rate})
    )
    codes = np.random.default_rng(0).normal(size=(50, 2, 3)).astype(np.float32)
    codes[..., 0] = 1.0
    inside = np.concatenate([codes[..., :2], np.abs(codes[..., 2:])], axis=-1)
    check_codes_in_support(prior, tf.constant(inside))
    with pytest.raises(ValueError, match="outside the support of the prior Exponential"):
        check_codes_in_support(prior, tf.constant(codes))
