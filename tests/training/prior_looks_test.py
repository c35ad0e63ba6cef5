from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tests.testing import small_aggregates
from tests.testing.learned_priors import GaussianPrior
from tfp_surgery import seeds
from tfp_surgery.training.fit_prior import fit_prior
from tfp_surgery.training.prior_fit import PriorFit
from tfp_surgery.training.prior_looks import FixedCodes

tfd = tfp.distributions

_UNIT = 1e-3


def _fit(*args: Any, **kwargs: Any) -> PriorFit:
    settings: dict[str, Any] = {
        "num_steps": 60,
        "batch_size": 64,
        "evaluate_every": 20,
        "verbose": False,
    }
    return fit_prior(*args, **{**settings, **kwargs})


def _narrow(seed: int = 0) -> tfs.AggregatePosterior:
    """Codes of standard deviation 1e-3."""
    loc = _UNIT * np.random.default_rng(seed).normal(size=(200, 2)).astype(np.float32)
    return tfs.AggregatePosterior(tfd.MultivariateNormalDiag(loc, tf.fill([200, 2], 0.1 * _UNIT)))


def _matched(q_z: tfs.AggregatePosterior) -> GaussianPrior:
    """A layer with weights in the unit of z, and the moments of q(z)."""
    prior = GaussianPrior(2)
    tril = np.linalg.cholesky(q_z.covariance().numpy())
    prior.loc.assign(q_z.mean())
    prior.raw_scale.assign(np.tril(tril, -1) + np.diag(np.log(np.diag(tril))))
    return prior


def test_a_fit_without_validation_does_not_end_worse_than_it_began() -> None:
    """Steps of 0.005 in the unit of z lead far from codes of standard deviation 0.001."""
    q_z = _narrow()
    prior = _matched(q_z)
    start = [variable.numpy().copy() for variable in prior.variables]
    with pytest.warns(UserWarning, match="no look at the fit of .* was better than its start"):
        fit = _fit(q_z, prior, former_prior=prior)
    assert (fit.num_steps, fit.best_step, fit.stopped_early) == (60, 0, False)
    values = np.array([look.fixed_log_prob for look in fit.history], np.float64)
    assert values[1:].max() < values[0]
    assert values.min() < values[0] - 1.0
    for variable, old in zip(prior.variables, start, strict=True):
        np.testing.assert_array_equal(variable, old)
    assert fit.training.elbo_change.value == 0.0


def test_the_best_look_is_restored_and_all_steps_are_taken() -> None:
    """On draws of their own from q(z), whatever the patience."""
    q_z = small_aggregates.aggregate("overlapping")
    prior = GaussianPrior(2)
    # So high a rate that the middle of the fit is its worst part.
    fit = _fit(q_z, prior, learning_rate=1.0, num_steps=200, patience=1, seed=4)
    values = np.array([look.fixed_log_prob for look in fit.history], np.float64)
    assert np.any(np.diff(values) < 0)
    assert (fit.num_steps, fit.stopped_early) == (200, False)
    assert fit.best_step == 20 * np.argmax(values)
    codes = q_z.sample(10_000, seed=seeds.key(4, "fit_prior/looks"))
    np.testing.assert_allclose(
        np.mean(prior().log_prob(codes), dtype=np.float64), values.max(), rtol=1e-6
    )
    assert all(look.validation_log_prob is None for look in fit.history)


def test_held_out_codes_take_the_place_of_the_fixed_ones() -> None:
    q_z, held_out = (small_aggregates.aggregate("overlapping", seed) for seed in (0, 1))
    fit = _fit(q_z, GaussianPrior(2), validation=held_out, patience=None)
    assert all(look.fixed_log_prob is None for look in fit.history)
    assert all(look.validation_log_prob is not None for look in fit.history)
    without_steps = _fit(q_z, GaussianPrior(2), num_steps=0)
    assert without_steps.history[0].fixed_log_prob is None


def test_what_became_worse_is_said() -> None:
    """Held-out codes from elsewhere choose weights that leave the q(z) that is fitted."""
    q_z = small_aggregates.aggregate("overlapping")
    moved = tfs.AggregatePosterior(
        tfd.MultivariateNormalDiag(q_z.components_distribution.mean() + 0.7, tf.fill([12, 2], 0.3))
    )
    prior = _matched(q_z)
    with pytest.warns(
        UserWarning, match=r"worse than it was before.*q\(z\) fitted to grew by .* of step [1-9]"
    ):
        fit = _fit(
            q_z,
            prior,
            former_prior=prior,
            validation=moved,
            learning_rate=0.3,
            evaluate_every=2,
            patience=None,
            num_samples=100,
        )
    assert fit.training.elbo_change.value < 0
    assert fit.validation is not None
    assert fit.validation.elbo_change.value > 0


def test_a_fit_that_gains_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        q_z = small_aggregates.aggregate("overlapping")
        fit = _fit(q_z, GaussianPrior(2), learning_rate=0.03, num_samples=100)
    change = fit.training.elbo_change
    assert change.value > 4.5 * change.standard_error


def test_looks_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    _fit(small_aggregates.aggregate("overlapping"), GaussianPrior(2), verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"fit_prior: step {step} of 60" for step in (0, 20, 40, 60)
    ]
    assert all("nats on fixed codes (best" in line for line in lines)


def test_fixed_codes_count_once_each() -> None:
    codes = np.random.default_rng(0).normal(size=(25, 2)).astype(np.float32)
    prior = GaussianPrior(2)
    for batch_size in (1, 10, 25, 100):
        held = FixedCodes(tf.constant(codes), prior, batch_size)
        expected = -0.5 * (codes.astype(np.float64) ** 2).sum(axis=1).mean() - math.log(2 * math.pi)
        np.testing.assert_allclose(held.mean_log_prob(), expected, rtol=1e-6)
    prior.loc.assign([1.0, 0.0])  # the weights are read anew
    expected -= 0.5 - codes[:, 0].mean()
    np.testing.assert_allclose(held.mean_log_prob(), expected, rtol=1e-6)
