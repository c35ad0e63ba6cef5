from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing import oracles
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.surgery.active_units import active_units

tfb = tfp.bijectors
tfd = tfp.distributions

_RNG = np.random.default_rng(0)
# Standard deviations of the means: active, collapsed, active, just below 0.1, just above it.
_SPREADS = np.array([1.0, 1e-3, 0.5, 0.099, 0.101])


def _means(num: int = 40) -> np.ndarray:
    loc = _RNG.normal(size=(num, len(_SPREADS)))
    means: np.ndarray = (loc - loc.mean(axis=0)) / loc.std(axis=0) * _SPREADS + 3.0
    return means


def _aggregate(loc: np.ndarray) -> AggregatePosterior:
    return AggregatePosterior(tfd.MultivariateNormalDiag(loc, 0.3 * np.ones_like(loc)))


def test_variances_are_those_of_numpy_and_collapsed_dimensions_are_named() -> None:
    loc = _means()
    units = active_units(_aggregate(loc))
    np.testing.assert_allclose(units.variances, loc.var(axis=0), rtol=1e-12)
    np.testing.assert_allclose(units.variances, _SPREADS**2, rtol=1e-9)
    assert units.active == (0, 2, 4)
    assert units.collapsed == (1, 3)
    assert units.num_active == 3
    assert "3 of 5 units are active" in str(units)
    assert "collapsed: 1, 3" in str(units)


def test_float32_means_far_from_zero_keep_their_variance() -> None:
    loc = (_means() + 1000.0).astype(np.float32)
    units = active_units(_aggregate(loc))
    np.testing.assert_allclose(units.variances, loc.astype(np.float64).var(axis=0), rtol=1e-12)


def test_the_threshold_is_a_bound_that_must_be_exceeded() -> None:
    loc = np.array([[0.0, 0.0], [1.0, 2.0]])  # variances 1/4 and 1
    assert active_units(_aggregate(loc), threshold=0.25).active == (1,)
    assert active_units(_aggregate(loc), threshold=0.2499).active == (0, 1)
    assert active_units(_aggregate(loc), threshold=0).active == (0, 1)


@pytest.mark.parametrize("case", oracles.CASES)
def test_the_three_cases(case: str) -> None:
    loc, scale = oracles.gaussian_case(case, 30, 3)
    components = tfd.Independent(tfd.Normal(loc, scale), 1)
    units = active_units(AggregatePosterior(components))
    np.testing.assert_allclose(units.variances, loc.var(axis=0), rtol=1e-12)
    assert units.num_active == (0 if case == "collapsed" else 3)


def test_full_covariances_and_other_families() -> None:
    loc = _means()
    tril = np.linalg.cholesky(np.eye(5) + 0.3)
    units = active_units(AggregatePosterior(tfd.MultivariateNormalTriL(loc, tril)))
    np.testing.assert_allclose(units.variances, loc.var(axis=0), rtol=1e-12)
    concentration = _RNG.uniform(0.5, 3.0, size=(20, 3))
    units = active_units(AggregatePosterior(tfd.Dirichlet(concentration)))
    mean = concentration / concentration.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(units.variances, mean.var(axis=0), rtol=1e-12)


def test_a_mean_that_all_share_is_collapsed() -> None:
    components = tfd.MultivariateNormalDiag(np.zeros(2), np.ones([7, 2]))
    units = active_units(AggregatePosterior(components))
    assert units.variances == (0.0, 0.0)
    assert units.collapsed == (0, 1)


def test_to_dict_is_json() -> None:
    record = json.loads(json.dumps(active_units(_aggregate(_means())).to_dict(), allow_nan=False))
    assert record["num_active"] == 3
    assert record["collapsed"] == [1, 3]
    assert len(record["variances"]) == 5


@pytest.mark.parametrize(
    ("components", "weights", "message"),
    [
        (tfd.MultivariateNormalDiag(np.zeros([1, 2]), np.ones(2)), None, "N >= 2"),
        (tfd.MultivariateNormalDiag(np.zeros([3, 4, 2]), np.ones(2)), None, "one distribution"),
        (tfd.MultivariateNormalDiag(np.zeros([2, 2]), np.ones(2)), [0.3, 0.7], "weights=None"),
        (tfd.MultivariateNormalDiag([[0.0, math.nan], [0.0, 1.0]], [1.0, 1.0]), None, "1 of 2"),
    ],
)
def test_what_does_not_fit_is_refused(components: Any, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        active_units(AggregatePosterior(components, weights=weights))


def test_arguments_of_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="AggregatePosterior"):
        active_units(tfd.MultivariateNormalDiag(np.zeros([4, 2]), np.ones(2)))
    with pytest.raises(TypeError, match="threshold"):
        active_units(_aggregate(_means()), threshold="0.01")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold"):
        active_units(_aggregate(_means()), threshold=-0.01)
    transformed = tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros([4, 2]), tf.ones(2)), tfb.Softplus()
    )
    with pytest.raises(NotImplementedError):
        active_units(AggregatePosterior(transformed))
