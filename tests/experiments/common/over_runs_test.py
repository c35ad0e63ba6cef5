"""Tests of what several training runs say together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from experiments.common.over_runs import summary_rows, with_summary

KEYS = {"D": "D", "split": "split"}
LABELS = {"marginal_kl": "(3)", "elbo": "ELBO"}
RNG = np.random.default_rng(0)
ELBOS = RNG.normal(-90.0, 0.5, size=(3, 2))  # [runs, latent sizes]
ERRORS = RNG.uniform(0.01, 0.02, size=(3, 2))


def row(training_seed: int, number: int, **more: Any) -> dict[str, Any]:
    elbo = {"value": ELBOS[training_seed, number], "standard_error": ERRORS[training_seed, number]}
    return {
        "training_seed": training_seed,
        "D": (2, 10)[number],
        "split": "test",
        "data": "digits",
        "elbo": {**elbo, "population_standard_error": 0.1, "per_observation": [1.0]},
        "marginal_kl": None,
        "warnings": [],
        **more,
    }


ROWS = [row(training_seed, number) for training_seed in (0, 1, 2) for number in (0, 1)]


def test_mean_spread_and_the_error_of_one_run() -> None:
    first, second = summary_rows(ROWS, KEYS)
    for found, number in ((first, 0), (second, 1)):
        assert list(found) == [
            "D", "split", "quantity", "num_runs", "mean", "spread", "standard_error"
        ]  # fmt: skip
        assert (found["D"], found["split"]) == ((2, 10)[number], "test")
        assert (found["quantity"], found["num_runs"]) == ("elbo", 3)
        values = ELBOS[:, number]
        assert found["mean"] == pytest.approx(values.sum() / 3)
        variance = ((values - values.sum() / 3) ** 2).sum() / 2
        assert found["spread"] == pytest.approx(variance**0.5)
        assert found["standard_error"] == pytest.approx((ERRORS[:, number] ** 2).mean() ** 0.5)


def test_one_training_run_has_no_summary() -> None:
    assert summary_rows(ROWS[:2], KEYS) == []
    assert with_summary("the table", ROWS[:2], KEYS, LABELS) == "the table"


def test_what_one_run_does_not_know_is_unknown() -> None:
    infinite = {"value": None, "standard_error": None}
    without_error = {"value": -89.0, "standard_error": None}
    rows = [
        row(0, 0, marginal_kl={"value": 1.0, "standard_error": 0.1}),
        row(1, 0, marginal_kl=None, elbo=without_error),
        row(2, 0, marginal_kl=infinite),
    ]
    elbo, marginal_kl = summary_rows(rows, KEYS)
    assert elbo["standard_error"] is None
    assert elbo["mean"] == pytest.approx((ELBOS[0, 0] - 89.0 + ELBOS[2, 0]) / 3)
    assert [marginal_kl[name] for name in ("mean", "spread", "standard_error")] == [None] * 3
    text = with_summary("the table", rows, KEYS, LABELS)
    assert "unknown" in text
    assert text.splitlines()[4].split() == ["2", "test", "(3)", "-", "-", "-"]


def test_the_table_has_the_digits_of_the_spread_and_names_its_columns() -> None:
    rows = [
        row(seed, 0, elbo={"value": value, "standard_error": error})
        for seed, value, error in ((0, -90.25, 0.003), (1, -90.5, 0.004))
    ]
    lines = with_summary("the table", rows, KEYS, LABELS).splitlines()
    assert lines[:2] == ["the table", ""]
    for name in ("D", "split", "term", "mean", "spread", "standard error of one run"):
        assert name in lines[2]
    # The distance over sqrt(2); the root of (9 + 16) / 2 thousandths.
    assert lines[4].split() == ["2", "test", "ELBO", "-90.38", "0.18", "0.0035"]
    assert "seeds 0, 1." in lines[6]


def test_without_keys_a_training_run_is_one_row() -> None:
    (found,) = summary_rows(ROWS[::2], {})
    assert next(iter(found)) == "quantity"
    assert found["num_runs"] == 3


@pytest.mark.parametrize("rows", [ROWS[:5], [*ROWS, ROWS[0]]])
def test_every_model_must_be_there_once_a_training_seed(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"one row for each training seed of \[0, 1, 2\]"):
        summary_rows(rows, KEYS)
