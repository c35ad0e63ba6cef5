from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_surgery as tfs
from tests.testing.oracles import log_prob_and_entropy
from tests.testing.prior_conformance import PriorConformance, UnitConformance
from tfp_surgery.priors.mixture import MixturePrior

tfd = tfp.distributions

NUM_STANDARD_ERRORS = 4.5
LOC = np.array([[-1.5, -1.0], [1.5, -0.5], [0.0, 1.5]])
TRIL = np.array([[[0.6, 0.0], [0.3, 0.4]], [[0.4, 0.0], [-0.3, 0.5]], [[0.8, 0.0], [0.0, 0.3]]])
WEIGHTS = np.array([0.5, 0.3, 0.2])
SLOPE = np.array([[1.0, -0.5], [0.0, 0.8], [-0.7, 0.3]])  # of the mean against a condition


def known_mixture(covariance: str = "full", dtype: str = "float32") -> tfs.AggregatePosterior:
    """A mixture of three Gaussians in the plane."""
    tril = TRIL * np.eye(2) if covariance == "diagonal" else TRIL
    components = tfd.MultivariateNormalTriL(LOC.astype(dtype), tril.astype(dtype))
    return tfs.AggregatePosterior(components, weights=WEIGHTS.astype(dtype))


def draws(q_z: tfd.Distribution, num: int, seed: int = 0) -> np.ndarray:
    return np.asarray(q_z.sample(num, seed=(seed, 1)))


def scattered(layer: MixturePrior) -> MixturePrior:
    """The layer with every weight moved at random."""
    rng = np.random.default_rng(0)
    for variable in layer.trainable_variables:
        variable.assign(variable + 0.5 * rng.normal(size=variable.shape))
    return layer


def shifted_draws(
    q_z: tfd.Distribution, num: int, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """z ~ q(z), conditions c `[num, 3]`, and z + c SLOPE."""
    seeds = tf.random.experimental.stateless_split(seed, 2)
    z = q_z.sample(num, seed=seeds[0])
    condition = tf.random.stateless_normal([num, 3], seeds[1])
    return z, condition, z + condition @ SLOPE.astype("float32")


def train(
    layer: MixturePrior, q_z: tfd.Distribution, num_steps: int, learning_rate: float = 0.02
) -> None:
    """Maximises E_q(z)[log p(z)] on fresh samples; a conditional prior that of `shifted_draws`."""
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)
    optimizer = keras.optimizers.Adam(schedule)
    optimizer.build(layer.fitted_variables)

    @tf.function(jit_compile=True, autograph=False)
    def step(seed: tf.Tensor) -> None:
        z, condition, shifted = shifted_draws(q_z, 500, seed)
        with tf.GradientTape() as tape:
            log_prob = (
                layer().log_prob(z)
                if layer.condition_size is None
                else layer(condition).log_prob(shifted)
            )
            loss = -tf.reduce_mean(log_prob)
        variables = layer.fitted_variables
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    for i in range(num_steps):
        step(tf.constant([11, i]))


def check_marginal_kl(difference: np.ndarray, bound: float = 0.05) -> None:
    """Asserts that KL(q(z) || p(z)) is below a bound, from draws of log q(z) - log p(z)."""
    standard_error = difference.std() / np.sqrt(difference.size)
    assert difference.mean() + NUM_STANDARD_ERRORS * standard_error < bound
    assert difference.mean() > -NUM_STANDARD_ERRORS * standard_error


class TestDiagonalConformance(PriorConformance):
    def make(self, **kwargs: Any) -> MixturePrior:
        layer = MixturePrior(2, 3, **kwargs)
        layer.initialize(draws(known_mixture("diagonal"), 500))
        return layer


class TestFullConformance(PriorConformance):
    def make(self, **kwargs: Any) -> MixturePrior:
        layer = MixturePrior(2, 3, "full", **kwargs)
        layer.initialize(draws(known_mixture(), 500))
        return layer


