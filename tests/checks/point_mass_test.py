"""Point masses against densities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tfp_surgery.checks import point_mass
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.distributions.discretized_logistic import DiscretizedLogistic
from tfp_surgery.distributions.leave_one_out import LeaveOneOut

tfb = tfp.bijectors
tfd = tfp.distributions

N, D = 6, 2
CODES = tf.constant(np.random.default_rng(0).normal(size=(N, D)), tf.float32)
NORMAL = tfd.MultivariateNormalDiag(tf.zeros(D), tf.ones(D))

MASS, DENSITY, BOTH, UNKNOWN = {"mass"}, {"density"}, {"mass", "density"}, set[str]()


class OfAUser(tfd.Distribution):
    """A class that nobody knows."""

    def __init__(self) -> None:
        super().__init__(
            tf.float32, tfd.NOT_REPARAMETERIZED, validate_args=False, allow_nan_stats=True
        )


class OfAUserFromTfp(tfd.Laplace):
    """A class of TFP with something added."""


POINTS: dict[str, Callable[[], tfd.Distribution]] = {
    "VectorDeterministic": lambda: tfd.VectorDeterministic(CODES),
    "Independent": lambda: tfd.Independent(tfd.Deterministic(CODES), 1),
    "Sample": lambda: tfd.Sample(tfd.Deterministic(CODES[:, 0]), D),
    "BatchBroadcast": lambda: tfd.BatchBroadcast(tfd.VectorDeterministic(CODES[0]), [N]),
    "transformed": lambda: tfd.TransformedDistribution(tfd.VectorDeterministic(CODES), tfb.Exp()),
    "mixture of points": lambda: tfd.MixtureSameFamily(
        tfd.Categorical(logits=tf.zeros([N, 2])),
        tfd.VectorDeterministic(tf.stack([CODES, -CODES], axis=1)),
    ),
    "Bernoulli as floats": lambda: tfd.Independent(tfd.Bernoulli(CODES, dtype=tf.float32), 1),
    "one-hot as floats": lambda: tfd.OneHotCategorical(logits=CODES, dtype=tf.float32),
    "Independent FiniteDiscrete": lambda: tfd.Independent(
        tfd.FiniteDiscrete([0.0, 1.0], probs=tf.fill([N, D, 2], 0.5)), 1
    ),
}
PARTLY_POINTS: dict[str, Callable[[], tfd.Distribution]] = {
    "mixture with a point": lambda: tfd.Mixture(
        tfd.Categorical(logits=tf.zeros([N, 2])),
        [tfd.VectorDeterministic(CODES), tfd.MultivariateNormalDiag(CODES)],
    ),
    "one coordinate": lambda: tfd.Blockwise(
        [tfd.Deterministic(CODES[:, 0]), tfd.Normal(CODES[:, 1], 1.0)]
    ),
}


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        *((make, MASS) for make in POINTS.values()),
        *((make, BOTH) for make in PARTLY_POINTS.values()),
        (lambda: tfd.Categorical(logits=CODES), MASS),
        (lambda: tfd.Empirical(CODES, event_ndims=1), MASS),
        (lambda: tfd.QuantizedDistribution(tfd.Normal(0.0, 1.0)), MASS),
        (lambda: tfd.PoissonLogNormalQuadratureCompound(0.0, 1.0), MASS),
        (lambda: DiscretizedLogistic(0.0, 1.0, 256), MASS),
        (lambda: AggregatePosterior(tfd.VectorDeterministic(CODES)), MASS),
        (lambda: LeaveOneOut(AggregatePosterior(tfd.VectorDeterministic(CODES)), [0]), MASS),
        (lambda: NORMAL, DENSITY),
        (lambda: tfd.RelaxedOneHotCategorical(0.5, logits=CODES), DENSITY),
        (lambda: tfd.LogNormal(CODES, 1.0), DENSITY),
        (lambda: AggregatePosterior(tfd.MultivariateNormalDiag(CODES)), DENSITY),
        (lambda: OfAUserFromTfp(0.0, 1.0), DENSITY),
        (lambda: tfd.Autoregressive(lambda _: NORMAL, tf.zeros(D)), UNKNOWN),
        (OfAUser, UNKNOWN),
    ],
)
def test_masses_and_densities_are_told_apart(
    distribution: Callable[[], tfd.Distribution], expected: set[str]
) -> None:
    assert point_mass.measures(distribution()) == expected


def _decoder(z: tf.Tensor) -> tfd.Distribution:
    return tfd.Independent(tfd.Normal(tf.cast(z, tf.float32), 1.0), 1)


@pytest.mark.parametrize("name", [*POINTS, *PARTLY_POINTS])
def test_points_against_a_density_are_refused(name: str) -> None:
    """KL(delta || N) is infinite: no number may come out."""
    posterior = {**POINTS, **PARTLY_POINTS}[name]()
    with pytest.raises(ValueError, match="points, and the prior MultivariateNormalDiag has"):
        point_mass.check_same_measure(NORMAL, posterior)


@pytest.mark.parametrize(
    "measure",
    [
        tfs.elbo_surgery,
        lambda *model: tfs.importance_weighted_elbo(*model, num_importance_samples=5),
        tfs.log_evidence_by_importance_sampling,
        tfs.refined_posteriors,
        lambda x, encoder, _, prior: tfs.mutual_information_bounds(
            AggregatePosterior.from_encoder(encoder, x), batch_size=2, prior=prior
        ),
        lambda x, encoder, *_: tfs.fit_prior(
            AggregatePosterior.from_encoder(encoder, x), tfs.priors.StandardNormalPrior(D)
        ),
    ],
)
def test_every_measurement_refuses_a_plain_autoencoder(measure: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"KL\(q\(z\|x\) \|\| p\(z\)\) is infinite"):
        measure(CODES.numpy(), tfd.VectorDeterministic, _decoder, NORMAL)


def test_training_refuses_a_plain_autoencoder() -> None:
    dense = keras.layers.Dense(D)
    model = tfs.VAE(lambda x: tfd.VectorDeterministic(dense(x)), _decoder, NORMAL)
    with pytest.raises(ValueError, match="only the reconstruction can be trained"):
        model.build((None, D))
    model.compile("adam")
    with pytest.raises(ValueError, match="only the reconstruction can be trained"):
        model.fit(CODES.numpy(), verbose=0)


def test_a_density_against_points_is_refused() -> None:
    prior = tfd.Independent(tfd.FiniteDiscrete([0.0, 1.0], probs=tf.fill([D, 2], 0.5)), 1)
    with pytest.raises(ValueError, match="puts probability on points alone"):
        point_mass.check_same_measure(prior, tfd.MultivariateNormalDiag(CODES))
    relaxed = tfd.RelaxedOneHotCategorical(0.5, logits=CODES)
    with pytest.raises(ValueError, match="puts probability on points alone"):
        point_mass.check_same_measure(tfd.OneHotCategorical(tf.zeros(D), dtype=tf.float32), relaxed)


def _logistic_normal(*batch: int) -> tfd.Distribution:
    gaussian = tfd.MultivariateNormalDiag(tf.zeros([*batch, 2]), tf.ones(2))
    return tfd.TransformedDistribution(gaussian, tfb.SoftmaxCentered())


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [
        (tfd.Dirichlet(tf.ones(3)), _logistic_normal(5)),
        (_logistic_normal(), tfd.Dirichlet(tf.ones([5, 3]))),
        (_logistic_normal(), tfd.RelaxedOneHotCategorical(0.5, logits=tf.zeros([5, 3]))),
        (
            tfd.MixtureSameFamily(tfd.Categorical(tf.zeros(4)), _logistic_normal(4)),
            tfd.Dirichlet(tf.ones([5, 3])),
        ),
        (
            tfd.TransformedDistribution(
                tfd.Dirichlet(tf.ones(3)), tfb.Invert(tfb.SoftmaxCentered())
            ),
            tfd.MultivariateNormalDiag(tf.zeros([5, 2])),
        ),
    ],
)
def test_densities_of_two_measures_on_the_simplex_are_refused(
    prior: tfd.Distribution, posterior: tfd.Distribution
) -> None:
    with pytest.raises(ValueError, match=r"differ by log\(K\) / 2 nats"):
        point_mass.check_same_measure(prior, posterior)


def test_the_density_of_a_matrix_is_none_of_its_cholesky_factor() -> None:
    gaussian = tfd.MultivariateNormalDiag(tf.zeros([5, 3]), tf.ones(3))
    factors = tfd.TransformedDistribution(gaussian, tfb.FillScaleTriL())

    def wishart(cholesky: bool, *batch: int) -> tfd.Distribution:
        scale = tf.eye(2, batch_shape=batch)
        return tfd.WishartTriL(5.0, scale_tril=scale, input_output_cholesky=cholesky)

    with pytest.raises(ValueError, match=r"input_output_cholesky=True.*lack the Jacobian"):
        point_mass.check_same_measure(wishart(True), factors)
    point_mass.check_same_measure(wishart(True), wishart(True, 5))
    point_mass.check_same_measure(wishart(False), wishart(False, 5))
    correlations = tfd.TransformedDistribution(gaussian, tfb.CorrelationCholesky())
    point_mass.check_same_measure(tfd.CholeskyLKJ(3, 1.0), correlations)


def test_densities_of_one_measure_on_the_simplex_pass() -> None:
    point_mass.check_same_measure(_logistic_normal(), _logistic_normal(5))
    mixture = tfd.MixtureSameFamily(tfd.Categorical(tf.zeros(4)), _logistic_normal(4))
    point_mass.check_same_measure(mixture, _logistic_normal(5))
    there_and_back = tfd.TransformedDistribution(
        _logistic_normal(), tfb.Invert(tfb.Chain([tfb.SoftmaxCentered(), tfb.Scale(2.0)]))
    )
    point_mass.check_same_measure(there_and_back, tfd.MultivariateNormalDiag(tf.zeros([5, 2])))
    relaxed = tfd.RelaxedOneHotCategorical(0.5, logits=tf.zeros([5, 3]))
    point_mass.check_same_measure(tfd.Dirichlet(tf.ones(3)), relaxed)


def test_integer_codes_of_a_discrete_prior_are_measured() -> None:
    """A deterministic integer code k has KL -log p(k) to the prior, exactly."""
    probs = np.array([0.5, 0.3, 0.2])
    x = np.array([[0.0], [1.0], [2.0], [1.0]], np.float32)
    surgery = tfs.elbo_surgery(
        x,
        lambda x: tfd.Deterministic(tf.cast(x[:, 0], tf.int32)),
        lambda z: tfd.Independent(tfd.Normal(tf.cast(z, tf.float32)[:, tf.newaxis], 1.0), 1),
        tfd.Categorical(probs=probs.astype(np.float32)),
    )
    expected = -np.log(probs[[0, 1, 2, 1]]).mean()
    np.testing.assert_allclose(surgery.average_kl.value, expected, rtol=1e-6)
    # q(z) has masses 1/4, 1/2, 1/4, and KL(q || p) in closed form.
    masses = np.array([0.25, 0.5, 0.25])
    np.testing.assert_allclose(
        surgery.marginal_kl.value, masses @ np.log(masses / probs), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("posterior", "prior"),
    [
        (OfAUser, lambda: NORMAL),
        (lambda: tfd.VectorDeterministic(CODES), OfAUser),
        (lambda: tfd.MultivariateNormalDiag(CODES), lambda: NORMAL),
        (
            lambda: tfd.OneHotCategorical(logits=CODES),
            lambda: tfd.OneHotCategorical(logits=tf.zeros(D)),
        ),
        (  # a coordinate that is discrete, in both
            lambda: tfd.Blockwise(
                [tfd.Bernoulli(CODES[:, 0], dtype=tf.float32), tfd.Normal(CODES[:, 1], 1.0)]
            ),
            lambda: tfd.Blockwise([tfd.Bernoulli(0.0, dtype=tf.float32), tfd.Normal(0.0, 1.0)]),
        ),
        (  # a spike and a slab for prior
            lambda: tfd.MultivariateNormalDiag(CODES),
            lambda: tfd.Mixture(
                tfd.Categorical(logits=tf.zeros(2)), [tfd.VectorDeterministic(tf.zeros(D)), NORMAL]
            ),
        ),
    ],
)
def test_what_is_right_or_unknown_passes(
    posterior: Callable[[], tfd.Distribution], prior: Callable[[], tfd.Distribution]
) -> None:
    point_mass.check_same_measure(prior(), posterior())


SINGULAR: dict[str, Callable[[], tfd.Distribution]] = {
    "one dimension": lambda: tfd.MultivariateNormalDiag(CODES, tf.constant([1.0, 0.0])),
    "Independent": lambda: tfd.Independent(tfd.Normal(CODES, tf.zeros([N, D])), 1),
    "TriL": lambda: tfd.MultivariateNormalTriL(CODES, tf.constant([[1.0, 0.0], [1.0, 0.0]])),
    "Laplace": lambda: tfd.Independent(tfd.Laplace(CODES, tf.constant([1.0, 0.0])), 1),
    "bijector": lambda: tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(CODES),
        tfb.Chain([tfb.Shift(1.0), tfb.Scale(tf.Variable([1.0, 0.0]))]),
    ),
    "mixture": lambda: tfd.MixtureSameFamily(
        tfd.Categorical(logits=tf.zeros([N, 2])),
        tfd.MultivariateNormalDiag(tf.stack([CODES, -CODES], axis=1), tf.zeros(D)),
    ),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_a_scale_of_zero_is_a_point(name: str) -> None:
    with pytest.raises(ValueError, match="is exactly 0 in"):
        point_mass.check_same_measure(NORMAL, SINGULAR[name]())


@pytest.mark.parametrize(
    "measure",
    [
        tfs.elbo_surgery,
        lambda *model: tfs.importance_weighted_elbo(*model, num_importance_samples=5),
        tfs.log_evidence_by_importance_sampling,
        tfs.refined_posteriors,
    ],
)
def test_one_collapsed_scale_is_found_wherever_it_is(measure: Callable[..., Any]) -> None:
    """Not among the two observations that a model is tried on."""

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(x, tf.cast(tf.abs(x) < 5.0, tf.float32))

    x = CODES.numpy().copy()
    x[3, 1] = 7.0
    with pytest.raises(ValueError, match="is exactly 0 in 1 of 12 places"):
        measure(x, encoder, _decoder, NORMAL)


def test_operators_of_a_scale_are_looked_at() -> None:
    zero = tf.linalg.LinearOperatorDiag(tf.constant([1.0, 0.0]))
    with pytest.raises(ValueError, match="prior MultivariateNormalLinearOperator has no density"):
        point_mass.check_same_measure(tfd.MultivariateNormalLinearOperator(None, zero), NORMAL)
    lower = tf.linalg.LinearOperatorLowerTriangular(tf.constant([[0.5, 0.0], [0.0, 1.0]]))
    point_mass.check_same_measure(tfd.MultivariateNormalLinearOperator(tf.zeros(D), lower), NORMAL)


def test_a_narrow_scale_stays() -> None:
    point_mass.check_same_measure(NORMAL, tfd.MultivariateNormalDiag(CODES, tf.fill([D], 1e-30)))


def test_a_mixture_of_points_and_densities_is_refused_against_itself_too() -> None:
    """A spike and a slab: TFP adds the mass of one to the density of the other."""

    def spike_and_slab(batch: list[int]) -> tfd.Distribution:
        return tfd.Mixture(
            tfd.Categorical(probs=tf.fill([*batch, 2], 0.5)),
            [tfd.Deterministic(tf.zeros(batch)), tfd.Normal(tf.zeros(batch), 1.0)],
        )

    with pytest.raises(ValueError, match="mixes distributions that put probability on points"):
        point_mass.check_same_measure(spike_and_slab([]), spike_and_slab([3]))
    blocks = tfd.Blockwise(
        [
            tfd.Independent(tfd.Normal([0.0], 1.0), 1),
            tfd.OneHotCategorical([0.0, 0.0], dtype=tf.float32),
        ]
    )
    point_mass.check_same_measure(blocks, blocks)  # a product of both is a measure on both sides
