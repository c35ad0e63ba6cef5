from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tests.testing.prior_conformance import PriorConformance, UnitConformance
from tfp_surgery.distributions.resampled import Resampled
from tfp_surgery.priors.base import Prior, StandardNormalPrior
from tfp_surgery.priors.mixture import MixturePrior
from tfp_surgery.priors.resampled import ResampledPrior

tfd = tfp.distributions

_AXIS, _STEP = np.linspace(-5.0, 5.0, 201, retstep=True)
_GRID = np.stack(np.meshgrid(_AXIS, _AXIS, indexing="ij"), axis=-1).reshape(-1, 2)  # [G, 2]


@keras.saving.register_keras_serializable(package="tfp_surgery_tests")
class ShiftedNormal(Prior):
    """N(loc, I) with a learned loc."""

    def __init__(self, event_size: int, **kwargs: Any):
        super().__init__(event_size, **kwargs)
        self.loc = self.add_weight(
            shape=(event_size,), dtype=self.density_dtype.name, autocast=False, name="loc"
        )

    def initialize(self, codes: np.ndarray, seed: int = 0) -> None:
        self.loc.assign(codes.mean(axis=0) + seed)

    def call(self, condition: Any = None) -> tfd.MultivariateNormalDiag:
        loc = tf.convert_to_tensor(self.loc)
        return tfd.MultivariateNormalDiag(loc, tf.ones_like(loc))


def _strong(layer: ResampledPrior, factor: float = 4.0) -> ResampledPrior:
    """The layer with weights that make acceptance vary much."""
    for weight in layer.fitted_variables:
        weight.assign(factor * weight + 0.1)
    return layer


_LACKS = {
    **PriorConformance.lacks,
    **dict.fromkeys(("mean", "variance", "stddev", "covariance"), "they have no closed form"),
    "composite": "the acceptance is a Keras layer",
}


class TestResampledPriorConformance(PriorConformance):
    lacks = _LACKS

    def make(self, **kwargs: Any) -> Prior:
        base = ShiftedNormal(2, dtype=kwargs.get("dtype"))
        return _strong(
            ResampledPrior(
                2, 5, (8,), base, num_normalizer_samples=2**13, num_training_samples=100, **kwargs
            ),
            factor=2.0,
        )

    def trained(self) -> tuple[Callable[[], tfd.Distribution], Sequence[tf.Variable]]:
        """But for the base, whose gradient is an estimate and not that of the estimate."""
        layer, variables = super().trained()
        estimated = [variable for variable in variables if "loc" in variable.name]
        with tf.GradientTape() as tape:
            log_prob = tf.reduce_mean(layer().log_prob(tf.ones([5, 2], tf.float64)))
        (gradient,) = tape.gradient(log_prob, estimated)
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient != 0)
        return layer, [v for v in variables if all(v is not other for other in estimated)]

    def _tolerance(self, prior: Any, points: np.ndarray, probabilities: np.ndarray) -> float:
        """As far as the estimated normaliser lets it be: 4.5 standard errors."""
        sensitivity = prior.normalizer_sensitivity(points.astype(np.float32)).numpy()
        error = abs(np.sum(probabilities * sensitivity)) * prior.log_normalizer_standard_error
        assert 0 < error < 0.01
        return float(4.5 * error + self.integral_tolerance)

    def test_xla(self) -> None:
        """As for other priors, but XLA draws other numbers from the normaliser's seed."""
        layer = self.make()

        @tf.function(jit_compile=True, autograph=False)
        def draw_and_score(seed: tf.Tensor) -> Any:
            prior = layer()
            z = prior.sample(16, seed=seed)
            return z, prior.log_prob(z), prior.log_normalizer

        z, log_prob, log_normalizer = draw_and_score(tf.constant([5, 6]))
        prior = layer()
        error = prior.log_normalizer_standard_error
        assert abs(log_normalizer - prior.log_normalizer) < 4.5 * np.sqrt(2) * error
        same = prior.copy(log_normalizer=log_normalizer)
        np.testing.assert_allclose(log_prob, same.log_prob(z), rtol=1e-4, atol=1e-4)
        assert len(np.unique(z, axis=0)) == 16


