from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing.coverage import check_coverage, covered, estimates_of_groups
from tests.testing.linear_gaussian import LinearGaussianModel
from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.evidence import inference_gaps as module
from tfp_surgery.evidence.importance_sampling import log_evidence_by_importance_sampling
from tfp_surgery.evidence.inference_gaps import InferenceGaps, inference_gaps
from tfp_surgery.evidence.refined_posteriors import refined_posteriors

tfd = tfp.distributions

STANDARD_ERRORS = 4.5
# What the optimiser may leave of a gap, in nats.
UNFOUND = 2e-3
CORRELATED = np.array([[1.0, 0.8], [-0.3, 0.4], [0.5, 0.5]])
ORTHOGONAL = np.array([[1.0, 0.5], [0.5, -1.0], [0.0, 0.0]])


def _gaussian_kl(mean: np.ndarray, covariance: np.ndarray, other: np.ndarray) -> float:
    """KL(N(mean, covariance) || N(0, other))."""
    precision = np.linalg.inv(other)
    return 0.5 * float(
        np.trace(precision @ covariance)
        + mean @ precision @ mean
        - len(mean)
        + np.linalg.slogdet(other)[1]
        - np.linalg.slogdet(covariance)[1]
    )


@pytest.mark.parametrize(
    ("weights", "noise", "shift", "factor"),
    [
        pytest.param(ORTHOGONAL, 0.05, 2.0, 0.5, marks=pytest.mark.slow),
        (ORTHOGONAL, 0.7, -0.7, 1.6),
        (CORRELATED, 0.05, 2.0, 0.5),
        pytest.param(CORRELATED, 0.7, -0.7, 1.6, marks=pytest.mark.slow),
        pytest.param(CORRELATED, 0.7, 0.0, 1.0, marks=pytest.mark.slow),
    ],
)
def test_gaps_of_linear_gaussian_models(
    weights: np.ndarray, noise: float, shift: float, factor: float
) -> None:
    model = LinearGaussianModel(weights, noise)
    x = model.simulate(40)
    truth = model.log_evidence(x)
    gaps = inference_gaps(
        x,
        model.perturbed_encoder(shift, factor),
        model.decoder,
        model.prior,
        log_evidence=truth,
        num_steps=400,
        seed=1,
    )
    covariance = model.posterior_covariance
    # The best Gaussian with independent dimensions has the precisions of the posterior's diagonal.
    best = np.diag(1 / np.diag(np.linalg.inv(covariance)))
    approximation = _gaussian_kl(np.zeros(2), best, covariance)
    deviations = np.sqrt(np.diag(covariance))
    total = _gaussian_kl(shift * deviations, np.diag((factor * deviations) ** 2), covariance)
    if weights is ORTHOGONAL:
        assert approximation == pytest.approx(0, abs=1e-12)
    for estimate, expected in (
        (gaps.approximation_gap, approximation),
        (gaps.amortization_gap, total - approximation),
        (gaps.elbo, truth.mean() - total),
        (gaps.optimal_elbo, truth.mean() - approximation),
    ):
        assert abs(estimate.value - expected) < STANDARD_ERRORS * estimate.standard_error + UNFOUND
        assert estimate.standard_error < 0.2
    assert gaps.approximation_gap.value + gaps.amortization_gap.value == pytest.approx(
        gaps.log_evidence.value - gaps.elbo.value
    )


def test_batches_of_observations_and_of_draws_keep_their_places() -> None:
    """7 observations in batches of 2 or 3, 11 draws in chunks of 3: all near their own log p(x)."""
    model = LinearGaussianModel(ORTHOGONAL, 0.5)
    x = model.simulate(7) + 10 * np.arange(7)[:, None]
    gaps = inference_gaps(
        x,
        model.perturbed_encoder(1.0, 1.0),
        model.decoder,
        model.prior,
        log_evidence=model.log_evidence(x),
        num_samples=11,
        num_steps=300,
        batch_size=9,
    )
    # Of two dimensions, each one deviation off.
    assert abs(gaps.amortization_gap.value - 1.0) < (
        STANDARD_ERRORS * gaps.amortization_gap.standard_error + UNFOUND
    )
    assert abs(gaps.approximation_gap.value) < UNFOUND


@pytest.mark.parametrize("family", [pytest.param("independent", marks=pytest.mark.slow), "scalar"])
def test_other_gaussian_families(family: str) -> None:
    model = LinearGaussianModel(np.array([[1.0], [0.5]]), 0.5)
    inner = model.perturbed_encoder(1.5, 1.0)
    is_scalar = family == "scalar"
    prior = tfd.Normal(np.float64(0), np.float64(1)) if is_scalar else model.prior

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        posterior = inner(x)
        if is_scalar:
            return tfd.Normal(posterior.mean()[:, 0], posterior.stddev()[:, 0])
        return tfd.Independent(tfd.Normal(posterior.mean(), posterior.stddev()), 1)

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return model.decoder(z[:, None] if is_scalar else z)

    x = model.simulate(20)
    gaps = inference_gaps(
        x, encoder, decoder, prior, log_evidence=model.log_evidence(x), num_steps=300
    )
    assert abs(gaps.approximation_gap.value) < UNFOUND
    assert abs(gaps.amortization_gap.value - 1.5**2 / 2) < (
        STANDARD_ERRORS * gaps.amortization_gap.standard_error + UNFOUND
    )


