from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

from tfp_surgery.checks.networks import (
    build_prior,
    check_decoder_output,
    check_encoder_output,
    check_prior,
    unwrap,
    unwrap_output,
)
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.distributions.leave_one_out import LeaveOneOut
from tfp_surgery.priors.base import StandardNormalPrior

tfd = tfp.distributions


def diag(batch_shape: list[int], event_size: int = 2) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(tf.zeros([*batch_shape, event_size]))


def test_a_prior_layer_is_told_of_training() -> None:
    class Noted(keras.layers.Layer):
        def call(self, condition: Any = None, training: bool = False) -> Any:
            return tfd.Normal(1.0 if training else 0.0, 1.0)

    prior = Noted()
    assert float(build_prior(prior).loc) == 0.0
    assert float(build_prior(prior, training=True).loc) == 1.0
    assert build_prior(StandardNormalPrior(2), training=True).event_shape == [2]


@pytest.mark.parametrize(
    ("last_layer", "units", "kind"),
    [
        (lambda: tfp.layers.MultivariateNormalTriL(2), 5, tfd.MultivariateNormalTriL),
        (
            lambda: tfp.layers.DistributionLambda(
                lambda h: tfd.MultivariateNormalDiag(h[..., :2], tf.nn.softplus(h[..., 2:]))
            ),
            4,
            tfd.MultivariateNormalDiag,
        ),
        (lambda: tfp.layers.IndependentBernoulli([2]), 2, tfd.Independent),
    ],
)
def test_a_coercible_distribution_is_unwrapped(last_layer: Any, units: int, kind: Any) -> None:
    network = tf_keras.Sequential([tf_keras.layers.Dense(units), last_layer()])
    x = tf.random.stateless_normal([3, 4], seed=(0, 1))
    coercible = network(x)
    assert type(coercible) is not kind
    plain = check_encoder_output(coercible, 3)
    assert type(plain) is kind
    assert not hasattr(plain, "tensor_distribution")
    values = plain.sample(seed=(1, 2))
    np.testing.assert_array_equal(plain.log_prob(values), coercible.log_prob(values))


def test_unwrap_refuses_a_tensor_and_leaves_a_plain_distribution() -> None:
    plain = diag([3])
    assert unwrap(plain) is plain
    with pytest.raises(TypeError, match=r"expected a tfp.distributions.Distribution, got"):
        unwrap(tf.zeros([3]))


def test_encoder_output_needs_one_posterior_an_observation() -> None:
    assert check_encoder_output(diag([3]), 3).batch_shape == [3]
    with pytest.raises(ValueError, match=r"batch shape \[3\] for 3 observations.*is \[3, 2\]"):
        check_encoder_output(tfd.Normal(tf.zeros([3, 2]), 1.0), 3)
    with pytest.raises(ValueError, match=r"is \[\]"):
        check_encoder_output(diag([]), 3)
    with pytest.raises(TypeError, match="encoder must return a distribution"):
        check_encoder_output(np.zeros(3), 3)


def test_what_is_no_distribution_is_said_to_be_the_networks() -> None:
    plain = diag([3])
    assert unwrap_output(plain, "encoder") is plain
    with pytest.raises(TypeError, match=r"^the encoder must return .* got a Tensor of shape \[3\]"):
        unwrap_output(tf.zeros([3]), "encoder")
    with pytest.raises(TypeError, match=r"^the decoder must return .* got an object of type str"):
        unwrap_output("x", "decoder")


def test_decoder_output_needs_the_shape_of_an_observation() -> None:
    pixels = tfd.Bernoulli(logits=tf.zeros([3, 4, 5]))
    good = tfd.Independent(pixels, 2)
    assert check_decoder_output(good, 3, (4, 5)) is good
    with pytest.raises(ValueError, match=r"shape \[4, 5\], but the event shape .* is \[5\]"):
        check_decoder_output(tfd.Independent(pixels, 1), 3, (4, 5))
    with pytest.raises(ValueError, match=r"batch shape \[2\] for 2 codes.* is \[3\]"):
        check_decoder_output(good, 2, (4, 5))
    with pytest.raises(TypeError, match="decoder must return a distribution"):
        check_decoder_output(tf.zeros([3, 4, 5]), 3, (4, 5))


def test_a_prior_is_a_distribution_or_builds_one() -> None:
    prior = diag([])
    assert build_prior(prior) is prior
    assert build_prior(lambda: prior) is prior
    assert build_prior(lambda: prior, training=True) is prior
    with pytest.raises(TypeError, match="got int"):
        build_prior(3)
    with pytest.raises(TypeError, match="did not give a distribution"):
        build_prior(lambda: tf.zeros([2]))