class TestResampledPriorUnits(UnitConformance):
    def make(self, **kwargs: Any) -> Prior:
        settings: dict[str, Any] = {"num_normalizer_samples": 2**12, "num_training_samples": 500}
        return _strong(ResampledPrior(2, 5, (8,), **settings, **kwargs), factor=2.0)


class TestResampledMixtureUnits(UnitConformance):
    def make(self, **kwargs: Any) -> Prior:
        base = MixturePrior(2, 3, dtype=kwargs.get("dtype"))
        settings: dict[str, Any] = {"num_normalizer_samples": 2**12, "num_training_samples": 500}
        return _strong(ResampledPrior(2, 5, (8,), base, **settings, **kwargs), factor=2.0)


def test_without_a_base_it_is_the_gaussian_of_the_moments_that_is_resampled() -> None:
    layer = ResampledPrior(2, num_normalizer_samples=10)
    assert layer.base.fitted_variables == []
    np.testing.assert_array_equal(layer.base().mean(), [0.0, 0.0])
    np.testing.assert_array_equal(layer.base().stddev(), [1.0, 1.0])
    codes = np.random.default_rng(0).normal(size=(50, 2)) * [1e-3, 5.0] + [0.0, 2.0]
    layer.initialize(codes)
    np.testing.assert_allclose(layer.base().mean(), codes.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(layer.base().stddev(), codes.std(axis=0), rtol=1e-6)
    fixed = ResampledPrior(2, base=StandardNormalPrior(2), num_normalizer_samples=10)
    fixed.initialize(codes)
    np.testing.assert_array_equal(fixed.base().stddev(), [1.0, 1.0])


def test_the_density_is_that_of_its_acceptance_network() -> None:
    layer = _strong(ResampledPrior(3, 7, (5, 4), num_normalizer_samples=1000, dtype="float64"))
    z = np.random.default_rng(0).normal(size=(6, 3))
    hidden = z
    for dense in layer.acceptance_layers[:-1]:
        hidden = np.tanh(hidden @ dense.kernel.numpy() + dense.bias.numpy())
    last = layer.acceptance_layers[-1]
    acceptance = 1 / (1 + np.exp(-(hidden @ last.kernel.numpy() + last.bias.numpy())[:, 0]))
    np.testing.assert_allclose(np.exp(layer.log_acceptance(z)), acceptance, rtol=1e-12)
    prior = layer()
    assert isinstance(prior, Resampled)
    assert prior.truncation == 7
    normalizer = np.exp(prior.log_normalizer)
    rejected = (1 - normalizer) ** 6
    expected = scipy.stats.norm.logpdf(z).sum(axis=-1) + np.log(
        acceptance * (1 - rejected) / normalizer + rejected
    )
    np.testing.assert_allclose(prior.log_prob(z), expected, rtol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    """Through the acceptance of the codes and of the draws, which the seed holds fixed."""
    layer = _strong(ResampledPrior(2, 10, (4,), num_normalizer_samples=500, dtype="float64"))
    z = np.random.default_rng(0).normal(size=(20, 2))

    def mean_log_prob() -> tf.Tensor:
        return tf.reduce_mean(layer().log_prob(z))

    with tf.GradientTape() as tape:
        value = mean_log_prob()
    gradients = tape.gradient(value, [v.value for v in layer.fitted_variables])
    rng, h = np.random.default_rng(1), 1e-5
    for variable, gradient in zip(layer.fitted_variables, gradients, strict=True):
        old, direction = variable.numpy(), rng.normal(size=variable.shape)
        values = []
        for sign in (1, -1):
            variable.assign(old + sign * h * direction)
            values.append(mean_log_prob())
        variable.assign(old)
        difference = (values[0] - values[1]) / (2 * h)
        np.testing.assert_allclose(np.sum(gradient * direction), difference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_draws_follow_the_weights(dtype: str) -> None:
    layer = _strong(ResampledPrior(2, 10, (4,), num_training_samples=100, seed=3, dtype=dtype))
    first, error = _training_normalizer(layer)
    assert _training_normalizer(layer)[0] == first
    loaded = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    loaded.set_weights(layer.get_weights())
    assert _training_normalizer(loaded)[0] == first
    # A change of one weight by little is far too small to move log Z by so much on its own.
    estimates = []
    weight = layer.acceptance_layers[0].bias
    for _ in range(50):
        weight.assign(weight + 1e-6)
        estimates.append(_training_normalizer(layer)[0])
    assert len(np.unique(estimates)) == 50
    # The standard deviation of n nearly normal numbers has relative error 1 / sqrt(2 n).
    assert abs(np.std(estimates) / error - 1) < 4.5 / np.sqrt(100) + 0.1
    measured = layer()
    difference = np.mean(estimates) - measured.log_normalizer
    bias = error**2 / 2
    assert abs(difference + bias) < 4.5 * np.hypot(
        error / np.sqrt(50), measured.log_normalizer_standard_error
    )


def _training_normalizer(layer: ResampledPrior) -> tuple[float, float]:
    prior = layer(training=True)
    return float(prior.log_normalizer), float(prior.log_normalizer_standard_error)


def test_the_base_is_initialized_trained_and_saved() -> None:
    base = ShiftedNormal(2)
    layer = ResampledPrior(2, 3, (4,), base, 100, name="resampled")
    layer.initialize(np.array([[1.0, 2.0], [3.0, 6.0]]), seed=1)
    np.testing.assert_array_equal(base.loc.numpy(), [3.0, 5.0])
    assert [v.path for v in layer.fitted_variables] == [v.path for v in layer.trainable_variables]
    assert any(v is base.loc for v in layer.fitted_variables)
    assert len(layer.fitted_variables) == 5
    base.trainable = False
    assert len(layer.fitted_variables) == 4

    config = layer.get_config()
    again = ResampledPrior.from_config(config)
    assert again.get_config() == config
    assert isinstance(again.base, ShiftedNormal)


def test_the_surgery_of_a_model_with_it() -> None:
    layer = _strong(ResampledPrior(2, 20, (8,), num_normalizer_samples=2**13))
    x = np.random.default_rng(0).integers(0, 2, (40, 3)).astype("float32")
    encoder, decoder = tfs.networks.MLPEncoder(2, (4,)), tfs.networks.MLPDecoder((3,), (4,))
    by_layer, by_distribution = (
        tfs.elbo_surgery(x, encoder, decoder, prior, num_samples=4, seed=1)
        for prior in (layer, layer())
    )
    assert by_layer.marginal_kl.value == pytest.approx(by_distribution.marginal_kl.value, abs=1e-4)


def _fit(layer: ResampledPrior, density: np.ndarray, steps: int, training: bool = True) -> None:
    """Adam on fresh draws from a density given on the grid, the learning rate falling to zero."""
    rng, shape = np.random.default_rng(0), (steps, 512)
    z = _GRID[rng.choice(len(_GRID), shape, p=density / density.sum())]
    z = (z + _STEP * rng.uniform(-0.5, 0.5, z.shape)).astype(np.float32)  # [steps, 512, 2]
    variables = list(layer.fitted_variables)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, steps))
    optimizer.build(variables)

    @tf.function(jit_compile=True, autograph=False)
    def step(z: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(layer(training=training).log_prob(z))
        gradients = tape.gradient(loss, [v.value for v in variables])
        optimizer.apply(gradients, variables)

    for batch in z:
        step(tf.constant(batch))


def _ring() -> np.ndarray:
    """A ring about the origin, normalised on the grid."""
    radius = np.linalg.norm(_GRID, axis=-1)
    density = np.exp(-0.5 * ((radius - 2.0) / 0.4) ** 2)
    return np.asarray(density / (density.sum() * _STEP**2))


def _two_normals() -> np.ndarray:
    density = sum(
        scipy.stats.multivariate_normal(mean, np.diag([0.2, 0.4])).pdf(_GRID)
        for mean in ([-1.5, 0.0], [1.5, 0.5])
    )
    return np.asarray(density / 2)


def _marginal_kl(density: np.ndarray, log_prior: np.ndarray) -> float:
    return float(np.sum(density * (np.log(np.maximum(density, 1e-300)) - log_prior)) * _STEP**2)


@pytest.mark.parametrize("target", [pytest.param(_ring, marks=pytest.mark.slow), _two_normals])
def test_fits_what_it_can_represent(target: Any) -> None:
    """Marginal KL within 0.05 nats, where N(0, I) is far and the family reaches within 0.001."""
    truncation, density = 100, target()
    base = scipy.stats.norm.pdf(_GRID).prod(axis=-1)
    assert _marginal_kl(density, np.log(base)) > 0.5
    # What a perfect acceptance function reaches, a(z) = q(z) / (M pi(z)) with Z = 1 / M.
    normalizer = np.min(base[density > 1e-6] / density[density > 1e-6])
    rejected = (1 - normalizer) ** (truncation - 1)
    best = np.minimum(density, base / normalizer) * (1 - rejected) + base * rejected
    assert abs(_marginal_kl(density, np.log(best))) < 0.001

    layer = ResampledPrior(2, truncation, (48, 48), num_training_samples=1024, seed=1)
    _fit(layer, density, steps=500)
    prior = layer()
    log_prior = prior.log_prob(_GRID.astype(np.float32)).numpy().astype(np.float64)
    # The error of the normaliser is far below what is left of the KL.
    assert prior.log_normalizer_standard_error < 0.01
    assert abs(_marginal_kl(density, log_prior)) < 0.05


@pytest.mark.slow
def test_training_on_the_draws_that_measure_makes_the_normalizer_too_small() -> None:
    """Few draws that stay the same are learned by heart; draws that change cannot be.

    The codes follow the base, so that the best acceptance is constant: Z has no chance error.
    """
    normal = scipy.stats.norm.pdf(_GRID).prod(axis=-1)
    for training in (False, True):
        layer = ResampledPrior(
            2, 20, (32, 32), num_normalizer_samples=16, num_training_samples=16, seed=1
        )
        _fit(layer, normal, steps=300, training=training)
        fresh = Resampled.with_estimated_normalizer(
            layer.base(), layer.log_acceptance, 20, 2**16, seed=(9, 9)
        )
        # By XLA, as in training: otherwise the draws of one seed are others.
        own, error = _compiled_normalizer(layer)
        excess = own - fresh.log_normalizer
        if training:
            assert abs(excess) < 4.5 * error + 1e-3
        else:
            assert excess < -10 * fresh.log_normalizer_standard_error


def _compiled_normalizer(layer: ResampledPrior) -> Any:
    def estimate() -> tuple[tf.Tensor, tf.Tensor]:
        prior = layer()
        return prior.log_normalizer, prior.log_normalizer_standard_error

    return tf.function(estimate, jit_compile=True, autograph=False)()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="event_size must be at least 1, got 0"):
        ResampledPrior(0)
    with pytest.raises(ValueError, match="truncation must be at least 1, got 0"):
        ResampledPrior(2, truncation=0)
    with pytest.raises(ValueError, match="each of hidden_sizes must be at least 1, got 0"):
        ResampledPrior(2, hidden_sizes=(8, 0))
    with pytest.raises(TypeError, match="base must be a prior layer, got Dense"):
        ResampledPrior(2, base=keras.layers.Dense(2))
    with pytest.raises(ValueError, match="size 2 in float32, but it is over codes of size 3"):
        ResampledPrior(2, base=StandardNormalPrior(3))
    with pytest.raises(ValueError, match=r"of size 2 in float64, but .* of size 2 in float32"):
        ResampledPrior(2, base=StandardNormalPrior(2), dtype="float64")
    with pytest.raises(ValueError, match="num_normalizer_samples must be at least 2, got 1"):
        ResampledPrior(2, num_normalizer_samples=1)
    with pytest.raises(ValueError, match="num_training_samples must be at least 2, got 1"):
        ResampledPrior(2, num_training_samples=1)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        ResampledPrior(2, seed=-1)


def test_a_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="takes no condition"):
        ResampledPrior(2, num_normalizer_samples=10)(tf.zeros([3, 2]))
