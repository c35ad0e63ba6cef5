from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tests.testing import small_aggregates
from tests.testing.learned_priors import GaussianPrior
from tfp_surgery.training.likelihood_ascent import LikelihoodAscent

tfd = tfp.distributions


def _ascent(prior: Any, **kwargs: Any) -> LikelihoodAscent:
    settings = {"num_steps": 200, "batch_size": 32, "learning_rate": 0.02, "seed": 0, **kwargs}
    q_z = small_aggregates.aggregate("overlapping")
    return LikelihoodAscent(q_z, prior, prior.fitted_variables, **settings)


def _weights(prior: Any) -> np.ndarray:
    return np.concatenate([np.ravel(variable) for variable in prior.fitted_variables])


def test_is_adam_on_the_mean_log_density_of_fresh_codes() -> None:
    """Against Adam (Kingma and Ba 2015) by NumPy in float64, on the codes that were drawn."""
    seen: list[np.ndarray] = []

    def keep(z: np.ndarray) -> np.ndarray:
        seen.append(z)
        return z

    class Watched(tfs.AggregatePosterior):
        def sample(self, *args: Any, **kwargs: Any) -> tf.Tensor:
            z = super().sample(*args, **kwargs)
            tf.numpy_function(keep, [z], z.dtype)
            return z

    components = small_aggregates.aggregate("overlapping").components_distribution
    prior = GaussianPrior(2)
    ascent = LikelihoodAscent(
        Watched(components),
        prior,
        [prior.loc],
        num_steps=40,
        batch_size=32,
        learning_rate=0.1,
        seed=1,
    )
    with pytest.warns(UserWarning, match="XLA cannot compile"):
        mean = ascent.run(0, 7)
    assert len(seen) == 7
    assert len(np.unique(np.concatenate(seen), axis=0)) == 7 * 32  # each step draws anew

    loc, first, second, log_probs = np.zeros(2), np.zeros(2), np.zeros(2), []
    for step, z in enumerate(np.asarray(seen, np.float64)):
        log_probs.append(-0.5 * ((z - loc) ** 2).sum(axis=1).mean() - math.log(2 * math.pi))
        gradient = -(z - loc).mean(axis=0)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        # Two steps of warm-up, then half a cosine over the 38 that are left.
        rate = 0.1 * step / 2 if step < 2 else 0.05 * (1 + math.cos(math.pi * (step - 2) / 38))
        hat = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        loc -= rate * hat[0] / (np.sqrt(hat[1]) + 1e-7)
    np.testing.assert_allclose(prior.loc, loc, rtol=1e-4)
    np.testing.assert_allclose(mean, np.mean(log_probs), rtol=1e-5)
    assert not np.any(prior.raw_scale)  # was not among the variables


def test_the_steps_do_not_depend_on_how_they_are_called() -> None:
    weights = []
    for ends in ([110], [3, 53, 110]):
        prior = GaussianPrior(2)
        ascent = _ascent(prior)
        for first, last in zip([0, *ends], ends, strict=False):
            ascent.run(first, last)
        weights.append(_weights(prior))
    np.testing.assert_array_equal(weights[0], weights[1])


class Brittle(GaussianPrior):
    """Is no density where its mean is above a half, to which `pull` draws it."""

    def call(self, condition: Any = None) -> tfd.Distribution:
        loc = tf.convert_to_tensor(self.loc)
        return tfd.MultivariateNormalDiag(tf.where(loc > 0.5, math.nan, loc), [1.0, 1.0])


def test_what_is_not_finite_stops_at_its_step_with_the_last_good_weights() -> None:
    codes = tfs.AggregatePosterior(tfd.MultivariateNormalDiag(tf.fill([4, 2], 3.0), [0.1, 0.1]))
    settings: Any = {"num_steps": 400, "batch_size": 16, "learning_rate": 0.01, "seed": 0}
    prior = Brittle(2)
    ascent = LikelihoodAscent(codes, prior, [prior.loc], **settings)
    with pytest.raises(FloatingPointError, match=r"step (6|7)[0-9] of the fit.*before it") as e:
        ascent.run(0, 400)
    step = int(str(e.value).split()[1])
    stopped = _weights(prior)

    prior = Brittle(2)
    again = LikelihoodAscent(codes, prior, [prior.loc], **settings)
    again.run(0, step)
    np.testing.assert_array_equal(_weights(prior), stopped)
    for kept, expected in zip(ascent._optimizer.variables, again._optimizer.variables, strict=True):
        np.testing.assert_array_equal(kept, expected)
    assert prior.loc.numpy().max() > 0.5  # of which the next step is the first to know
    with pytest.raises(FloatingPointError, match=f"step {step} of"):
        again.run(step, step + 1)


@pytest.mark.slow
def test_choosing_a_look_is_optimistic_by_no_more_than_its_bound() -> None:
    """The bias of the best of T looks, measured on exchangeable validation and other codes.

    For V held-out observations it is at most s sqrt(2 log T / V), s the largest standard deviation
    of the difference in log p(z) between two looks: the expected maximum of T such means, which
    are close to Gaussian (Boucheron, Lugosi and Massart 2013, theorem 2.5).
    """
    rng = np.random.default_rng(0)
    loc = rng.normal(size=(30, 2)).astype(np.float32)
    q_z = tfs.AggregatePosterior(tfd.MultivariateNormalDiag(loc, [0.3, 0.3]))
    prior = GaussianPrior(2)
    ascent = LikelihoodAscent(
        q_z, prior, prior.fitted_variables, num_steps=10**6, batch_size=8, learning_rate=0.1, seed=0
    )
    num_sets, size, looks = 400, 50, 40
    pool = rng.normal(scale=math.sqrt(1.09), size=(num_sets * size, 2)).astype(np.float32)
    log_probs = []
    for look in range(looks):
        ascent.run(50_000 + 25 * look, 50_000 + 25 * (look + 1))
        log_probs.append(prior().log_prob(pool).numpy())
    values = np.array(log_probs, np.float64)  # [T, codes]
    population = values.mean(axis=1)
    means = values.reshape(looks, num_sets, size).mean(axis=-1)  # [T, sets]
    chosen = means.argmax(axis=0)
    sets = np.arange(num_sets)
    # A look that was not chosen has no bias, and much of the same noise.
    fixed = np.argmax(population)
    optimism = (means[chosen, sets] - population[chosen]) - (means[fixed] - population[fixed])
    error = optimism.std(ddof=1) / math.sqrt(num_sets)
    spread = max(np.std(values - values[fixed], axis=1))
    assert optimism.mean() > 4.5 * error  # there is a bias
    assert optimism.mean() <= spread * math.sqrt(2 * math.log(looks) / size) + 4.5 * error
