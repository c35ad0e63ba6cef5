from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special

from tfp_surgery.distributions.resampled import Resampled, estimate_log_normalizer

tfd = tfp.distributions

_WEIGHTS, _BIAS = np.array([2.0, -1.0]), -1.5
_AXIS, _STEP = np.linspace(-8.0, 8.0, 401, retstep=True)
_GRID = np.stack(np.meshgrid(_AXIS, _AXIS, indexing="ij"), axis=-1).reshape(-1, 2)  # [G, 2]


def _base(**kwargs: Any) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2), **kwargs)


def _log_acceptance(z: tf.Tensor) -> tf.Tensor:
    return tf.math.log_sigmoid(tf.linalg.matvec(z, _WEIGHTS) + _BIAS)


def _numpy_acceptance(z: np.ndarray) -> np.ndarray:
    return np.asarray(special.expit(z @ _WEIGHTS + _BIAS))


def _numpy_base(z: np.ndarray) -> np.ndarray:
    return np.asarray(scipy.stats.norm.pdf(z).prod(axis=-1))


def _quadrature(values: np.ndarray) -> float:
    """The integral over the plane; the trapezoid rule is exact to rounding for these functions."""
    return float(values.sum() * _STEP**2)


_Z = _quadrature(_numpy_base(_GRID) * _numpy_acceptance(_GRID))


def _numpy_density(z: np.ndarray, truncation: int, normalizer: Any = _Z) -> np.ndarray:
    rejected = (1 - normalizer) ** (truncation - 1)
    ratio = _numpy_acceptance(z) * (1 - rejected) / normalizer + rejected
    return np.asarray(_numpy_base(z) * ratio)


def _exact(truncation: int, **kwargs: Any) -> Resampled:
    return Resampled(_base(), _log_acceptance, truncation, np.log(_Z), **kwargs)


