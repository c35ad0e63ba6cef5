from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.divergence import closed_form_kl

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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-m", "not slow"]))
