from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tests.testing.prior_conformance import PriorConformance, UnitConformance
from tests.testing.prior_fitting import fit_by_adam, marginal_kl, scattered_weights
from tfp_surgery.priors.base import Prior
from tfp_surgery.priors.flow import KINDS, FlowPrior

tfb = tfp.bijectors
tfd = tfp.distributions


def small(event_size: int = 2, kind: str = "neural_spline", **kwargs: Any) -> FlowPrior:
    """A flow with weights that are not where training starts."""
    arguments: dict[str, Any] = {
        "num_layers": 2,
        "activation": "tanh",  # bounded, as is what it gives the next layer: no heavy tails
        "hidden_sizes": (8, 8),
        "num_bins": 4,
        "tail_bound": 4.0,
        **kwargs,
    }
    return scattered_weights(lambda: FlowPrior(event_size, kind, **arguments))


_LACKS = {
    **PriorConformance.lacks,
    **dict.fromkeys(("mean", "variance", "stddev", "covariance"), "the map is not affine"),
    "composite": "the map holds Keras layers",
}


class TestRealNVPConformance(PriorConformance):
    lacks = _LACKS

    def make(self, **kwargs: Any) -> Prior:
        return small(kind="realnvp", **kwargs)


@pytest.mark.slow
class TestNeuralSplineFlowConformance(PriorConformance):
    lacks = _LACKS

    def make(self, **kwargs: Any) -> Prior:
        return small(kind="neural_spline", **kwargs)


@pytest.mark.slow
class TestMaskedAutoregressiveFlowConformance(PriorConformance):
    lacks = _LACKS

    def make(self, **kwargs: Any) -> Prior:
        return small(kind="maf", **kwargs)


class TestRealNVPUnits(UnitConformance):
    def make(self, **kwargs: Any) -> Prior:
        return small(kind="realnvp", **kwargs)


class TestNeuralSplineFlowUnits(UnitConformance):
    def make(self, **kwargs: Any) -> Prior:
        return small(kind="neural_spline", **kwargs)


class TestMaskedAutoregressiveFlowUnits(UnitConformance):
    def make(self, **kwargs: Any) -> Prior:
        return small(kind="maf", **kwargs)


@pytest.mark.parametrize(("kind", "event_size"), [("realnvp", 5), ("maf", 4), ("neural_spline", 3)])
def test_invertibility_and_log_determinant(kind: str, event_size: int) -> None:
    """Against the Jacobian by brute force; other instances, so that no cache can answer."""
    layer = small(event_size, kind, dtype="float64")
    z = tf.constant(1.5 * np.random.default_rng(1).normal(size=(20, event_size)))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        u = layer().bijector.inverse(z)
        coordinates = tf.unstack(u, axis=-1)
    np.testing.assert_allclose(layer().bijector.forward(u), z, atol=1e-10)
    rows = [tape.gradient(coordinate, z).numpy() for coordinate in coordinates]
    jacobian = np.stack(rows, axis=1)  # [20, D, D]
    log_det = np.linalg.slogdet(jacobian)[1]
    assert log_det.std() > 0.01  # the flow bends
    np.testing.assert_allclose(
        layer().bijector.inverse_log_det_jacobian(z, event_ndims=1), log_det, atol=1e-10
    )
    normal = -0.5 * (u.numpy() ** 2).sum(-1) - 0.5 * event_size * np.log(2 * np.pi)
    np.testing.assert_allclose(layer().log_prob(z), normal + log_det, atol=1e-10)


def test_a_masked_autoregressive_layer_has_a_triangular_jacobian() -> None:
    layer = small(4, "maf", num_layers=1, dtype="float64")
    layer.linears[0].assign(np.zeros(4), np.eye(4))
    z = tf.constant(np.random.default_rng(1).normal(size=(20, 4)))
    with tf.GradientTape() as tape:
        tape.watch(z)
        u = layer().bijector.inverse(z)
    depends = np.any(tape.batch_jacobian(u, z).numpy() != 0, axis=0)
    np.testing.assert_array_equal(depends, np.tril(np.ones((4, 4), bool)))


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_survives_a_change_of_weights(kind: str) -> None:
    """Caches of bijectors belong to one call of the layer."""
    layer = small(kind=kind)
    z = tf.constant([[0.3, -0.4]])
    before = layer().log_prob(z).numpy()
    layer.linears[0].loc.assign_add([0.5, 0.5])
    assert np.abs(layer().log_prob(z).numpy() - before).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_after_a_call_without_one(kind: str) -> None:
    """What was scored outside a tape is scored anew inside."""
    layer = small(kind=kind)
    z = tf.constant([[0.3, -0.4], [1.0, 0.2]])

    def gradient(prior: tfd.Distribution) -> np.ndarray:
        with tf.GradientTape() as tape:
            tape.watch(z)
            log_prob = prior.log_prob(z)
        result: np.ndarray = tape.gradient(log_prob, z).numpy()
        return result

    prior = layer()
    prior.log_prob(z)
    np.testing.assert_allclose(gradient(prior), gradient(layer()), rtol=1e-6)


