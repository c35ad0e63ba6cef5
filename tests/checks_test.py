from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

from tfp_surgery import checks
from tfp_surgery.networks.discretized_logistic import DiscretizedLogistic
from tfp_surgery.networks.priors import StandardNormalPrior

tfd = tfp.distributions


def diag(batch_shape: list[int], event_size: int = 2) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(tf.zeros([*batch_shape, event_size]))


def test_observations_come_back_as_an_array() -> None:
    x = np.ones([3, 2], np.float32)
    assert checks.check_observations(x) is x
    np.testing.assert_array_equal(checks.check_observations(tf.constant(x)), x)
    np.testing.assert_array_equal(checks.check_observations([[0, 1], [1, 0]]), [[0, 1], [1, 0]])
    assert checks.check_observations(tf.ones([2, 2], tf.bfloat16)).shape == (2, 2)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.float32(1.0), ValueError, "got a scalar"),
        (np.zeros([0, 4], np.float32), ValueError, r"no observations: its shape is \[0, 4\]"),
        (np.array([[0.0, np.nan], [1.0, 1.0]]), ValueError, "1 of its values.*index 0"),
        (np.array([[0.0, 1.0], [1.0, -np.inf]]), ValueError, "1 of its values.*index 1"),
        (np.array(["a", "b"]), TypeError, "numbers"),
        (np.array([1j]), TypeError, "complex"),
        ([[1.0], [1.0, 2.0]], TypeError, "numbers"),
        (None, TypeError, "object"),
    ],
)
def test_what_cannot_be_a_data_set_is_refused(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        checks.check_observations(x)


def test_integers_and_booleans_have_no_nan_to_be_found() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks.check_observations(np.zeros([2, 2], np.uint8))
        checks.check_observations(np.zeros([2, 2], np.bool_))


def test_a_prior_layer_is_told_of_training() -> None:
    class Noted(keras.layers.Layer):
        def call(self, condition: Any = None, training: bool = False) -> Any:
            return tfd.Normal(1.0 if training else 0.0, 1.0)

    prior = Noted()
    assert float(checks.build_prior(prior).loc) == 0.0
    assert float(checks.build_prior(prior, training=True).loc) == 1.0
    assert checks.build_prior(StandardNormalPrior(2), training=True).event_shape == [2]


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
    plain = checks.check_encoder_output(coercible, 3)
    assert type(plain) is kind
    assert not hasattr(plain, "tensor_distribution")
    values = plain.sample(seed=(1, 2))
    np.testing.assert_array_equal(plain.log_prob(values), coercible.log_prob(values))


def test_unwrap_refuses_a_tensor_and_leaves_a_plain_distribution() -> None:
    plain = diag([3])
    assert checks.unwrap(plain) is plain
    with pytest.raises(TypeError, match=r"expected a tfp.distributions.Distribution, got"):
        checks.unwrap(tf.zeros([3]))


def test_encoder_output_needs_one_posterior_an_observation() -> None:
    assert checks.check_encoder_output(diag([3]), 3).batch_shape == [3]
    with pytest.raises(ValueError, match=r"batch shape \[3\] for 3 observations.*is \[3, 2\]"):
        checks.check_encoder_output(tfd.Normal(tf.zeros([3, 2]), 1.0), 3)
    with pytest.raises(ValueError, match=r"is \[\]"):
        checks.check_encoder_output(diag([]), 3)
    with pytest.raises(TypeError, match="encoder must return a distribution"):
        checks.check_encoder_output(np.zeros(3), 3)


def test_decoder_output_needs_the_shape_of_an_observation() -> None:
    pixels = tfd.Bernoulli(logits=tf.zeros([3, 4, 5]))
    good = tfd.Independent(pixels, 2)
    assert checks.check_decoder_output(good, 3, (4, 5)) is good
    with pytest.raises(ValueError, match=r"shape \[4, 5\], but the event shape .* is \[5\]"):
        checks.check_decoder_output(tfd.Independent(pixels, 1), 3, (4, 5))
    with pytest.raises(ValueError, match=r"batch shape \[2\] for 2 codes.* is \[3\]"):
        checks.check_decoder_output(good, 2, (4, 5))
    with pytest.raises(TypeError, match="decoder must return a distribution"):
        checks.check_decoder_output(tf.zeros([3, 4, 5]), 3, (4, 5))


def test_a_prior_is_a_distribution_or_builds_one() -> None:
    prior = diag([])
    assert checks.build_prior(prior) is prior
    assert checks.build_prior(lambda: prior) is prior
    assert checks.build_prior(lambda: prior, training=True) is prior
    with pytest.raises(TypeError, match="got int"):
        checks.build_prior(3)
    with pytest.raises(TypeError, match="did not give a distribution"):
        checks.build_prior(lambda: tf.zeros([2]))


def test_a_prior_covers_the_codes() -> None:
    assert checks.check_prior(diag([]), diag([3])) is not None
    with pytest.raises(ValueError, match=r"codes of shape \[2\].*event shape \[4\]"):
        checks.check_prior(diag([], 4), diag([3]))
    with pytest.raises(ValueError, match=r"batch shape \[2\]"):
        checks.check_prior(tfd.Normal([0.0, 0.0], 1.0), diag([3]))


@pytest.mark.parametrize("half", [tf.float16, tf.bfloat16])
def test_a_prior_of_another_dtype_is_refused_with_the_way_out(half: tf.DType) -> None:
    with pytest.raises(ValueError, match=r"has float32\..*alike float32 parameters, tf\.cast"):
        checks.check_prior(tfd.MultivariateNormalDiag(tf.zeros(2, half)), diag([3]))
    wide = tfd.MultivariateNormalDiag(np.zeros([3, 2]))
    with pytest.raises(ValueError, match=r"has float64\..*x\.astype\('float32'\)"):
        checks.check_prior(diag([]), wide)
    with pytest.raises(ValueError, match=r"has float32\.$"):
        checks.check_prior(tfd.MultivariateNormalDiag(np.zeros(2)), diag([3]))


LEVELS = tf.range(17, dtype=tf.float32) / 16


@pytest.mark.parametrize(
    ("base", "inside", "outside", "message"),
    [
        (tfd.Bernoulli(logits=tf.zeros([1, 4])), [0.0, 1.0], 0.3, "Binarize"),
        (tfd.Bernoulli(logits=tf.zeros([1, 4])), [0.0, 1.0], 2.0, "from 0 to 2, expected 0 or 1"),
        (tfd.Poisson(tf.ones([1, 4])), [0.0, 7.0], 0.5, "whole numbers of at least 0"),
        (tfd.Categorical(tf.zeros([1, 4, 7])), [0.0, 6.0], 7.0, "whole numbers from 0 to 6"),
        (tfd.FiniteDiscrete(LEVELS, tf.zeros([1, 4, 17])), [0.0, 3 / 16], 0.1, "one of 17 levels"),
        (
            tfd.Uniform(tf.zeros([1, 4], tf.float64), tf.ones([1, 4], tf.float64)),
            [0.0, 1.0],
            1.5,
            "less than or equal to `high`",
        ),
        (tfd.Beta(tf.ones([1, 4]), tf.ones([1, 4])), [0.1, 0.9], 1.5, "Beta"),
        (tfd.LogNormal(tf.zeros([1, 4]), tf.ones([1, 4])), [0.1, 0.9], -0.5, "LogNormal"),
    ],
)
def test_values_outside_the_support_are_named(
    base: tfd.Distribution, inside: list[float], outside: float, message: str
) -> None:
    likelihood = tfd.Independent(base, 1)
    x = np.tile(np.array(inside, np.float32), [5, 2])  # [5, 4]
    checks.check_support(likelihood, x)
    x[4, 3] = outside
    with pytest.raises(ValueError, match=message):
        checks.check_support(likelihood, x)


def test_every_real_number_is_in_the_support_of_a_normal() -> None:
    x = np.array([[-1e6, 0.0], [3.0, 1e6]], np.float32)
    checks.check_support(tfd.Independent(tfd.Normal(tf.zeros([1, 2]), 1.0), 1), x)


def test_booleans_are_in_the_support_of_a_bernoulli() -> None:
    likelihood = tfd.Independent(tfd.Bernoulli(logits=tf.zeros([1, 2])), 1)
    checks.check_support(likelihood, np.array([[True, False]]))


def test_a_bad_value_is_found_in_the_last_block() -> None:
    x = np.zeros([2 * checks._SUPPORT_BLOCK + 1, 1], np.float32)
    likelihood = tfd.Independent(tfd.Bernoulli(logits=tf.zeros([1, 1])), 1)
    checks.check_support(likelihood, x)
    x[-1] = 0.5
    with pytest.raises(ValueError, match="outside the support"):
        checks.check_support(likelihood, x)


def test_support_is_checked_inside_wrappers_of_distributions_that_are_no_composites() -> None:
    """tfd.Independent of one is an instance of a base class of tfd.Independent alone."""
    base = DiscretizedLogistic(tf.fill([1, 4], 0.5), tf.fill([1, 4], 0.1), 256)
    distribution = tfd.Independent(base, 1)
    checks.check_support(distribution, np.full([3, 4], 51 / 255, np.float32))
    with pytest.raises(ValueError, match="outside the support"):
        checks.check_support(distribution, np.full([3, 4], 1 / 16, np.float32))


def test_mixtures_of_bernoullis_refuse_grayscale() -> None:
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(logits=tf.zeros([1, 2])),
        tfd.Independent(tfd.Bernoulli(logits=tf.zeros([1, 2, 4])), 1),
    )
    checks.check_support(mixture, np.ones([3, 4], np.float32))
    with pytest.raises(ValueError, match="Binarize"):
        checks.check_support(mixture, np.full([3, 4], 0.5, np.float32))


def test_many_values_against_many_levels_need_little_memory() -> None:
    """A table of values times levels would take 40 GB."""
    levels = tfd.FiniteDiscrete(tf.linspace(0.0, 1.0, 5000), logits=tf.zeros([5000]))
    x = np.random.default_rng(0).uniform(size=[1000, 1000]).astype(np.float32)
    with pytest.raises(ValueError, match="one of 5000 levels"):
        checks.check_support(tfd.Sample(levels, [1000]), x)


def test_parameters_that_tfp_refuses_are_not_blamed_on_the_data() -> None:
    with pytest.raises(ValueError, match="the decoder gave Normal parameters that TFP refuses"):
        checks.check_support(
            tfd.Independent(tfd.Normal(tf.zeros([1, 4]), 0.0), 1), np.zeros([3, 4])
        )


def test_one_hot_data_are_named_as_such() -> None:
    likelihood = tfd.OneHotCategorical(logits=tf.zeros([1, 3]))
    checks.check_support(likelihood, np.eye(3))
    with pytest.raises(ValueError, match="a single 1 among 0s"):
        checks.check_support(likelihood, np.ones([2, 3]))


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-m", "not slow"]))
