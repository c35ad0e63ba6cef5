"""Estimates with control variates against regressions, closed forms and repeated draws in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.testing import oracles
from tests.testing.regression import controlled_mean
from tfp_surgery.estimate import Estimate, rounding
from tfp_surgery.measurement.control_variates import ControlVariate, ControlVariates

N, S = 60, 3


def _draws(seed: int, num_query: int = N, num_samples: int = S) -> dict[str, np.ndarray]:
    """A term f of mean `level` for each observation, and three controls of mean 0.

    The last control has mean 0 over all N observations only.
    """
    levels = np.random.default_rng(0).normal(size=(2, N))
    levels -= levels.mean(axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    index = np.sort(rng.choice(N, num_query, replace=False))
    noise = rng.normal(size=(4, num_samples, num_query)) * np.linspace(0.5, 2.0, num_query)
    return {
        "f": 1.0 + levels[0, index] + noise[0] + 0.7 * noise[1] - 0.4 * noise[2] + 0.9 * noise[3],
        "g": 2.0 - noise[1] + 0.2 * noise[0],
        "a": noise[1] + 0.3 * noise[2],
        "b": noise[2] + 0.1 * noise[0] ** 2 - 0.1 * np.linspace(0.5, 2.0, num_query) ** 2,
        "c": noise[3] + levels[1, index],
        "means of c": levels[1, index],
    }


def _controls(
    draws: dict[str, np.ndarray], unseen_variance: float = 0.0, unseen: float = 0.0
) -> ControlVariates:
    num_query = draws["f"].shape[1]
    zero = np.zeros(num_query)
    candidates = [
        ControlVariate.of("a", draws["a"], own_means=zero),
        ControlVariate.of("b", draws["b"], own_means=zero),
        ControlVariate.of("c", draws["c"], unseen=unseen),
    ]
    return ControlVariates(candidates, N, unseen_variance)


@pytest.mark.parametrize(("unseen_variance", "unseen"), [(0.0, 0.0), (0.01, 1.0)])
@pytest.mark.parametrize("num_query", [N, 30])
def test_values_and_errors_are_those_of_a_regression(
    num_query: int, unseen_variance: float, unseen: float
) -> None:
    draws = _draws(1, num_query)
    controls = _controls(draws, unseen_variance, unseen)
    # 48 observations of three draws leave 96 degrees of freedom, 24 of a subset leave 23.
    used = ["a", "b", "c"] if num_query == N else ["a"]
    assert controls.names == tuple(used)
    estimate = controls.estimate(draws["f"], unseen=unseen)
    value, error = controlled_mean(
        draws["f"],
        [draws[name] for name in used],
        N,
        unseen_variance=unseen_variance,
        unseen=unseen,
        loadings=[unseen if name == "c" else 0.0 for name in used],
        own_means=[None if name == "c" else np.zeros(num_query) for name in used],
    )
    assert estimate.value == pytest.approx(value, rel=1e-9)
    assert estimate.standard_error == pytest.approx(error, rel=1e-9)
    assert estimate.num_draws == S * num_query
    plain = ControlVariates((), N, unseen_variance).estimate(draws["f"], unseen=unseen)
    assert plain.value == pytest.approx(draws["f"].mean(), rel=1e-12)
    assert estimate.standard_error < plain.standard_error


@pytest.mark.parametrize("num_query", [N, 50])
def test_estimates_of_terms_that_add_up_add_up(num_query: int) -> None:
    draws = _draws(2, num_query)
    controls = _controls(draws, 0.02, 1.0)
    assert len(controls.names) >= 1
    parts = (
        controls.estimate(draws["f"], unseen=1.0),
        controls.estimate(draws["g"], unseen=-3.0),
    )
    whole = controls.estimate(draws["f"], draws["g"], unseen=-2.0)
    assert whole.value == pytest.approx(sum(part.value for part in parts), abs=1e-9)
    # What is known is subtracted whole.
    known = controls.estimate(draws["a"])
    assert known.value == pytest.approx(0.0, abs=1e-12)
    assert known.standard_error < 1e-12


def test_one_coefficient_does_not_bias_where_one_for_each_observation_would() -> None:
    """A control whose mean is 0 over all observations, and not for each.

    The noise of observation n is that of f as many times as its own level, so that the best
    coefficient of each observation is proportional to the mean of the control there.
    """
    level = np.linspace(-1.0, 1.0, N)
    means, biased, errors = [], [], []
    for seed in range(400):
        noise = np.random.default_rng(seed).normal(size=(S, N))
        own_noise = np.random.default_rng(1000 + seed).normal(size=(S, N))
        f = level * noise + 0.3 * noise + 0.2 * own_noise
        control = level + noise
        estimate = ControlVariates([ControlVariate.of("c", control)], N).estimate(f)
        means.append(estimate.value)
        errors.append(estimate.standard_error)
        centred = control - control.mean(axis=0)
        of_each = (centred * f).sum(axis=0) / np.square(centred).sum(axis=0)
        biased.append((f - of_each * control).mean())
    # The expectation of f is 0. Five standard errors of the mean of 400.
    assert abs(np.mean(means)) < 5 * np.std(means) / 20
    assert np.mean(biased) < -50 * np.std(biased) / 20
    assert np.mean(biased) == pytest.approx(-np.mean(level**2), rel=0.05)
    # The sample variance of 400 normal values has relative standard error sqrt(2 / 400).
    assert np.mean(np.square(errors)) == pytest.approx(np.var(means), rel=5 * math.sqrt(2 / 400))


def test_the_mean_of_a_random_subset_is_not_biased_either() -> None:
    """Controls of known mean over all N take the luck of the subset out with them."""
    level = np.linspace(-1.0, 1.0, N)
    values, errors, plain = [], [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        index = rng.choice(N, 40, replace=False)
        noise = rng.normal(size=(S, 40))
        f = 2.0 * level[index] + noise + 0.1 * rng.normal(size=(S, 40))
        control = ControlVariate.of("c", level[index] + 0.5 * noise, own_means=level[index])
        estimate = ControlVariates([control], N).estimate(f)
        values.append(estimate.value)
        errors.append(estimate.standard_error)
        plain.append(f.mean())
    assert abs(np.mean(values)) < 5 * np.std(values) / 20
    assert np.mean(np.square(errors)) == pytest.approx(np.var(values), rel=5 * math.sqrt(2 / 400))
    assert np.std(values) < np.std(plain) / 4


def test_what_contradicts_zero_or_does_not_vary_is_left_out() -> None:
    draws = _draws(3)
    wrong = ControlVariate.of("wrong", draws["a"], np.full([S, N], 5.0))
    constant = ControlVariate.of("constant", np.zeros([S, N]))
    # As of log densities in float32 that are equal up to their last bit.
    tiny = np.random.default_rng(0).choice([-1e-7, 1e-7], size=(S, N)).astype(np.float32)
    rounded = ControlVariate.of("rounded", np.full([S, N], np.float32(9.0)), tiny - np.float32(9.0))
    right = ControlVariate.of("right", draws["b"])
    controls = ControlVariates([wrong, constant, rounded, right], N)
    assert controls.names == ("right",)
    estimate = controls.estimate(draws["f"])
    alone = ControlVariates([right], N).estimate(draws["f"])
    assert (estimate.value, estimate.standard_error) == (alone.value, alone.standard_error)


def test_the_same_control_twice_is_as_one() -> None:
    draws = _draws(4)
    pair = [ControlVariate.of(name, factor * draws["a"]) for name, factor in (("a", 1), ("b", -7))]
    once, twice = (ControlVariates(some, N).estimate(draws["f"]) for some in (pair[:1], pair))
    assert twice.value == pytest.approx(once.value, rel=1e-9)
    assert twice.standard_error == pytest.approx(once.standard_error, rel=1e-9)


@pytest.mark.parametrize(
    ("num_samples", "num_query", "num_used"),
    [(1, N, 0), (2, N, 2), (S, N, 3), (2, 20, 0), (S, 27, 1), (2, 1, 0)],
)
def test_few_draws_have_few_coefficients(num_samples: int, num_query: int, num_used: int) -> None:
    """At least 20 degrees of freedom each, in four fifths of the draws; of one draw, none."""
    draws = _draws(5, num_query, num_samples)
    controls = _controls(draws)
    assert controls.names == ("a", "b", "c")[:num_used]
    estimate = controls.estimate(draws["f"])
    if num_used == 0:
        assert estimate.value == draws["f"].mean()
    assert math.isnan(estimate.standard_error) == (num_samples == 1 or num_query == 1)


def test_the_unseen_part_goes_with_the_control_that_has_it() -> None:
    """Of two ways to one number, the one without the unseen part is taken where that is large."""
    rng = np.random.default_rng(0)
    first = 1e-4 * rng.normal(size=(S, N))  # what is too rare to be drawn does not show here
    second = 0.01 * rng.normal(size=(S, N))
    control = ControlVariate.of("difference", first - second, unseen=1.0)
    unseen_variance = 1.0
    controls = ControlVariates([control], N, unseen_variance)
    estimate = controls.estimate(first, unseen=1.0)
    assert estimate.value == pytest.approx(second.mean(), abs=1e-6)
    assert estimate.standard_error == pytest.approx(0.01 / math.sqrt(S * N), rel=0.3)
    plain = ControlVariates((), N, unseen_variance).estimate(first, unseen=1.0)
    assert plain.standard_error == pytest.approx(1.0, rel=1e-6)
    # Without the unseen part, the first is the better way.
    known = ControlVariates([control], N).estimate(first)
    assert known.standard_error <= 1.05e-4 / math.sqrt(S * N)


def test_errors_are_not_below_rounding_and_truncation() -> None:
    draws = {name: values.astype(np.float32) for name, values in _draws(6).items()}
    terms = 1000.0 + draws["a"], np.full([S, N], -1000.0, np.float32)
    control = ControlVariate.of("a", *terms, own_means=np.zeros(N))
    assert control.rounding == pytest.approx(2000.0 * np.finfo(np.float32).eps, rel=1e-3)
    estimate = ControlVariates([control], N).estimate(draws["a"], truncation=0.25)
    own = rounding(draws["a"])
    assert estimate.standard_error >= 0.25 + own + 0.9 * control.rounding
    assert estimate.standard_error == pytest.approx(0.25 + own + control.rounding, rel=0.01)


def _population_error(estimate: Estimate) -> float:
    assert estimate.population_standard_error is not None
    return estimate.population_standard_error


def test_closed_forms_are_means_of_all_observations() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=N).astype(np.float32)
    estimate = ControlVariates((), N).exact(values, 1e-5)
    assert estimate.value == pytest.approx(values.mean(dtype=np.float64), rel=1e-12)
    assert (estimate.standard_error, estimate.num_draws) == (1e-5, 0)
    expected = values.astype(np.float64).std(ddof=1) / math.sqrt(N)
    assert estimate.population_standard_error == pytest.approx(expected)
    alone = ControlVariates((), 1).exact(values[:1], 0.0)
    assert alone.population_standard_error is not None
    assert math.isnan(alone.population_standard_error)


@pytest.mark.parametrize("num_query", [200, 80])
@pytest.mark.parametrize("case", oracles.CASES)
def test_population_errors_are_the_spread_over_data_sets(case: str, num_query: int) -> None:
    """Of the mutual information and its influence KL(q(z|x_n) || q(z)), over 300 data sets.

    The root of the mean squared error lies within five relative standard errors, 5 / sqrt(600), of
    the standard deviation of the estimates. The infinitesimal jackknife leaves out terms of the
    order 1/N, and the ties of q(z) with its own components.
    """
    estimates, errors = [], []
    num, num_samples = 200, 2
    for seed in range(300):
        rng = np.random.default_rng(seed)
        loc, scale = _population(case, num, rng)
        index = np.sort(rng.choice(num, num_query, replace=False))
        z = loc[index] + scale[index] * rng.normal(size=(num_samples, num_query))
        scores = oracles.gaussian_log_densities(z.reshape(-1, 1), loc[:, None], scale[:, None])
        log_q, entropy = (part.reshape(z.shape) for part in oracles.log_prob_and_entropy(scores))
        log_own = -0.5 * ((z - loc[index]) / scale[index]) ** 2 - np.log(scale[index])
        log_own -= 0.5 * math.log(2 * math.pi)
        known = -np.log(scale) - 0.5 * math.log(2 * math.pi) - 0.5
        log_prior = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
        kl = 0.5 * (loc**2 + scale**2 - 1.0) - np.log(scale)
        candidates = [
            ControlVariate.of(
                "H[q(z|x)]",
                log_own - known.mean(),
                own_means=known[index] - known.mean(),
            ),
            ControlVariate.of(
                "KL(q(z|x) || p(z))",
                log_own - log_prior - kl.mean(),
                own_means=kl[index] - kl.mean(),
            ),
            ControlVariate.of("H[q(n|z)]", log_own - log_q - math.log(num) + entropy),
        ]
        estimate = ControlVariates(candidates, num).estimate(log_own, -log_q)
        estimates.append(estimate.value)
        errors.append(_population_error(estimate))
        assert errors[-1] >= estimate.standard_error
    if case == "separated":  # log N, of every data set
        np.testing.assert_allclose(estimates, math.log(num), atol=1e-9)
        assert max(errors) < 1e-9
        return
    reported = math.sqrt(np.mean(np.square(errors)))
    assert reported == pytest.approx(np.std(estimates, ddof=1), rel=5 / math.sqrt(600))


def _population(case: str, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Means and scales of a data set of scalar posteriors, drawn from a population."""
    if case == "collapsed":
        return 0.05 * rng.normal(size=num), np.exp(0.05 * rng.normal(size=num))
    if case == "overlapping":
        return rng.normal(size=num), rng.uniform(0.3, 0.9, size=num)
    return 1e6 * rng.normal(size=num), rng.uniform(0.003, 0.009, size=num)


def test_one_draw_each_has_a_population_error_all_the_same() -> None:
    """The spread between single draws is that of draws and observations."""
    values, errors = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        f = rng.normal(size=N) + 2.0 * rng.normal(size=(1, N))
        estimate = ControlVariates((), N).estimate(f)
        assert math.isnan(estimate.standard_error)
        values.append(estimate.value)
        errors.append(_population_error(estimate))
    reported = math.sqrt(np.mean(np.square(errors)))
    assert reported == pytest.approx(np.std(values, ddof=1), rel=5 / math.sqrt(600))
