from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import integrate, stats

from tests.testing.coverage import check_coverage, covered, estimates_of_groups
from tests.testing.linear_gaussian import LinearGaussianModel
from tfp_surgery.evidence.importance_sampling import log_evidence_by_importance_sampling
from tfp_surgery.evidence.log_evidence import LogEvidence

tfd = tfp.distributions

STANDARD_ERRORS = 4.5
WEIGHTS = np.array([[1.0, 0.4], [-0.3, 0.8], [0.5, 0.5]])
# Noise of the model, and how far its encoder is off: codes that tell observations little, or
# something, or which of them it was.
MODELS = {
    "collapsed": (LinearGaussianModel(0.05 * WEIGHTS, 1.0), 0.0, 1.0),
    "overlapping": (LinearGaussianModel(WEIGHTS, 0.8), 0.3, 1.4),
    "separated": (LinearGaussianModel(WEIGHTS, 0.01), 0.3, 1.7),
}


@pytest.mark.parametrize("case", MODELS)
def test_agrees_with_the_closed_form(case: str) -> None:
    model, shift, factor = MODELS[case]
    num = 200
    x = model.simulate(num)
    result = log_evidence_by_importance_sampling(
        x,
        model.perturbed_encoder(shift, factor),
        model.decoder,
        model.prior,
        num_importance_samples=3000,
        seed=1,
        batch_size=30000,
    )
    truth = model.log_evidence(x)
    scores = (result.per_observation - truth) / result.standard_errors
    assert np.all(np.abs(scores) < STANDARD_ERRORS)
    # The errors are neither too small nor too large: a mean square of N normal scores.
    assert abs(np.mean(scores**2) - 1) < STANDARD_ERRORS * math.sqrt(2 / num)
    assert abs(result.estimate.value - truth.mean()) < (
        STANDARD_ERRORS * result.estimate.standard_error
    )
    assert result.bound == "lower"


def test_exact_posteriors_have_equal_weights() -> None:
    model, _, _ = MODELS["overlapping"]
    x = model.simulate(7)
    # Batches of 3 observations, and chunks of 1 draw.
    result = log_evidence_by_importance_sampling(
        x, model.exact_encoder, model.decoder, model.prior, num_importance_samples=40, batch_size=3
    )
    np.testing.assert_allclose(result.per_observation, model.log_evidence(x), atol=1e-10)
    np.testing.assert_allclose(result.effective_sample_sizes, 40, rtol=1e-10)
    np.testing.assert_allclose(result.standard_errors, 0, atol=1e-5)


def _expectation_of_log_mean(log_weights: np.ndarray, density: np.ndarray, m: int) -> float:
    """E[log 1/m sum_s w_s] of independent weights, by quadrature for any m.

    log a = integral over t > 0 of (exp(-t) - exp(-a t)) / t, and the expectation of exp(-t/m sum w)
    is a power. `density` are the probabilities of the grid that the weights are given on.
    """
    log_t = np.linspace(-30, 20, 2001)
    t = np.exp(log_t)
    transform = np.exp(-t[:, None] / m * np.exp(log_weights)) @ density  # [T]
    # dt / t = d log t
    return float(integrate.simpson(np.exp(-t) - transform**m, log_t))


# Proposals of light and of heavy tails, the weights of which differ by e^0.5 to e^2 per deviation.
PROPOSALS = {"wide": (0.8, 1.5), "shifted": (1.0, 1.0)}


