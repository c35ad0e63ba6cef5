from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tfp_surgery.components import components as components_lib
from tfp_surgery.log_density import gaussian_scores

tfd = tfp.distributions

_RNG = np.random.default_rng(0)
N, M, D = 6, 9, 4
_LOC = _RNG.normal(size=(N, D))
_SCALE = _RNG.uniform(0.2, 2.0, size=(N, D))
_TRIL = np.tril(_RNG.normal(size=(N, D, D))) + 2 * np.eye(D)
_Z = _RNG.normal(size=(M, D))


@pytest.mark.parametrize(
    "components",
    [
        tfd.MultivariateNormalDiag(_LOC, _SCALE),
        tfd.Independent(tfd.Normal(_LOC, _SCALE), 1),
        tfd.MultivariateNormalDiag(_LOC, -_SCALE),
    ],
    ids=["diag", "independent", "negative scale"],
)
def test_diagonal_scores_agree_with_scipy(components: tfd.Distribution) -> None:
    leaves = gaussian_scores.diagonal_leaves(components)
    assert leaves is not None
    expected = stats.norm.logpdf(_Z[None], _LOC[:, None], _SCALE[:, None]).sum(axis=-1)
    np.testing.assert_allclose(
        gaussian_scores.diagonal_score(leaves, tf.constant(_Z)), expected, rtol=1e-12
    )


def test_scalars_are_vectors_of_size_one() -> None:
    leaves = gaussian_scores.diagonal_leaves(tfd.Normal(_LOC[:, 0], _SCALE[:, 0]))
    assert leaves is not None
    expected = stats.norm.logpdf(_Z[None, :, 0], _LOC[:, :1], _SCALE[:, :1])
    np.testing.assert_allclose(
        gaussian_scores.diagonal_score(leaves, tf.constant(_Z[:, :1])), expected, rtol=1e-12
    )


@pytest.mark.parametrize("devices", [[], ["GPU:0"]])
def test_full_covariance_scores_agree_with_scipy(
    devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the form for devices whose matrix products would be in TensorFloat-32."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: devices)
    leaves = gaussian_scores.full_covariance_leaves(tfd.MultivariateNormalTriL(_LOC, _TRIL))
    assert leaves is not None
    expected = np.stack(
        [
            stats.multivariate_normal(loc, tril @ tril.T).logpdf(_Z)
            for loc, tril in zip(_LOC, _TRIL, strict=True)
        ]
    )
    np.testing.assert_allclose(
        gaussian_scores.full_covariance_score(leaves, tf.constant(_Z)), expected, rtol=1e-10
    )


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_ill_conditioned_factors_are_not_scored_worse_than_by_tfp(condition: float) -> None:
    """float32 errors against float64, of draws from the components themselves."""
    rng = np.random.default_rng(1)
    scales = np.geomspace(1.0, 1.0 / condition, D)
    tril = (np.tril(rng.normal(size=(N, D, D)), -1) + np.eye(D)) * scales[:, None]
    tril, loc = tril.astype(np.float32), _LOC.astype(np.float32)
    noise = rng.normal(size=(50, N, D))
    z = (loc + np.einsum("nij,mnj->mni", tril, noise)).astype(np.float32)  # [50, N, D]
    exact = tfd.MultivariateNormalTriL(loc.astype(np.float64), tril.astype(np.float64))
    expected = exact.log_prob(z.astype(np.float64)).numpy()
    components = tfd.MultivariateNormalTriL(loc, tril)
    leaves = gaussian_scores.full_covariance_leaves(components)
    assert leaves is not None
    scores = gaussian_scores.full_covariance_score(leaves, tf.reshape(z, [50 * N, D]))  # [N, 50 N]
    own = np.einsum("nmn->mn", scores.numpy().reshape(N, 50, N))
    error = np.abs(own - expected).max()
    assert error <= 1e-4 + 2 * np.abs(components.log_prob(z).numpy() - expected).max()


@pytest.mark.parametrize(
    "components",
    [
        tfd.Independent(tfd.Laplace(_LOC, _SCALE), 1),
        tfd.Independent(tfd.Normal(_LOC[..., None], _SCALE[..., None]), 2),
        tfd.TransformedDistribution(tfd.MultivariateNormalDiag(_LOC, _SCALE), tfp.bijectors.Exp()),
    ],
    ids=["Laplace", "matrix events", "transformed"],
)
def test_other_components_have_no_gaussian_kernel(components: tfd.Distribution) -> None:
    components = components_lib.broadcast(components)
    assert gaussian_scores.diagonal_leaves(components) is None
    assert gaussian_scores.full_covariance_leaves(components) is None
