"""Tests of the tables of results."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tfp_surgery.estimate import Estimate
from tfp_surgery.reporting import tables
from tfp_surgery.surgery.elbo_surgery_result import ElboSurgery


def surgery(num_observations: int, data: str, cross_term: Estimate | None = None) -> ElboSurgery:
    def estimate(value: float, error: float = 0.01) -> Estimate:
        return Estimate(value, error, 2 * num_observations)

    return ElboSurgery(
        elbo=estimate(-88.95123, 0.0123),
        average_reconstruction=estimate(-69.7812, 0.2),
        average_kl=estimate(19.17, 0.0041),
        index_code_mutual_information=estimate(10.8211),
        marginal_kl=estimate(8.3512),
        average_kl_sampled=estimate(19.17),
        index_code_mutual_information_sampled=estimate(10.82),
        marginal_kl_sampled=estimate(8.35),
        index_code_mutual_information_from_entropy=estimate(10.82),
        index_code_mutual_information_by_subtraction=None,
        cross_term=cross_term,
        num_observations=num_observations,
        num_query=num_observations,
        num_samples=2,
        seed=0,
        data=data,
        evaluation="exact",
    )


def record(latent_size: int) -> dict[str, Any]:
    train = surgery(60000, "mnist/train, N = 60000, binarization fixed (seed 0)")
    test = surgery(
        10000, "mnist/test, N = 10000, binarization fixed (seed 0)", Estimate(1.25, 0.02, 20000)
    )
    return {"latent_size": latent_size, **train.to_dict(), "test": test.to_dict()}


def test_text_table_names_the_data_and_has_a_row_for_each_latent_size_and_split() -> None:
    lines = tables.text_table([record(2), record(10)]).splitlines()
    assert lines[0] == "mnist/train, N = 60000, binarization fixed (seed 0)"
    assert lines[1] == "mnist/test, N = 10000, binarization fixed (seed 0)"
    header, rule, *rows = lines[3:9]
    assert set(rule) == {"-", " "}
    assert "log N" in header
    assert [row.split()[:2] for row in rows] == [
        ["2", "train"], ["2", "test"], ["10", "train"], ["10", "test"]
    ]  # fmt: skip
    assert all(len(line) == len(rule) for line in (header, *rows))
    assert rows[0].split()[-1] == "11.002"
    assert rows[1].split()[-1] == "9.210"
    assert "nats" in " ".join(lines[9:]).lower()


def test_digits_are_those_that_the_error_allows() -> None:
    text = tables.text_table([record(10)])
    assert "-88.951 ± 0.012" in text
    assert "-69.78 ± 0.20" in text
    assert "19.1700 ± 0.0041" in text


def test_cross_term_stands_in_the_test_row_alone() -> None:
    train, test = tables.text_table([record(10)]).splitlines()[5:7]
    assert "1.250 ± 0.020" in test
    assert train.split()[-2] == "-"


def test_without_held_out_data_there_is_neither_split_nor_cross_term() -> None:
    alone = record(10)
    del alone["test"]
    text = tables.text_table([alone])
    assert "split" not in text
    assert "cross term" not in text
    assert "8.351 ± 0.010" in text


def test_unknown_error_is_said_to_be_unknown() -> None:
    unknown = dataclasses.replace(surgery(5, "five"), elbo=Estimate(-1.0, float("nan"), 5))
    assert tables.format_estimate(unknown.to_dict()["elbo"]) == "-1.0000 ± unknown"
    assert tables.format_estimate(None) == "-"


def test_a_table_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one record"):
        tables.text_table([])


def test_what_a_surgery_warned_of_stands_below_the_table() -> None:
    doubtful = record(2)
    doubtful["test"]["warnings"] = ["Marginal KL = -1 ± 0.01 lies below 0."]
    last = tables.text_table([doubtful, record(10)]).splitlines()[-1]
    assert last == "WARNING, D = 2, test: Marginal KL = -1 ± 0.01 lies below 0."
    old = record(2)
    del old["warnings"], old["test"]["warnings"]  # of a run that was made before
    assert "WARNING" not in tables.text_table([old])


def test_several_training_runs_have_a_column_and_are_named_in_warnings() -> None:
    first, second = ({**record(2), "training_seed": seed} for seed in (0, 1))
    second["test"] = {**second["test"], "warnings": ["Doubtful."]}
    text = tables.text_table([first, second])
    assert [line.split()[:3] for line in text.splitlines()[5:9]] == [
        ["0", "2", "train"], ["0", "2", "test"], ["1", "2", "train"], ["1", "2", "test"]
    ]  # fmt: skip
    assert text.endswith("WARNING, training seed 1, D = 2, test: Doubtful.")
    assert "training seed" not in tables.text_table([first])
