from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import plain_class
from tfp_surgery.components.divergence import closed_form_kl

tfb = tfp.bijectors
tfd = tfp.distributions

_LOC, _SCALE = np.array([[0.3, -1.0], [2.0, 0.5]]), np.array([[0.5, 1.5], [1.0, 0.2]])
_KL = 0.5 * (_LOC**2 + _SCALE**2 - 1 - 2 * np.log(_SCALE)).sum(axis=1)


def test_gaussians_have_their_closed_form() -> None:
    prior = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    found: Any = closed_form_kl(tfd.MultivariateNormalDiag(_LOC, _SCALE), prior)
    np.testing.assert_allclose(found, _KL, rtol=1e-12)


def test_wrapped_families_have_theirs() -> None:
    prior = tfd.Independent(tfd.Normal(tf.zeros([2], tf.float64), np.float64(1.0)), 1)
    found: Any = closed_form_kl(tfd.Independent(tfd.Normal(_LOC, _SCALE), 1), prior)
    np.testing.assert_allclose(found, _KL, rtol=1e-12)


def test_pairs_without_a_formula_have_none() -> None:
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(probs=np.array([0.5, 0.5])),
        tfd.MultivariateNormalDiag(np.zeros([2, 2]), np.ones([2, 2])),
    )
    assert closed_form_kl(tfd.MultivariateNormalDiag(_LOC, _SCALE), mixture) is None


class _Wider(tfd.MultivariateNormalDiag):
    """Three times as wide as its base class says."""

    def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
        return super()._log_prob(z / 3.0) - z.shape[-1] * np.log(3.0)


class _Renamed(tfd.MultivariateNormalDiag):
    """Its base class under another name."""


class _Registered(_Wider):
    """One with a formula of its own."""


@tfd.RegisterKL(tfd.MultivariateNormalDiag, _Registered)
def _kl(q: Any, p: Any, name: Any = None) -> Any:
    del name
    return tfd.kl_divergence(q, tfd.MultivariateNormalDiag(3.0 * p.loc, 3.0 * p.stddev()))


class _WiderNormal(tfd.Normal):
    def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
        return super()._log_prob(z / 3.0) - np.log(3.0)


def test_the_formula_of_a_base_class_is_not_that_of_another_density() -> None:
    q = tfd.MultivariateNormalDiag(_LOC, _SCALE)
    zeros, ones = np.zeros(2), np.ones(2)
    assert closed_form_kl(q, _Wider(zeros, ones)) is None
    inner = tfd.Independent(_WiderNormal(zeros, ones), 1)
    assert closed_form_kl(tfd.Independent(tfd.Normal(_LOC, _SCALE), 1), inner) is None
    found: Any = closed_form_kl(q, _Renamed(zeros, ones))
    np.testing.assert_allclose(found, _KL, rtol=1e-12)
    wide = 0.5 * (_LOC**2 + _SCALE**2) / 9 - 0.5 - np.log(_SCALE / 3)
    found = closed_form_kl(q, _Registered(zeros, ones))
    np.testing.assert_allclose(found, wide.sum(axis=1), rtol=1e-12)


# Gaussians over [T, D], and over [D], as users write them. Each takes means and standard
# deviations [B..., T, D], or a triangular scale [B..., D, D] in the latter's place.
T, D = 2, 3
Spelling = Callable[[np.ndarray, np.ndarray], tfd.Distribution]
_STANDARD = tfd.Sample(tfd.Normal(np.float64(0.0), np.float64(1.0)), D)


def _covariance(tril: np.ndarray) -> np.ndarray:
    return np.asarray(tril @ np.swapaxes(tril, -1, -2))


def _low_rank(loc: np.ndarray, scale: np.ndarray) -> tfd.Distribution:
    return tfd.MultivariateNormalDiagPlusLowRank(
        loc, scale_diag=scale, scale_perturb_factor=np.zeros([D, 1])
    )


