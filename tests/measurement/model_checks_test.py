from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components.flat_joint import flattened
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement.model_checks import (
    check_codes_in_support,
    check_no_nan,
)
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


@pytest.mark.parametrize("is_conditional", [False, True])
def test_a_part_is_in_the_support_of_its_prior_given_the_others(is_conditional: bool) -> None:
    def rate(other: tf.Tensor) -> tfd.Distribution:
        return tfd.Exponential(tf.exp(other))

    loc = tf.zeros([2]) if is_conditional else 0.0
    joint = tfd.JointDistributionNamed({"other": tfd.Normal(loc, 1.0), "rate": rate})
    codes = np.random.default_rng(0).normal(size=(50, 2, 2)).astype(np.float32)
    inside = np.stack([codes[..., 0], np.abs(codes[..., 1])], axis=-1)
    check_codes_in_support(flattened(joint), tf.constant(inside))
    num_outside = int((codes[..., 1] < 0).sum())
    with pytest.raises(ValueError, match=f"^{num_outside} of 100 draws .* prior Exponential"):
        check_codes_in_support(flattened(joint), tf.constant(codes))


X = np.random.default_rng(1).normal(size=(11, 4)).astype(np.float32)
CODES = tfd.MultivariateNormalDiag([0.0, 0.0], [1.0, 1.0])


def test_codes_lie_in_the_support_of_the_prior_given_their_condition() -> None:
    def prior(condition: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Exponential(tf.exp(condition[:, :2])), 1)

    def gaussian(x: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Normal(x[:, :2], 0.5), 1)

    def positive(x: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Exponential(tf.exp(x[:, :2])), 1)

    assert elbo_surgery(X, positive, None, prior, condition=X).average_kl.value == 0.0
    with pytest.raises(ValueError, match="outside the support of the prior"):
        elbo_surgery(X, gaussian, None, prior, condition=X)


@pytest.mark.parametrize("reencode", [False, True])
@pytest.mark.parametrize(
    "part",
    [
        lambda x: tfd.Deterministic(x[:, 2]),
        lambda x: tfd.Categorical(logits=x[:, :3], dtype=tf.float32),
    ],
    ids=["Deterministic", "Categorical"],
)
def test_a_mass_against_a_density_that_depends_on_others_is_refused(
    part: Callable[[tf.Tensor], tfd.Distribution], reencode: bool
) -> None:
    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.JointDistributionNamed(
            {"z": tfd.MultivariateNormalDiag(x[:, :2], [0.5, 0.5]), "k": part(x)}
        )

    prior = tfd.JointDistributionNamed({"z": CODES, "k": lambda z: tfd.Normal(z[..., 0], 1.0)})
    with pytest.raises(ValueError, match="puts probability on points, and the prior Normal"):
        elbo_surgery(X, encoder, None, prior, reencode=reencode)


def _joint_of_image_and_count(z: tf.Tensor) -> tfd.Distribution:
    """The count is that of a network of a code and of its own image."""

    def count(image: tf.Tensor) -> tfd.Distribution:
        inputs = tf.concat([z, tf.cast(image, tf.float32)], axis=-1)
        return tfd.Poisson(tf.exp(0.1 * tf.reduce_sum(inputs, -1)))

    logits = tf.tile(z, [1, 2])
    return tfd.JointDistributionNamed(
        {"image": tfd.Independent(tfd.Bernoulli(logits=logits), 1), "count": count}
    )


def test_the_parts_of_a_structured_x_are_in_the_support_of_their_likelihood() -> None:
    x = {"image": (X > 0).astype(np.float32), "count": np.arange(11, dtype=np.float32)}

    def encoder(x: dict[str, tf.Tensor]) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(x["image"][:, :2], [0.5, 0.5])

    def surgery(x: dict[str, np.ndarray], **more: Any) -> Any:
        return elbo_surgery(x, encoder, _joint_of_image_and_count, CODES, **more)

    assert surgery(x).outside_support == ""
    gray = x | {"image": np.abs(np.sin(X))}
    with pytest.raises(ValueError, match=r"x\['image'\] lies outside .* Bernoulli"):
        surgery(gray)
    assert surgery(gray, validate_args=False).outside_support.startswith("x['image'] lies outside")
    last = x["count"].copy()
    last[-1] = 0.5
    with pytest.raises(ValueError, match=r"x\['count'\] lies outside .* Poisson"):
        surgery(x | {"count": last})


