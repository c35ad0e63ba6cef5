from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing import oracles
from tfp_surgery.components import moments

tfd = tfp.distributions

_RNG = np.random.default_rng(0)
_LOG_WEIGHTS = np.log(_RNG.dirichlet(np.ones(11)))


@pytest.mark.parametrize(
    ("kind", "case", "event_size"),
    [
        *((kind, case, 3) for kind in ("diag", "tril") for case in oracles.CASES),
        ("diag", "overlapping", 700),  # whose covariances are taken in two parts
    ],
)
def test_moments_agree_with_the_law_of_total_variance(
    kind: str, case: str, event_size: int
) -> None:
    """Independently: E[z z^T] - E z E z^T from second moments, in float64."""
    loc, scale = oracles.gaussian_case(case, 11, event_size)
    if kind == "diag":
        components = tfd.MultivariateNormalDiag(loc, scale)
        covariances = np.stack([np.diag(row**2) for row in scale])
    else:
        tril = np.tril(_RNG.normal(size=(11, 3, 3))) + 2 * np.eye(3)
        components = tfd.MultivariateNormalTriL(loc, tril)
        covariances = tril @ tril.transpose(0, 2, 1)
    weights = np.exp(_LOG_WEIGHTS)
    expected_mean = weights @ loc
    second = np.einsum("n,nij->ij", weights, covariances + loc[:, :, None] * loc[:, None, :])
    expected = second - np.outer(expected_mean, expected_mean)
    log_weights = tf.constant(_LOG_WEIGHTS)
    np.testing.assert_allclose(moments.mean(components, log_weights), expected_mean, atol=1e-12)
    np.testing.assert_allclose(moments.covariance(components, log_weights), expected, atol=1e-11)
    np.testing.assert_allclose(
        moments.variance(components, log_weights), np.diag(expected), atol=1e-11
    )


def test_variance_far_from_the_origin_keeps_its_digits() -> None:
    """E z^2 - (E z)^2 would be 0 in float32 here."""
    components = tfd.Normal(tf.constant([1e4, 1e4 + 1]), tf.constant([0.5, 0.5]))
    log_weights = tf.math.log(tf.constant([0.5, 0.5]))
    np.testing.assert_allclose(moments.variance(components, log_weights), 0.5, rtol=1e-5)