class TestDiagonalUnits(UnitConformance):
    def make(self, **kwargs: Any) -> MixturePrior:
        return MixturePrior(2, 3, **kwargs)


class TestFullUnits(UnitConformance):
    def make(self, **kwargs: Any) -> MixturePrior:
        return MixturePrior(2, 3, "full", **kwargs)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("condition_size", [None, 4])
def test_density_is_that_of_its_weights(covariance: str, condition_size: int | None) -> None:
    """Against SciPy, from the weights that the layer shows, for each condition."""
    layer = scattered(MixturePrior(3, 5, covariance, condition_size, dtype="float64"))
    rng = np.random.default_rng(1)
    z = rng.normal(size=(6, 3))
    condition = None if condition_size is None else rng.normal(size=(6, condition_size))
    prior = layer(condition)
    assert prior.batch_shape == ([] if condition is None else [6])
    assert prior.event_shape == [3]

    values = [variable.numpy() for variable in layer.trainable_variables]
    for i in range(6):
        logits, loc, raw = (
            base if condition is None else base + np.tensordot(condition[i], slope, 1)
            for base, slope in zip(values[:3], values[3:] or values[:3], strict=True)
        )
        log_densities = np.empty([1, 5])
        for k in range(5):
            scale = np.diag(np.logaddexp(raw[k, :3], 0) + 1e-5)
            if covariance == "full":
                scale = np.array(tfp.math.fill_triangular(raw[k]))
                np.fill_diagonal(scale, np.logaddexp(np.diag(scale), 0) + 1e-5)
            gaussian = stats.multivariate_normal(loc[k], scale @ scale.T)
            log_densities[0, k] = gaussian.logpdf(z[i])
        expected, _ = log_prob_and_entropy(log_densities, np.exp(logits))
        np.testing.assert_allclose(prior.log_prob(z)[i], expected[0], rtol=1e-9)


def test_a_condition_has_no_influence_before_training() -> None:
    layer = MixturePrior(2, 3, "full", condition_size=4)
    layer.initialize(draws(known_mixture(), 500))
    plain = MixturePrior(2, 3, "full")
    plain.initialize(draws(known_mixture(), 500))
    z = draws(known_mixture(), 7, seed=1)
    condition = np.random.default_rng(0).normal(size=(7, 4)).astype("float32")
    np.testing.assert_allclose(layer(condition).log_prob(z), plain().log_prob(z), rtol=1e-5)


def test_conditional_prior_gets_a_gradient_to_every_weight_and_draws_for_each_condition() -> None:
    layer = scattered(MixturePrior(2, 3, "full", condition_size=3))
    condition = tf.constant(np.random.default_rng(2).normal(size=(5, 3)), tf.float32)
    prior = layer(condition)
    assert prior.sample(4, seed=(1, 2)).shape == [4, 5, 2]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(layer(condition).log_prob(tf.zeros([2])))
    assert len(layer.fitted_variables) == 6
    for gradient in tape.gradient(loss, [v.value for v in layer.fitted_variables]):
        assert np.all(np.isfinite(gradient))
        assert np.any(gradient != 0)


def test_random_start_spans_the_standard_normal() -> None:
    """The means have variance 1/2 and the components the other half, all with equal weights."""
    layer = MixturePrior(3, 2000, "full")
    loc = layer.loc.numpy().astype(np.float64)
    assert np.all(abs(loc.mean(axis=0)) < NUM_STANDARD_ERRORS * np.sqrt(0.5 / 2000))
    error = np.cov(loc.T) - 0.5 * np.eye(3)
    # The standard error of a covariance of Gaussians is at most its variance times sqrt(2 / K).
    assert np.all(abs(error) < NUM_STANDARD_ERRORS * 0.5 * np.sqrt(2 / 2000))
    prior = layer()
    np.testing.assert_allclose(
        prior.components_distribution.covariance()[:2], [0.5 * np.eye(3)] * 2, rtol=1e-5
    )
    np.testing.assert_allclose(prior.weights, np.full(2000, 1 / 2000), rtol=1e-6)


