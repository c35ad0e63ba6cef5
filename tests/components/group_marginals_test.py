from __future__ import annotations

import numpy as np
import pytest
import tensorflow_probability as tfp
from scipy import stats

from tfp_surgery.components import components as components_lib
from tfp_surgery.components.group_marginals import (
    group_marginal,
    has_group_marginals,
)

tfb = tfp.bijectors
tfd = tfp.distributions

N, D = 5, 4
GROUP = (3, 1)  # in the order that is asked for
_RNG = np.random.default_rng(0)
_LOC = _RNG.normal(size=(N, D))
_SCALE = _RNG.uniform(0.5, 2.0, size=(N, D))
_TRIL = np.tril(_RNG.normal(size=(N, D, D)), -1) + _SCALE[..., None] * np.eye(D)
_FACTOR = _RNG.normal(size=(N, D, 2))

_DIAGONAL = np.stack([np.diag(scale**2) for scale in _SCALE])
_GAUSSIANS = {
    "diag": (tfd.MultivariateNormalDiag(_LOC, _SCALE), _DIAGONAL),
    "negative scale": (tfd.MultivariateNormalDiag(_LOC, -_SCALE), _DIAGONAL),
    "independent": (tfd.Independent(tfd.Normal(_LOC, _SCALE), 1), _DIAGONAL),
    "tril": (tfd.MultivariateNormalTriL(_LOC, _TRIL), _TRIL @ _TRIL.transpose(0, 2, 1)),
    "negative tril": (tfd.MultivariateNormalTriL(_LOC, -_TRIL), _TRIL @ _TRIL.transpose(0, 2, 1)),
    "shared tril": (
        tfd.MultivariateNormalTriL(_LOC, _TRIL[0]),
        np.broadcast_to(_TRIL[0] @ _TRIL[0].T, (N, D, D)),
    ),
    "low-rank covariance": (
        tfd.MultivariateNormalDiagPlusLowRankCovariance(_LOC, _SCALE**2, _FACTOR),
        _DIAGONAL + _FACTOR @ _FACTOR.transpose(0, 2, 1),
    ),
}


@pytest.mark.parametrize("kind", _GAUSSIANS)
def test_groups_of_gaussians(kind: str) -> None:
    components, covariance = _GAUSSIANS[kind]
    marginal = group_marginal(components_lib.broadcast(components), GROUP)
    assert (marginal.batch_shape, marginal.event_shape) == ((N,), (2,))
    z = _RNG.normal(size=(7, 2))
    expected = np.stack(
        [
            stats.multivariate_normal(m[list(GROUP)], c[np.ix_(GROUP, GROUP)]).logpdf(z)
            for m, c in zip(_LOC, covariance, strict=True)
        ],
        axis=1,
    )
    np.testing.assert_allclose(marginal.log_prob(z[:, None]), expected, rtol=1e-10)


def test_ill_conditioned_factors_keep_their_digits_in_float32() -> None:
    """A covariance formed in float32 would lose a variance of 1e-8 beside one of 1."""
    tril = np.array([[1.0, 0.0, 0.0], [1.0, 1e-4, 0.0], [0.3, 0.2, 1.0]])
    components = tfd.MultivariateNormalTriL(np.zeros([1, 3], np.float32), tril.astype(np.float32))
    marginal = group_marginal(components_lib.broadcast(components), (0, 1))
    np.testing.assert_allclose(marginal.scale_tril[0], tril[:2, :2], rtol=1e-3)


def test_groups_of_independent_scalars_of_any_family() -> None:
    components = components_lib.broadcast(
        tfd.Independent(tfd.StudentT(np.float64(5), _LOC, _SCALE), 1)
    )
    z = _RNG.normal(size=(N, 2))
    expected = stats.t.logpdf(z, 5, _LOC[:, list(GROUP)], _SCALE[:, list(GROUP)]).sum(axis=1)
    np.testing.assert_allclose(group_marginal(components, GROUP).log_prob(z), expected, rtol=1e-10)


def test_other_families_are_refused() -> None:
    dirichlet = tfd.Dirichlet(np.ones([N, D]))
    assert not has_group_marginals(dirichlet)
    with pytest.raises(NotImplementedError, match="Dirichlet"):
        group_marginal(dirichlet, GROUP)
