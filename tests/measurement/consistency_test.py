from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.measurement import consistency

ZERO = Estimate(0.0, 0.0, 0)


def test_many_standard_errors_are_six_and_more_where_these_are_rough() -> None:
    for excess, degrees, found in (
        (5.9, math.inf, 0.0),
        (6.1, math.inf, 6.1),
        (6.1, 10.0, 0.0),
        (20.0, 10.0, 0.0),
        (21.0, 10.0, 21.0),
        (1e6, 1.0, 0.0),
    ):
        value = Estimate(excess, 1.0, 100, degrees)
        assert consistency.standard_errors_above(value, ZERO) == pytest.approx(found)


def test_both_errors_count_and_an_unknown_one_says_nothing() -> None:
    first = Estimate(10.0, 1.0, 100)
    assert consistency.standard_errors_above(first, Estimate(0.0, 1.2, 100)) == pytest.approx(
        10.0 / math.hypot(1.0, 1.2)
    )
    assert consistency.standard_errors_above(first, Estimate(0.0, math.nan, 1)) == 0.0


def test_nothing_is_compared_against_an_error_below_rounding() -> None:
    assert consistency.standard_errors_above(Estimate(5e-6, 0.0, 0), ZERO) == 0.0
    assert consistency.standard_errors_above(Estimate(1e-4, 0.0, 0), ZERO) > 0
    hundred = Estimate(100.0, 0.0, 0)
    assert consistency.standard_errors_above(Estimate(100.0005, 0.0, 0), hundred) == 0.0


def test_sentences_name_the_values() -> None:
    low = Estimate(-0.07098, 0.00068, 100)
    assert consistency.negative("Marginal KL", low) == [
        "Marginal KL = -0.07098 ± 0.00068 lies 104 standard errors below 0, and is never negative."
    ]
    assert consistency.above("ELBO", ZERO, "log p(x)", low) == [
        "ELBO = 0.0000 ± 0 exceeds log p(x) = -0.07098 ± 0.00068 by 104 standard errors."
    ]
    for difference in (low, Estimate(0.07098, 0.00068, 100)):
        (text,) = consistency.apart("KL", "sampled", low, "in closed form", ZERO, difference)
        assert text == (
            f"KL: {low} sampled and {ZERO} in closed form estimate one number and lie 104 standard "
            "errors apart."
        )
    assert consistency.apart("KL", "sampled", low, "in closed form", low, ZERO) == []
    # Found by a wider error, and counted by those that are printed.
    wide = Estimate(-0.07098, 0.00710, 100)
    (text,) = consistency.apart("KL", "sampled", low, "in closed form", ZERO, wide)
    assert "lie 104 standard errors apart" in text
    assert consistency.negative("KL", None) == []


def test_a_known_cause_takes_the_place_of_advice() -> None:
    assert consistency.explained([]) == ()
    assert consistency.explained(["A."], "Because.") == ("Because.", "A.")
    assert consistency.explained([], "Because.") == ("Because.",)
    found = consistency.explained(["A."])
    assert found[0] == "A."
    assert "docs/when-numbers-disagree.md" in found[1]


def test_warnings_are_given_once_and_only_where_something_was_found() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        consistency.warn((), stacklevel=2)
    with pytest.warns(UserWarning, match=r"^A\.\nB\.$") as caught:
        consistency.warn(("A.", "B."), stacklevel=2)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings(), consistency.silent():
        warnings.simplefilter("error")
        consistency.warn(("A.",), stacklevel=2)


def test_an_outlier_of_moderate_size_is_not_reported_by_chance() -> None:
    """One observation of 100 has half of the variance, and two draws each."""
    rng = np.random.default_rng(0)
    scale = np.ones(100)
    scale[0] = 10.0
    for _ in range(2000):
        estimate = stratified_estimate(rng.normal(size=[2, 100]) * scale, 100)
        assert consistency.negative("KL", estimate) == []
