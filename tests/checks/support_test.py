from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.support import check_support
from tfp_surgery.distributions.discretized_logistic import DiscretizedLogistic

tfd = tfp.distributions


def diag(batch_shape: list[int], event_size: int = 2) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(tf.zeros([*batch_shape, event_size]))


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
    check_support(likelihood, x)
    x[4, 3] = outside
    with pytest.raises(ValueError, match=message):
        check_support(likelihood, x)


def test_fractions_are_not_in_the_support_of_inflated_counts() -> None:
    """Log-normalized counts under the zero-inflated likelihood of the raw ones."""
    counts = tfd.NegativeBinomial(2.0, logits=tf.zeros([1, 2]))
    inflated = tfd.Inflated(counts, inflated_loc_probs=tf.fill([1, 2], 0.3), inflated_loc=0.0)
    likelihood = tfd.Independent(inflated, 1)
    check_support(likelihood, np.array([[0.0, 3.0]], np.float32))
    with pytest.raises(ValueError, match="whole numbers of at least 0"):
        check_support(likelihood, np.array([[0.0, 1.1]], np.float32))
    rain = tfd.Inflated(tfd.LogNormal(tf.zeros([1, 2]), 1.0), tf.zeros([1, 2]), inflated_loc=0.0)
    check_support(tfd.Independent(rain, 1), np.array([[0.0, 1.1]], np.float32))


def test_every_real_number_is_in_the_support_of_a_normal() -> None:
    x = np.array([[-1e6, 0.0], [3.0, 1e6]], np.float32)
    check_support(tfd.Independent(tfd.Normal(tf.zeros([1, 2]), 1.0), 1), x)


def test_booleans_are_in_the_support_of_a_bernoulli() -> None:
    likelihood = tfd.Independent(tfd.Bernoulli(logits=tf.zeros([1, 2])), 1)
    check_support(likelihood, np.array([[True, False]]))


def test_a_bad_value_is_found_in_the_last_block() -> None:
    x = np.zeros([20_000, 1], np.float32)
    likelihood = tfd.Independent(tfd.Bernoulli(logits=tf.zeros([1, 1])), 1)
    check_support(likelihood, x)
    x[-1] = 0.5
    with pytest.raises(ValueError, match="outside the support"):
        check_support(likelihood, x)


def test_support_is_checked_inside_wrappers_of_distributions_that_are_no_composites() -> None:
    """tfd.Independent of one is an instance of a base class of tfd.Independent alone."""
    base = DiscretizedLogistic(tf.fill([1, 4], 0.5), tf.fill([1, 4], 0.1), 256)
    distribution = tfd.Independent(base, 1)
    check_support(distribution, np.full([3, 4], 51 / 255, np.float32))
    with pytest.raises(ValueError, match="outside the support"):
        check_support(distribution, np.full([3, 4], 1 / 16, np.float32))


def test_mixtures_of_bernoullis_refuse_grayscale() -> None:
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(logits=tf.zeros([1, 2])),
        tfd.Independent(tfd.Bernoulli(logits=tf.zeros([1, 2, 4])), 1),
    )
    check_support(mixture, np.ones([3, 4], np.float32))
    with pytest.raises(ValueError, match="Binarize"):
        check_support(mixture, np.full([3, 4], 0.5, np.float32))


def test_many_values_against_many_levels_need_little_memory() -> None:
    """A table of values times levels would take 40 GB."""
    levels = tfd.FiniteDiscrete(tf.linspace(0.0, 1.0, 5000), logits=tf.zeros([5000]))
    x = np.random.default_rng(0).uniform(size=[1000, 1000]).astype(np.float32)
    with pytest.raises(ValueError, match="one of 5000 levels"):
        check_support(tfd.Sample(levels, [1000]), x)


def test_parameters_that_tfp_refuses_are_not_blamed_on_the_data() -> None:
    with pytest.raises(ValueError, match="the decoder gave Normal parameters that TFP refuses"):
        check_support(tfd.Independent(tfd.Normal(tf.zeros([1, 4]), 0.0), 1), np.zeros([3, 4]))


def test_one_hot_data_are_named_as_such() -> None:
    likelihood = tfd.OneHotCategorical(logits=tf.zeros([1, 3]))
    check_support(likelihood, np.eye(3))
    with pytest.raises(ValueError, match="a single 1 among 0s"):
        check_support(likelihood, np.ones([2, 3]))
