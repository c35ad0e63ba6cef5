"""Closed forms of all posteriors, in steps of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tests.testing import oracles
from tests.testing.models import index_data, table_encoder
from tfp_surgery.measurement.prepared_model import PreparedModel, prepared_model
from tfp_surgery.surgery.closed_forms import closed_forms

tfb = tfp.bijectors
tfd = tfp.distributions

N, D = 23, 2
PRIOR = tfd.MultivariateNormalDiag(np.zeros(D), np.ones(D))


def _model(posteriors: tfd.Distribution, prior: Any = PRIOR, **options: Any) -> PreparedModel:
    return prepared_model(
        index_data(N), table_encoder(posteriors), None, prior, (0, 0), 10, decoder_optional=True,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 7, 23, 100])
@pytest.mark.parametrize("reencode", [False, True])
@pytest.mark.parametrize("case", oracles.CASES)
def test_all_posteriors_have_theirs_in_their_order(
    case: str, reencode: bool, batch_size: int
) -> None:
    loc, scale = oracles.gaussian_case(case, N, D)
    model = _model(tfd.MultivariateNormalDiag(loc, scale), reencode=reencode)
    kl, entropy = closed_forms(model, batch_size)
    assert kl is not None
    assert entropy is not None
    assert kl.shape == entropy.shape == (N,)
    expected = (0.5 * (loc**2 + scale**2 - 1.0) - np.log(scale)).sum(axis=1)
    np.testing.assert_allclose(kl, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(entropy, stats.norm(loc, scale).entropy().sum(axis=1), rtol=1e-9)


@pytest.mark.parametrize("batch_size", [5, 50])
def test_a_prior_of_the_condition_has_a_kl_for_each(batch_size: int) -> None:
    loc, scale = oracles.gaussian_case("overlapping", N, D)
    condition = np.arange(float(N))

    def prior(condition: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.stack([condition, -condition], axis=-1), np.ones(D))

    model = _model(tfd.MultivariateNormalDiag(loc, scale), prior, condition=condition)
    kl, entropy = closed_forms(model, batch_size)
    assert kl is not None
    shift = loc - np.stack([condition, -condition], axis=1)
    expected = (0.5 * (shift**2 + scale**2 - 1.0) - np.log(scale)).sum(axis=1)
    np.testing.assert_allclose(kl, expected, rtol=1e-9)
    assert entropy is not None


def test_what_is_not_known_is_none() -> None:
    loc, scale = oracles.gaussian_case("overlapping", N, D)
    gaussian = tfd.MultivariateNormalDiag(loc, scale)
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(probs=np.array([0.5, 0.5])),
        tfd.MultivariateNormalDiag(np.zeros([2, D]), np.ones([2, D])),
    )
    kl, entropy = closed_forms(_model(gaussian, mixture), 10)
    assert kl is None
    assert entropy is not None
    np.testing.assert_allclose(entropy, stats.norm(loc, scale).entropy().sum(axis=1), rtol=1e-9)
    # The KL does not change under a bijection of both, and TFP knows it; the entropy does.
    squashed, of_prior = (
        tfd.TransformedDistribution(distribution, tfb.Tanh()) for distribution in (gaussian, PRIOR)
    )
    kl, entropy = closed_forms(_model(squashed, of_prior), 10)
    assert entropy is None
    expected = (0.5 * (loc**2 + scale**2 - 1.0) - np.log(scale)).sum(axis=1)
    if kl is not None:
        np.testing.assert_allclose(kl, expected, rtol=1e-9)
    assert closed_forms(_model(squashed, PRIOR), 10) == (None, None)


def test_they_are_in_the_dtype_of_the_model() -> None:
    loc, scale = (part.astype(np.float32) for part in oracles.gaussian_case("overlapping", N, D))
    posteriors = tfd.MultivariateNormalDiag(loc, scale)
    model = prepared_model(
        None, posteriors, None, tfd.MultivariateNormalDiag(tf.zeros(D)), (0, 0), 10,
        decoder_optional=True,
    )  # fmt: skip
    kl, entropy = closed_forms(model, 4)
    assert kl is not None
    assert entropy is not None
    assert kl.dtype == entropy.dtype == np.float32
