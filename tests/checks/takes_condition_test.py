"""Tests of which networks get a condition."""

from __future__ import annotations

import functools
from typing import Any

import keras
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import priors
from tfp_surgery.checks.takes_condition import call, check_condition_is_taken, takes_condition

tfd = tfp.distributions


class Conditional(keras.layers.Layer):
    def call(self, z: Any, condition: Any = None) -> Any:
        return z + condition


def named(x: Any, condition: Any) -> Any:
    return x + condition


def anything(x: Any, **kwargs: Any) -> Any:
    return x + kwargs.get("condition", 0)


@pytest.mark.parametrize(
    "network",
    [named, anything, functools.partial(named), tf.function(named), Conditional()],
    ids=["named", "any keyword", "partial", "tf.function", "layer"],
)
def test_networks_that_name_the_condition_get_it(network: Any) -> None:
    assert takes_condition(network)
    assert float(call(network, tf.constant(1.0), condition=tf.constant(2.0))) == 3.0


@pytest.mark.parametrize(
    "network",
    [
        lambda x: x,
        keras.Sequential([keras.layers.Identity()]),  # whose call takes and drops any keyword
        tfd.Normal(0.0, 1.0),
        tfp.experimental.util.DeferredModule(tfd.Normal, tf.Variable(0.0), 1.0),
        priors.StandardNormalPrior(2),
        priors.MixturePrior(2, 3),
        abs,
    ],
    ids=[
        *("lambda", "sequential", "distribution", "deferred"),
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
