from __future__ import annotations

import dataclasses
import math

import pytest

from tfp_surgery.estimate import Estimate
from tfp_surgery.surgery.presentation import aligned_rows, describe_draws, plain, record


@dataclasses.dataclass(frozen=True)
class _Part:
    value: Estimate
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Result:
    parts: tuple[_Part, ...]
    absent: dict[str, str]
    nothing: None


def test_results_become_plain_values_at_any_depth() -> None:
    result = _Result((_Part(Estimate(1.5, math.nan, 3), ("a", "b")),), {"x": "why"}, None)
    expected = {
        "parts": [{"value": {"value": 1.5, "standard_error": None}, "names": ["a", "b"]}],
        "absent": {"x": "why"},
        "nothing": None,
    }
    assert record(result) == expected
    assert plain([result]) == [expected]


def test_numbers_stand_at_the_decimal_point() -> None:
    rows = aligned_rows([("short", Estimate(1.25, 0.1, 5)), ("longer", Estimate(-123.5, 20.0, 5))])
    assert rows == ["  short      1.25 ± 0.10", "  longer  -124 ± 20"]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((9, 9, 1), "N = 9, 1 draw an observation"),
        ((9, 4, 2), "2 draws an observation of a random 4"),
    ],
)
def test_draws_are_described(numbers: tuple[int, int, int], text: str) -> None:
    assert text in describe_draws(*numbers)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-m", "not slow"]))
