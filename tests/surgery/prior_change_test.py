from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tests.testing import models, oracles, small_aggregates
from tfp_surgery.estimate import stratified_estimate
from tfp_surgery.surgery.prior_change import PriorMeasurement

tfd = tfp.distributions

_ERRORS = 4.5  # standard errors
_OTHER = (np.array([0.4, -0.3]), np.array([[1.5, 0.6], [0.6, 0.8]]))


def _gaussian(moments: small_aggregates.Moments, dtype: type = np.float64) -> tfd.Distribution:
    loc, covariance = moments
    return tfd.MultivariateNormalTriL(
        loc.astype(dtype), np.linalg.cholesky(covariance).astype(dtype)
    )


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, np.float64) for case in oracles.CASES), ("overlapping", np.float32)],
)
def test_agrees_with_closed_forms(case: str, dtype: type) -> None:
    """Against quadrature for the entropy of q(z) and its moments for Gaussian priors."""
    measurement = PriorMeasurement(
        small_aggregates.aggregate(case, dtype=dtype),
        _gaussian(small_aggregates.STANDARD_NORMAL, dtype),
        num_samples=1000,
        seed=3,
        tolerance=None,
    )
    change = measurement.change_to(lambda: _gaussian(_OTHER, dtype))
    entropy, moments = small_aggregates.entropy(case), small_aggregates.moments(case)
    before = small_aggregates.cross_entropy(moments, small_aggregates.STANDARD_NORMAL)
    after = small_aggregates.cross_entropy(moments, _OTHER)
    rounding = 1e-5 if dtype is np.float32 else 1e-10
    for estimate, expected in (
        (change.marginal_kl_before, before - entropy),
        (change.marginal_kl_after, after - entropy),
        (change.elbo_change, before - after),
    ):
        bound = _ERRORS * estimate.standard_error + rounding
        assert abs(estimate.value - expected) <= bound, (estimate, expected)
        assert estimate.num_draws == 12000
    np.testing.assert_allclose(
        change.elbo_change.value,
        change.marginal_kl_before.value - change.marginal_kl_after.value,
        atol=1e-12,
    )
    assert (change.num_observations, change.num_samples, change.seed) == (12, 1000, 3)
    assert change.evaluation == "exact"


def test_an_aggregate_that_is_its_own_prior_has_no_marginal_kl() -> None:
    q_z = small_aggregates.aggregate("overlapping")
    measurement = PriorMeasurement(q_z, q_z, num_samples=50, seed=0, tolerance=None)
    change = measurement.change_to(q_z)
    assert abs(change.marginal_kl_before.value) <= change.marginal_kl_before.standard_error
    assert change.elbo_change.value == 0.0


@pytest.mark.parametrize(("num", "tolerance"), [(40, None), (2500, None), (5200, 1e-2)])
def test_is_the_difference_of_two_surgeries(num: int, tolerance: float | None) -> None:
    """On the same draws, in one step, a few and many, also where the last one overlaps."""
    rng = np.random.default_rng(0)
    encoder = models.table_encoder(
        tfd.MultivariateNormalDiag(rng.normal(size=(num, 2)), rng.uniform(0.2, 0.6, (num, 2)))
    )
    x = models.index_data(num)
    priors = [_gaussian(small_aggregates.STANDARD_NORMAL), _gaussian(_OTHER)]
    before, after = (
        tfs.elbo_surgery(x, encoder, models.unit_decoder, prior, seed=7, tolerance=tolerance)
        for prior in priors
    )
    q_z = tfs.AggregatePosterior.from_encoder(encoder, x)
    measurement = PriorMeasurement(q_z, priors[0], num_samples=2, seed=7, tolerance=tolerance)
    change = measurement.change_to(priors[1])
    ours, theirs = change.marginal_kl_before, before.marginal_kl
    np.testing.assert_allclose(ours.value, theirs.value, atol=1e-9)
    np.testing.assert_allclose(ours.standard_error, theirs.standard_error, rtol=1e-6)
    # With the control variates of the former prior in place of those of the new one.
    ours, theirs = change.marginal_kl_after, after.marginal_kl
    error = math.hypot(ours.standard_error, theirs.standard_error)
    assert abs(ours.value - theirs.value) <= 3.0 * error
    assert change.evaluation == before.evaluation
    assert change.control_variates == before.control_variates
    # Both average KLs have a closed form.
    np.testing.assert_allclose(
        change.elbo_change.value, before.average_kl.value - after.average_kl.value, atol=1e-9
    )
    assert change.elbo_change.standard_error <= 1e-12
    error = math.hypot(before.elbo.standard_error, after.elbo.standard_error)
    assert abs(change.elbo_change.value - (after.elbo.value - before.elbo.value)) <= 3.0 * error


