from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tests.testing.prior_conformance import PriorConformance, UnitConformance
from tests.testing.prior_fitting import fit_by_adam, marginal_kl, scattered_weights
from tfp_surgery.priors.autoregressive import AutoregressivePrior
from tfp_surgery.priors.base import Prior

tfd = tfp.distributions


def small(event_size: int = 2, **kwargs: Any) -> AutoregressivePrior:
    """A prior with weights that are not where training starts."""
    arguments: dict[str, Any] = {
        "num_components": 3,
        "hidden_sizes": (8, 8),
        "activation": "tanh",  # bounded, as are the locations: no heavy tails
        **kwargs,
    }
    return scattered_weights(lambda: AutoregressivePrior(event_size, **arguments))


_LACKS = {
    **PriorConformance.lacks,
    **dict.fromkeys(("mean", "variance", "stddev", "covariance"), "they have no closed form"),
    "composite": "the network is a Keras layer",
}


class TestAutoregressivePriorConformance(PriorConformance):
    lacks = _LACKS

    def make(self, **kwargs: Any) -> Prior:
        return small(**kwargs)


class TestAutoregressivePriorUnits(UnitConformance):
    def make(self, **kwargs: Any) -> Prior:
        return small(**kwargs)


def test_the_density_is_what_the_weights_say() -> None:
    """Against NumPy, from the network's outputs, the affine map and SciPy's normal density."""
    layer = small(3, dtype="float64")
    z = np.random.default_rng(1).normal(size=(5, 3))
    inverse = layer.linear.bijector().inverse(np.concatenate([np.zeros((1, 3)), np.eye(3)])).numpy()
    matrix = (inverse[1:] - inverse[0]).T  # W
    u = z @ matrix.T + inverse[0]
    logits, loc, raw_scale = np.split(layer.network(u).numpy(), 3, axis=-1)
    scale = np.log1p(np.exp(raw_scale)) + 1e-3
    joint = scipy.special.log_softmax(logits, axis=-1) + scipy.stats.norm(loc, scale).logpdf(
        u[..., None]
    )
    expected = scipy.special.logsumexp(joint, axis=-1).sum(-1) + np.linalg.slogdet(matrix)[1]
    np.testing.assert_allclose(layer().log_prob(z), expected, rtol=1e-10)


def test_initialize_whitens_and_spreads_the_components() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(4000, 3)) @ rng.normal(size=(3, 3)) + [1.0, -2.0, 3.0]
    layer = AutoregressivePrior(3, num_components=5, dtype="float64")
    layer.initialize(codes)
    u = layer.linear.bijector().inverse(codes).numpy()
    np.testing.assert_allclose(u.mean(axis=0), 0.0, atol=1e-10)
    np.testing.assert_allclose(np.cov(u.T), np.eye(3), atol=1e-10)
    loc = layer.network.output_layer.bias.numpy().reshape(3, 3, 5)[:, 1]
    np.testing.assert_allclose(loc, np.quantile(u, [0.1, 0.3, 0.5, 0.7, 0.9], axis=0).T, atol=1e-10)


def test_it_reaches_a_known_mixture() -> None:
    """The marginal KL of a fitted prior is within 0.05 nats of zero, four errors included."""
    target = tfd.MixtureSameFamily(
        tfd.Categorical(probs=[0.5, 0.3, 0.2]),
        tfd.MultivariateNormalTriL(
            [[-2.0, 0.0], [1.5, 1.5], [1.0, -2.0]],
            [[[0.5, 0.0], [0.3, 0.7]], [[0.8, 0.0], [-0.5, 0.4]], [[0.3, 0.0], [0.0, 0.3]]],
        ),
    )
    keras.utils.set_random_seed(0)
    layer = AutoregressivePrior(2, num_components=6, hidden_sizes=(32, 32))
    fit_by_adam(layer, target, steps=1500, learning_rate=5e-3)
    value, standard_error = marginal_kl(target, layer())
    assert standard_error < 0.005
    assert -4.5 * standard_error < value < 0.05 - 4.5 * standard_error, (value, standard_error)


def test_one_event_size() -> None:
    """With D = 1 it is a plain mixture."""
    layer = small(1)
    prior = layer()
    grid, step = np.linspace(-12, 12, 4001, dtype=np.float32, retstep=True)
    assert abs(np.exp(prior.log_prob(grid[:, None])).sum() * step - 1) < 1e-3
    assert prior.sample(5, seed=(1, 2)).shape == [5, 1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_components": 0}, ValueError, "num_components must be at least 1, got 0"),
        ({"num_components": 1.5}, TypeError, "num_components must be an integer"),
        ({"hidden_sizes": ()}, ValueError, "hidden_sizes must be one or more sizes"),
        ({"hidden_sizes": (4, 0)}, ValueError, "hidden size must be at least 1, got 0"),
        ({"condition_size": 0}, ValueError, "condition_size must be at least 1 or None, got 0"),
        ({"event_size": 0}, ValueError, "event_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        AutoregressivePrior(**{"event_size": 2, **arguments})


def test_bad_codes() -> None:
    layer = small()
    for codes in (np.zeros((4, 3)), np.zeros((1, 2)), np.zeros(2)):
        with pytest.raises(ValueError, match=r"codes must have shape \[M, 2\]"):
            layer.initialize(codes)
    with pytest.raises(ValueError, match="codes must be finite"):
        layer.initialize(np.full((4, 2), np.nan))


def test_configuration_round_trip() -> None:
    layer = small(3, condition_size=2, activation="tanh", name="p")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert isinstance(again, AutoregressivePrior)
    assert again.get_config() == layer.get_config()
    assert again.num_components == 3
    assert again.hidden_sizes == (8, 8)


def test_a_surgery_takes_it() -> None:
    """elbo_surgery scores and samples it as any other prior."""
    x = np.random.default_rng(0).integers(0, 2, (40, 3, 2)).astype("float32")
    surgery = tfs.elbo_surgery(
        x,
        tfs.networks.MLPEncoder(2, (8,)),
        tfs.networks.MLPDecoder((3, 2), (8,)),
        small(),
        num_samples=2,
        seed=0,
    )
    assert np.isfinite(surgery.marginal_kl.value)
