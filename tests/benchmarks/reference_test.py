from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import reference
from tests.testing import oracles


@pytest.mark.parametrize("case", oracles.CASES)
def test_it_is_the_sum_over_all_components(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_BLOCK_ELEMENTS", 100)
    loc, scale = oracles.gaussian_case(case, num_components=30, event_size=3)
    z = loc[:20] + scale[:20] * np.random.default_rng(1).normal(size=(20, 3))
    expected = oracles.log_prob_and_entropy(oracles.gaussian_log_densities(z, loc, scale))
    values = reference.log_prob_and_index_entropy(z, loc, scale)
    for value, other in zip(values, expected, strict=True):
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, other, rtol=1e-12, atol=1e-12)


def test_the_bound_is_a_constant_until_float32_cannot_hold_it() -> None:
    eps = 2.0**-23
    np.testing.assert_allclose(
        reference.error_bound(np.array([0.0, -100.0, 1e4, -1e7])),
        [1e-4, 1e-4, 4e4 * eps, 4e7 * eps],
    )


def test_the_largest_error_and_the_largest_ratio_to_its_bound() -> None:
    expected = np.array([0.0, -1e7, 5.0])
    values = np.array([2e-5, -1e7 + 1.0, 5.0, 7.0])  # the fourth has nothing to compare with
    error, ratio = reference.max_error(values, expected, reference.error_bound(expected))
    assert error == 1.0
    assert ratio == pytest.approx(1.0 / (4e7 * 2.0**-23))
    error, ratio = reference.max_error(values[:1], expected, reference.error_bound(expected))
    assert error == pytest.approx(2e-5)
    assert ratio == pytest.approx(0.2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_has_no_bounded_error(value: float) -> None:
    expected = np.zeros(2)
    found = reference.max_error(np.array([0.0, value]), expected, reference.error_bound(expected))
    assert found == (math.inf, math.inf)


def test_the_exponent_of_a_power_and_of_a_perturbed_one() -> None:
    sizes = [15e3, 60e3, 250e3, 1e6]
    assert reference.exponent(sizes, [3e-6 * n**1.3 for n in sizes]) == pytest.approx(1.3)
    # Perturbations that the least-squares line does not see: orthogonal to constant and log N.
    x = np.log(sizes) - np.mean(np.log(sizes))
    noise = np.array([1.0, -2.0, 1.5, -0.3])
    noise -= noise.mean()
    noise -= x * (noise @ x) / (x @ x)
    seconds = np.exp(0.2 + 0.8 * np.log(sizes) + 0.1 * noise)
    assert reference.exponent(sizes, list(seconds)) == pytest.approx(0.8)