DIAGONAL: dict[str, Spelling] = {
    "diag": tfd.MultivariateNormalDiag,
    "tril": lambda loc, scale: tfd.MultivariateNormalTriL(loc, scale[..., None] * np.eye(D)),
    "operator": lambda loc, scale: tfd.MultivariateNormalLinearOperator(
        loc, tf.linalg.LinearOperatorDiag(scale)
    ),
    "low rank": _low_rank,
    "independent": lambda loc, scale: tfd.Independent(tfd.Normal(loc, scale), 1),
    "nested": lambda loc, scale: tfd.Independent(tfd.Independent(tfd.Normal(loc, scale), 1), 0),
    "shift and scale of a sample": lambda loc, scale: tfb.Shift(loc)(tfb.Scale(scale)(_STANDARD)),
    "log scale": lambda loc, scale: tfd.TransformedDistribution(
        _STANDARD, tfb.Chain([tfb.Shift(loc), tfb.Scale(log_scale=np.log(scale))])
    ),
    "shift of a normal": lambda loc, scale: tfd.Independent(
        tfb.Shift(loc)(tfd.Normal(np.float64(0.0), scale)), 1
    ),
    "matvec diag": lambda loc, scale: tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(np.zeros(D)),
        tfb.Chain([tfb.Shift(loc), tfb.ScaleMatvecDiag(-scale)]),
    ),
    "matvec tril": lambda loc, scale: tfd.TransformedDistribution(
        _STANDARD, tfb.Chain([tfb.Shift(loc), tfb.ScaleMatvecTriL(scale[..., None] * np.eye(D))])
    ),
    "inverse": lambda loc, scale: tfd.TransformedDistribution(
        _STANDARD, tfb.Invert(tfb.Chain([tfb.Scale(1.0 / scale), tfb.Shift(-loc)]))
    ),
    "broadcast": lambda loc, scale: tfd.BatchBroadcast(
        tfd.MultivariateNormalDiag(loc, scale), loc.shape[:-1]
    ),
}
_ROTATION: np.ndarray = np.linalg.qr(np.random.default_rng(5).normal(size=(D, D)))[0]
FULL: dict[str, Spelling] = {
    "tril": tfd.MultivariateNormalTriL,
    "operator": lambda loc, tril: tfd.MultivariateNormalLinearOperator(
        loc, tf.linalg.LinearOperatorFullMatrix(tril @ _ROTATION)
    ),
    "low rank covariance": lambda loc, tril: tfd.MultivariateNormalDiagPlusLowRankCovariance(
        loc, np.full(D, 0.1), np.linalg.cholesky(_covariance(tril) - 0.1 * np.eye(D))
    ),
    "matvec of a sample": lambda loc, tril: tfd.TransformedDistribution(
        _STANDARD, tfb.Chain([tfb.Shift(loc), tfb.ScaleMatvecTriL(tril)])
    ),
    "matvec of a normal": lambda loc, tril: tfd.TransformedDistribution(
        tfd.MultivariateNormalTriL(np.zeros(D), 2.0 * np.eye(D)),
        tfb.Chain([tfb.Shift(loc), tfb.ScaleMatvecTriL(tril), tfb.Scale(np.float64(0.5))]),
    ),
    "scaled": lambda loc, tril: tfd.TransformedDistribution(
        tfd.MultivariateNormalTriL(-loc, tril), tfb.Scale(np.float64(-1.0))
    ),
}
RANK_TWO: dict[str, Spelling] = {
    "independent": lambda loc, scale: tfd.Independent(tfd.Normal(loc, scale), 2),
    "twice": lambda loc, scale: tfd.Independent(tfd.Independent(tfd.Normal(loc, scale), 1), 1),
    "of diag": lambda loc, scale: tfd.Independent(tfd.MultivariateNormalDiag(loc, scale), 1),
    "of tril": lambda loc, scale: tfd.Independent(
        tfd.MultivariateNormalTriL(loc, scale[..., None] * np.eye(D)), 1
    ),
    "scaled sample": lambda loc, scale: tfd.TransformedDistribution(
        tfd.Sample(_STANDARD, T), tfb.Chain([tfb.Shift(loc), tfb.Scale(scale)])
    ),
    "reshaped": lambda loc, scale: tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(*(a.reshape(*a.shape[:-2], T * D) for a in (loc, scale))),
        tfb.Reshape([T, D], [T * D]),
    ),
}


def _gaussian(*shape: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), np.exp(0.5 * rng.normal(size=shape))


