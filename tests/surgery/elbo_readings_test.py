from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tests.testing import oracles
from tests.testing.linear_gaussian import ProbabilisticPCA
from tfp_surgery.estimate import Estimate
from tfp_surgery.surgery.elbo_readings import ElboReadings, elbo_readings

tfd = tfp.distributions

S = 30


def _within(estimate: Estimate | None, truth: float, multiple: float = 4.5) -> None:
    assert estimate is not None
    assert estimate.standard_error > 0
    assert abs(estimate.value - truth) <= multiple * estimate.standard_error, (estimate, truth)


def _case_draws(
    case: str, seed: int = 1, num_samples: int = S
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Log densities of draws of a model with p(x|z) = N(x; z, 1), and closed forms of parts."""
    num, size = 25, 2
    loc, scale = oracles.gaussian_case(case, num, size)
    x = loc + np.random.default_rng(2).normal(size=loc.shape)
    z = loc + scale * np.random.default_rng(seed).normal(size=(num_samples, num, size))
    flat = oracles.gaussian_log_densities(z.reshape(-1, size), loc, scale)  # [S N, N]
    draws = {
        "reconstruction": stats.norm.logpdf(x, z, 1.0).sum(axis=-1),
        "log_posterior": stats.norm.logpdf(z, loc, scale).sum(axis=-1),
        "log_prior": stats.norm.logpdf(z).sum(axis=-1),
        "log_aggregate": oracles.log_prob_and_entropy(flat)[0].reshape(num_samples, num),
        # p(x) = N(x; 0, 2 I)
        "log_evidence": stats.norm.logpdf(x, 0, math.sqrt(2)).sum(axis=-1),
    }
    entropy = stats.norm.entropy(loc, scale).sum(axis=-1).mean()
    reconstruction = -0.5 * ((x - loc) ** 2 + scale**2 + math.log(2 * math.pi)).sum(axis=-1).mean()
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * np.log(scale)).sum(axis=-1).mean()
    # p(z|x) = N(x / 2, I / 2)
    posterior_kl = (
        0.5 * ((loc - x / 2) ** 2 * 2 + scale**2 * 2 - 1 - np.log(2 * scale**2)).sum(-1).mean()
    )
    truth = {
        "entropy": entropy,
        "average_reconstruction": reconstruction,
        "negative_energy": reconstruction - kl - entropy,
        "average_kl": kl,
        "posterior_kl": posterior_kl,
    }
    return draws, truth


def _parts(readings: ElboReadings) -> list[tuple[float, float]]:
    """Each reading beside the sum of its parts."""

    def value(name: str) -> float:
        return float(getattr(readings, name).value)

    return [
        (value("evidence_minus_posterior_kl"), value("log_evidence") - value("posterior_kl")),
        (value("negative_energy_plus_entropy"), value("negative_energy") + value("entropy")),
        (value("term_by_term"), value("average_reconstruction") - value("average_kl")),
        (
            value("surgery"),
            value("average_reconstruction")
            - value("index_code_mutual_information")
            - value("marginal_kl"),
        ),
    ]


@pytest.mark.parametrize("case", oracles.CASES)
def test_all_four_give_one_number_and_show_parts_that_add_up(case: str) -> None:
    draws, truth = _case_draws(case)
    readings = elbo_readings(**draws, num_observations=25)
    assert list(readings.readings()) == [
        "evidence_minus_posterior_kl",
        "negative_energy_plus_entropy",
        "term_by_term",
        "surgery",
    ]
    elbo = np.mean(draws["reconstruction"] + draws["log_prior"] - draws["log_posterior"])
    for reading, parts in _parts(readings):
        assert reading == pytest.approx(elbo, abs=1e-10)
        assert parts == pytest.approx(elbo, abs=1e-10)
    errors = [reading.standard_error for reading in readings.readings().values()]
    np.testing.assert_allclose(errors, errors[0], rtol=1e-6)
    for name, value in truth.items():
        if (case, name) != ("collapsed", "average_kl"):
            _within(getattr(readings, name), value)


def test_collapsed_and_separated_surgeries_are_known() -> None:
    collapsed = elbo_readings(**_case_draws("collapsed")[0], num_observations=25)
    for name in ("average_kl", "index_code_mutual_information", "marginal_kl"):
        assert getattr(collapsed, name).value == pytest.approx(0.0, abs=1e-10)
    separated = elbo_readings(**_case_draws("separated")[0], num_observations=25)
    information = separated.index_code_mutual_information.value
    assert information == pytest.approx(math.log(25), abs=1e-9)


def _linear_gaussian_readings(shift: float, width: float) -> tuple[ElboReadings, float, float]:
    """Readings of pPCA with posteriors moved and widened, log evidence, closed posterior KL."""
    model = ProbabilisticPCA()
    exact = model.encoder(model.x)
    tril = exact.scale_tril.numpy()
    posterior = tfd.MultivariateNormalTriL(exact.mean() + shift, width * tril)
    z = posterior.sample(S, seed=tf.constant([1, 2], tf.int32))
    num = len(model.x)
    likelihood = model.decoder(tf.reshape(z, [S * num, -1]))
    log_evidence = model.log_evidence(model.x)
    loc, scale_tril = posterior.mean().numpy(), width * tril
    flat = z.numpy().reshape(S * num, -1)
    log_components = np.stack(
        [
            stats.multivariate_normal(m, scale_tril @ scale_tril.T).logpdf(flat[: 5 * num])
            for m in loc
        ],
        axis=1,
    )
    log_aggregate = oracles.log_prob_and_entropy(log_components)[0].reshape(5, num)
    readings = elbo_readings(
        likelihood.log_prob(np.tile(model.x, [S, 1])).numpy().reshape(S, num)[:5],
        posterior.log_prob(z)[:5],
        model.prior.log_prob(z)[:5],
        log_aggregate,
        num,
        log_evidence=log_evidence,
    )
    size = z.shape[-1]
    offset = np.linalg.solve(tril, np.full(size, shift))
    posterior_kl = 0.5 * (size * (width**2 - 1 - 2 * math.log(width)) + offset @ offset)
    return readings, float(log_evidence.mean()), float(posterior_kl)


def test_exact_posteriors_leave_no_posterior_kl() -> None:
    readings, log_evidence, posterior_kl = _linear_gaussian_readings(0.0, 1.0)
    assert posterior_kl == pytest.approx(0.0, abs=1e-12)
    assert readings.posterior_kl is not None
    assert readings.posterior_kl.value == pytest.approx(0.0, abs=1e-10)
    assert readings.posterior_kl.standard_error < 1e-10
    assert readings.surgery.value == pytest.approx(log_evidence, abs=1e-10)


def test_inexact_posteriors_leave_the_gaussian_kl_to_the_exact_ones() -> None:
    readings, log_evidence, posterior_kl = _linear_gaussian_readings(0.2, 1.4)
    assert posterior_kl > 0.1
    _within(readings.posterior_kl, posterior_kl)
    _within(readings.surgery, log_evidence - posterior_kl)
    assert readings.log_evidence is not None
    assert readings.log_evidence.value == pytest.approx(log_evidence)
    assert readings.log_evidence.standard_error < 1e-12  # of rounding alone
    for reading, parts in _parts(readings):
        assert reading == pytest.approx(readings.surgery.value, abs=1e-10)
        assert parts == pytest.approx(readings.surgery.value, abs=1e-10)


def test_without_the_log_evidence_its_reading_is_absent_with_the_reason() -> None:
    draws, _ = _case_draws("overlapping")
    del draws["log_evidence"]
    readings = elbo_readings(**draws, num_observations=25)
    assert readings.evidence_minus_posterior_kl is None
    assert readings.posterior_kl is None
    assert len(readings.readings()) == 3
    assert "not given" in readings.absent["evidence_minus_posterior_kl"]
    assert set(readings.absent) == {"evidence_minus_posterior_kl", "log_evidence", "posterior_kl"}
    assert "was not given" in str(readings)
    assert "log evidence - posterior KL" not in str(readings)


def test_a_subset_has_the_spread_between_observations() -> None:
    draws, _ = _case_draws("overlapping")
    part = {name: values[..., :10] for name, values in draws.items()}
    readings = elbo_readings(**part, num_observations=25)
    assert (readings.num_query, readings.num_observations) == (10, 25)
    assert readings.log_evidence is not None
    variance = (1 - 10 / 25) * part["log_evidence"].var(ddof=1) / 10
    assert readings.log_evidence.standard_error == pytest.approx(math.sqrt(variance))
    assert "of a random 10" in str(readings)


def test_one_draw_has_no_standard_error() -> None:
    draws, _ = _case_draws("overlapping")
    one = {name: values[:1] for name, values in draws.items() if name != "log_evidence"}
    readings = elbo_readings(**one, num_observations=25)
    assert math.isnan(readings.surgery.standard_error)
    assert readings.to_dict()["surgery"]["standard_error"] is None


def test_prints_a_table_and_gives_json() -> None:
    readings = elbo_readings(**_case_draws("overlapping")[0], num_observations=25)
    rows = str(readings).splitlines()
    assert rows[1] == "nats per observation; N = 25, 30 draws an observation"
    assert len(rows) == 2 + 13
    assert len({row.index(".") for row in rows[2:]}) == 1  # aligned
    record = json.loads(json.dumps(readings.to_dict(), allow_nan=False))
    assert record["entropy"] == readings.entropy.to_dict()
    assert set(record) == {field.name for field in dataclasses.fields(readings)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reconstruction": np.zeros(25)}, r"\[S, Q\]"),
        ({"reconstruction": np.zeros([0, 25])}, r"\[S, Q\]"),
        ({"log_prior": np.zeros([S, 24])}, r"log_prior must have shape \[30, 25\]"),
        ({"log_evidence": np.zeros([S, 25])}, r"log_evidence must have shape \[25\]"),
        ({"log_aggregate": np.full([S, 25], -np.inf)}, "log_aggregate is not finite in 750"),
        ({"log_posterior": np.full([S, 25], np.nan)}, "log_posterior is not finite"),
        ({"num_observations": 24}, "at least 25"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = {**_case_draws("overlapping")[0], "num_observations": 25, **change}
    with pytest.raises(ValueError, match=message):
        elbo_readings(**arguments)


def test_intervals_cover_the_truth() -> None:
    """95% intervals of 1000 seeded repetitions cover in 92 to 98 of 100 cases.

    The binomial standard error of the coverage is 0.7%: the bounds lie 4.3 of them away.
    """
    _, truth = _case_draws("overlapping")
    truth["surgery"] = truth["average_reconstruction"] - truth["average_kl"]
    covered = dict.fromkeys(truth, 0)
    for seed in range(1000):
        draws, _ = _case_draws("overlapping", seed=seed, num_samples=5)
        readings = elbo_readings(**draws, num_observations=25)
        for name, value in truth.items():
            low, high = getattr(readings, name).interval(0.95)
            covered[name] += low <= value <= high
    for name, count in covered.items():
        assert 0.92 <= count / 1000 <= 0.98, (name, count / 1000)


def test_an_elbo_above_the_log_evidence_is_reported() -> None:
    draws, _ = _case_draws("overlapping")
    draws["log_evidence"] = draws["log_evidence"] - 100.0
    with pytest.warns(UserWarning, match="Posterior KL = .* lies .* below 0") as caught:
        readings = elbo_readings(**draws, num_observations=25)
    assert "The log evidence as given lies below the ELBO" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert readings.to_dict()["warnings"] == list(readings.warnings)
    assert "WARNING: Posterior KL" in str(readings)


def test_an_information_above_log_n_is_reported() -> None:
    draws, _ = _case_draws("separated")
    draws["log_aggregate"] = draws["log_aggregate"] - 1.0
    with pytest.warns(
        UserWarning, match=r"Index-code mutual information = 4\.2\d+ .* log N = 3\.2"
    ):
        elbo_readings(**draws, num_observations=25)
