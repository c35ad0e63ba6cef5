from __future__ import annotations

import numpy as np
import pytest
import tensorflow_probability as tfp

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