def test_initialize_whitens() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(3000, 3)) @ rng.normal(size=(3, 3)) + [1.0, -2.0, 3.0]
    layer = FlowPrior(3, num_layers=2, hidden_sizes=(8,), dtype="float64")
    layer.initialize(codes)
    # The layers start near the identity, and what follows the whitening is a rotation.
    u = layer().bijector.inverse(codes).numpy()
    np.testing.assert_allclose(u.mean(axis=0), 0.0, atol=0.1)
    np.testing.assert_allclose(np.cov(u.T), np.eye(3), atol=0.2)


def test_an_affine_image_of_a_gaussian() -> None:
    """The whitening has the family's known optimum within reach: KL below 0.05 nats."""
    target = tfd.MultivariateNormalTriL([3.0, -2.0], [[0.5, 0.0], [1.2, 0.4]])
    keras.utils.set_random_seed(0)
    layer = FlowPrior(2, "realnvp", num_layers=2, hidden_sizes=(16,))
    fit_by_adam(layer, target, steps=200)
    value, standard_error = marginal_kl(target, layer())
    assert standard_error < 0.005
    assert -4.5 * standard_error < value < 0.05 - 4.5 * standard_error, (value, standard_error)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_curved_density(kind: str) -> None:
    """N(0, I) bent by z_2 = x_2 / 2 + x_1^2 / 2 and turned, of known density, is fitted."""
    bend = tfb.RealNVP(
        1,
        bijector_fn=lambda x, _: tfb.Chain([tfb.Shift(0.5 * x**2), tfb.Scale(0.5)]),
    )
    turn = tfb.ScaleMatvecTriL([[0.8, 0.0], [0.6, 1.1]])
    target = tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag([0.0, 0.0], [1.0, 1.0]), tfb.Chain([turn, bend])
    )
    keras.utils.set_random_seed(0)
    layer = FlowPrior(2, kind, num_layers=3, hidden_sizes=(32, 32))
    fit_by_adam(layer, target, steps=1200, learning_rate=5e-3)
    value, standard_error = marginal_kl(target, layer())
    assert standard_error < 0.01
    assert -4.5 * standard_error < value < 0.05 - 4.5 * standard_error, (value, standard_error)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "glow"}, ValueError, "kind must be one of realnvp, maf, neural_spline"),
        ({"event_size": 1}, ValueError, "couplings need an event_size of at least 2, got 1"),
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
        ({"num_bins": 1}, ValueError, "num_bins must be at least 2, got 1"),
        ({"tail_bound": 0.0}, ValueError, "tail_bound must be positive and finite, got 0"),
        ({"tail_bound": np.inf}, ValueError, "tail_bound must be positive and finite, got inf"),
        ({"hidden_sizes": ()}, ValueError, "hidden_sizes must be one or more sizes"),
        ({"hidden_sizes": (4.5,)}, TypeError, "hidden size must be an integer"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        FlowPrior(**{"event_size": 2, **arguments})


def test_one_coordinate() -> None:
    layer = small(1, "maf")
    axis, step = np.linspace(-12, 12, 2001, dtype=np.float32, retstep=True)
    assert abs(np.exp(layer().log_prob(axis[:, None])).sum() * step - 1) < 1e-3


def test_configuration_round_trip() -> None:
    layer = small(3, "maf", condition_size=2, activation="tanh", name="p")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert isinstance(again, FlowPrior)
    assert again.get_config() == layer.get_config()
    expected = {
        "kind": "maf",
        "num_layers": 2,
        "hidden_sizes": (8, 8),
        "activation": "tanh",
        "num_bins": 4,
        "tail_bound": 4.0,
        "condition_size": 2,
    }
    assert {name: getattr(again, name) for name in expected} == expected


@pytest.mark.parametrize("kind", ["maf", "neural_spline"])
def test_a_surgery_takes_it(kind: str) -> None:
    """elbo_surgery scores and samples it as any other prior."""
    x = np.random.default_rng(0).integers(0, 2, (40, 3, 2)).astype("float32")
    encoder, decoder = tfs.networks.MLPEncoder(2, (8,)), tfs.networks.MLPDecoder((3, 2), (8,))
    surgery = tfs.elbo_surgery(x, encoder, decoder, small(kind=kind), num_samples=2, seed=0)
    assert np.isfinite(surgery.marginal_kl.value)
