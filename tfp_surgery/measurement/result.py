"""Result: the base class of results, printed as a table and converted to JSON-ready values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement.bound import Bound


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """Base class of results. Subclasses define the printed table by `_title` and `_rows`.

    Attributes:
      warnings: Descriptions of numbers that contradict each other; empty if there are none.
      absent: Reasons why fields are None, by field name.
    """

    # Properties that `to_dict` adds to the fields.
    _derived: ClassVar[tuple[str, ...]] = ()

    warnings: tuple[str, ...] = ()
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values.

        Estimates become `{"value", "standard_error"}`, arrays nested lists, NaN and infinity None.
        """
        names = [field.name for field in dataclasses.fields(self)] + [*self._derived]
        return {name: plain(getattr(self, name)) for name in names}

    def __str__(self) -> str:
        """Returns a table: title, values, reasons for absent values, and warnings."""
        lines = [*self._title(), *aligned_rows(self._rows()), *self._remarks()]
        return "\n".join([*lines, *warning_lines(self.warnings)])

    def _title(self) -> list[str]:
        """Returns the lines above the table."""
        raise NotImplementedError

    def _rows(self) -> list[tuple[str, Estimate | Bound | str | None]]:
        """Returns label and value of each row; rows whose value is None are not printed."""
        raise NotImplementedError

    def _remarks(self) -> list[str]:
        """Returns the lines below the table: the reasons why fields are None."""
        names: dict[str, list[str]] = {}
        for name, reason in self.absent.items():
            names.setdefault(reason, []).append(name)
        return [f"  ({', '.join(names[reason])} absent: {reason})" for reason in names]


def aligned_rows(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> list[str]:
    """Returns the lines of a table: words aligned at the left, numbers at the decimal point.

    Args:
      rows: Cells of each row, the same number in all rows. A number may be followed by words, as in
        an `Estimate`. Rows with None are skipped.
      header: Names of the columns, printed above a rule; empty for a table without header.

    Returns:
      The indented lines.
    """
    texts = [[str(cell) for cell in row] for row in rows if not any(cell is None for cell in row)]
    columns = []
    for number, cells in enumerate(zip(*texts, strict=True)):
        is_numeric = any(map(_is_number, cells))
        before = max(map(_point, cells)) if is_numeric else 0
        column = (
            [" " * (before - _point(cell)) + cell for cell in cells] if is_numeric else [*cells]
        )
        if header:
            name, width = header[number], max(map(len, column))
            if is_numeric:
                indent = " " * (len(name) - width)
                name, column = name.rjust(width), [indent + cell for cell in column]
            column = [name, "-" * max(len(name), width), *column]
        width = max(map(len, column))
        columns.append([cell.ljust(width) for cell in column])
    return [f"  {'  '.join(cells)}".rstrip() for cells in zip(*columns, strict=True)]


def _is_number(cell: str) -> bool:
    try:
        float(cell.split(" ", 1)[0])
    except ValueError:
        return False
    return True


def _point(cell: str) -> int:
    """Returns the position of the decimal point of a number, or its length without one."""
    value = cell.split(" ", 1)[0]
    return value.index(".") if "." in value else len(value)


def warning_lines(sentences: Iterable[str]) -> list[str]:
    """Returns warnings as lines of a table."""
    return [f"  WARNING: {sentence}" for sentence in sentences]


def count_draws(num_observations: int, num_query: int, num_samples: int) -> str:
    """Returns the numbers of draws and observations in words."""
    draws = "1 draw" if num_samples == 1 else f"{num_samples} draws"
    queries = "" if num_query == num_observations else f" of a random {num_query}"
    return f"{draws} an observation{queries}"


def describe_draws(num_observations: int, num_query: int, num_samples: int) -> str:
    """Returns the unit of a result's estimates and the numbers averaged over, in words."""
    draws = count_draws(num_observations, num_query, num_samples)
    return f"nats per observation; N = {num_observations}, {draws}"


def plain(value: Any) -> Any:
    """Converts a nested value to JSON-ready ones; NaN and infinity become None."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
