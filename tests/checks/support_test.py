from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.support import check_support, support_problem
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


ONES = np.ones([3, 2], np.float32)
HALVES = np.full([3, 2], 0.5, np.float32)


def bernoulli(batch_size: int = 1) -> tfd.Distribution:
    return tfd.Independent(tfd.Bernoulli(logits=tf.zeros([batch_size, 2])), 1)


def test_each_part_of_a_joint_distribution_has_its_support() -> None:
    joint = tfd.JointDistributionNamed(
        {"image": bernoulli(), "count": tfd.Poisson([1.0]), "k": tfd.Categorical(tf.zeros([1, 4]))}
    )
    x = {"image": ONES, "count": np.array([0.0, 3.0, 7.0], np.float32), "k": np.array([0, 3, 1])}
    assert support_problem(joint, [x]) == ""
    problem = support_problem(joint, [x | {"image": HALVES}])
    assert problem.startswith("x['image'] lies outside the support of the likelihood Bernoulli")
    alone = support_problem(tfd.Categorical(tf.zeros([1, 4])), [np.array([0, 4, 1])])
    problem = support_problem(joint, [x, x | {"k": np.array([0, 4, 1])}])
    assert problem == alone.replace("x lies", "x['k'] lies")
    assert alone.endswith("expected whole numbers from 0 to 3.")
    both = x | {"image": HALVES, "k": np.array([0, 4, 1])}
    assert "x['image']" in support_problem(joint, [both])
    assert "x['k']" in support_problem(joint, [both])


@pytest.mark.parametrize("is_auto_batched", [False, True])
def test_a_part_that_depends_on_others_has_the_support_that_they_give_it(
    is_auto_batched: bool,
) -> None:
    """Successes of a number of trials that is a part of x itself."""

    def successes(trials: tf.Tensor) -> tfd.Distribution:
        return tfd.Binomial(trials, probs=tf.fill(tf.shape(trials), 0.5))

    model = [tfd.Poisson([4.0]), successes]
    joint = (
        tfd.JointDistributionSequentialAutoBatched(model, batch_ndims=1)
        if is_auto_batched
        else tfd.JointDistributionSequential(model)
    )
    trials = np.array([2.0, 5.0, 3.0], np.float32)
    assert support_problem(joint, [[trials, np.array([2.0, 4.0, 0.0], np.float32)]]) == ""
    problem = support_problem(joint, [[trials, np.array([2.0, 4.0, 4.0], np.float32)]])
    assert problem.startswith("x[1] lies outside the support of the likelihood Binomial")


def test_parts_of_parts_are_named_by_their_place() -> None:
    inner = tfd.JointDistributionNamed({"image": bernoulli()})
    joint = tfd.JointDistributionSequential([tfd.Normal([0.0], 1.0), inner])
    x = [np.zeros(3, np.float32), {"image": ONES}]
    assert support_problem(joint, [x]) == ""
    assert support_problem(joint, [[x[0], {"image": HALVES}]]).startswith("x[1]['image'] lies")


@pytest.mark.parametrize("is_inside", [True, False], ids=["of pixels", "of images"])
def test_masked_values_may_lie_outside_the_support(is_inside: bool) -> None:
    pixels = tfd.Bernoulli(logits=tf.zeros([3, 2]), dtype=tf.float32)
    if is_inside:
        mask = np.array([[True, True], [False, True], [True, True]])
        likelihood = tfd.Independent(tfd.Masked(pixels, mask), 1)
    else:
        mask = np.array([[True, True], [False, False], [True, True]])
        likelihood = tfd.Masked(tfd.Independent(pixels, 1), mask[:, 0])
    x = np.where(mask, 1.0, -1.0).astype(np.float32)
    check_support(likelihood, x)
    x[2, 1] = 0.5
    with pytest.raises(ValueError, match=r"from 0.* to 1, expected 0 or 1"):
        check_support(likelihood, x)


def test_parts_of_a_blockwise_likelihood_have_their_support() -> None:
    pixels = tfd.Independent(tfd.Bernoulli(logits=tf.zeros([1, 2]), dtype=tf.float32), 1)
    parts = [tfd.LogNormal([0.0], 1.0), pixels]
    joint = tfd.JointDistributionSequential(parts)
    x = np.concatenate([HALVES[:, :1], ONES], axis=1)
    for likelihood, place in (
        (tfd.Blockwise(parts), r"x\[\.\.\., 1:3\]"),
        (tfd.Blockwise(joint), r"x\[1\]"),
    ):
        check_support(likelihood, x)
        with pytest.raises(ValueError, match=f"{place} lies outside .* Bernoulli"):
            check_support(likelihood, x[:, ::-1])


@pytest.mark.parametrize("has_zeros", [False, True], ids=["of counts", "zero-inflated"])
def test_values_that_every_component_refuses_are_outside(has_zeros: bool) -> None:
    first = tfd.Deterministic([0.0]) if has_zeros else tfd.Geometric([0.5])
    mixture = tfd.Mixture(
        tfd.Categorical(logits=tf.zeros([1, 2])), [first, tfd.Poisson(tf.ones([1]))]
    )
    check_support(mixture, np.array([0.0, 3.0], np.float32))
    with pytest.raises(ValueError, match="whole numbers of at least 0"):
        check_support(mixture, np.array([0.0, 0.5], np.float32))


def test_values_that_one_component_takes_are_inside() -> None:
    counts = tfd.Mixture(
        tfd.Categorical(logits=tf.zeros([1, 2])),
        [tfd.Bernoulli(logits=[0.0], dtype=tf.float32), tfd.Poisson([1.0])],
    )
    check_support(counts, np.array([0.0, 3.0], np.float32))
    intervals = tfd.Mixture(
        tfd.Categorical(logits=tf.zeros([1, 2])),
        [tfd.Uniform([0.0], 1.0), tfd.Uniform([2.0], 3.0)],
    )
    check_support(intervals, np.array([0.5, 2.5], np.float32))


def test_mixtures_of_counts_are_checked_at_any_shape_of_their_batch() -> None:
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(logits=tf.zeros([3, 2, 5])), tfd.Poisson(tf.ones([3, 2, 5]))
    )
    check_support(tfd.Independent(mixture, 1), ONES)
    with pytest.raises(ValueError, match="whole numbers of at least 0"):
        check_support(tfd.Independent(mixture, 1), HALVES)


def test_a_sample_has_the_bounds_of_its_own_observation() -> None:
    """[B] bounds against x of shape [B, S]: those of the rows, not of the columns."""
    likelihood = tfd.Sample(tfd.Uniform([0.0, 10.0], [1.0, 11.0]), 2)
    check_support(likelihood, np.array([[0.5, 0.6], [10.5, 10.6]], np.float32))
    with pytest.raises(ValueError, match="outside the support"):
        check_support(likelihood, np.array([[0.5, 10.5], [0.5, 10.5]], np.float32))