def test_initialize_finds_separate_clusters() -> None:
    """EM gives weights, means and covariances of the clusters, up to its added variance."""
    rng = np.random.default_rng(0)
    centres = 10 * np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    counts = np.array([4000, 2000, 1000])
    clusters = [
        centre + rng.normal(size=(count, 2)) @ tril.T
        for centre, count, tril in zip(centres, counts, TRIL, strict=True)
    ]
    codes = np.concatenate(clusters)
    layer = MixturePrior(2, 3, "full", dtype="float64")
    layer.initialize(codes)
    added = 0.5 * 3 * 2 / len(codes) * codes.var(axis=0)
    loc = layer().components_distribution.mean().numpy()
    order = [int(np.argmin(np.sum((loc - c) ** 2, axis=1))) for c in centres]
    np.testing.assert_allclose(
        tf.nn.softmax(layer.logits).numpy()[order], counts / counts.sum(), rtol=1e-6
    )
    components = layer().components_distribution
    for k, cluster in zip(order, clusters, strict=True):
        np.testing.assert_allclose(loc[k], cluster.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(
            components.covariance()[k],
            np.cov(cluster.T, bias=True) + np.diag(added),
            rtol=1e-5,
            atol=1e-6,
        )


def test_initialize_is_a_function_of_codes_and_seed() -> None:
    codes = draws(known_mixture(), 300)

    def initialized(seed: int) -> np.ndarray:
        layer = MixturePrior(2, 10)
        layer.initialize(codes, seed)
        return np.asarray(layer.loc)

    np.testing.assert_array_equal(initialized(1), initialized(1))
    assert np.any(initialized(1) != initialized(2))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_initialize_survives_codes_without_variance(covariance: str) -> None:
    """A dimension that is constant, as a collapsed latent's mean may be, leaves all finite."""
    codes = draws(known_mixture(), 200) * np.array([1.0, 0.0])
    layer = MixturePrior(2, 4, covariance)
    layer.initialize(codes)
    assert np.all(np.isfinite(layer().log_prob(codes)))


def test_one_full_gaussian_is_the_best_one() -> None:
    """K = 1 ends at the mean and covariance of q(z), and at the marginal KL that these give."""
    q_z = known_mixture(dtype="float64")
    mean, covariance = q_z.mean().numpy(), q_z.covariance().numpy()
    # Draws moved to have the moments of q(z) exactly: of a Gaussian's cross-entropy nothing else
    # counts, hence its maximum over them is that over q(z).
    z = draws(q_z, 1000)
    whitened = np.linalg.solve(np.linalg.cholesky(np.cov(z.T, bias=True)), (z - z.mean(axis=0)).T)
    z = mean + (np.linalg.cholesky(covariance) @ whitened).T

    layer = MixturePrior(2, 1, "full", dtype="float64")
    layer.initialize(z)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 600))
    optimizer.build(layer.fitted_variables)

    @tf.function(autograph=False)
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(layer().log_prob(z))
        gradients = tape.gradient(loss, [v.value for v in layer.fitted_variables])
        optimizer.apply_gradients(zip(gradients, layer.fitted_variables, strict=True))

    for _ in range(600):
        step()
    prior = layer()
    np.testing.assert_allclose(prior.mean(), mean, atol=1e-6)
    np.testing.assert_allclose(prior.covariance(), covariance, atol=1e-6)
    # KL(q || p) = -H[q] - E_q[log p], and the best p has E_q[log p] = -log det(2 pi e C) / 2.
    best = stats.multivariate_normal(mean, covariance)
    np.testing.assert_allclose(-np.mean(prior.log_prob(z)), best.entropy(), atol=1e-9)
    fresh = draws(q_z, 1000, seed=5)
    np.testing.assert_allclose(prior.log_prob(fresh), best.logpdf(fresh), atol=1e-5)


