"""fit_prior and VAE.fit give one prior, and a good one, in whatever unit the codes are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.mixture import GaussianMixture

import tfp_surgery as tfs
from tests.testing import oracles, small_aggregates
from tfp_surgery.networks.likelihoods import GaussianLikelihood
from tfp_surgery.priors.base import Prior
from tfp_surgery.training.fit_prior import fit_prior
from tfp_surgery.training.prior_fit import PriorFit

tfd = tfp.distributions

_ERRORS = 4.5  # standard errors


def _fit(q_z: tfs.AggregatePosterior, prior: Prior, **kwargs: Any) -> PriorFit:
    settings = {"num_steps": 400, "batch_size": 200, "num_samples": 100, "verbose": False}
    return fit_prior(q_z, prior, **{**settings, **kwargs})


@pytest.mark.parametrize(
    "unit",
    [
        3e-4,
        [5.0, 1e-3],
        *(pytest.param(unit, marks=pytest.mark.slow) for unit in (1.0, 1e-3, 1e3, [1.0, 0.02])),
    ],
)
def test_one_full_gaussian_reaches_the_moments_of_the_codes_in_every_unit(unit: Any) -> None:
    """Of all Gaussians the one with the moments of q(z) has the least marginal KL."""
    unit = np.asarray(unit)
    loc, scale = oracles.gaussian_case("overlapping", small_aggregates.N, small_aggregates.D)
    q_z = tfs.AggregatePosterior(
        tfd.MultivariateNormalDiag(
            (unit * loc).astype(np.float32), (unit * scale).astype(np.float32)
        )
    )
    prior = tfs.priors.MixturePrior(2, 1, covariance="full")
    # It starts from one code of each of twelve posteriors, and may be far off.
    after = _fit(q_z, prior, num_steps=1200).training.marginal_kl_after
    # In units of one: the marginal KL does not depend on them.
    moments = small_aggregates.moments("overlapping")
    best = small_aggregates.cross_entropy(moments, moments) - small_aggregates.entropy(
        "overlapping"
    )
    fitted = prior().mean().numpy() / unit, prior().covariance().numpy() / np.outer(unit, unit)
    # Five parameters after some 10^4 codes at the end: half a nat over that for each.
    assert (
        0
        <= small_aggregates.cross_entropy(moments, fitted)
        - (small_aggregates.cross_entropy(moments, moments))
        <= 1e-3
    )
    assert abs(after.value - best) <= _ERRORS * after.standard_error + 1e-3


def _clusters(scale: Any, num: int = 1000) -> tfs.AggregatePosterior:
    """Ten groups of codes, the dimensions of the given standard deviations."""
    scale = np.asarray(scale)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, len(scale)))[rng.integers(10, size=num)]
    loc = scale * (centres + 0.1 * rng.normal(size=(num, len(scale))))
    posterior_scale = np.tile((0.05 * scale).astype(np.float32), (num, 1))
    return tfs.AggregatePosterior(
        tfd.MultivariateNormalDiag(loc.astype(np.float32), posterior_scale)
    )


@pytest.mark.parametrize(
    ("scale", "num_starts"),
    [([3.0, 3.0, 0.1, 0.1], 1), pytest.param([1.0, 0.02, 5.0], 6, marks=pytest.mark.slow)],
)
def test_unequal_dimensions_reach_what_em_reaches(scale: list[float], num_starts: int) -> None:
    """Against scikit-learn's EM until it converges, on the same draws.

    Either ends in one of several optima, by its start: the second case is the best of six.
    """
    q_z = _clusters(scale)
    fits = {}
    for seed in range(num_starts):
        layer = tfs.priors.MixturePrior(len(scale), 10)
        fit = _fit(q_z, layer, num_steps=1000, num_samples=2, seed=seed)
        fits[fit.training.marginal_kl_after.value] = layer
    prior = fits[min(fits)]
    em = GaussianMixture(10, covariance_type="diag", random_state=0)
    em.fit(q_z.sample(10000, seed=(0, 21)).numpy())
    z = q_z.sample(20000, seed=(0, 22)).numpy()
    difference = em.score_samples(z) - prior().log_prob(z).numpy()
    error = difference.std(ddof=1) / np.sqrt(len(z))
    assert difference.mean() <= _ERRORS * error, (difference.mean(), error)


class Encoder(keras.layers.Layer):
    """q(z|x) = N(c x, (c / 20)^2 I) for the units c, without weights."""

    def __init__(self, unit: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unit = tf.constant(unit, tf.float32)

    def call(self, x: tf.Tensor) -> tfd.MultivariateNormalDiag:
        return tfd.MultivariateNormalDiag(x * self.unit, tf.ones_like(x) * self.unit / 20)


_X = np.random.default_rng(1).beta(0.4, 0.4, size=(300, 2)).astype(np.float32)
_FAMILIES: dict[str, Callable[[Encoder], Prior]] = {
    "mixture": lambda _: tfs.priors.MixturePrior(2, 10),
    "full mixture": lambda _: tfs.priors.MixturePrior(2, 10, covariance="full"),
    "vamp": lambda encoder: tfs.priors.VampPrior(2, encoder, (2,), 10, weighted=True),
    "exemplar": lambda encoder: tfs.priors.ExemplarPrior(2, encoder, _X, 10),
    "resampled": lambda _: tfs.priors.ResampledPrior(
        2, 20, (16,), num_normalizer_samples=2**12, num_training_samples=500
    ),
    "autoregressive": lambda _: tfs.priors.AutoregressivePrior(2, 4, (16,)),
    "realnvp": lambda _: tfs.priors.FlowPrior(2, "realnvp", 2, (16,)),
    "maf": lambda _: tfs.priors.FlowPrior(2, "maf", 2, (16,)),
    "neural_spline": lambda _: tfs.priors.FlowPrior(2, "neural_spline", 2, (16,)),
}


@pytest.mark.parametrize(
    "family",
    [
        name if name == "exemplar" else pytest.param(name, marks=pytest.mark.slow)
        for name in _FAMILIES
    ],
)
def test_every_family_is_fitted_alike_in_all_units(family: str) -> None:
    """Rounding parts the paths of two trainings: they end as near as those of two seeds."""
    marginal_kls = []
    for unit in ([1.0, 1.0], [1e3, 3e-4]):
        encoder = Encoder(unit)
        keras.utils.set_random_seed(0)
        q_z = tfs.AggregatePosterior.from_encoder(encoder, _X)
        fit = _fit(q_z, _FAMILIES[family](encoder), num_steps=150, num_samples=10)
        marginal_kls.append(fit.training.marginal_kl_after)
    first = marginal_kls[0]
    for other in marginal_kls[1:]:
        error = np.hypot(other.standard_error, first.standard_error)
        assert abs(other.value - first.value) <= _ERRORS * error, marginal_kls


def test_the_aggregate_posterior_itself_has_no_unit() -> None:
    for unit in (1.0, [1e3, 3e-4]):
        encoder = Encoder(unit)
        prior = tfs.priors.AggregatePrior(2, encoder, _X)
        with pytest.warns(UserWarning, match="has no variables to fit"):
            fit = _fit(tfs.AggregatePosterior.from_encoder(encoder, _X), prior)
        assert abs(fit.training.marginal_kl_after.value) < 1e-5


def test_an_initialized_prior_trains_alike_in_a_model() -> None:
    """By VAE.fit: the encoder has no weights, so that q(z) stays what the prior goes to meet."""
    marginal_kls = []
    for unit in (1.0, [1e3, 3e-4]):
        encoder = Encoder(unit)
        q_z = tfs.AggregatePosterior.from_encoder(encoder, _X)
        keras.utils.set_random_seed(0)
        prior = tfs.priors.MixturePrior(2, 10)
        prior.initialize(q_z.components_distribution.sample(seed=(0, 1)).numpy())
        decoder = tfs.networks.MLPDecoder((2,), (4,), likelihood=GaussianLikelihood())
        vae = tfs.VAE(encoder, decoder, prior)
        vae.compile(keras.optimizers.Adam(0.02), jit_compile=False)
        values = []
        for epochs in (0, 20):
            vae.fit(_X, batch_size=50, epochs=epochs, verbose=0)
            surgery = tfs.elbo_surgery(_X, encoder, decoder, prior, num_samples=20, seed=3)
            values.append(surgery.marginal_kl)
        assert values[0].value - values[1].value > _ERRORS * values[1].standard_error
        marginal_kls.append(values[1])
    first = marginal_kls[0]
    for other in marginal_kls[1:]:
        error = np.hypot(other.standard_error, first.standard_error)
        assert abs(other.value - first.value) <= _ERRORS * error, marginal_kls