@pytest.mark.slow
@pytest.mark.parametrize("m", [5, 20, 100, 300])
@pytest.mark.parametrize("proposal", PROPOSALS)
def test_intervals_cover_the_expectation_of_the_bound(proposal: str, m: int) -> None:
    """10000 results of one observation each, or 500 of twenty: what the docstring says of both."""
    model = LinearGaussianModel(np.array([[1.0]]), 0.5)
    x = np.array([[0.7]])
    encoder = model.perturbed_encoder(*PROPOSALS[proposal])
    result = log_evidence_by_importance_sampling(
        np.repeat(x, 10000, axis=0),
        encoder,
        model.decoder,
        model.prior,
        num_importance_samples=m,
        seed=4,
        batch_size=50000,
    )
    q = encoder(tf.constant(x))
    z = np.linspace(-8, 8, 4001)[:, None]
    log_weights = (model.prior.log_prob(z) + model.decoder(z).log_prob(x) - q.log_prob(z)).numpy()
    density = np.exp(q.log_prob(z).numpy())
    truth = model.log_evidence(x)[0]
    expectation = truth + _expectation_of_log_mean(log_weights - truth, density / density.sum(), m)
    alone = covered(estimates_of_groups(result, 1), expectation)
    together = covered(estimates_of_groups(result, 20), expectation)
    least, most = {5: (0.91, 0.95), 20: (0.91, 0.95), 100: (0.93, 0.95), 300: (0.93, 0.95)}[m]
    check_coverage(alone, 10000, least, most)
    check_coverage(together, 500, 0.93, 0.97)


@pytest.mark.parametrize("m", [1, 5, 50])
def test_expectation_is_the_bound_of_m_draws(m: int) -> None:
    """The bias towards below: what the docstring says of it, measured."""
    model = LinearGaussianModel(np.array([[1.0]]), 0.5)
    x = np.array([[0.7]])
    encoder = model.perturbed_encoder(0.8, 1.5)
    q = encoder(tf.constant(x))
    z = np.linspace(-8, 8, 4001)[:, None]
    log_weights = (model.prior.log_prob(z) + model.decoder(z).log_prob(x) - q.log_prob(z)).numpy()
    density = np.exp(q.log_prob(z).numpy())
    truth = model.log_evidence(x)[0]
    expectation = truth + _expectation_of_log_mean(log_weights - truth, density / density.sum(), m)
    repetitions = 20000 // m if m < 50 else 4000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = log_evidence_by_importance_sampling(
            np.repeat(x, repetitions, axis=0),
            encoder,
            model.decoder,
            model.prior,
            num_importance_samples=m,
            seed=2,
            batch_size=50000,
        )
    found = result.per_observation
    error = found.std(ddof=1) / math.sqrt(repetitions)
    assert abs(found.mean() - expectation) < STANDARD_ERRORS * error
    assert expectation < truth
    if m == 50:
        # Half the variance, to leading order.
        assert truth - expectation == pytest.approx(found.var() / 2, rel=0.3)


def test_memory_does_not_grow_with_the_number_of_draws() -> None:
    model, shift, factor = MODELS["overlapping"]
    decoded = []

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        decoded.append(len(z))
        return model.decoder(z)

    log_evidence_by_importance_sampling(
        model.simulate(3),
        model.perturbed_encoder(shift, factor),
        decoder,
        model.prior,
        num_importance_samples=5000,
        batch_size=1000,
    )
    assert max(decoded) <= 1000
    # One decoded to look at it; the last chunk is as large as the others.
    assert 15000 <= sum(decoded) <= 16001


def test_float64_stays_and_seeds_repeat() -> None:
    model, shift, factor = MODELS["overlapping"]
    dtypes = set()

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        dtypes.add(z.dtype)
        return model.decoder(z)

    def values(seed: int) -> np.ndarray:
        return log_evidence_by_importance_sampling(
            model.simulate(4),
            model.perturbed_encoder(shift, factor),
            decoder,
            model.prior,
            num_importance_samples=100,
            seed=seed,
        ).per_observation

    np.testing.assert_array_equal(values(3), values(3))
    assert np.all(values(3) != values(4))
    assert dtypes == {tf.float64}


