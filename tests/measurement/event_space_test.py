from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components.flat_joint import flattened
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement.event_space import (
    event_space_bijector,
    num_components,
    with_components,
)

tfb = tfp.bijectors
tfd = tfp.distributions

RATES = np.array([1.0, 4.0, 9.0])
MIXTURE = tfd.MixtureSameFamily(
    tfd.Categorical(logits=np.zeros(3)), tfd.Gamma(np.float64(2), RATES)
)
LISTED = tfd.Mixture(
    tfd.Categorical(logits=np.zeros(2)), [tfd.LogNormal(np.float64(0), np.float64(1)), MIXTURE]
)


def test_distributions_have_the_bijector_of_tfp() -> None:
    assert isinstance(event_space_bijector(tfd.Beta(2.0, 3.0)), tfb.Sigmoid)


@pytest.mark.parametrize(
    ("prior", "count", "expected"),
    [
        (MIXTURE, 3, tfb.Softplus),
        (AggregatePosterior(tfd.Gamma(np.float64(2), RATES)), 3, tfb.Softplus),
        (LISTED, 3, tfb.Exp),
    ],
)
def test_mixtures_have_that_of_their_first_component(
    prior: tfd.Distribution, count: int, expected: type
) -> None:
    assert num_components(prior) == count
    assert isinstance(event_space_bijector(prior), expected)


@pytest.mark.parametrize("index", [0, 1, 2, 4])
def test_one_component_stands_for_every_mixture_at_any_depth(index: int) -> None:
    scaled = tfd.TransformedDistribution(tfd.Sample(MIXTURE, 2), tfb.Scale(np.float64(3)))
    component = with_components(scaled, index)
    assert component.event_shape == [2]
    z = np.array([0.5, 2.0])
    expected = tfd.Gamma(np.float64(2), RATES[index % 3] / 3).log_prob(z)
    np.testing.assert_allclose(component.log_prob(z), np.sum(expected))
    assert num_components(component) == 0


def test_the_index_goes_round_in_each_mixture() -> None:
    component = with_components(LISTED, 3)  # the second of two, and the first of three in it
    np.testing.assert_allclose(component.rate, RATES[0])


def test_distributions_without_mixtures_stay_as_they_are() -> None:
    prior = tfd.Independent(tfd.Normal(np.zeros(2), 1.0), 1)
    assert with_components(prior, 1) is prior
    assert num_components(prior) == 0


def test_components_that_tfp_cannot_slice_are_named() -> None:
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(logits=np.zeros(3)),
        tfd.BatchBroadcast(tfd.Normal(np.float64(0), np.float64(1)), [3]),
    )
    with pytest.raises(TypeError, match="cannot be taken apart"):
        event_space_bijector(mixture)


@pytest.mark.parametrize("batch", [(), (4,)])
def test_parts_of_a_structured_code_have_one_bijector_each(batch: tuple[int, ...]) -> None:
    """Of a vector of the parts: a scalar with limits of its own, a simplex, a matrix, a mixture."""
    rng = np.random.default_rng(0)
    low = rng.normal(size=batch)
    parts = {
        "a": tfd.Uniform(low, low + 2),
        "b": tfd.Dirichlet(np.ones([*batch, 3])),
        "c": tfd.Independent(tfd.Gamma(np.ones([*batch, 2, 2]), np.float64(1)), 2),
        "d": tfd.MixtureSameFamily(
            tfd.Categorical(logits=np.zeros([*batch, 2])),
            tfd.LogNormal(np.zeros([*batch, 2]), np.float64(1)),
        ),
    }
    prior = flattened(tfd.JointDistributionNamed(parts))
    bijector = event_space_bijector(prior)
    u = tf.constant(rng.normal(size=(5, *batch, 1 + 2 + 4 + 1)))
    own = [u[..., 0], u[..., 1:3], tf.reshape(u[..., 3:7], [5, *batch, 2, 2]), u[..., 7]]
    z = bijector.forward(u)
    log_det = np.zeros((5, *batch))
    for name, value, moved in zip(parts, own, tf.nest.flatten(prior.layout.unpack(z)), strict=True):
        inner = event_space_bijector(parts[name])
        np.testing.assert_allclose(moved, inner.forward(value), rtol=1e-12)
        ndims = value.shape.rank - 1 - len(batch)
        log_det += inner.forward_log_det_jacobian(value, event_ndims=ndims).numpy()
    np.testing.assert_allclose(bijector.forward_log_det_jacobian(u, event_ndims=1), log_det)
    np.testing.assert_allclose(bijector.inverse(tf.constant(z.numpy())), u, rtol=1e-6)
