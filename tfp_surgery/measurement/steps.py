"""Splits work on many rows into steps of one length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Step(NamedTuple):
    """One step.

    Attributes:
      number: Number of the step, from 0.
      shown: The rows of the step.
      new: The rows that no earlier step had, as a slice of those of the step.
      rows: The rows that no earlier step had, as a slice of all rows.
    """

    number: int
    shown: slice
    new: slice
    rows: slice


def steps(num_rows: int, length: int) -> Iterator[Step]:
    """Splits rows into steps of one length, so that kernels compile once.

    If `length` does not divide `num_rows`, the last step repeats rows of the step before.

    Args:
      num_rows: Number of rows, at least 1.
      length: Number of rows per step, at least 1; `num_rows` if that is fewer.

    Yields:
      The steps.
    """
    length = min(length, num_rows)
    for number, start in enumerate(range(0, num_rows, length)):
        first = min(start, num_rows - length)
        end = first + length
        yield Step(number, slice(first, end), slice(start - first, length), slice(start, end))
