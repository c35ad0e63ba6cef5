"""`AggregatePosterior` over several families, as `tfd.MixtureSameFamily` is tested by TFP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

from tests.testing.distribution_conformance import DistributionConformance
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior

tfd = tfp.distributions

N = 5
_RNG = np.random.default_rng(7)
_MEANS = _RNG.normal(size=(N, 3))
_P_VALUE = 1e-4  # of each Kolmogorov-Smirnov test
_VECTORS = {"cdf": "codes are no scalars"}


class AggregateConformance(DistributionConformance):
    """A subclass gives the parameters of its components, `[..., N, ...]`, and their family.

    Attributes:
      parameters: NumPy arrays in float64.
      weights: Weights in float64, or None.
    """

    parameters: ClassVar[tuple[np.ndarray, ...]]
    weights: ClassVar[np.ndarray | None] = None

    def components(self, *parameters: Any) -> tfd.Distribution:
        """The components from their parameters."""
        raise NotImplementedError

    def component_log_prob(self, z: np.ndarray) -> np.ndarray:
        """Their log densities by NumPy, `[M, B..., N]`, for z `[M, B..., 1, E...]`."""
        raise NotImplementedError

    def component_draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """A draw of each by NumPy, `[num, B..., N, E...]`."""
        raise NotImplementedError

    def distribution(self) -> tfd.Distribution:
        return self._made([tf.constant(p, tf.float32) for p in self.parameters], self.weights)

    def _made(self, parameters: Sequence[Any], weights: Any) -> AggregatePosterior:
        if isinstance(weights, np.ndarray):
            weights = weights.astype(np.float32)
        return AggregatePosterior(self.components(*parameters), weights=weights)

    def trained(self) -> tuple[Callable[[], tfd.Distribution], Sequence[tf.Variable]]:
        variables = [tf.Variable(parameter) for parameter in self.parameters]
        weights = [] if self.weights is None else [tf.Variable(self.weights + 0.1)]

        def build() -> AggregatePosterior:
            return self._made([tf.convert_to_tensor(v) for v in variables], *(weights or [None]))

        return build, [*variables, *weights]

    def _probabilities(self) -> np.ndarray:
        weights = np.ones(N) if self.weights is None else self.weights
        return np.broadcast_to(
            weights / weights.sum(axis=-1, keepdims=True), (*self.batch_shape, N)
        )

    def reference_log_prob(self, z: np.ndarray) -> np.ndarray:
        z = np.expand_dims(z, z.ndim - len(self.event_shape))
        scores = self.component_log_prob(z)
        return np.asarray(special.logsumexp(scores, axis=-1, b=self._probabilities()))

    def reference_draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        every = self.component_draws(num, rng)  # [num, B..., N, E...]
        shape = (num, *self.batch_shape, N, *self.event_shape)
        below = self._probabilities().cumsum(axis=-1)
        uniform = rng.uniform(size=(num, *self.batch_shape, 1))
        index = np.minimum((uniform > below).sum(axis=-1), N - 1)
        index = index.reshape(*index.shape, 1, *[1] * len(self.event_shape))
        axis = 1 + len(self.batch_shape)
        return np.take_along_axis(np.broadcast_to(every, shape), index, axis).squeeze(axis)

    def test_density_is_the_reference(self) -> None:
        """At draws of its own and at those of the reference."""
        distribution = self.distribution()
        z = self.reference_draws(20, np.random.default_rng(0))
        for points in (z.astype(self.dtype.as_numpy_dtype), distribution.sample(20, seed=(1, 2))):
            expected = self.reference_log_prob(np.asarray(points, np.float64))
            np.testing.assert_allclose(
                distribution.log_prob(points), expected, rtol=2e-5, atol=2e-5
            )

    def test_draws_follow_the_reference(self) -> None:
        """Kolmogorov-Smirnov of two samples: projected in three directions, and log densities."""
        distribution = self.distribution()
        rng = np.random.default_rng(1)
        found = distribution.sample(self.num_draws, seed=(1, 2)).numpy()
        expected = self.reference_draws(self.num_draws, rng)
        assert expected.shape == found.shape
        directions = rng.normal(size=(3, *self.event_shape))
        axes = tuple(range(1 + len(self.batch_shape), found.ndim))

        def statistics(
            z: np.ndarray,
        ) -> np.ndarray:  # [4, M, B...], in float32 to tie what is equal
            projected = [(z * direction).sum(axis=axes) for direction in directions]
            return np.stack([*projected, self.reference_log_prob(z)]).astype(np.float32)

        for one, other in zip(
            statistics(found.astype(np.float64)), statistics(expected), strict=True
        ):
            for member, other_member in zip(
                one.reshape(self.num_draws, -1).T, other.reshape(self.num_draws, -1).T, strict=True
            ):
                assert stats.ks_2samp(member, other_member).pvalue > _P_VALUE

    def test_a_number_of_components_that_a_graph_does_not_know(self) -> None:
        """Parameters whose batch dimensions are all unknown."""
        parameters = [tf.constant(parameter, tf.float32) for parameter in self.parameters]
        z = self.distribution().sample(6, seed=(1, 2))
        batch_ndims = len(self.components(*parameters).batch_shape)

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec([None] * batch_ndims + p.shape[batch_ndims:], tf.float32)
                for p in parameters
            ],
        )
        def run(*parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            distribution = self._made(parameters, self.weights)
            draws = distribution.sample(3, seed=tf.constant([1, 2]))
            return draws, distribution.log_prob(z)

        draws, log_prob = run(*parameters)
        assert draws.shape == (3, *self.batch_shape, *self.event_shape)
        expected = self.distribution().log_prob(z)
        np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-5)


class TestScalarNormal(AggregateConformance):
    event_shape = ()
    lacks: ClassVar[dict[str, str]] = {"covariance": "codes are no vectors"}
    parameters = (np.linspace(-2.0, 2.0, N), np.array([0.3, 0.5, 1.0, 0.2, 0.6]))
    weights = np.array([1.0, 2.0, 0.5, 3.0, 0.0])

    def components(self, loc: Any, scale: Any) -> tfd.Distribution:
        return tfd.Normal(loc, scale)

    def component_log_prob(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(stats.norm(*self.parameters).logpdf(z))

    def component_draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        return rng.normal(*self.parameters, size=(num, N))


class TestWeightsOfMoreBatchDimensions(TestScalarNormal):
    batch_shape = (2, 1)
    weights = np.array([[[1.0, 2.0, 0.5, 3.0, 0.0]], [[0.0, 1.0, 5.0, 1.0, 1.0]]])

    def component_draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        return rng.normal(*self.parameters, size=(num, 2, 1, N))


class TestMultivariateNormalDiag(AggregateConformance):
    event_shape = (3,)
    lacks = _VECTORS
    parameters = (_RNG.normal(size=(N, 3)), np.exp(0.3 * _RNG.normal(size=(N, 3))))

    def components(self, loc: Any, scale: Any) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(loc, scale)

    def component_log_prob(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(stats.norm(*self.parameters).logpdf(z).sum(axis=-1))

    def component_draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        return rng.normal(*self.parameters, size=(num, *self.parameters[0].shape))


class TestBatch(TestMultivariateNormalDiag):
    batch_shape = (2,)
    parameters = (_RNG.normal(size=(2, N, 3)), np.exp(0.3 * _RNG.normal(size=(2, N, 3))))
    weights = np.array([1.0, 2.0, 0.5, 3.0, 0.0])


class TestMultivariateNormalTriL(AggregateConformance):
    event_shape = (3,)
    lacks = _VECTORS
    parameters = (
        _RNG.normal(size=(N, 3)),
        np.tril(_RNG.normal(size=(N, 3, 3)), -1) + np.exp(_RNG.normal(size=(N, 3, 1))) * np.eye(3),
    )
    weights = np.array([1.0, 2.0, 0.5, 3.0, 0.0])

    def components(self, loc: Any, scale_tril: Any) -> tfd.Distribution:
        return tfd.MultivariateNormalTriL(loc, scale_tril)

    def component_log_prob(self, z: np.ndarray) -> np.ndarray:
        loc, tril = self.parameters
        normal = [stats.multivariate_normal(m, s @ s.T) for m, s in zip(loc, tril, strict=True)]
        return np.stack([one.logpdf(z[:, 0]) for one in normal], axis=-1)

    def component_draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        loc, tril = self.parameters
        return np.asarray(loc + np.einsum("nij,mnj->mni", tril, rng.normal(size=(num, N, 3))))


class TestIndependentBernoulli(AggregateConformance):
    event_shape = (4,)
    dtype = tf.int32
    lacks = _VECTORS
    parameters = (2.0 * _RNG.normal(size=(N, 4)),)

    def components(self, logits: Any) -> tfd.Distribution:
        return tfd.Independent(tfd.Bernoulli(logits=logits), 1)

    def component_log_prob(self, z: np.ndarray) -> np.ndarray:
        (logits,) = self.parameters
        return np.asarray((z * logits - np.logaddexp(0.0, logits)).sum(axis=-1))

    def component_draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(rng.uniform(size=(num, N, 4)) < special.expit(self.parameters[0]), int)


class TestVonMisesFisher(AggregateConformance):
    event_shape = (3,)
    lacks = _VECTORS
    parameters = (
        _MEANS / np.linalg.norm(_MEANS, axis=-1, keepdims=True),
        np.array([1.0, 4.0, 2.0, 8.0, 3.0]),
    )

    @pytest.mark.slow
    def test_xla(self) -> None:
        """It takes long over the Bessel functions of the normaliser."""
        super().test_xla()

    @pytest.mark.slow
    def test_gradients_to_parameters(self) -> None:
        """As long."""
        super().test_gradients_to_parameters()

    def components(self, mean: Any, concentration: Any) -> tfd.Distribution:
        return tfd.VonMisesFisher(mean, concentration)

    def component_log_prob(self, z: np.ndarray) -> np.ndarray:
        mean, concentration = self.parameters
        log_normaliser = np.log(4 * np.pi * np.sinh(concentration) / concentration)
        return np.asarray((z @ mean.T)[..., 0, :] * concentration - log_normaliser)

    def component_draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        families = zip(*self.parameters, strict=True)
        return np.stack(
            [stats.vonmises_fisher(mu, kappa).rvs(num, random_state=rng) for mu, kappa in families],
            axis=1,
        )


class TestEventsOfRankTwo(AggregateConformance):
    event_shape = (2, 3)
    lacks: ClassVar[dict[str, str]] = {**_VECTORS, "covariance": "codes are no vectors"}
    parameters = (_RNG.normal(size=(N, 2, 3)), np.exp(0.3 * _RNG.normal(size=(N, 2, 3))))

    def components(self, loc: Any, scale: Any) -> tfd.Distribution:
        return tfd.Independent(tfd.Normal(loc, scale), 2)

    def component_log_prob(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(stats.norm(*self.parameters).logpdf(z).sum(axis=(-2, -1)))

    def component_draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        return rng.normal(*self.parameters, size=(num, N, 2, 3))
