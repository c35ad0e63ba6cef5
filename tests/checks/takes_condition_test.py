"""Tests of which networks get a condition."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tfp_surgery import priors
from tfp_surgery.checks.takes_condition import call, check_condition_is_taken, takes_condition
from tfp_surgery.networks import GaussianEncoder

tfd = tfp.distributions


class AnyKeyword(keras.layers.Layer):
    def call(self, z: Any, **kwargs: Any) -> Any:
        return z


class Conditional(keras.layers.Layer):
    def call(self, z: Any, condition: Any = None) -> Any:
        return z + condition


def named(x: Any, condition: Any) -> Any:
    return x + condition


def anything(x: Any, **kwargs: Any) -> Any:
    return x + kwargs.get("condition", 0)


def partial(network: Any, **keywords: Any) -> Any:
    return functools.partial(network, **keywords)


@pytest.mark.parametrize(
    "network",
    [
        *(named, anything, partial(named), tf.function(named), Conditional()),
        partial(Conditional(), training=False),
    ],
    ids=["named", "any keyword", "partial", "tf.function", "layer", "partial of a layer"],
)
def test_networks_that_name_the_condition_get_it(network: Any) -> None:
    assert takes_condition(network)
    assert float(call(network, tf.constant(1.0), condition=tf.constant(2.0))) == 3.0


@pytest.mark.parametrize(
    "network",
    [
        lambda x: x,
        keras.Sequential([keras.layers.Identity()]),  # whose call takes and drops any keyword
        AnyKeyword(),
        partial(AnyKeyword(), training=False),
        partial(GaussianEncoder(abs, latent_size=2, scale="log_variance"), training=False),
        partial(named, condition=1.0),
        partial(Conditional(), condition=1.0),
        tfd.Normal(0.0, 1.0),
        tfp.experimental.util.DeferredModule(tfd.Normal, tf.Variable(0.0), 1.0),
        priors.StandardNormalPrior(2),
        priors.MixturePrior(2, 3),
        abs,
    ],
    ids=[
        *("lambda", "sequential", "layer of any keyword", "partial of a layer"),
        *("partial of a layer of ours", "bound", "bound layer", "distribution", "deferred"),
        *("layer of ours", "not conditional", "builtin"),
    ],
)
def test_others_do_not(network: Any) -> None:
    assert not takes_condition(network)
    with pytest.raises(TypeError, match=r"none of encoder takes it.*lambda z, condition"):
        check_condition_is_taken(1, encoder=network)


def test_a_prior_of_the_package_does_if_it_was_made_for_one() -> None:
    assert takes_condition(priors.MixturePrior(2, 3, condition_size=4))


def test_a_call_without_a_condition_leaves_it_out() -> None:
    assert call(anything, 1) == 1
    assert check_condition_is_taken(None, encoder=anything, decoder=Conditional()) == []
    assert check_condition_is_taken(1, encoder=named, decoder=abs) == ["encoder"]


def test_a_condition_that_is_needed_and_not_given_is_missed() -> None:
    with pytest.raises(TypeError, match=r"^encoder needs condition="):
        check_condition_is_taken(None, encoder=named, decoder=abs)
    prior = priors.MixturePrior(2, 3, condition_size=4)
    with pytest.raises(TypeError, match=r"^encoder, decoder and prior need condition="):
        check_condition_is_taken(None, encoder=named, decoder=named, prior=prior)
    bound = [partial(each, condition=1.0) for each in (named, Conditional())]
    assert check_condition_is_taken(None, encoder=bound[0], decoder=bound[1]) == []


def test_a_condition_of_another_dtype_is_told_to_be_cast() -> None:
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    labels = np.eye(3)[[0, 1, 2, 0, 1, 2]]
    weights = tf.ones([3, 2])

    def encoder(x: tf.Tensor) -> Any:
        return tfd.MultivariateNormalDiag(x, tf.ones_like(x))

    def joined(x: tf.Tensor, condition: Any) -> Any:
        return encoder(tf.concat([x, condition], axis=-1)[:, :2])

    def decoder(z: tf.Tensor, condition: Any) -> Any:
        return encoder(z + condition @ weights)

    def by_name(z: tf.Tensor, condition: Any) -> Any:
        return decoder(z, condition["label"])

    def prior(condition: Any) -> Any:
        return encoder(condition @ weights)

    standard = tfd.MultivariateNormalDiag(tf.zeros(2), tf.ones(2))
    told = r"condition is float64: condition.astype\('float32'\) works"
    for networks, name in (
        ((encoder, decoder, standard), "decoder failed .* dtype float32: "),
        ((joined, decoder, standard), "encoder failed .* dtype float32: "),
        ((encoder, encoder, prior), ""),
    ):
        with pytest.raises(ValueError, match=name + told):
            tfs.elbo_surgery(x, *networks, condition=labels)
        tfs.elbo_surgery(x, *networks, condition=labels.astype("float32"))
    with pytest.raises(ValueError, match=r"parts in float64: their .astype\('float32'\)"):
        tfs.elbo_surgery(x, encoder, by_name, standard, condition={"label": labels, "n": [1] * 6})


def test_other_failures_are_not_blamed_on_the_condition() -> None:
    def failing(_: Any, condition: Any) -> Any:  # noqa: ARG001
        raise RuntimeError("no weights")

    for condition in (tf.constant(1.0), tf.ragged.constant([[1.0]]), np.ones(1), "a"):
        with pytest.raises(RuntimeError, match=r"^no weights$"):
            call(failing, 1, condition=condition)
