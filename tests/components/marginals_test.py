from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tfp_surgery.components import components as components_lib
from tfp_surgery.components.marginals import is_factorised, one_dimensional_marginals

tfb = tfp.bijectors
tfd = tfp.distributions

_RNG = np.random.default_rng(0)
_LOC = _RNG.normal(size=(5, 3))
_TRIL = np.tril(_RNG.normal(size=(5, 3, 3))) + 2 * np.eye(3)


def test_full_covariance_gaussians_have_gaussian_marginals() -> None:
    marginals = one_dimensional_marginals(tfd.MultivariateNormalTriL(_LOC, _TRIL))
    assert marginals.batch_shape == (3, 5)
    covariance = _TRIL @ _TRIL.transpose(0, 2, 1)
    x = _RNG.normal(size=(3, 5))
    expected = stats.norm.logpdf(x, _LOC.T, np.sqrt(np.diagonal(covariance, 0, 1, 2)).T)
    np.testing.assert_allclose(marginals.log_prob(x), expected, rtol=1e-12)


def test_independent_components_give_their_scalars() -> None:
    components = components_lib.broadcast(
        tfd.Independent(tfd.StudentT(df=5.0, loc=tf.constant(_LOC, tf.float32), scale=1.0), 1)
    )
    marginals = one_dimensional_marginals(components)
    assert marginals.batch_shape == (3, 5)
    x = _RNG.normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_allclose(marginals.log_prob(x), stats.t.logpdf(x, 5.0, _LOC.T), rtol=1e-4)


def test_leading_batch_dimensions_stay_in_front() -> None:
    loc = _RNG.normal(size=(2, 5, 3))
    components = components_lib.broadcast(
        tfd.Independent(tfd.Normal(loc, np.ones_like(loc)), reinterpreted_batch_ndims=1)
    )
    marginals = one_dimensional_marginals(components)
    assert marginals.batch_shape == (2, 3, 5)
    np.testing.assert_array_equal(marginals.mean(), loc.transpose(0, 2, 1))


def test_dirichlet_has_beta_marginals() -> None:
    concentration = _RNG.uniform(0.5, 3.0, size=(5, 3))
    marginals = one_dimensional_marginals(tfd.Dirichlet(concentration))
    x = _RNG.uniform(0.1, 0.9, size=(3, 5))
    rest = concentration.sum(axis=1, keepdims=True) - concentration
    np.testing.assert_allclose(
        marginals.log_prob(x), stats.beta.logpdf(x, concentration.T, rest.T), rtol=1e-10
    )


def test_unknown_families_and_scalar_events_are_refused() -> None:
    transformed = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(_LOC), tfb.Exp())
    with pytest.raises(NotImplementedError, match="TransformedDistribution"):
        one_dimensional_marginals(transformed)
    with pytest.raises(ValueError, match="vector events"):
        one_dimensional_marginals(tfd.Normal(_LOC[:, 0], 1.0))


def test_is_factorised() -> None:
    assert is_factorised(tfd.MultivariateNormalDiag(_LOC))
    assert is_factorised(tfd.Independent(tfd.Normal(_LOC, 1.0), 1))
    assert not is_factorised(tfd.MultivariateNormalTriL(_LOC, _TRIL))
