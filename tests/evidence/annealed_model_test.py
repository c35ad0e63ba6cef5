"""Tests of the models whose codes annealed chains can move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.evidence.annealed_model import annealed_model, check_densities
from tfp_surgery.observations import read_observations

tfd = tfp.distributions

CONDITIONS = read_observations(np.array([0.0, 10.0]), name="condition")


def _decoder(z: Any) -> tfd.Distribution:
    return tfd.Normal(z["b"] + tf.reduce_sum(z["a"], axis=-1), 1.0)


def _joint(b: Any, a: Any = None) -> tfd.Distribution:
    a = a or tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    return tfd.JointDistributionNamed({"a": a, "b": b})


def test_a_conditional_prior_gives_each_observation_its_own_codes() -> None:
    def prior(condition: tf.Tensor) -> tfd.Distribution:
        a = tfd.MultivariateNormalDiag(tf.stack([condition, -condition], axis=-1), np.ones(2))
        return _joint(tfd.Uniform(condition, condition + 1), a)

    model = annealed_model(_decoder, prior, CONDITIONS)
    assert model.prior.batch_shape.num_elements() == 1
    condition = model.condition(slice(0, 2))
    z = model.sample_codes([1000, 2], condition, (0, 1))
    assert z.shape == (1000, 2, 3)
    np.testing.assert_allclose(tf.reduce_mean(z, axis=0), [[0, 0, 0.5], [10, -10, 10.5]], atol=0.2)
    expected = prior(condition).log_prob({"a": z[..., :2], "b": z[..., 2]})
    np.testing.assert_allclose(model.prior_at(condition).log_prob(z), expected, rtol=1e-12)
    assert model.taking == ", condition given to prior"
    assert model.decoder(z[:, 0]).batch_shape == [1000]


def test_without_a_condition_there_is_one_prior() -> None:
    model = annealed_model(_decoder, _joint(tfd.Normal(np.float64(0), np.float64(1))), None)
    assert model.prior_at(None) is model.prior
    assert model.sample_codes([3, 2], None, (0, 1)).shape == (3, 2, 3)
    assert model.condition(slice(0, 2)) is None
    assert model.taking == ""


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (tfd.Categorical([0.0, 0.0]), "part b .* dtype int32"),
        (tfd.OneHotCategorical([0.0, 0.0], dtype=tf.float64), "OneHotCategorical does not say it"),
        (lambda a: tfd.Normal(a[..., 0], np.float64(1)), "parts of .* depend on others"),
    ],
    ids=["integer", "one-hot", "dependent"],
)
def test_parts_that_chains_cannot_move_are_refused(part: Any, match: str) -> None:
    with pytest.raises(TypeError, match=f"{match}.*; log_evidence_by_importance_sampling takes"):
        annealed_model(_decoder, _joint(part), None)


def test_a_prior_of_another_batch_than_the_conditions_is_refused() -> None:
    for loc in (np.zeros([2, 1]), np.zeros([1, 1]), np.zeros([3, 1])):
        prior = lambda condition, loc=loc: tfd.MultivariateNormalDiag(  # noqa: ARG005, E731
            loc, np.ones(1)
        )
        with pytest.raises(ValueError, match=r"for each, with batch shape \[[13]\]"):
            annealed_model(_decoder, prior, CONDITIONS)


def test_a_conditional_prior_must_score_the_chains_as_one_by_one() -> None:
    """As a chain whose transition takes the dimension of the draws for that of time."""

    class Confused(tfd.MultivariateNormalDiag):
        def _log_prob(self, z: Any) -> tf.Tensor:
            return super()._log_prob(z - tf.cumsum(tf.ones_like(z), axis=0))

    def decoder(z: Any) -> tfd.Distribution:
        return tfd.Normal(tf.reduce_sum(z, axis=-1), np.float64(1.0))

    x = read_observations(np.zeros(2))
    for kind in (Confused, tfd.MultivariateNormalDiag):
        model = annealed_model(
            decoder, lambda condition, kind=kind: kind(condition[:, None] * np.ones(2)), CONDITIONS
        )
        if kind is Confused:
            with pytest.raises(TypeError, match="does not score 4 codes of each condition"):
                check_densities(x, model, 4)
        else:
            check_densities(x, model, 4)