def test_a_first_category_out_of_range_is_named() -> None:
    def decoder(z: tf.Tensor) -> tfd.Distribution:
        logits = tf.concat([z, z[:, :1]], axis=1)
        return tfd.JointDistributionNamed(
            {"x": tfd.MultivariateNormalDiag(tf.tile(z, [1, 2])), "k": tfd.Categorical(logits)}
        )

    with pytest.raises(ValueError, match=r"x\['k'\] lies outside .* whole numbers from 0 to 2"):
        elbo_surgery(
            {"x": X, "k": np.arange(11)[::-1].astype(np.int32)},
            lambda x: tfd.MultivariateNormalDiag(x["x"][:, :2], [0.5, 0.5]),
            decoder,
            CODES,
        )


def _likelihood(loc: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(tf.tile(loc, [1, 2]), tf.ones([4]))


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (lambda z: _likelihood(z - tf.reduce_mean(z, axis=0)), "code .* alone than in a batch"),
        (lambda z: _likelihood(tf.nn.dropout(z, 0.5)), "code .* when it is called again"),
    ],
    ids=["batch mean", "dropout"],
)
@pytest.mark.parametrize("num", [1, 11])
def test_a_decoder_that_is_no_function_of_each_code_is_refused(
    decoder: Callable[[tf.Tensor], tfd.Distribution], message: str, num: int
) -> None:
    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(x[:, :2], [0.5, 0.5])

    with pytest.raises(ValueError, match=f"the decoder gives a {message}"):
        elbo_surgery(X[:num], encoder, decoder, CODES)
    assert np.isfinite(elbo_surgery(X[:num], encoder, _likelihood, CODES).elbo.value)


def test_a_decoder_with_batch_normalisation_is_refused_in_training_alone() -> None:
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.layers.Dense(30), keras.layers.BatchNormalization(), keras.layers.Dense(4)]
    )

    def surgery(training: bool) -> Any:
        def decoder(z: tf.Tensor) -> tfd.Distribution:
            return tfd.MultivariateNormalDiag(network(z, training=training), tf.ones([4]))

        return elbo_surgery(X, lambda x: _encoder(x[:, :2]), decoder, CODES)

    assert np.isfinite(surgery(False).elbo.value)
    with pytest.raises(ValueError, match="training=False"):
        surgery(True)


def test_a_decoder_in_bfloat16_under_a_narrow_likelihood_passes() -> None:
    """Its means are rounded in a batch and not alone, by more than the width of the likelihood."""

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        if len(z) > 1:
            z = tf.cast(tf.cast(z, tf.bfloat16), tf.float32)
        return tfd.MultivariateNormalDiag(tf.tile(z, [1, 2]), tf.fill([4], 1e-3))

    assert np.isfinite(elbo_surgery(X, lambda x: _encoder(x[:, :2]), decoder, CODES).elbo.value)


@pytest.mark.parametrize(
    ("loc", "message"),
    [
        (lambda c: c - tf.reduce_mean(c, axis=0), "condition .* alone than in a batch"),
        (lambda c: c + tf.random.normal(tf.shape(c)), "condition .* when it is called again"),
    ],
    ids=["batch mean", "random"],
)
def test_a_prior_that_is_no_function_of_each_condition_is_refused(
    loc: Callable[[tf.Tensor], tf.Tensor], message: str
) -> None:
    """Conditions are sorted: the first of them do not differ."""
    condition = np.repeat([[0.0, 0.0], [1.0, 2.0]], [6, 5], axis=0).astype(np.float32)

    def surgery(loc: Callable[[tf.Tensor], tf.Tensor]) -> Any:
        def prior(condition: tf.Tensor) -> tfd.Distribution:
            return tfd.MultivariateNormalDiag(loc(condition), [1.0, 1.0])

        return elbo_surgery(X, lambda x: _encoder(x[:, :2]), None, prior, condition=condition)

    assert np.isfinite(surgery(tf.identity).average_kl.value)
    with pytest.raises(ValueError, match=f"the prior gives a {message}"):
        surgery(loc)


def test_a_decoder_of_one_batch_size_is_measured() -> None:
    def decoder(z: tf.Tensor) -> tfd.Distribution:
        if len(z) not in (1, 11):
            raise ValueError("batches of 11")
        return _likelihood(z)

    surgery = elbo_surgery(X, lambda x: _encoder(x[:, :2]), decoder, CODES, num_samples=1)
    assert np.isfinite(surgery.elbo.value)
