"""What every prior layer must do, as a class of tests for the test file of each to subclass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tests.testing.distribution_conformance import DistributionConformance
from tfp_surgery.priors.base import Prior

tfd = tfp.distributions

_P_VALUE = 1e-4  # of each of the three Kolmogorov-Smirnov tests
_EVENT_SHAPE = (3, 2)


class PriorConformance(DistributionConformance):
    """Tests of a prior over codes of size 2; a subclass defines `make` and may widen the grid.

    `make` must give a density that is not the standard normal, reaches no farther than
    `half_width` from the origin in any noticeable amount, and has no detail finer than a tenth.
    """

    half_width = 8.0
    integral_tolerance = 1e-3  # of the Riemann sum over the grid, which knows no sampling error
    lacks: ClassVar[dict[str, str]] = {"cdf": "codes are no scalars"}

    def make(self, **kwargs: Any) -> Prior:
        """A new prior of event size 2.

        Args:
          **kwargs: of `keras.layers.Layer`.
        """
        raise NotImplementedError

    def distribution(self) -> tfd.Distribution:
        return self.make()()

    def builder(self) -> Callable[[], tfd.Distribution]:
        return self.make()

    def trained(self) -> tuple[Callable[[], tfd.Distribution], Sequence[tf.Variable]]:
        layer = self.make(dtype="float64")
        layer()  # makes weights
        assert len(layer.fitted_variables) > 0
        return layer, [variable.value for variable in layer.fitted_variables]

    @pytest.mark.parametrize(
        ("policy", "dtype"), [("float64", tf.float64), ("mixed_bfloat16", tf.float32)]
    )
    def test_dtype_policy(self, policy: str, dtype: tf.DType) -> None:
        """float64 stays float64, and densities are never narrower than float32."""
        prior = self.make(dtype=policy)()
        z = prior.sample(4, seed=(1, 2))
        assert z.dtype == dtype
        assert prior.log_prob(z).dtype == dtype
        assert np.all(np.isfinite(prior.log_prob(z)))

    def test_draws_follow_a_density_that_integrates_to_one(self) -> None:
        """The Riemann sum over a fine grid is one, and projected draws follow its projection.

        The latter by a Kolmogorov-Smirnov test in each of three directions.
        """
        prior = self.make()()
        points, probabilities = self._grid(prior)
        assert abs(probabilities.sum() - 1) <= self._tolerance(prior, points, probabilities)
        draws = prior.sample(self.num_draws, seed=(3, 4)).numpy()
        for direction in ([1.0, 0.0], [0.0, 1.0], [0.6, -0.8]):
            projected = points @ direction
            order = np.argsort(projected)
            cumulative = np.cumsum(probabilities[order]) / probabilities.sum()
            cdf = functools.partial(np.interp, xp=projected[order], fp=cumulative)
            result = scipy.stats.kstest(draws @ direction, cdf)
            assert result.pvalue > _P_VALUE, (direction, result)

    def test_gradient_to_codes(self) -> None:
        """The log density has a finite gradient to the codes, as training an encoder needs."""
        prior = self.make()()
        z = tf.constant(np.random.default_rng(1).normal(size=(50, 2)), tf.float32)
        _, gradient = tfp.math.value_and_gradient(prior.log_prob, z)
        assert np.all(np.isfinite(gradient))
        assert np.any(gradient != 0)

    def test_trains_in_fit_and_survives_saving(self, tmp_path: Any) -> None:
        """Every weight moves under `fit` with XLA, and a saved model has the same density."""
        layer = self.make()
        encoder = getattr(layer, "encoder", None) or tfs.networks.MLPEncoder(2, (8,))
        vae = tfs.VAE(encoder, tfs.networks.MLPDecoder(_EVENT_SHAPE, (8,)), layer)
        x = np.random.default_rng(0).integers(0, 2, (64, *_EVENT_SHAPE)).astype("float32")
        before = [v.numpy().copy() for v in layer.fitted_variables]
        vae.compile(keras.optimizers.SGD(0.1), jit_compile=True)
        vae.fit(x, batch_size=16, epochs=2, verbose=0)
        for variable, old in zip(layer.fitted_variables, before, strict=True):
            assert np.all(np.isfinite(variable)), variable.path
            assert np.any(variable.numpy() != old), variable.path

        vae.save(tmp_path / "vae.keras")
        loaded = keras.saving.load_model(tmp_path / "vae.keras").prior
        z = layer().sample(8, seed=(7, 8))
        np.testing.assert_array_equal(loaded().sample(8, seed=(7, 8)), z)
        np.testing.assert_array_equal(loaded().log_prob(z), layer().log_prob(z))

    def test_configuration(self) -> None:
        """The configuration tells the event size and the name."""
        layer = self.make(name="prior_of_test")
        config = layer.get_config()
        assert config["event_size"] == 2
        assert config["name"] == "prior_of_test"

    def _tolerance(
        self, prior: tfd.Distribution, points: np.ndarray, probabilities: np.ndarray
    ) -> float:
        """How far from one the integral of the density on the grid may be."""
        return self.integral_tolerance

    def _grid(self, prior: tfd.Distribution) -> tuple[np.ndarray, np.ndarray]:
        """Points of a grid `[G, 2]`, and the density there times the area of a cell, `[G]`."""
        axis, step = np.linspace(-self.half_width, self.half_width, 401, retstep=True)
        points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
        blocks = np.array_split(points, 20)
        log_prob = np.concatenate(
            [prior.log_prob(block.astype(prior.dtype.as_numpy_dtype)) for block in blocks]
        )
        return points, np.exp(log_prob.astype(np.float64)) * step**2


class UnitConformance:
    """Tests of what `initialize` does to a prior with weights of its own; `make` as above.

    The codes of one layer are those of another in other units, each dimension in its own. They are
    powers of two: in floating point too, all that is left is one problem.
    """

    unit = np.array([2.0**-11, 2.0**9])

    def make(self, **kwargs: Any) -> Prior:
        """As `PriorConformance.make`."""
        raise NotImplementedError

    def _initialized(self) -> tuple[Prior, Prior, np.ndarray]:
        """One prior initialized with codes, one with codes in other units, and the codes."""
        rng = np.random.default_rng(2)
        codes = rng.normal(size=(12, 2))[rng.integers(12, size=600)]
        codes = codes + 0.2 * rng.normal(size=codes.shape) + [3.0, -1.0]
        first, second = (self.make(dtype="float64") for _ in range(2))
        second.set_weights(first.get_weights())
        first.initialize(codes)
        second.initialize(codes * self.unit)
        return first, second, codes

    def test_the_density_is_that_of_other_units(self) -> None:
        """log p(c z) = log p(z) - sum log c, and draws of one seed are c times as large."""
        first, second, codes = self._initialized()
        np.testing.assert_allclose(
            second().log_prob(codes * self.unit),
            first().log_prob(codes) - np.log(self.unit).sum(),
            atol=1e-9,
        )
        z, other = (layer().sample(50, seed=(3, 4)) for layer in (first, second))
        np.testing.assert_allclose(other, z * self.unit, rtol=1e-9, atol=1e-12)

    def test_training_is_that_of_other_units(self) -> None:
        """The gradients to what is learned are equal, and with them every step of training."""
        first, second, codes = self._initialized()
        gradients = []
        for layer, z in ((first, codes), (second, codes * self.unit)):
            with tf.GradientTape() as tape:
                log_prob = tf.reduce_mean(layer(training=True).log_prob(z))
            gradients.append(tape.gradient(log_prob, [v.value for v in layer.fitted_variables]))
        for variable, one, other in zip(first.fitted_variables, *gradients, strict=True):
            scale = np.abs(one).max()
            assert scale > 0, variable.path
            np.testing.assert_allclose(other, one, atol=1e-9 * scale, err_msg=variable.path)

    def test_the_units_survive_saving(self, tmp_path: Any) -> None:
        """A file of a model holds them: the loaded prior has the density of the saved one."""
        layer = self.make()
        codes = np.random.default_rng(2).normal(size=(300, 2)) * self.unit + 1.0
        z = codes[:20].astype(np.float32)
        before = layer().log_prob(z).numpy()
        layer.initialize(codes)
        decoder = tfs.networks.MLPDecoder(_EVENT_SHAPE, (8,))
        vae = tfs.VAE(tfs.networks.MLPEncoder(2, (8,)), decoder, layer)
        vae.build((None, *_EVENT_SHAPE))
        vae.save(tmp_path / "vae.keras")
        loaded = keras.saving.load_model(tmp_path / "vae.keras").prior
        np.testing.assert_array_equal(loaded().log_prob(z), layer().log_prob(z))
        assert np.all(np.abs(loaded().log_prob(z) - before) > 0.1)

    @pytest.mark.parametrize(
        "codes",
        [
            np.array([[0.3, -1.0], [0.5, 2.0], [0.0, 1.0]]),
            np.stack([np.linspace(-1, 2, 200), np.full(200, 0.1)], axis=1),
            np.full((200, 2), 0.1),
        ],
        ids=["few", "one dimension varies", "none varies"],
    )
    def test_few_codes_and_codes_that_do_not_vary(self, codes: np.ndarray) -> None:
        """The density of the codes is finite, as is the gradient of the fit."""
        layer = self.make()
        z = (1e-3 * codes).astype(np.float32)
        layer.initialize(z)
        with tf.GradientTape() as tape:
            log_prob = layer().log_prob(z)
        assert np.all(np.isfinite(log_prob))
        for gradient in tape.gradient(log_prob, [v.value for v in layer.fitted_variables]):
            assert np.all(np.isfinite(gradient))
