"""Tests of steps of one length."""

from __future__ import annotations

import pytest

from tfp_surgery.measurement.steps import steps


@pytest.mark.parametrize(
    ("num_rows", "length"), [(1, 1), (5, 5), (5, 9), (6, 3), (7, 3), (8, 3), (10, 1), (3, 2)]
)
def test_every_row_is_new_once_and_all_steps_have_one_length(num_rows: int, length: int) -> None:
    rows = list(range(num_rows))
    seen: list[int] = []
    for number, step in enumerate(steps(num_rows, length)):
        assert step.number == number
        shown = rows[step.shown]
        assert len(shown) == min(length, num_rows)
        assert shown[step.new] == rows[step.rows]
        seen += rows[step.rows]
    assert seen == rows
