"""What priors HMC takes: their maps on draws of many families, and the maps that are none."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.evidence.code_space import check_code_space
from tfp_surgery.priors.base import Prior
from tfp_surgery.priors.flow import FlowPrior
from tfp_surgery.priors.mixture import MixturePrior
from tfp_surgery.priors.resampled import ResampledPrior

tfb = tfp.bijectors
tfd = tfp.distributions

Family = Callable[[type], tfd.Distribution]

SPHERE = "does not reach its whole support"


def _flow(dtype: type) -> tfd.Distribution:
    def shift_and_log_scale(z: tf.Tensor) -> tf.Tensor:
        first = z[..., :1]
        zero = tf.zeros_like(first)
        return tf.stack(
            [
                tf.concat([zero, tf.sin(first)], axis=-1),
                tf.concat([zero, 0.5 * tf.cos(first)], axis=-1),
            ],
            axis=-1,
        )

    base = tfd.MultivariateNormalDiag(np.zeros(2, dtype), np.ones(2, dtype))
    return tfd.TransformedDistribution(base, tfb.MaskedAutoregressiveFlow(shift_and_log_scale))


def _categorical(dtype: type, *batch: int) -> tfd.Distribution:
    return tfd.Categorical(logits=np.zeros([*batch, 2], dtype))


TAKEN: dict[str, Family] = {
    "normal": lambda t: tfd.Normal(t(1000), t(1e-3)),
    "gaussian": lambda t: tfd.MultivariateNormalTriL(
        np.zeros(2, t), np.array([[1, 0], [30, 0.1]], t)
    ),
    "student": lambda t: tfd.StudentT(t(0.5), t(0), t(1)),
    "horseshoe": lambda t: tfd.Horseshoe(t(1)),
    "gamma": lambda t: tfd.Independent(tfd.Gamma(np.array([0.3, 2.0], t), t(1e-4)), 1),
    "inverse gamma": lambda t: tfd.InverseGamma(t(2), t(1)),
    "weibull": lambda t: tfd.Weibull(t(0.5), t(1)),
    "log normal": lambda t: tfd.LogNormal(t(0), t(5)),
    "half normal": lambda t: tfd.HalfNormal(t(1)),
    "half cauchy": lambda t: tfd.HalfCauchy(t(3), t(1)),
    "pareto": lambda t: tfd.Pareto(t(2), t(1.5)),
    "bounded pareto": lambda t: tfd.GeneralizedPareto(t(1), t(1), t(-0.3)),
    "extreme values": lambda t: tfd.GeneralizedExtremeValue(t(0), t(1), t(-0.3)),
    "beta": lambda t: tfd.Beta(t(0.5), t(3)),
    "kumaraswamy": lambda t: tfd.Kumaraswamy(t(0.5), t(0.5)),
    "uniform": lambda t: tfd.Independent(tfd.Uniform(np.array([-1, 2], t), np.array([1, 3], t)), 1),
    "truncated": lambda t: tfd.TruncatedNormal(t(0), t(1), t(6), t(100)),
    "wrapped": lambda t: tfd.VonMises(t(3), t(2)),
    "dirichlet": lambda t: tfd.Dirichlet(np.array([0.3, 2, 3], t)),
    "large dirichlet": lambda t: tfd.Dirichlet(np.ones(200, t)),
    "relaxed": lambda t: tfd.RelaxedOneHotCategorical(t(0.7), probs=np.array([0.3, 0.7], t)),
    "logarithms of one": lambda t: tfd.ExpRelaxedOneHotCategorical(
        t(0.7), probs=np.array([0.3, 0.7], t)
    ),
    "correlation factors": lambda t: tfd.CholeskyLKJ(3, t(1.5)),
    "matrices": lambda t: tfd.Sample(tfd.Dirichlet(np.ones(3, t)), 2),
    "a point": lambda t: tfd.VectorDeterministic(np.ones(2, t)),
    "ordered": lambda t: tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(np.zeros(3, t), np.ones(3, t)), tfb.Ascending()
    ),
    "flow": _flow,
    "aggregate": lambda t: AggregatePosterior(tfd.Dirichlet(np.array([[1, 2, 1], [3, 4, 1]], t))),
    "mixture": lambda t: tfd.MixtureSameFamily(
        _categorical(t), tfd.Dirichlet(np.array([[1, 2, 1], [3, 4, 1]], t))
    ),
    # Each of their maps is another, onto one space.
    "mixture of shifts": lambda t: tfd.MixtureSameFamily(
        _categorical(t),
        tfd.TransformedDistribution(
            tfd.MultivariateNormalDiag(np.zeros([2, 2], t), np.ones(2, t)),
            tfb.Shift(np.array([[9, 0], [-9, 0]], t)),
        ),
    ),
    "mixture of equal intervals": lambda t: tfd.MixtureSameFamily(
        _categorical(t), tfd.Uniform(np.zeros(2, t), np.ones(2, t))
    ),
    "two families": lambda t: tfd.Mixture(
        _categorical(t), [tfd.Gamma(t(2), t(1)), tfd.LogNormal(t(0), t(1))]
    ),
    "mixture of mixtures": lambda t: tfd.Mixture(
        _categorical(t),
        [
            tfd.MixtureSameFamily(_categorical(t), tfd.Gamma(np.array([1, 4], t), t(1))),
            tfd.LogNormal(t(0), t(1)),
        ],
    ),
    "independent mixtures of intervals": lambda t: tfd.Independent(
        tfd.MixtureSameFamily(
            _categorical(t, 2),
            tfd.Uniform(np.array([[0, 0], [5, 5]], t), np.array([[1, 1], [9, 9]], t)),
        ),
        1,
    ),
    "sample of mixtures": lambda t: tfd.Sample(
        tfd.MixtureSameFamily(_categorical(t), tfd.Gamma(np.array([1, 4], t), t(1))), 3
    ),
    "transformed mixture": lambda t: tfd.TransformedDistribution(
        tfd.MixtureSameFamily(_categorical(t), tfd.Normal(np.array([1, 4], t), t(1))), tfb.Exp()
    ),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", TAKEN)
def test_priors_that_hmc_can_move_are_taken_without_a_word(name: str, dtype: type) -> None:
    prior = TAKEN[name](dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_code_space(prior)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: MixturePrior(event_size=2, num_components=3),
        lambda: ResampledPrior(event_size=2, num_normalizer_samples=100),
        pytest.param(lambda: FlowPrior(event_size=2), marks=pytest.mark.slow),
    ],
)
def test_the_prior_layers_are_taken(layer: Callable[[], Prior]) -> None:
    check_code_space(layer()())


Map = Callable[[tf.Tensor], tf.Tensor]


def _inline(forward: Map, inverse: Map, log_det: Map) -> tfb.Bijector:
    return tfb.Inline(forward, inverse, log_det, forward_min_event_ndims=0)


REFUSED: dict[str, tuple[Family, str]] = {
    "circle": (lambda t: tfd.SphericalUniform(2, dtype=tf.as_dtype(t)), SPHERE),
    "two points": (lambda t: tfd.SphericalUniform(1, dtype=tf.as_dtype(t)), SPHERE),
    "sphere": (lambda t: tfd.SphericalUniform(5, dtype=tf.as_dtype(t)), SPHERE),
    "von Mises-Fisher": (
        lambda t: tfd.VonMisesFisher(np.array([0.6, 0, 0.8], t), t(3)),
        SPHERE,
    ),
    "power spherical": (lambda t: tfd.PowerSpherical(np.array([0.6, 0.8], t), t(3)), SPHERE),
    "spheres in Sample": (
        lambda t: tfd.Sample(tfd.SphericalUniform(2, dtype=tf.as_dtype(t)), 3),
        SPHERE,
    ),
    "spheres in Independent": (
        lambda t: tfd.Independent(tfd.VonMisesFisher(np.eye(2, dtype=t), t(3)), 1),
        SPHERE,
    ),
    "spheres in a mixture": (
        lambda t: tfd.MixtureSameFamily(
            _categorical(t), tfd.VonMisesFisher(np.eye(2, dtype=t), t(3))
        ),
        f"VonMisesFisher.*{SPHERE}",
    ),
    "aggregate on a sphere": (
        lambda t: AggregatePosterior(tfd.PowerSpherical(np.eye(2, dtype=t), t(3))),
        SPHERE,
    ),
    # Its map in TFP 0.25 applies Softplus twice, and reaches no diagonal below log 2.
    "Wishart": (lambda _: tfd.WishartTriL(4.0, np.eye(2, dtype=np.float32)), SPHERE),
    "no upper bound": (
        lambda t: tfd.TruncatedNormal(t(0), t(1), t(0), t(np.inf)),
        SPHERE,
    ),
    "no inverse": (
        lambda t: tfd.TransformedDistribution(tfd.Normal(t(1), t(1)), tfb.AbsoluteValue()),
        "fails on its own draws",
    ),
    "square": (
        lambda t: tfd.TransformedDistribution(tfd.Normal(t(1), t(1)), tfb.Square()),
        "takes several of them to one code",
    ),
    "even power": (
        lambda t: tfd.TransformedDistribution(tfd.Normal(t(0), t(1)), tfb.Power(2.0)),
        "takes several of them to one code",
    ),
    "LKJ": (lambda t: tfd.LKJ(3, t(1.5)), "log determinants that are not"),
    "another log determinant": (
        lambda t: tfd.TransformedDistribution(
            tfd.MultivariateNormalDiag(np.zeros(2, t), np.ones(2, t)),
            _inline(tf.exp, tf.math.log, lambda z: -2 * tf.math.log(z)),
        ),
        "log determinants that are not",
    ),
    "other intervals": (
        lambda t: tfd.MixtureSameFamily(
            _categorical(t), tfd.Uniform(np.array([0, 1], t), np.array([2, 3], t))
        ),
        "the components of MixtureSameFamily do not share one support",
    ),
    "an interval in another": (
        lambda t: tfd.MixtureSameFamily(
            _categorical(t), tfd.Uniform(np.array([0, 0.5], t), np.array([2, 1], t))
        ),
        "do not share one support",
    ),
    "aggregate of intervals": (
        lambda t: AggregatePosterior(tfd.Uniform(np.array([0, 1], t), t(2))),
        "the components of AggregatePosterior do not share one support",
    ),
    "a half line in the line": (
        lambda t: tfd.Mixture(_categorical(t), [tfd.Normal(t(1), t(1)), tfd.Gamma(t(1), t(1))]),
        "the components of Mixture do not share one support",
    ),
    "an atom in the line": (
        lambda t: tfd.Mixture(_categorical(t), [tfd.Normal(t(1), t(1)), tfd.Deterministic(t(0))]),
        "do not share one support",
    ),
    "counts": (lambda t: tfd.Poisson(t(3)), "does not say it"),
    "mixture of counts": (
        lambda t: tfd.MixtureSameFamily(_categorical(t), tfd.Poisson(np.array([1, 3], t))),
        "does not say it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_maps_that_do_not_stand_for_the_codes_are_refused(name: str) -> None:
    family, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        check_code_space(family(np.float32))


@pytest.mark.parametrize("name", ["von Mises-Fisher", "square", "LKJ", "other intervals"])
def test_they_are_refused_in_float64(name: str) -> None:
    family, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        check_code_space(family(np.float64))


def test_a_refusal_names_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"log_evidence_by_importance_sampling .* z / \|z\|"):
        check_code_space(tfd.SphericalUniform(3))


def test_log_determinant_of_lkj_is_that_of_another_concentration() -> None:
    """r = u / sqrt(1 + u^2) has dr/du = (1 + u^2)^(-3/2); TFP's has (1 + u^2)^-2."""
    bijector = tfd.LKJ(2, np.float64(1)).experimental_default_event_space_bijector()
    u = np.linspace(-2, 2, 5)[:, np.newaxis]
    np.testing.assert_allclose(bijector.forward(u)[:, 1, 0], u[:, 0] / np.sqrt(1 + u[:, 0] ** 2))
    reported = bijector.forward_log_det_jacobian(u, event_ndims=1).numpy()
    np.testing.assert_allclose(reported - reported[2], -2 * np.log1p(u[:, 0] ** 2), atol=1e-12)


@pytest.mark.parametrize(
    "family",
    [
        lambda t: tfd.Independent(tfd.Gamma(np.array([0.02], t), t(1)), 1),
        lambda t: tfd.Beta(t(0.15), t(0.15)),
        lambda t: tfd.Dirichlet(np.full(5, 0.03, t)),
        lambda t: tfd.MixtureSameFamily(_categorical(t), tfd.Gamma(np.array([0.01, 1], t), t(1))),
        lambda t: tfd.LogNormal(t(0), t(40)),
    ],
)
def test_draws_on_the_border_of_float32_have_words_of_their_own(family: Family) -> None:
    with pytest.warns(UserWarning, match="float32 rounds .* onto the border of its support"):
        check_code_space(family(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_code_space(family(np.float64))


def test_few_draws_on_the_border_pass() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_code_space(tfd.Independent(tfd.Gamma(np.array([0.1], np.float32), np.float32(1)), 1))