def _chi_square(draws: np.ndarray, truncation: int) -> float:
    """P-value of the counts in the squares of a grid, under the density of the truncated sampler.

    The nodes of the fine grid lie inside the squares, which are symmetric about them.
    """
    edges = np.array([-8.0, -2.0, -1.2, -0.4, 0.4, 1.2, 2.0, 8.0]) + _STEP / 2
    expected, _ = np.histogramdd(
        _GRID, bins=[edges, edges], weights=_numpy_density(_GRID, truncation) * _STEP**2
    )
    counts, _ = np.histogramdd(draws, bins=[edges, edges])
    # A square that few draws reach goes to the others; so does what lies outside.
    wanted = expected * len(draws) >= 10
    observed = np.append(counts[wanted], len(draws) - counts[wanted].sum())
    expected = np.append(expected[wanted], 1 - expected[wanted].sum()) * len(draws)
    return float(scipy.stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("truncation", [2, 5, 100])
def test_the_density_is_the_papers_and_integrates_to_one(truncation: int) -> None:
    density = _exact(truncation).prob(_GRID).numpy()
    np.testing.assert_allclose(density, _numpy_density(_GRID, truncation), rtol=1e-10)
    assert _quadrature(density) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("truncation", [2, 5, 100])
def test_the_density_is_that_of_the_sampler_simulated(truncation: int) -> None:
    rng = np.random.default_rng(0)
    n = 40_000
    draws = np.empty((n, 2))
    waiting = np.arange(n)
    for proposal in range(truncation):
        draws[waiting] = rng.normal(size=(len(waiting), 2))
        if proposal < truncation - 1:
            accepted = rng.uniform(size=len(waiting)) < _numpy_acceptance(draws[waiting])
            waiting = waiting[~accepted]
    assert _chi_square(draws, truncation) > 1e-4
    assert _chi_square(_exact(truncation).sample(n, seed=(1, 2)).numpy(), truncation) > 1e-4
    # The test can tell one more proposal from one less.
    if truncation == 2:
        assert _chi_square(draws, 3) < 1e-9


def test_one_proposal_is_the_base() -> None:
    p = _exact(1)
    z = _GRID[::1000]
    np.testing.assert_array_equal(p.log_prob(z), _base().log_prob(z))
    np.testing.assert_array_equal(p.normalizer_sensitivity(z), np.zeros(len(z)))
    draws = p.sample(4000, seed=(1, 2)).numpy()
    assert scipy.stats.kstest(draws.ravel(), "norm").pvalue > 1e-4


def test_many_proposals_tend_to_the_untruncated_density() -> None:
    z = _GRID[::1000]
    untruncated = _base().log_prob(z) + _log_acceptance(tf.constant(z)) - np.log(_Z)
    np.testing.assert_allclose(_exact(10_000).log_prob(z), untruncated, rtol=1e-12)


def test_the_estimate_and_its_standard_error() -> None:
    num_samples = 20_000  # three blocks, the last of them shorter
    log_z, error = estimate_log_normalizer(_base(), _log_acceptance, num_samples, (3, 4))
    assert abs(log_z - np.log(_Z)) < 4.5 * error
    variance = _quadrature(_numpy_base(_GRID) * _numpy_acceptance(_GRID) ** 2) - _Z**2
    assert error.numpy() == pytest.approx(np.sqrt(variance / num_samples) / _Z, rel=0.05)
    again, _ = estimate_log_normalizer(_base(), _log_acceptance, num_samples, (3, 4))
    other, _ = estimate_log_normalizer(_base(), _log_acceptance, num_samples, (3, 5))
    assert again == log_z
    assert abs(other - log_z) > 1e-3 * error


def test_the_standard_error_is_calibrated() -> None:
    repetitions, num_samples = 2000, 500
    log_z, error = estimate_log_normalizer(
        tfd.BatchBroadcast(_base(), [repetitions]), _log_acceptance, num_samples, (5, 6)
    )
    assert log_z.shape == [repetitions]
    normalized = (log_z.numpy() - np.log(_Z)) / error.numpy()
    # The standard deviation of R nearly normal numbers has standard error 1 / sqrt(2 R).
    assert abs(normalized.std() - 1) < 4.5 / np.sqrt(2 * repetitions) + 1 / num_samples


@pytest.mark.parametrize("truncation", [3, 100])
def test_the_integral_with_an_estimate_is_one_within_its_standard_error(truncation: int) -> None:
    p = Resampled.with_estimated_normalizer(
        _base(), _log_acceptance, truncation, num_samples=10_000, seed=(1, 1)
    )
    density = p.prob(_GRID).numpy()
    sensitivity = _quadrature(density * p.normalizer_sensitivity(_GRID).numpy())
    error = abs(sensitivity) * p.log_normalizer_standard_error.numpy()
    assert 0 < error < 0.02
    assert abs(_quadrature(density) - 1) < 4.5 * error


def test_the_bias_of_an_estimated_normalizer() -> None:
    """An estimate of Z makes p(z) too large on average, log p(z) too large or too small."""
    repetitions, num_samples = 20_000, 40
    log_z, error = estimate_log_normalizer(
        tfd.BatchBroadcast(_base(), [repetitions]), _log_acceptance, num_samples, (7, 8)
    )
    squared = float(tf.reduce_mean(error**2))

    def bias(estimates: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
        """The mean error, and 4.5 standard errors of it."""
        deviation = estimates - exact
        return deviation.mean(), 4.5 * deviation.std() / np.sqrt(repetitions)

    # Terms of higher than second order are of the size of this.
    rest = 3 * squared**1.5
    for truncation, z, expected in (
        (50, [1.5, -1.0], squared / 2),  # often accepted
        (5, [-4.0, 4.0], -4 * squared * _Z**2 / (2 * (1 - _Z) ** 2)),  # hardly ever accepted
    ):
        p = Resampled(_base(), _log_acceptance, truncation, log_z)
        estimates = p.log_prob(np.array([z])).numpy()  # [R]
        exact = _numpy_density(np.array(z), truncation)
        of_log_prob, tolerance = bias(estimates, np.log(exact))
        assert abs(of_log_prob - expected) < tolerance + rest
        assert np.sign(expected) * of_log_prob > tolerance
        of_prob, tolerance = bias(np.exp(estimates), exact)
        assert of_prob > tolerance


@pytest.mark.parametrize("truncation", [2, 5, 100])
def test_sensitivity_to_the_normalizer(truncation: int) -> None:
    z, h = _GRID[::1000], 1e-5
    upper, lower = (np.log(_numpy_density(z, truncation, _Z * np.exp(shift))) for shift in (h, -h))
    sensitivity = _exact(truncation).normalizer_sensitivity(z)
    np.testing.assert_allclose(sensitivity, (upper - lower) / (2 * h), rtol=1e-6, atol=1e-6)
    log_z = tf.constant(np.log(_Z))
    _, gradient = tfp.math.value_and_gradient(
        lambda t: tf.reduce_sum(Resampled(_base(), _log_acceptance, truncation, t).log_prob(z)),
        log_z,
    )
    np.testing.assert_allclose(gradient, np.sum(sensitivity), rtol=1e-10)


def test_the_gradient_to_the_acceptance_function() -> None:
    """With the draws held fixed, the gradient is that of finite differences."""
    z = np.random.default_rng(0).normal(size=(20, 2))

    def mean_log_prob(parameters: Any) -> tf.Tensor:
        def log_acceptance(z: tf.Tensor) -> tf.Tensor:
            return tf.math.log_sigmoid(
                tf.linalg.matvec(tf.convert_to_tensor(z), parameters[:2]) + parameters[2]
            )

        p = Resampled.with_estimated_normalizer(
            _base(), log_acceptance, truncation=10, num_samples=1000, seed=(1, 2)
        )
        return tf.reduce_mean(p.log_prob(z))

    parameters = tf.constant([*_WEIGHTS, _BIAS], tf.float64)
    _, gradient = tfp.math.value_and_gradient(mean_log_prob, parameters)
    h = 1e-5
    differences = [
        (mean_log_prob(parameters + step) - mean_log_prob(parameters - step)) / (2 * h)
        for step in h * np.eye(3)
    ]
    np.testing.assert_allclose(gradient, differences, rtol=1e-7)


@pytest.mark.parametrize("kind", ["normal", "mixture"])
def test_the_gradient_of_the_normalizer_to_the_base(kind: str) -> None:
    """The base's part has no reparameterization: it agrees with quadrature within its error."""
    num_samples = 50_000

    def base(loc: Any) -> tfd.Distribution:
        first = tfd.MultivariateNormalDiag(loc, np.ones(2))
        if kind == "normal":
            return first
        return tfd.MixtureSameFamily(
            tfd.Categorical(probs=tf.constant([0.3, 0.7], tf.float64)),
            tfd.MultivariateNormalDiag(tf.stack([loc, -loc - 1]), np.ones(2)),
        )

    loc = tf.constant([0.5, -0.5], tf.float64)
    _, gradient = tfp.math.value_and_gradient(
        lambda t: estimate_log_normalizer(base(t), _log_acceptance, num_samples, (1, 2))[0], loc
    )
    acceptance, h = _numpy_acceptance(_GRID), 1e-4
    normalizer = _quadrature(base(loc).prob(_GRID).numpy() * acceptance)
    for axis, step in enumerate(h * np.eye(2)):
        upper, lower = base(loc + step), base(loc - step)
        score = (upper.log_prob(_GRID) - lower.log_prob(_GRID)).numpy() / (2 * h)
        terms = (acceptance - normalizer) * score / normalizer
        weights = base(loc).prob(_GRID).numpy()
        expected = _quadrature(weights * terms)
        error = np.sqrt((_quadrature(weights * terms**2) - expected**2) / num_samples)
        assert abs(gradient[axis] - expected) < 4.5 * error + 1e-6
        assert abs(expected) > 5 * error


@pytest.mark.parametrize("log_z", [0.0, -1e-9, -20.0, -200.0])
@pytest.mark.parametrize("truncation", [2, 100])
def test_extreme_normalizers(log_z: float, truncation: int) -> None:
    """Values stay right and gradients finite where Z rounds to 0 or to 1, in float32."""
    base = tfd.MultivariateNormalDiag(tf.zeros(2), tf.ones(2))
    z = tf.constant([[0.3, -0.2]])

    def log_prob(log_z: tf.Tensor) -> tf.Tensor:
        p = Resampled(base, lambda z: 0 * z[..., 0] + log_z, truncation, log_z)
        return p.log_prob(z)

    value, gradient = tfp.math.value_and_gradient(log_prob, tf.constant(log_z))
    # A constant acceptance leaves the base as it is.
    np.testing.assert_allclose(value, base.log_prob(z), atol=2e-5)
    assert np.isfinite(gradient)


def test_batches() -> None:
    base = tfd.MultivariateNormalDiag(np.zeros(2), np.array([[1.0, 2.0], [0.5, 1.0], [2.0, 1.0]]))
    p = Resampled.with_estimated_normalizer(base, _log_acceptance, 5, num_samples=1000)
    assert p.batch_shape == [3]
    assert p.event_shape == [2]
    assert p.log_normalizer.shape == [3]
    assert p.log_normalizer_standard_error.shape == [3]
    z = p.sample(7, seed=(1, 2))
    assert z.shape == [7, 3, 2]
    assert p.log_prob(z).shape == [7, 3]
    assert _exact(5).log_normalizer_standard_error == 0
    np.testing.assert_allclose(p[1].log_prob(z[:, 1]), p.log_prob(z)[:, 1], rtol=1e-12)
    shorter = p.copy(truncation=1)
    np.testing.assert_array_equal(shorter.log_prob(z), base.log_prob(z))


def test_graphs() -> None:
    p = _exact(20)

    @tf.function
    def draw(n: tf.Tensor) -> tf.Tensor:
        return p.sample(n, seed=(1, 2))

    np.testing.assert_array_equal(draw(tf.constant(5)), p.sample(5, seed=(1, 2)))
    compiled = tf.function(lambda: p.sample(4000, seed=(1, 2)), jit_compile=True)
    assert _chi_square(compiled().numpy(), 20) > 1e-4


def test_samples_have_no_gradient() -> None:
    assert _exact(3).reparameterization_type == tfd.NOT_REPARAMETERIZED
    loc = tf.zeros(2, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(loc)
        base = tfd.MultivariateNormalDiag(loc, np.ones(2))
        z = Resampled(base, _log_acceptance, 3, np.log(_Z)).sample(4, seed=(1, 2))
    assert tape.gradient(z, loc) is None


def test_the_support_is_that_of_the_base() -> None:
    p = Resampled(tfd.Gamma(np.float64(2.0), np.float64(1.0)), tf.math.log_sigmoid, 5, np.log(0.8))
    bijector = p.experimental_default_event_space_bijector()
    assert bijector.forward(np.float64(-5.0)) > 0


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"base_distribution must be a .*Distribution, got float"):
        Resampled(1.0, _log_acceptance, 3, -1.0)
    with pytest.raises(TypeError, match=r"log_acceptance_fn must be callable, got 0\.5"):
        Resampled(_base(), 0.5, 3, -1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="truncation must be at least 1, got 0"):
        _exact(0)
    with pytest.raises(TypeError, match=r"truncation must be an integer, got 2\.5"):
        _exact(2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        estimate_log_normalizer(_base(), _log_acceptance, 1, (0, 0))
    with pytest.raises(ValueError, match=r"one number a code, of shape \(100,\) for z of shape"):
        estimate_log_normalizer(_base(), lambda z: z, 100, (0, 0))
    with pytest.raises(tf.errors.InvalidArgumentError, match="log_normalizer must be at most 0"):
        Resampled(_base(), _log_acceptance, 3, 0.5, validate_args=True)
    above = Resampled(_base(), lambda z: z[..., 0], 3, -0.5, validate_args=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must return at most 0"):
        above.log_prob(np.array([[1.0, 0.0]]))


def test_an_integer_or_a_pair_of_int32_is_the_seed_of_the_normalizer() -> None:
    def log_normalizer(seed: Any) -> tf.Tensor:
        p = Resampled.with_estimated_normalizer(
            _base(), _log_acceptance, 5, num_samples=100, seed=seed
        )
        return p.log_normalizer

    found = [float(log_normalizer(seed)) for seed in (3, 4, (3, 4), (4, 3))]
    assert len(set(found)) == 4
    assert float(log_normalizer(3)) == found[0]
    for seed in ([3, 4], np.array([3, 4]), tf.constant([3, 4])):
        assert float(log_normalizer(seed)) == found[2]
    np.testing.assert_allclose(
        tf.function(log_normalizer)(tf.constant([3, 4])), found[2], rtol=1e-6
    )
    with pytest.raises(TypeError, match="seed must be an integer or a pair"):
        log_normalizer(None)