@pytest.mark.parametrize("covariance", [pytest.param("diagonal", marks=pytest.mark.slow), "full"])
def test_reaches_a_known_mixture_from_codes(covariance: str) -> None:
    q_z = known_mixture(covariance)
    layer = MixturePrior(2, 3, covariance)
    layer.initialize(draws(q_z, 1000))
    train(layer, q_z, 200)
    z = draws(q_z, 20000, seed=3)
    check_marginal_kl(np.asarray(q_z.log_prob(z) - layer().log_prob(z)), bound=0.01)


@pytest.mark.parametrize("covariance", [pytest.param("diagonal", marks=pytest.mark.slow), "full"])
def test_reaches_a_known_mixture_from_random_means(covariance: str) -> None:
    """Without `initialize`, and with more components than needed, none of which dies."""
    keras.utils.set_random_seed(1)
    q_z = known_mixture(covariance)
    layer = MixturePrior(2, 20, covariance)
    train(layer, q_z, 600)
    z = draws(q_z, 20000, seed=3)
    check_marginal_kl(np.asarray(q_z.log_prob(z) - layer().log_prob(z)))
    shares = tf.nn.softmax(layer.logits)
    assert np.min(shares) > 0.02 / 20, shares


def test_conditional_prior_reaches_a_mixture_that_moves_with_the_condition() -> None:
    q_z = known_mixture()
    layer = MixturePrior(2, 3, "full", condition_size=3)
    layer.initialize(draws(q_z, 1000))
    train(layer, q_z, 400)
    z, condition, shifted = shifted_draws(q_z, 20000, tf.constant([3, 4]))
    check_marginal_kl(np.asarray(q_z.log_prob(z) - layer(condition).log_prob(shifted)))


def test_a_component_without_weight_leaves_gradients_finite() -> None:
    """Logits so far apart that the softmax underflows."""
    layer = MixturePrior(2, 3, "full")
    layer.logits.assign([0.0, -1.0, -200.0])
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(layer().log_prob(tf.ones([4, 2])))
    for gradient in tape.gradient(loss, [v.value for v in layer.fitted_variables]):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("condition_size", [None, 4])
def test_configuration_round_trip(condition_size: int | None) -> None:
    layer = MixturePrior(3, 5, "full", condition_size, name="p")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert isinstance(again, MixturePrior)
    assert again.get_config() == layer.get_config()
    assert [v.shape for v in again.weights] == [v.shape for v in layer.weights]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_components": 0}, ValueError, "num_components must be at least 1, got 0"),
        ({"num_components": 2.5}, TypeError, "num_components must be an integer"),
        ({"event_size": 0}, ValueError, "event_size must be at least 1, got 0"),
        ({"covariance": "spherical"}, ValueError, '"diagonal" or "full", got \'spherical\''),
        ({"condition_size": 0}, ValueError, "condition_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MixturePrior(**{"event_size": 2, "num_components": 2, **arguments})


def test_bad_conditions_are_refused() -> None:
    with pytest.raises(ValueError, match="takes no condition"):
        MixturePrior(2, 2)(np.zeros([3, 2], np.float32))
    conditional = MixturePrior(2, 2, condition_size=4)
    with pytest.raises(ValueError, match=r"call it with a condition of shape \[B, 4\]"):
        conditional()
    with pytest.raises(ValueError, match=r"must have shape \[B, 4\], got \[3, 2\]"):
        conditional(np.zeros([3, 2], np.float32))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros([10, 3]), r"shape \[M, 2\] with M at least 4, got \[10, 3\]"),
        (np.zeros([3, 2]), r"shape \[M, 2\] with M at least 4, got \[3, 2\]"),
        (np.full([10, 2], np.nan), "must be finite"),
    ],
)
def test_bad_codes_are_refused(codes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixturePrior(2, 4).initialize(codes)
