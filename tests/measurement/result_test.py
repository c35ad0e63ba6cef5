from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement.result import Result, aligned_rows, describe_draws, plain


def test_rows_are_aligned_at_the_decimal_point() -> None:
    rows = aligned_rows(
        [
            ("a", Estimate(-100.25, 0.011, 10)),
            ("long label", Estimate(2.5, math.nan, 10)),
            ("left out", None),
            ("c", Estimate(1234.0, 25.0, 10)),  # prints without a decimal point
        ]
    )
    assert rows == [
        "  a           -100.250 ± 0.011",
        "  long label     2.5000 ± unknown",
        "  c           1234 ± 25",
    ]


def test_a_table_with_a_header_has_a_rule() -> None:
    lines = aligned_rows(
        [
            (2, "train", Estimate(-100.25, 0.011, 10), ""),
            (10, "test", Estimate(2.5, math.nan, 10), 1234),
            (3, "t", "-", 5),
        ],
        header=("D", "split", "ELBO", "n"),
    )
    assert lines == [
        "   D  split                 ELBO     n",
        "  --  -----  -------------------  ----",
        "   2  train  -100.250 ± 0.011",
        "  10  test      2.5000 ± unknown  1234",
        "   3  t         -                    5",
    ]
    assert aligned_rows([]) == []


def test_draws_in_words() -> None:
    assert describe_draws(10, 10, 1) == "nats per observation; N = 10, 1 draw an observation"
    assert describe_draws(10, 3, 2).endswith("2 draws an observation of a random 3")


def test_plain_values_at_any_depth() -> None:
    @dataclasses.dataclass(frozen=True)
    class Parts:
        parts: tuple[Estimate, ...]
        absent: dict[str, str]
        inner: Parts | None
        count: int

    estimate = Estimate(1.5, math.nan, 3)
    record = {"value": 1.5, "standard_error": None}
    assert plain(Parts((estimate,), {"a": "b"}, Parts((), {}, None, 2), 4)) == {
        "parts": [record],
        "absent": {"a": "b"},
        "inner": {"parts": [], "absent": {}, "inner": None, "count": 2},
        "count": 4,
    }


def test_arrays_become_lists_and_what_json_lacks_none() -> None:
    values = {"a": np.array([[1.0, np.nan]]), "b": np.float32(2.0), "c": math.inf}
    values["d"] = tf.constant([3, 4])
    assert plain(values) == {"a": [[1.0, None]], "b": 2.0, "c": None, "d": [3, 4]}


def test_a_result_says_what_is_absent_and_what_to_doubt() -> None:
    @dataclasses.dataclass(frozen=True, eq=False)
    class Two(Result):
        _derived = ("number",)
        first: Estimate
        second: Estimate | None

        @property
        def number(self) -> int:
            return 2

        def _title(self) -> list[str]:
            return ["Two"]

        def _rows(self) -> list[tuple[str, Any]]:
            return [("first", self.first), ("second", self.second)]

    result = Two(Estimate(1.0, 0.1, 5), None, absent={"second": "no prior"}, warnings=("odd.",))
    assert str(result).splitlines() == [
        "Two",
        "  first  1.00 ± 0.10",
        "  (second absent: no prior)",
        "  WARNING: odd.",
    ]
    assert result.to_dict() == {
        "warnings": ["odd."],
        "absent": {"second": "no prior"},
        "first": {"value": 1.0, "standard_error": 0.1},
        "second": None,
        "number": 2,
    }


def test_results_are_equal_where_their_fields_are() -> None:
    @dataclasses.dataclass(frozen=True)
    class One(Result):
        value: Estimate

    @dataclasses.dataclass(frozen=True, eq=False)
    class Draws(Result):
        values: np.ndarray

    first, second = (One(Estimate(value, 0.1, 5), absent={"a": "b"}) for value in (1.0, 2.0))
    assert first == dataclasses.replace(first)
    assert first != second
    assert len({first, dataclasses.replace(first), second}) == 2
    assert Draws(np.zeros(2)) != Draws(np.ones(2))
