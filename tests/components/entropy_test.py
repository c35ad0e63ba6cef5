"""Entropies in closed form against SciPy, numpy and draws, of many families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

from tfp_surgery.components.entropy import closed_form_entropy
from tfp_surgery.components.flat_joint import flattened

tfb = tfp.bijectors
tfd = tfp.distributions

A, B = np.array([0.3, 1.2]), np.array([0.5, 2.0])  # two of a batch
LOC, SCALE = np.array([[0.3, -1.0], [2.0, 0.5]]), np.array([[0.5, 1.5], [1.0, 0.2]])
TRIL = np.array([[[1.0, 0.0], [0.5, 0.8]], [[0.3, 0.0], [-0.4, 2.0]]])
PROBS = np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
AXES = np.eye(3)[:2]
ZERO, ONE = np.float64(0.0), np.float64(1.0)
FACTOR = tf.linalg.LinearOperatorLowerTriangular(TRIL)


def entropy_of(distribution: tfd.Distribution) -> Any:
    found = closed_form_entropy(distribution)
    return None if found is None else found.numpy()


def gaussian_entropy(log_det: Any, size: int) -> np.ndarray:
    return np.asarray(log_det + 0.5 * size * (np.log(2 * np.pi) + 1.0))


# Against SciPy, or a formula of numpy.
KNOWN: dict[str, tuple[Callable[[], tfd.Distribution], Any]] = {
    "Normal": (lambda: tfd.Normal(A, B), stats.norm(A, B).entropy()),
    "LogNormal": (lambda: tfd.LogNormal(A, B), stats.norm(A, B).entropy() + A),
    "Laplace": (lambda: tfd.Laplace(A, B), 1.0 + np.log(2 * B)),
    "StudentT": (lambda: tfd.StudentT(np.float64(3.0), A, B), stats.t(3.0, A, B).entropy()),
    "Gamma": (lambda: tfd.Gamma(A, B), stats.gamma(A, scale=1 / B).entropy()),
    "InverseGamma": (lambda: tfd.InverseGamma(A, B), stats.invgamma(A, scale=B).entropy()),
    "Beta": (lambda: tfd.Beta(A, B), stats.beta(A, B).entropy()),
    "Dirichlet": (
        lambda: tfd.Dirichlet(10 * PROBS),
        [stats.dirichlet(10 * row).entropy() for row in PROBS],
    ),
    "VonMises": (lambda: tfd.VonMises(A, B), stats.vonmises(B).entropy()),
    "Exponential": (lambda: tfd.Exponential(B), 1.0 - np.log(B)),
    "Uniform": (lambda: tfd.Uniform(-A, B), np.log(A + B)),
    "TruncatedNormal": (
        lambda: tfd.TruncatedNormal(ZERO, ONE, -A, B),
        stats.truncnorm(-A, B).entropy(),
    ),
    "Bernoulli": (lambda: tfd.Bernoulli(probs=PROBS[:, 0]), stats.bernoulli(PROBS[:, 0]).entropy()),
    "Categorical": (lambda: tfd.Categorical(probs=PROBS), special.entr(PROBS).sum(axis=1)),
    "OneHotCategorical": (
        lambda: tfd.OneHotCategorical(logits=np.log(PROBS), dtype=tf.float64),
        special.entr(PROBS).sum(axis=1),
    ),
    "Wishart": (
        lambda: tfd.WishartTriL(np.array([3.0, 5.0]), TRIL[0]),
        [stats.wishart(df, TRIL[0] @ TRIL[0].T).entropy() for df in (3.0, 5.0)],
    ),
    "VonMisesFisher": (
        lambda: tfd.VonMisesFisher(AXES, 10 * B),
        [stats.vonmises_fisher(axis, 10 * k).entropy() for axis, k in zip(AXES, B, strict=True)],
    ),
    "diagonal Gaussian": (
        lambda: tfd.MultivariateNormalDiag(LOC, -SCALE),
        gaussian_entropy(np.log(SCALE).sum(axis=1), 2),
    ),
    "full Gaussian": (
        lambda: tfd.MultivariateNormalTriL(LOC, TRIL),
        gaussian_entropy(np.log([0.8, 0.6]), 2),
    ),
    "one scale for all": (
        lambda: tfd.MultivariateNormalDiag(LOC, np.array([0.5, 2.0])),
        gaussian_entropy(np.zeros(2), 2),
    ),
    "Independent": (
        lambda: tfd.Independent(tfd.Laplace(LOC, SCALE), 1),
        (1.0 + np.log(2 * SCALE)).sum(axis=1),
    ),
    "Independent, one scale": (
        lambda: tfd.Independent(tfd.Laplace(LOC, np.float64(0.5)), 1),
        np.full(2, 2.0),
    ),
    "Sample": (lambda: tfd.Sample(tfd.Laplace(A, B), [3, 2]), 6 * (1.0 + np.log(2 * B))),
    "BatchBroadcast": (
        lambda: tfd.BatchBroadcast(tfd.Laplace(ZERO, ONE), [2]),
        np.full(2, 1.0 + np.log(2.0)),
    ),
    "shift and scale": (
        lambda: tfb.Shift(LOC)(tfb.Scale(-SCALE)(tfd.Sample(tfd.Laplace(ZERO, ONE), 2))),
        (1.0 + np.log(2 * SCALE)).sum(axis=1),
    ),
    "one scale over a vector": (
        lambda: tfb.Scale(B[:, None])(tfd.Sample(tfd.Laplace(np.zeros(2), ONE), 3)),
        3 * (1.0 + np.log(2 * B)),
    ),
    "matrix times vector": (
        lambda: tfb.ScaleMatvecTriL(TRIL)(tfd.Sample(tfd.Laplace(ZERO, ONE), 2)),
        2 * (1.0 + np.log(2.0)) + np.log([0.8, 0.6]),
    ),
    "inverse": (
        lambda: tfb.Invert(tfb.Scale(SCALE))(tfd.Sample(tfd.Laplace(ZERO, ONE), 2)),
        (1.0 + np.log(2.0) - np.log(SCALE)).sum(axis=1),
    ),
    "Blockwise": (
        lambda: tfd.Blockwise([tfd.Normal(A, B), tfd.MultivariateNormalDiag(LOC, SCALE)]),
        gaussian_entropy(np.log(B) + np.log(SCALE).sum(axis=1), 3),
    ),
    "joint": (
        lambda: flattened(
            tfd.JointDistributionNamed(
                {"u": tfd.Normal(A, B), "v": tfd.Independent(tfd.Laplace(LOC, SCALE), 1)}
            )
        ),
        gaussian_entropy(np.log(B), 1) + (1.0 + np.log(2 * SCALE)).sum(axis=1),
    ),
    "label and number": (
        lambda: flattened(
            tfd.JointDistributionSequential([tfd.Categorical(probs=PROBS), tfd.Normal(A, B)])
        ),
        special.entr(PROBS).sum(axis=1) + gaussian_entropy(np.log(B), 1),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_entropies_are_those_of_scipy_and_numpy(name: str) -> None:
    make, expected = KNOWN[name]
    found = entropy_of(make())
    assert found.shape == (2,)  # of the batch, also where a formula has no batch of its own
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-6, atol=1e-6)


# Against the mean of log q(z) over draws.
FAMILIES: dict[str, Callable[[], tfd.Distribution]] = {
    "Cauchy": lambda: tfd.Cauchy(A, B),
    "Chi": lambda: tfd.Chi(3 * B),
    "Chi2": lambda: tfd.Chi2(3 * B),
    "ContinuousBernoulli": lambda: tfd.ContinuousBernoulli(probs=PROBS[:, 0]),
    "FiniteDiscrete": lambda: tfd.FiniteDiscrete(np.arange(3.0), probs=PROBS),
    "GeneralizedExtremeValue": lambda: tfd.GeneralizedExtremeValue(A, B, np.array([0.1, -0.3])),
    "GeneralizedNormal": lambda: tfd.GeneralizedNormal(A, B, np.array([1.5, 3.0])),
    "GeneralizedPareto": lambda: tfd.GeneralizedPareto(A, B, np.array([0.1, -0.3])),
    "Geometric": lambda: tfd.Geometric(probs=PROBS[:, 0]),
    "Gumbel": lambda: tfd.Gumbel(A, B),
    "HalfCauchy": lambda: tfd.HalfCauchy(A, B),
    "HalfNormal": lambda: tfd.HalfNormal(B),
    "HalfStudentT": lambda: tfd.HalfStudentT(np.float64(3.0), A, B),
    "Kumaraswamy": lambda: tfd.Kumaraswamy(A, B),
    "LogLogistic": lambda: tfd.LogLogistic(A, B / 4),
    "Logistic": lambda: tfd.Logistic(A, B),
    "MatrixNormal": lambda: tfd.MatrixNormalLinearOperator(np.zeros([2, 2, 2]), FACTOR, FACTOR),
    "Moyal": lambda: tfd.Moyal(A, B),
    "MultivariateStudentT": lambda: tfd.MultivariateStudentTLinearOperator(5 * B, LOC, FACTOR),
    "OrderedLogistic": lambda: tfd.OrderedLogistic(np.array([-1.0, 0.0, 2.0]), A),
    "PERT": lambda: tfd.PERT(-B, A, 4 * B, np.float64(4.0)),
    "PowerSpherical": lambda: tfd.PowerSpherical(AXES, 5 * B),
    "ProbitBernoulli": lambda: tfd.ProbitBernoulli(probs=PROBS[:, 0]),
    "SphericalUniform": lambda: tfd.SphericalUniform(5, batch_shape=[2], dtype=tf.float64),
    "Triangular": lambda: tfd.Triangular(-B, 4 * B, A),
    "Weibull": lambda: tfd.Weibull(1 + A, B),
    "low-rank covariance": lambda: tfd.MultivariateNormalDiagPlusLowRankCovariance(
        LOC, SCALE, np.full([2, 2, 1], 0.3)
    ),
    "permuted": lambda: tfb.Permute([1, 0])(tfd.MultivariateNormalTriL(LOC, TRIL)),
    "padded": lambda: tfb.Pad([[0, 1]])(tfd.Sample(tfd.Laplace(A, B), [3])),
    "triangle filled": lambda: tfb.FillTriangular()(tfd.Sample(tfd.Laplace(A, B), [6])),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_entropies_are_means_of_log_densities_of_draws(name: str) -> None:
    """Within five standard errors of 4000 draws of two distributions; exact where constant."""
    distribution = FAMILIES[name]()
    found = entropy_of(distribution)
    scores = distribution.log_prob(distribution.sample(4000, seed=(1, 2))).numpy()
    error = scores.std(axis=0, ddof=1) / np.sqrt(4000)
    assert found.shape == (2,)
    assert (np.abs(found + scores.mean(axis=0)) <= 5 * error + 1e-9).all(), (found, scores.mean(0))


class _Wider(tfd.Laplace):
    """Three times as wide as its base class says."""

    def _log_prob(self, z: Any) -> Any:
        return super()._log_prob(z / 3.0) - np.log(3.0)


class _WiderWithEntropy(_Wider):
    def _entropy(self) -> Any:
        return super()._entropy() + np.log(3.0)


class _Renamed(tfd.Laplace):
    """Its base class under another name."""


def test_the_entropy_of_a_base_class_is_not_that_of_another_density() -> None:
    of_base = 1.0 + np.log(2 * B)
    assert entropy_of(_Wider(A, B)) is None
    assert entropy_of(tfd.Sample(_Wider(A, B), 2)) is None
    assert entropy_of(tfb.Shift(A)(_Wider(A, B))) is None
    assert entropy_of(tfd.Blockwise([tfd.Normal(A, B), _Wider(A, B)])) is None
    np.testing.assert_allclose(entropy_of(_Renamed(A, B)), of_base)
    np.testing.assert_allclose(entropy_of(_WiderWithEntropy(A, B)), of_base + np.log(3.0))


def _dependent() -> tfd.Distribution:
    return tfd.JointDistributionSequential([tfd.Normal(A, B), lambda u: tfd.Normal(u, B)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: tfd.MixtureSameFamily(tfd.Categorical(probs=[[0.5, 0.5]]), tfd.Normal(LOC, SCALE)),
        lambda: tfd.RelaxedOneHotCategorical(ONE, probs=PROBS),
        lambda: tfb.Tanh()(tfd.Normal(A, B)),
        lambda: tfb.Shift(A)(tfb.Tanh()(tfd.Normal(A, B))),
        lambda: tfd.Poisson(B),
        # TFP refuses these with a ValueError.
        lambda: tfd.Blockwise(_dependent()),
        lambda: flattened(_dependent()),
        # TFP's entropy has a Jacobian, and its log_prob, a log mass, has none.
        lambda: tfb.Scale(B)(tfd.Bernoulli(probs=PROBS[:, 0], dtype=tf.float64)),
        lambda: tfd.Sample(
            tfb.Scale(B)(tfd.FiniteDiscrete(np.array([1.0, 2.0, 3.0]), probs=PROBS)), 2
        ),
    ],
    ids=["mixture", "relaxed", "tanh", "flow", "Poisson", "chain", "joint", "mass", "masses"],
)
def test_others_have_none(make: Callable[[], tfd.Distribution]) -> None:
    assert entropy_of(make()) is None


def test_gaussians_in_classes_without_an_entropy_have_that_of_their_form() -> None:
    """TFP refuses the sign of a scale of a transformation of other event dimensions."""

    class Silent(tfd.MultivariateNormalDiag):
        def _entropy(self) -> Any:
            raise NotImplementedError("no entropy")

    expected = gaussian_entropy(np.log(SCALE).sum(axis=1), 2)
    np.testing.assert_allclose(entropy_of(Silent(LOC, SCALE)), expected)
    full = tfb.ScaleMatvecTriL(TRIL)(Silent(LOC, np.ones(2)))
    np.testing.assert_allclose(entropy_of(full), gaussian_entropy(np.log([0.8, 0.6]), 2))


def test_a_batch_of_unknown_size_has_one_entropy_each() -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float64)], autograph=False)
    def entropy(loc: tf.Tensor) -> Any:
        return closed_form_entropy(tfd.MultivariateNormalDiag(loc, np.array([0.5, 2.0])))

    np.testing.assert_allclose(entropy(LOC), gaussian_entropy(np.zeros(2), 2))
