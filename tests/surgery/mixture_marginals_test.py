from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.surgery.mixture_marginals import (
    aggregate_group_marginal,
    as_mixture,
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


def test_weights_stay_with_their_components() -> None:
    weights = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
    q_z = AggregatePosterior(tfd.MultivariateNormalDiag(_LOC, _SCALE), weights=weights)
    z = _RNG.normal(size=(7, 2))
    densities = stats.norm.pdf(z[:, None], _LOC[:, list(GROUP)], _SCALE[:, list(GROUP)])
    np.testing.assert_allclose(
        aggregate_group_marginal(q_z, GROUP).prob(z), densities.prod(axis=-1) @ weights, rtol=1e-10
    )


_PROBS = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
_PRIORS = {
    "diag": tfd.MultivariateNormalDiag(_LOC[0], _SCALE[0]),
    "scale alone": tfd.MultivariateNormalDiag(scale_diag=_SCALE[0]),
    "tril": tfd.MultivariateNormalTriL(_LOC[0], _TRIL[0]),
    "independent": tfd.Independent(tfd.Laplace(_LOC[0], _SCALE[0]), 1),
    "sample": tfd.Sample(tfd.Logistic(np.float64(0.3), 2.0), D),
    "mixture of diag": tfd.MixtureSameFamily(
        tfd.Categorical(probs=_PROBS), tfd.MultivariateNormalDiag(_LOC, _SCALE)
    ),
    "mixture of tril": tfd.MixtureSameFamily(
        tfd.Categorical(logits=np.log(_PROBS)), tfd.MultivariateNormalTriL(_LOC, _TRIL)
    ),
    "independent mixtures": tfd.Independent(
        tfd.MixtureSameFamily(
            tfd.Categorical(probs=np.tile(_PROBS, [D, 1])), tfd.Normal(_LOC.T, _SCALE.T)
        ),
        1,
    ),
    "aggregate posterior": AggregatePosterior(tfd.MultivariateNormalDiag(_LOC, _SCALE)),
}


@pytest.mark.parametrize("kind", _PRIORS)
def test_priors_as_mixtures_have_their_density(kind: str) -> None:
    mixture = as_mixture(_PRIORS[kind])
    assert mixture is not None
    z = _RNG.normal(size=(6, D))
    np.testing.assert_allclose(mixture.log_prob(z), _PRIORS[kind].log_prob(z), rtol=1e-10)
    assert mixture.marginals().log_prob(z).shape == (6, D)


def test_scalars_of_independent_priors_are_their_marginals() -> None:
    z = _RNG.normal(size=(6, D))
    for kind, expected in {
        "independent": stats.laplace.logpdf(z, _LOC[0], _SCALE[0]),
        "sample": stats.logistic.logpdf(z, 0.3, 2.0),
        "independent mixtures": np.log(
            (stats.norm.pdf(z[..., None], _LOC.T, _SCALE.T) * _PROBS).sum(axis=-1)
        ),
    }.items():
        mixture = as_mixture(_PRIORS[kind])
        assert mixture is not None
        np.testing.assert_allclose(mixture.marginals().log_prob(z), expected, rtol=1e-10)


def test_priors_without_known_marginals_give_none() -> None:
    base = tfd.MultivariateNormalDiag(tf.zeros(3), tf.ones(3))
    assert as_mixture(tfd.TransformedDistribution(base, tfb.Softplus())) is None
    assert as_mixture(tfd.Dirichlet(np.ones(3))) is None
    components = tfd.Dirichlet(np.ones([2, 3]))
    assert as_mixture(AggregatePosterior(components)) is None