def test_few_effective_samples_are_warned_of() -> None:
    model, _, _ = MODELS["separated"]
    x = model.simulate(5)

    def prior_as_encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.zeros([len(x), 2], tf.float64), np.ones(2))

    with pytest.warns(UserWarning, match=r"below 10 for 5 of 5 observations"):
        log_evidence_by_importance_sampling(
            x, prior_as_encoder, model.decoder, model.prior, num_importance_samples=500
        )
    with pytest.warns(UserWarning, match=r"below 4 for"):
        log_evidence_by_importance_sampling(
            x, prior_as_encoder, model.decoder, model.prior, num_importance_samples=8
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_evidence_by_importance_sampling(
            x, model.exact_encoder, model.decoder, model.prior, num_importance_samples=4
        )


def test_a_model_of_discrete_codes() -> None:
    probs = np.array([0.5, 0.3, 0.2])
    means = np.array([-1.0, 0.5, 2.0])
    x = np.array([[0.0], [1.5]])

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.OneHotCategorical(logits=tf.zeros([len(x), 3], tf.float64), dtype=tf.float64)

    result = log_evidence_by_importance_sampling(
        x,
        encoder,
        lambda z: tfd.MultivariateNormalDiag(z @ means[:, None], [1.0]),
        tfd.OneHotCategorical(probs=probs, dtype=tf.float64),
        num_importance_samples=4000,
    )
    truth = np.log((probs * stats.norm.pdf(x, means)).sum(axis=1))
    assert np.all(np.abs(result.per_observation - truth) < STANDARD_ERRORS * result.standard_errors)


def test_proposals_given_as_a_distribution_are_those_of_the_encoder() -> None:
    model, shift, factor = MODELS["overlapping"]
    x, encoder = model.simulate(7), model.perturbed_encoder(shift, factor)

    def values(proposals: Any) -> np.ndarray:
        return log_evidence_by_importance_sampling(
            x, proposals, model.decoder, model.prior, num_importance_samples=40, batch_size=50
        ).per_observation

    np.testing.assert_array_equal(values(encoder(tf.constant(x))), values(encoder))
    # Another family, and one scale for all observations.
    loc = encoder(tf.constant(x)).mean()
    found = values(tfd.Independent(tfd.StudentT(np.float64(5), loc, [0.5, 0.6]), 1))
    np.testing.assert_allclose(found, model.log_evidence(x), atol=1.5)
    with pytest.raises(ValueError, match="batch shape"):
        values(encoder(tf.constant(x[:4])))


def test_the_result_prints_and_serialises() -> None:
    model, shift, factor = MODELS["overlapping"]
    result = log_evidence_by_importance_sampling(
        model.simulate(4),
        model.perturbed_encoder(shift, factor),
        model.decoder,
        model.prior,
        num_importance_samples=1,
        seed=5,
    )
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["estimate"] == {"value": result.estimate.value, "standard_error": None}
    assert content["per_observation"] == list(result.per_observation)
    assert content["standard_errors"] == [None] * 4
    assert content["acceptance_rate"] is None
    text = str(result)
    for part in ("an array, N = 4", "lower bound", "importance sampling, m = 1", "seed 5"):
        assert part in text


def _call(**changes: Any) -> LogEvidence:
    model, shift, factor = MODELS["overlapping"]
    arguments = {
        "x": model.simulate(4),
        "encoder": model.perturbed_encoder(shift, factor),
        "decoder": model.decoder,
        "prior": model.prior,
        "num_importance_samples": 2,
        **changes,
    }
    return log_evidence_by_importance_sampling(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_importance_samples": 0}, ValueError, "num_importance_samples must be at least 1"),
        ({"num_importance_samples": 2.5}, TypeError, "num_importance_samples must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"x": np.full([3, 3], np.nan)}, ValueError, "x must be finite"),
        ({"encoder": lambda x: x}, TypeError, "encoder must return a distribution"),
        ({"prior": tfd.Normal(0.0, 1.0)}, ValueError, "the prior must be one distribution"),
        (
            {"decoder": lambda z: tfd.MultivariateNormalDiag(z * np.nan @ WEIGHTS.T, np.ones(3))},
            ValueError,
            "NaN",
        ),
    ],
)
def test_wrong_input_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _call(**changes)
