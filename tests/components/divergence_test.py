from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components.divergence import closed_form_kl

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