def _tril(*batch: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = 0.5 + np.exp(0.5 * rng.normal(size=(*batch, D, 1)))
    return np.asarray(np.tril(rng.normal(size=(*batch, D, D)), -1) + scale * np.eye(D))


def _dense_kl(
    loc: np.ndarray, scale: np.ndarray, prior_loc: np.ndarray, prior_scale: np.ndarray
) -> np.ndarray:
    """The closed form for means [B, F] and [F], and L of L L^T [B, F, F] and [F, F]."""
    covariance, prior_covariance = _covariance(scale), _covariance(prior_scale)
    precision = np.linalg.inv(prior_covariance)
    shift = loc - prior_loc
    return np.asarray(
        0.5
        * (
            np.einsum("bij,ji->b", covariance, precision)
            + np.einsum("bi,ij,bj->b", shift, precision, shift)
            - loc.shape[-1]
            + np.linalg.slogdet(prior_covariance)[1]
            - np.linalg.slogdet(covariance)[1]
        )
    )


def _diagonal_kl(
    loc: np.ndarray, scale: np.ndarray, prior_loc: np.ndarray, prior_scale: np.ndarray
) -> np.ndarray:
    ratio = (scale / prior_scale) ** 2
    kl = 0.5 * (ratio + ((loc - prior_loc) / prior_scale) ** 2 - 1.0 - np.log(ratio))
    return np.asarray(kl.reshape(len(loc), -1).sum(axis=1))


@pytest.mark.parametrize("posterior", DIAGONAL)
def test_gaussians_of_independent_dimensions_in_any_words(posterior: str) -> None:
    q, p = _gaussian(4, D, seed=0), _gaussian(D, seed=1)
    for prior in DIAGONAL.values():
        found: Any = closed_form_kl(DIAGONAL[posterior](*q), prior(*p))
        assert found.shape == (4,)
        np.testing.assert_allclose(found, _diagonal_kl(*q, *p), rtol=1e-11)


@pytest.mark.parametrize("posterior", FULL)
def test_gaussians_of_full_covariance_in_any_words(posterior: str) -> None:
    """Against each other, and against Gaussians of independent dimensions on either side."""
    loc, prior_loc = _gaussian(4, D, seed=0)[0], _gaussian(D, seed=1)[0]
    tril, prior_tril = _tril(4, seed=2), _tril(seed=3)
    for prior in FULL.values():
        found: Any = closed_form_kl(FULL[posterior](loc, tril), prior(prior_loc, prior_tril))
        assert found.shape == (4,)
        expected = _dense_kl(loc, tril, prior_loc, prior_tril)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    scale, prior_scale = _gaussian(4, D, seed=4)[1], _gaussian(D, seed=5)[1]
    for other in DIAGONAL.values():
        found = closed_form_kl(FULL[posterior](loc, tril), other(prior_loc, prior_scale))
        expected = _dense_kl(loc, tril, prior_loc, np.diag(prior_scale))
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        found = closed_form_kl(other(loc, scale), FULL[posterior](prior_loc, prior_tril))
        expected = _dense_kl(loc, scale[..., None] * np.eye(D), prior_loc, prior_tril)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("posterior", RANK_TWO)
def test_gaussians_over_arrays_in_any_words(posterior: str) -> None:
    q, p = _gaussian(4, T, D, seed=0), _gaussian(T, D, seed=1)
    for prior in RANK_TWO.values():
        found: Any = closed_form_kl(RANK_TWO[posterior](*q), prior(*p))
        assert found.shape == (4,)
        np.testing.assert_allclose(found, _diagonal_kl(*q, *p), rtol=1e-11)
    expected = _diagonal_kl(*q, np.zeros([T, D]), np.ones([T, D]))
    normal = tfd.Normal(np.float64(0.0), np.float64(1.0))
    standard = [
        tfd.Sample(normal, [T, D]),
        tfd.Sample(_STANDARD, T),
        tfd.Sample(tfd.Independent(tfd.Normal(np.zeros(D), np.float64(1.0)), 1), T),
        tfd.Sample(tfd.MultivariateNormalTriL(np.zeros(D), np.eye(D)), T),
    ]
    for one in standard:
        found = closed_form_kl(RANK_TWO[posterior](*q), one)
        np.testing.assert_allclose(found, expected, rtol=1e-11)
        for other in standard:
            found = closed_form_kl(one, other)
            np.testing.assert_allclose(found, 0.0, atol=1e-15)


def test_blocks_of_full_covariance() -> None:
    """T independent vectors of full covariance against one Gaussian over all numbers."""
    loc, tril = _gaussian(4, T, D, seed=0)[0], _tril(4, T, seed=2)
    flat = np.tril(np.random.default_rng(3).normal(size=(T * D, T * D)), -1) + 2.0 * np.eye(T * D)
    prior = tfd.TransformedDistribution(
        tfd.MultivariateNormalTriL(np.ones(T * D), flat), tfb.Reshape([T, D], [T * D])
    )
    blocks = np.zeros([4, T * D, T * D])
    for t in range(T):
        blocks[:, t * D : (t + 1) * D, t * D : (t + 1) * D] = tril[:, t]
    found: Any = closed_form_kl(tfd.Independent(tfd.MultivariateNormalTriL(loc, tril), 1), prior)
    expected = _dense_kl(loc.reshape(4, -1), blocks, np.ones(T * D), flat)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_equal_bijectors_keep_the_batch() -> None:
    """TFP takes the divergence of the bases, which have no batch here."""
    shift = np.ones([4, D])
    q, p = (tfb.Shift(shift)(_STANDARD) for _ in range(2))
    found: Any = closed_form_kl(q, p)
    np.testing.assert_array_equal(found, np.zeros(4))


def test_close_gaussians_keep_their_digits_in_float32() -> None:
    loc = np.zeros([1, D], np.float32)
    scale = np.full([1, D], 1.0 + 1e-3, np.float32)
    standard = tfd.Sample(tfd.Normal(0.0, 1.0), D)
    wide = loc.astype(np.float64), scale.astype(np.float64)
    expected = _diagonal_kl(*wide, np.zeros(D), np.ones(D))
    for q in (
        tfd.MultivariateNormalDiag(loc, scale),
        tfd.MultivariateNormalTriL(loc, tf.linalg.diag(scale)),
    ):
        found: Any = closed_form_kl(q, standard)
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_gradients_flow_to_both() -> None:
    """d KL / d mu = mu - nu over the prior's variance, and d KL / d log sigma, in a graph."""
    (loc, scale), (prior_loc, prior_scale) = _gaussian(4, D, seed=0), _gaussian(D, seed=1)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, D], tf.float64)] * 2)
    def gradients(loc: tf.Tensor, log_scale: tf.Tensor) -> Any:
        nu = tf.constant(prior_loc)
        with tf.GradientTape() as tape:
            tape.watch([loc, log_scale, nu])
            q = tfd.MultivariateNormalTriL(loc, tf.linalg.diag(tf.exp(log_scale)))
            kl = closed_form_kl(q, tfd.Independent(tfd.Normal(nu, prior_scale), 1))
        return tape.gradient(kl, [loc, log_scale, nu])

    to_loc, to_log_scale, to_prior = gradients(loc, np.log(scale))
    expected = (loc - prior_loc) / prior_scale**2
    np.testing.assert_allclose(to_loc, expected, rtol=1e-11)
    np.testing.assert_allclose(to_log_scale, (scale / prior_scale) ** 2 - 1.0, rtol=1e-10)
    np.testing.assert_allclose(to_prior, -expected.sum(axis=0), rtol=1e-11)


