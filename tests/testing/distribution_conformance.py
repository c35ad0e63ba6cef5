"""What every distribution must do, as a class of tests for the test file of each to subclass.

The kinds are those of TFP's own tests of `tfd.MixtureSameFamily`: shapes, broadcasting, moments of
samples, distribution function, gradients to parameters, XLA, dynamic shapes, composite tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions

_SEED = (3, 4)
_P_VALUE = 1e-4  # of each Kolmogorov-Smirnov test
_STANDARD_ERRORS = 5.0  # of a moment, of which there are up to some twenty


class DistributionConformance:
    """Tests of a distribution; a subclass defines `distribution` and `trained`.

    Attributes:
      batch_shape: Its batch shape.
      event_shape: Its event shape.
      dtype: Its dtype.
      lacks: What it cannot do, by name, with the reason. It is tested that it cannot: a moment
        raises `NotImplementedError`, and a distribution without "composite" is no composite tensor.
      num_draws: Draws that moments and tests of distributions are made from.
    """

    batch_shape: ClassVar[tuple[int, ...]] = ()
    event_shape: ClassVar[tuple[int, ...]] = (2,)
    dtype: ClassVar[tf.DType] = tf.float32
    lacks: ClassVar[dict[str, str]] = {}
    num_draws: ClassVar[int] = 4000

    def distribution(self) -> tfd.Distribution:
        """A new one, the same each time."""
        raise NotImplementedError

    def builder(self) -> Callable[[], tfd.Distribution]:
        """A function that builds the distribution, in a graph too."""
        return self.distribution

    def trained(self) -> tuple[Callable[[], tfd.Distribution], Sequence[tf.Variable]]:
        """A function that builds the distribution in float64 from variables, and all of these."""
        raise NotImplementedError

    def test_shapes_and_dtype(self) -> None:
        """Batch and event as stated, statically and as tensors, for any shape of samples."""
        distribution = self.distribution()
        assert isinstance(distribution, tfd.Distribution)
        assert distribution.batch_shape == self.batch_shape
        assert distribution.event_shape == self.event_shape
        np.testing.assert_array_equal(distribution.batch_shape_tensor(), self.batch_shape)
        np.testing.assert_array_equal(distribution.event_shape_tensor(), self.event_shape)
        assert distribution.dtype == self.dtype
        for shape in ((), (5,), (3, 5)):
            z = distribution.sample(shape, seed=_SEED)
            assert z.shape == (*shape, *self.batch_shape, *self.event_shape)
            assert z.dtype == self.dtype
            assert distribution.log_prob(z).shape == (*shape, *self.batch_shape)

    def test_queries_broadcast_against_the_batch(self) -> None:
        """A query without batch dimensions, or with ones of size 1, is that of every member."""
        distribution = self.distribution()
        ones = (1,) * len(self.batch_shape)
        z = distribution.sample(4, seed=_SEED).numpy()
        z = z.reshape(4, -1, *self.event_shape)[:, :1]  # [4, 1, E...]
        expected = distribution.log_prob(
            np.broadcast_to(
                z.reshape(4, *ones, *self.event_shape),
                (4, *self.batch_shape, *self.event_shape),
            )
        )
        found = distribution.log_prob(z.reshape(4, *ones, *self.event_shape))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        found = distribution.log_prob(z[0].reshape(self.event_shape))
        np.testing.assert_allclose(found, expected[0], rtol=1e-6)

    def test_seeds(self) -> None:
        """One seed gives one draw, another seed another."""
        distribution = self.distribution()
        first, again, other = (
            distribution.sample(64, seed=seed).numpy() for seed in (_SEED, _SEED, (3, 5))
        )
        np.testing.assert_array_equal(first, again)
        assert np.mean(first == other) < 0.9

    @pytest.mark.parametrize("moment", ["mean", "variance", "stddev", "covariance"])
    def test_moments_are_those_of_draws(self, moment: str) -> None:
        """Within five standard errors, or not implemented as declared."""
        distribution = self.distribution()
        if moment in self.lacks:
            with pytest.raises(NotImplementedError):
                getattr(distribution, moment)()
            return
        z = distribution.sample(self.num_draws, seed=_SEED).numpy().astype(np.float64)
        centred = z - z.mean(axis=0)
        if moment == "mean":
            found, terms = distribution.mean(), z
        elif moment == "covariance":
            found, terms = distribution.covariance(), centred[..., None] * centred[..., None, :]
        else:
            found, terms = distribution.variance(), centred**2
            if moment == "stddev":
                np.testing.assert_allclose(distribution.stddev(), np.sqrt(found), rtol=1e-6)
                return
        error = terms.std(axis=0) / np.sqrt(self.num_draws)
        assert found.shape == error.shape
        assert np.all(np.abs(found - terms.mean(axis=0)) <= _STANDARD_ERRORS * error + 1e-6)

    def test_distribution_function(self) -> None:
        """Of scalars that of the draws; `log_cdf` and the survival function go with it."""
        distribution = self.distribution()
        z = distribution.sample(self.num_draws, seed=_SEED)
        if "cdf" in self.lacks:
            for method in ("cdf", "log_cdf", "survival_function", "log_survival_function"):
                with pytest.raises(NotImplementedError):
                    getattr(distribution, method)(z)
            return
        below = distribution.cdf(z).numpy()
        for member in below.reshape(self.num_draws, -1).T:
            assert scipy.stats.kstest(member, "uniform").pvalue > _P_VALUE
        above = distribution.survival_function(z)
        np.testing.assert_allclose(above, 1.0 - below, atol=1e-6)
        np.testing.assert_allclose(tf.exp(distribution.log_cdf(z)), below, rtol=1e-5)
        np.testing.assert_allclose(tf.exp(distribution.log_survival_function(z)), above, rtol=1e-5)

    def test_gradients_to_parameters(self) -> None:
        """Finite and not zero for each, and along a direction the difference quotient."""
        build, variables = self.trained()
        z = build().sample(200, seed=_SEED)
        rng = np.random.default_rng(2)
        factors = tf.constant(rng.uniform(0.5, 1.5, size=(200, *self.batch_shape)))

        @tf.function(autograph=False)
        def objective() -> tf.Tensor:
            return tf.reduce_sum(factors * build().log_prob(z))

        with tf.GradientTape() as tape:
            value = objective()
        assert value.dtype == tf.float64
        gradients = tape.gradient(value, list(variables))
        for variable, gradient in zip(variables, gradients, strict=True):
            assert gradient is not None, variable.name
            assert np.all(np.isfinite(gradient)), variable.name
            assert np.any(gradient != 0), variable.name
            step = 1e-5 * rng.normal(size=gradient.shape)
            slope = np.sum(np.asarray(gradient) * step)
            before = variable.numpy()
            differences = []
            for sign in (1.0, -1.0):
                variable.assign(before + sign * step)
                differences.append(float(objective()))
            variable.assign(before)
            size = float(np.linalg.norm(gradient) * np.linalg.norm(step))
            difference = 0.5 * (differences[0] - differences[1])
            assert difference == pytest.approx(slope, rel=1e-4, abs=1e-4 * size), variable.name

    def test_xla(self) -> None:
        """Drawing and scoring compile by XLA, and the draws score as they do without."""
        build = self.builder()

        def draw_and_score(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            distribution = build()
            z = distribution.sample(16, seed=seed)
            return z, distribution.log_prob(z)

        compiled = tf.function(draw_and_score, jit_compile=True, autograph=False)
        z, log_prob = compiled(tf.constant([5, 6], tf.int32))
        # XLA draws other random numbers from a seed, unless the generator is named.
        np.testing.assert_allclose(log_prob, build().log_prob(z), rtol=1e-4, atol=1e-4)
        assert len(np.unique(z, axis=0)) > 1

    def test_dynamic_shapes(self) -> None:
        """A number of draws and of queries that a graph does not know."""
        distribution = self.distribution()
        z = distribution.sample(6, seed=_SEED)
        np.testing.assert_allclose(
            self._in_a_graph(distribution.log_prob, [None] * len(z.shape))(z),
            distribution.log_prob(z),
            rtol=1e-5,
            atol=1e-5,
        )
        draw = tf.function(
            lambda number: distribution.sample(number, seed=tf.constant(_SEED, tf.int32)),
            autograph=False,
            input_signature=[tf.TensorSpec([], tf.int32)],
        )
        for number in (2, 6):
            assert draw(number).shape == (number, *self.batch_shape, *self.event_shape)

    def test_composite_tensor(self) -> None:
        """It passes into and out of a graph, with its density, or is declared not to."""
        distribution = self.distribution()
        is_composite = isinstance(distribution, tf.__internal__.CompositeTensor)
        assert is_composite == ("composite" not in self.lacks)
        if not is_composite:
            return
        z = distribution.sample(4, seed=_SEED)
        score = tf.function(lambda d, z: d.log_prob(z), autograph=False)
        expected = distribution.log_prob(z)
        np.testing.assert_allclose(score(distribution, z), expected, rtol=1e-5, atol=1e-5)
        returned = tf.function(lambda d: d, autograph=False)(distribution)
        assert type(returned) is type(distribution)
        np.testing.assert_allclose(returned.log_prob(z), expected, rtol=1e-5, atol=1e-5)

    def _in_a_graph(self, function: Callable[[Any], Any], shape: Sequence[int | None]) -> Any:
        signature = [tf.TensorSpec(shape, self.dtype)]
        return tf.function(function, autograph=False, input_signature=signature)
