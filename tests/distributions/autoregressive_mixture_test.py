from __future__ import annotations

import numpy as np
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.distributions.autoregressive_mixture import AutoregressiveMixture

tfd = tfp.distributions

# Of the two components of every conditional; the second coordinate's move with the first.
WEIGHTS, SCALES = np.array([0.3, 0.7]), np.array([0.5, 1.2])


def mixture_fn(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    first = tf.convert_to_tensor(z)[..., 0]
    zeros = tf.zeros_like(first)
    loc = tf.stack(
        [tf.stack([zeros - 2.0, zeros + 1.0], -1), tf.stack([first, -2.0 * first], -1)], axis=-2
    )  # [..., 2, 2]
    ones = tf.ones_like(loc)
    return np.log(WEIGHTS) + 7.0 * ones, loc, SCALES * ones


def expected_log_prob(z: np.ndarray) -> np.ndarray:
    """In SciPy; the logits need not be normalized."""

    def conditional(value: np.ndarray, means: list[np.ndarray]) -> np.ndarray:
        parts = [
            weight * scipy.stats.norm(mean, scale).pdf(value)
            for weight, mean, scale in zip(WEIGHTS, means, SCALES, strict=True)
        ]
        result: np.ndarray = np.log(np.sum(parts, axis=0))
        return result

    first, second = z[..., 0], z[..., 1]
    constant = [np.full_like(first, -2.0), np.full_like(first, 1.0)]
    log_prob: np.ndarray = conditional(first, constant) + conditional(second, [first, -2.0 * first])
    return log_prob


def test_log_prob() -> None:
    distribution = AutoregressiveMixture(mixture_fn, 2, dtype=tf.float64)
    for shape in ((2,), (5, 2), (4, 5, 2)):
        z = np.random.default_rng(0).normal(size=shape)
        np.testing.assert_allclose(distribution.log_prob(z), expected_log_prob(z), rtol=1e-10)


def test_draws_have_the_moments_of_the_mixture() -> None:
    """Four moments against closed forms, each within 4.5 standard errors."""
    num = 20000
    z = AutoregressiveMixture(mixture_fn, 2, dtype=tf.float64).sample(num, seed=(1, 2)).numpy()
    first, second = z.T
    mean = WEIGHTS @ [-2.0, 1.0]
    second_moment = WEIGHTS @ (np.array([-2.0, 1.0]) ** 2 + SCALES**2)
    slope = WEIGHTS @ [1.0, -2.0]  # of E[z_2 | z_1]
    square = WEIGHTS @ [1.0, 4.0]
    for draws, expected in (
        (first, mean),
        (first**2, second_moment),
        (first * second, slope * second_moment),
        (second**2, square * second_moment + WEIGHTS @ SCALES**2),
    ):
        standard_error = draws.std(ddof=1) / num**0.5
        assert abs(draws.mean() - expected) < 4.5 * standard_error


def test_draws_agree_with_autoregressive_of_tfp() -> None:
    """A Kolmogorov-Smirnov test of the second coordinate against tfd.Autoregressive."""

    def conditionals(z: tf.Tensor) -> tfd.Distribution:
        logits, loc, scale = mixture_fn(z)
        mixture = tfd.MixtureSameFamily(tfd.Categorical(logits=logits), tfd.Normal(loc, scale))
        return tfd.Independent(mixture, 1)

    theirs = tfd.Autoregressive(conditionals, tf.zeros([2], tf.float64), num_steps=2)
    ours = AutoregressiveMixture(mixture_fn, 2, dtype=tf.float64)
    draws = [d.sample(4000, seed=(1, 2)).numpy()[:, 1] for d in (theirs, ours)]
    assert scipy.stats.ks_2samp(*draws).pvalue > 1e-4


def test_draws_have_no_gradient() -> None:
    """Half of one, through the chosen component alone, would be wrong without a word."""
    shift = tf.constant(0.5, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(shift)
        distribution = AutoregressiveMixture(lambda z: mixture_fn(z + shift), 2, dtype=tf.float64)
        z = distribution.sample(3, seed=(1, 2))
    assert distribution.reparameterization_type == tfd.NOT_REPARAMETERIZED
    assert tape.gradient(z, shift) is None


def test_static_and_dynamic_batches() -> None:
    def batched(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return mixture_fn(z + tf.zeros([3, 1], tf.float64))

    fixed = AutoregressiveMixture(batched, 2, [3], tf.float64)
    assert fixed.batch_shape == [3]
    assert fixed.event_shape == [2]
    assert fixed.sample(4, seed=(1, 2)).shape == [4, 3, 2]
    assert fixed.log_prob(np.zeros(2)).shape == [3]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
    def draw(batch_shape: tf.Tensor) -> tf.Tensor:
        return AutoregressiveMixture(batched, 2, batch_shape, tf.float64).sample(4, seed=(1, 2))

    np.testing.assert_allclose(draw([3]), fixed.sample(4, seed=(1, 2)), rtol=1e-12)