@pytest.mark.parametrize("posterior", DIAGONAL)
def test_a_point_mass_gives_no_number(posterior: str) -> None:
    """A scale of 0 in one dimension of q: the divergence is infinite, whatever the words."""
    loc, scale = _gaussian(4, D, seed=0)
    scale[:, 1] = 0.0
    with np.errstate(divide="ignore"):  # by its logarithm or its reciprocal, it is infinite
        q = DIAGONAL[posterior](loc, scale)
    for prior in (_STANDARD, tfd.MultivariateNormalTriL(np.zeros(D), np.eye(D))):
        found: Any = closed_form_kl(q, prior)
        assert not np.any(np.isfinite(found))


def test_a_negative_scale_of_a_normal_gives_no_number() -> None:
    q = tfd.Independent(tfd.Normal(np.zeros([4, D]), np.float64(-1.0)), 1)
    found: Any = closed_form_kl(q, tfd.MultivariateNormalDiag(np.zeros(D)))
    assert np.all(np.isnan(found))


class _Bent(tfb.Shift):
    """A bijector of a user under a base class that is affine."""

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return super()._forward(x) + x**3


class _ScaledSample(plain_class(tfd.Sample)):  # type: ignore[misc]
    def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
        return super()._log_prob(2.0 * z) + 3.0


def test_what_is_not_surely_gaussian_has_no_closed_form() -> None:
    q = tfd.MultivariateNormalDiag(*_gaussian(4, D, seed=0))
    zeros, one = np.zeros(D), np.float64(1.0)
    normal = tfd.Normal(np.float64(0.0), one)
    others = [
        _Bent(zeros)(_STANDARD),
        tfb.Exp()(_STANDARD),
        tfb.Chain([tfb.Shift(zeros), tfb.Tanh()])(_STANDARD),
        _ScaledSample(normal, D),
        tfb.Shift(zeros)(_ScaledSample(normal, D)),
        tfd.Independent(_WiderNormal(zeros, np.ones(D)), 1),
        tfd.Sample(_WiderNormal(np.float64(0.0), one), D),
        tfd.Sample(tfd.Laplace(np.float64(0.0), one), D),
        tfd.Independent(tfd.StudentT(np.float64(3.0), zeros, one), 1),
    ]
    for prior in others:
        assert closed_form_kl(q, prior) is None
