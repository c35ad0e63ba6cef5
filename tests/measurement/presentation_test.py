from __future__ import annotations

import dataclasses
import math

from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement.presentation import aligned_rows, describe_draws, plain


def test_rows_are_aligned_at_the_decimal_point() -> None:
    rows = aligned_rows(
        [
            ("a", Estimate(-100.25, 0.011, 10)),
            ("long label", Estimate(2.5, math.nan, 10)),
            ("c", Estimate(1234.0, 25.0, 10)),  # prints without a decimal point
        ]
    )
    assert rows == [
        "  a           -100.250 ± 0.011",
        "  long label     2.5000 ± unknown",
        "  c           1234 ± 25",
    ]


def test_draws_in_words() -> None:
    assert describe_draws(10, 10, 1) == "nats per observation; N = 10, 1 draw an observation"
    assert describe_draws(10, 3, 2).endswith("2 draws an observation of a random 3")


def test_plain_values_at_any_depth() -> None:
    @dataclasses.dataclass(frozen=True)
    class Result:
        parts: tuple[Estimate, ...]
        absent: dict[str, str]
        inner: Result | None
        count: int

    estimate = Estimate(1.5, math.nan, 3)
    record = {"value": 1.5, "standard_error": None}
    assert plain(Result((estimate,), {"a": "b"}, Result((), {}, None, 2), 4)) == {
        "parts": [record],
        "absent": {"a": "b"},
        "inner": {"parts": [], "absent": {}, "inner": None, "count": 2},
        "count": 4,
    }
