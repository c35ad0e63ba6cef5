"""Work on many rows, cut into steps of one length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Step(NamedTuple):
    """One of the steps.

    Attributes:
      number: Its number, from 0.
      shown: The rows to work on.
      new: Which of these no earlier step had.
      rows: The new rows, among all.
    """

    number: int
    shown: slice
    new: slice
    rows: slice


def steps(num_rows: int, length: int) -> Iterator[Step]:
    """Cuts rows into steps of one length, so that kernels compile once.

    The last step shows rows of the one before again where the length does not divide them.

    Args:
      num_rows: Number of rows, at least 1.
      length: Of a step, at least 1; all rows are one step where there are fewer.

    Yields:
      The steps.
    """
    length = min(length, num_rows)
    for number, start in enumerate(range(0, num_rows, length)):
        first = min(start, num_rows - length)
        end = first + length
        yield Step(number, slice(first, end), slice(start - first, length), slice(start, end))
