"""Tests of distributions over vectors in place of events of any shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components.flat_events import with_flat_events
from tfp_surgery.components.flat_joint import flattened

tfb = tfp.bijectors
tfd = tfp.distributions

RNG = np.random.default_rng(0)
LOC = RNG.normal(size=(4, 2, 3))
TRIL = np.linalg.cholesky(np.cov(RNG.normal(size=(6, 20))) + 0.1 * np.eye(6))
PROBS = RNG.uniform(0.1, 0.9, size=(4, 2, 3))
LOGITS = RNG.normal(size=(4, 2, 5))


@pytest.mark.parametrize(
    "distribution",
    [
        tfd.Independent(tfd.Normal(LOC, 0.5), 2),
        tfd.Independent(tfd.MultivariateNormalDiag(LOC, 0.5 + 0.0 * LOC), 1),
        tfb.Reshape([2, 3])(tfd.MultivariateNormalTriL(LOC.reshape(4, 6), TRIL)),
        tfd.Normal(LOC[:, 0, 0], 0.5),
        tfd.Independent(tfd.Bernoulli(probs=PROBS), 2),
        tfd.Independent(tfd.Gamma(np.exp(LOC), np.float64(2.0)), 2),
        tfd.Independent(tfd.Categorical(LOGITS), 1),
        tfd.Poisson(np.exp(LOC[:, 0, 0])),
        tfd.MultivariateNormalTriL(LOC.reshape(4, 6), TRIL),
    ],
    ids=lambda each: each.name,
)
def test_the_density_is_the_same(distribution: Any) -> None:
    flat = with_flat_events(distribution)
    z = distribution.sample(3, seed=(0, 1))
    assert flat.event_shape == [distribution.event_shape.num_elements()]
    assert flat.batch_shape == [4]
    np.testing.assert_allclose(
        flat.log_prob(tf.reshape(z, [3, 4, -1])), distribution.log_prob(z), rtol=1e-9
    )


def test_parts_that_are_gaussians_are_one_gaussian() -> None:
    parts = [
        tfd.Normal(LOC[:, 0, 0], np.float64(0.5)),
        tfd.MultivariateNormalDiag(LOC[:, 1], np.full(3, 0.3)),
    ]
    joint = flattened(tfd.JointDistributionSequential(parts))
    for distribution in (tfd.Blockwise(parts), joint):
        flat = with_flat_events(distribution)
        assert isinstance(flat, tfd.MultivariateNormalDiag)
        z = distribution.sample(3, seed=(0, 1))
        np.testing.assert_allclose(flat.log_prob(z), distribution.log_prob(z), rtol=1e-9)
    mixed = flattened(
        tfd.JointDistributionSequential([parts[0], tfd.Poisson(np.exp(LOC[:, 0, 0]))])
    )
    with pytest.raises(NotImplementedError, match="marginals of FlatJoint"):
        with_flat_events(mixed)


def test_other_families_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="marginals of WishartTriL"):
        with_flat_events(tfd.WishartTriL(df=4.0, scale_tril=tf.eye(3, batch_shape=[2])))