def test_a_prior_covers_the_codes() -> None:
    assert check_prior(diag([]), diag([3])) is not None
    with pytest.raises(ValueError, match=r"codes of shape \[2\].*event shape \[4\]"):
        check_prior(diag([], 4), diag([3]))
    with pytest.raises(ValueError, match=r"batch shape \[2\]"):
        check_prior(tfd.Normal([0.0, 0.0], 1.0), diag([3]))


_ONE: dict[str, Callable[[], tfd.Distribution]] = {
    "diag": lambda: tfd.MultivariateNormalDiag(tf.ones([1, 2]), tf.constant([0.5, 2.0])),
    "independent": lambda: tfd.Independent(tfd.Normal(tf.ones([1, 2]), 0.5), 1),
    "sample": lambda: tfd.Sample(tfd.Normal(tf.ones([1]), 0.5), 2),
    "mixture": lambda: tfd.MixtureSameFamily(
        tfd.Categorical(logits=tf.zeros([3])),
        tfd.MultivariateNormalDiag(tf.reshape(tf.range(6.0), [1, 3, 2])),
    ),
    "transformed": lambda: tfd.TransformedDistribution(
        tfd.Sample(tfd.Normal(0.0, 1.0), 2), tfp.bijectors.Shift(tf.ones([1, 2]))
    ),
    "aggregate posterior": lambda: AggregatePosterior(
        tfd.MultivariateNormalDiag(tf.reshape(tf.range(6.0), [1, 3, 2]))
    ),
    "leave one out": lambda: LeaveOneOut(
        AggregatePosterior(tfd.MultivariateNormalDiag(tf.reshape(tf.range(6.0), [3, 2]))), [1]
    ),
    "broadcast": lambda: tfd.BatchBroadcast(diag([]), [1]),
    "reshaped": lambda: tfd.BatchReshape(diag([]), [1]),
    "reshaped batch of one": lambda: tfd.BatchReshape(diag([1]), [1]),
}


@pytest.mark.parametrize("callable_prior", [False, True])
@pytest.mark.parametrize("kind", _ONE)
def test_a_prior_in_a_batch_of_one_is_that_prior(kind: str, callable_prior: bool) -> None:
    batch = _ONE[kind]()
    assert batch.batch_shape == [1]
    prior = build_prior(_ONE[kind] if callable_prior else batch)
    assert check_prior(prior, diag([3])) is prior
    z = tf.random.stateless_normal([4, 2], seed=(1, 2))
    assert prior.log_prob(z).shape == (4,)
    np.testing.assert_array_equal(prior.log_prob(z), batch.log_prob(z[:, tf.newaxis])[:, 0])
    assert prior.sample(5, seed=(1, 2)).shape == (5, 2)


def test_a_variable_of_a_batch_of_one_gets_its_gradient() -> None:
    loc = tf.Variable(tf.ones([1, 2]))
    batch = tfd.MultivariateNormalDiag(loc)
    with tf.GradientTape() as tape:
        log_prob = build_prior(batch).log_prob(tf.constant([3.0, 0.0]))
    np.testing.assert_allclose(tape.gradient(log_prob, loc), [[2.0, -1.0]])


@pytest.mark.parametrize("batch", [[2], [1, 1], [0]])
def test_a_batch_of_priors_is_refused(batch: list[int]) -> None:
    prior = build_prior(diag(batch))
    with pytest.raises(ValueError, match=r"must be one distribution .* batch shape"):
        check_prior(prior, diag([3]))


def test_a_batch_of_one_that_cannot_be_sliced_is_refused() -> None:
    class Closed(tfd.Distribution):
        def __init__(self, code: tf.Tensor) -> None:
            self._code = code
            super().__init__(tf.float32, tfd.FULLY_REPARAMETERIZED, False, True)

        def _batch_shape(self) -> tf.TensorShape:
            return self._code.shape[:-1]

        def _event_shape(self) -> tf.TensorShape:
            return self._code.shape[-1:]

    with pytest.raises(ValueError, match=r"batch shape \[1\]"):
        check_prior(build_prior(Closed(tf.zeros([1, 2]))), diag([3]))


@pytest.mark.parametrize("half", [tf.float16, tf.bfloat16])
def test_a_prior_of_another_dtype_is_refused_with_the_way_out(half: tf.DType) -> None:
    with pytest.raises(ValueError, match=r"has float32\..*alike float32 parameters, tf\.cast"):
        check_prior(tfd.MultivariateNormalDiag(tf.zeros(2, half)), diag([3]))
    wide = tfd.MultivariateNormalDiag(np.zeros([3, 2]))
    with pytest.raises(ValueError, match=r"has float64\..*x\.astype\('float32'\)"):
        check_prior(diag([]), wide)
    with pytest.raises(ValueError, match=r"has float32\.$"):
        check_prior(tfd.MultivariateNormalDiag(np.zeros(2)), diag([3]))