@pytest.mark.parametrize("case", oracles.CASES)
def test_what_is_known_of_the_posteriors_makes_the_errors_smaller(case: str) -> None:
    """With a new prior whose KL is not known, and against plain means of the same draws."""
    standard = _gaussian(small_aggregates.STANDARD_NORMAL)
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(logits=np.zeros(2)),
        tfd.MultivariateNormalDiag(np.array([[1.0, 0.0], [-1.0, 0.5]]), np.full(2, 1.2)),
    )
    q_z = small_aggregates.aggregate(case, dtype=np.float64)
    change = PriorMeasurement(q_z, standard, 200, seed=3, tolerance=None).change_to(mixture)
    many = PriorMeasurement(q_z, standard, 20000, seed=4, tolerance=None)
    log_q = q_z.log_prob(many._draws.z).numpy()
    truth = {
        "marginal_kl_before": log_q - standard.log_prob(many._draws.z),
        "marginal_kl_after": log_q - mixture.log_prob(many._draws.z),
        "elbo_change": (mixture.log_prob(many._draws.z) - standard.log_prob(many._draws.z)),
    }
    for name, values in truth.items():
        estimate, exact = getattr(change, name), stratified_estimate(np.asarray(values), 12)
        error = math.hypot(estimate.standard_error, exact.standard_error)
        assert abs(estimate.value - exact.value) <= 4.0 * error + 1e-9, name
        plain = exact.standard_error * math.sqrt(20000 / 200)
        most = 0.9 if name == "marginal_kl_before" and case != "collapsed" else 1.02
        assert estimate.standard_error <= most * plain + 1e-9, name
    assert change.elbo_change.value == pytest.approx(
        change.marginal_kl_before.value - change.marginal_kl_after.value, abs=1e-12
    )


def test_the_error_of_the_change_is_that_of_paired_differences() -> None:
    """Common draws: it is far below what independent ones would give."""
    q_z = small_aggregates.aggregate("overlapping", dtype=np.float64)
    near = _gaussian((np.zeros(2), 1.05 * np.eye(2)))
    standard = _gaussian(small_aggregates.STANDARD_NORMAL)
    change = PriorMeasurement(q_z, standard, 20, 0, None).change_to(near)
    unpaired = math.hypot(
        change.marginal_kl_before.standard_error, change.marginal_kl_after.standard_error
    )
    assert 0 < change.elbo_change.standard_error < 0.2 * unpaired


def test_a_prior_without_density_at_a_draw_is_named() -> None:
    q_z = small_aggregates.aggregate("overlapping")
    box = tfd.Independent(tfd.Uniform([-0.1, -0.1], [0.1, 0.1]), 1)
    with pytest.raises(ValueError, match=r"of the former prior is not finite in .* of 24 draws"):
        PriorMeasurement(q_z, box, 2, 0, None)
    measurement = PriorMeasurement(q_z, tfd.MultivariateNormalDiag(tf.zeros(2)), 2, 0, None)
    with pytest.raises(ValueError, match="of the prior is not finite"):
        measurement.change_to(box)


def test_a_prior_that_is_not_normalised_is_reported() -> None:
    class Unnormalised(tfd.MultivariateNormalDiag):
        def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
            return super()._log_prob(z) + 30.0

    aggregate = small_aggregates.aggregate("overlapping", dtype=np.float64)
    measurement = PriorMeasurement(
        aggregate, _gaussian(small_aggregates.STANDARD_NORMAL), 100, seed=3, tolerance=None
    )
    assert measurement.change_to(_gaussian(_OTHER)).warnings == ()
    found = measurement.change_to(Unnormalised(np.zeros(2), np.ones(2))).warnings
    assert found[0].startswith("Marginal KL after = -2")
    assert "log_prob is not normalised" in found[1]


def test_draws_at_the_end_of_float32_are_reported() -> None:
    shapes = np.full([50, 2], 0.02, np.float32)
    aggregate = tfs.AggregatePosterior(tfd.Independent(tfd.Gamma(shapes, 1.0), 1))
    prior = tfd.Independent(tfd.Gamma(np.full(2, 0.02, np.float32), 1.0), 1)
    measurement = PriorMeasurement(aggregate, prior, 20, seed=0, tolerance=None)
    assert "are exactly 1.17549e-38" in measurement.change_to(prior).warnings[0]


def test_a_former_prior_with_another_support_is_refused() -> None:
    former = tfd.Independent(tfd.Exponential(np.ones(2)), 1)
    with pytest.raises(ValueError, match="outside the support of the prior"):
        PriorMeasurement(
            small_aggregates.aggregate("overlapping", dtype=np.float64), former, 100, 3, None
        )