def test_the_error_of_the_log_evidence_is_carried_on() -> None:
    model = LinearGaussianModel(CORRELATED, 0.5)
    x = model.simulate(10)
    encoder = model.perturbed_encoder(0.5, 1.3)
    log_evidence = log_evidence_by_importance_sampling(
        x, encoder, model.decoder, model.prior, num_importance_samples=200
    )
    gaps = inference_gaps(
        x, encoder, model.decoder, model.prior, log_evidence=log_evidence, num_steps=2, seed=4
    )
    assert gaps.log_evidence == log_evidence.estimate
    assert gaps.approximation_gap.standard_error == pytest.approx(
        np.hypot(log_evidence.estimate.standard_error, gaps.optimal_elbo.standard_error)
    )
    content = json.loads(json.dumps(gaps.to_dict(), allow_nan=False))
    assert content["amortization_gap"] == gaps.amortization_gap.to_dict()
    for part in ("an array, N = 10", "2 steps, seed 4", "approximation gap", "amortization gap"):
        assert part in str(gaps)


@pytest.mark.slow
def test_intervals_cover_the_elbos_and_the_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 data sets of 5 observations, 10 draws each, out of one call.

    What the ELBO of the refined posteriors is around is their own, not that of the best ones.
    """
    size, num_results = 5, 400
    model = LinearGaussianModel(CORRELATED, 0.5)
    x = model.simulate(size * num_results)
    encoder = model.perturbed_encoder(0.7, 1.3)
    draws: list[np.ndarray] = []

    def keep(values: np.ndarray, population_size: int) -> Estimate:
        draws.append(values)
        return stratified_estimate(values, population_size)

    monkeypatch.setattr(module, "stratified_estimate", keep)
    truth = model.log_evidence(x)
    # Its expectation lies below the truth by less than a tenth of its standard error.
    evidence = log_evidence_by_importance_sampling(
        x, encoder, model.decoder, model.prior, num_importance_samples=200, batch_size=8000
    )
    gaps = inference_gaps(
        x,
        encoder,
        model.decoder,
        model.prior,
        log_evidence=evidence,
        num_samples=10,
        num_steps=60,
        batch_size=8000,
    )
    refined = refined_posteriors(
        x, encoder, model.decoder, model.prior, num_steps=60, batch_size=8000
    )
    posterior = tfd.MultivariateNormalFullCovariance(
        model.posterior_mean(x), model.posterior_covariance
    )
    elbo, optimal = (
        truth - tfd.kl_divergence(q, posterior).numpy() for q in (encoder(tf.constant(x)), refined)
    )
    # In the order of the calls.
    expected = {"optimal_elbo": optimal, "elbo": elbo, "amortization_gap": optimal - elbo}
    for (name, means), terms in zip(expected.items(), draws, strict=True):
        values = np.sum(terms, axis=0)
        assert getattr(gaps, name).value == pytest.approx(values.mean())
        estimates = [
            stratified_estimate(values[:, start : start + size], size)
            for start in range(0, len(x), size)
        ]
        found = covered(estimates, means.reshape(num_results, size).mean(axis=1))
        check_coverage(found, num_results)
        if name == "optimal_elbo":
            pairs = zip(estimates_of_groups(evidence, size), estimates, strict=True)
            approximation = [
                Estimate(
                    one.value - other.value, math.hypot(one.standard_error, other.standard_error), 0
                )
                for one, other in pairs
            ]
            gap = np.mean([estimate.value for estimate in approximation])
            assert gaps.approximation_gap.value == pytest.approx(gap)
            mean_gaps = (truth - optimal).reshape(num_results, size).mean(axis=1)
            check_coverage(covered(approximation, mean_gaps), num_results)


def _call(**changes: Any) -> InferenceGaps:
    model = LinearGaussianModel(CORRELATED, 0.5)
    arguments = {
        "x": model.simulate(4),
        "encoder": model.perturbed_encoder(0.0, 1.0),
        "decoder": model.decoder,
        "prior": model.prior,
        "log_evidence": np.zeros(4),
        "num_steps": 1,
        **changes,
    }
    return inference_gaps(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_samples": 1}, ValueError, "num_samples must be at least 2"),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be positive"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"log_evidence": np.zeros(3)}, ValueError, "each of the 4 observations, got 3"),
        ({"log_evidence": np.full(4, np.nan)}, ValueError, "one finite value"),
        (
            {"encoder": LinearGaussianModel(CORRELATED, 0.5).exact_encoder},
            TypeError,
            "Gaussians with independent dimensions.*MultivariateNormalTriL",
        ),
    ],
)
def test_wrong_input_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _call(**changes)


def test_a_log_evidence_below_the_elbo_is_reported() -> None:
    model = LinearGaussianModel(ORTHOGONAL, 0.7)
    x = model.simulate(40)
    with pytest.warns(UserWarning, match="approximation gap = .* lies .* below 0") as caught:
        gaps = inference_gaps(
            x,
            model.perturbed_encoder(0.0, 1.0),
            model.decoder,
            model.prior,
            log_evidence=model.log_evidence(x) - 1.0,
            num_steps=2,
            learning_rate=1e-6,
        )
    assert "The log evidence as given lies below an ELBO" in str(caught[0].message)
    assert "WARNING: The approximation gap" in str(gaps)
    assert gaps.to_dict()["warnings"] == list(gaps.warnings)


def test_a_refinement_that_ends_below_its_start_is_reported() -> None:
    model = LinearGaussianModel(ORTHOGONAL, 0.7)
    x = model.simulate(40)
    with pytest.warns(UserWarning, match="amortization gap = .* lies .* below 0") as caught:
        inference_gaps(
            x,
            model.perturbed_encoder(0.0, 1.0),
            model.decoder,
            model.prior,
            log_evidence=model.log_evidence(x),
            num_steps=3,
            learning_rate=1.0,
        )
    assert "a smaller learning_rate or more num_steps may help" in str(caught[0].message)
