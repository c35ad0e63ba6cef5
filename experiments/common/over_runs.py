"""What training runs of several seeds say together: mean, spread, and the error of one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement.result import aligned_rows

Row = dict[str, Any]

_HEADER = ("term", "mean", "spread", "standard error of one run")
_READING = """\
Over the training runs of seeds {seeds}. mean: of the runs' estimates. spread: their sample standard
deviation (ddof = 1), in which the Monte Carlo error has its part. standard error of one run: the ±
of the table above, as root mean square over the runs."""


def summary_rows(rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> list[Row]:
    """Summarizes every estimate over the training runs.

    Differences between models belong into `rows` as differences within a training seed.

    Args:
      rows: of `results.csv`, with `training_seed`; entries `{"value", "standard_error"}` are
        estimates.
      keys: names of the columns that say what was measured in each training run, with their headers
        in `with_summary`.

    Returns:
      A row for each estimate of each combination of keys: the keys, `quantity`, `num_runs`, `mean`,
      `spread` (sample standard deviation over runs, ddof = 1), `standard_error` (root mean square
      of the runs' own). What is unknown in one of the runs is None. No rows if there is one
      training seed.

    Raises:
      ValueError: if a training seed occurs twice, or is missing, in a combination of keys.
    """
    training_seeds = _training_seeds(rows)
    if len(training_seeds) < 2:
        return []
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    summary = []
    for values, group in groups.items():
        named = dict(zip(keys, values, strict=True))
        found = [row["training_seed"] for row in group]
        if sorted(found) != sorted(training_seeds):
            raise ValueError(
                f"{named or 'the rows'} must have one row for each training seed of "
                f"{training_seeds}, got those of {found}."
            )
        summary += [
            {**named, "quantity": name, **_over_runs([row[name] for row in group])}
            for name in group[0]
            if any(_is_estimate(row[name]) for row in group)
        ]
    return summary


def with_summary(
    table: str,
    rows: Sequence[Mapping[str, Any]],
    keys: Mapping[str, str],
    labels: Mapping[str, str],
) -> str:
    """Appends the summary over the training runs to the table of all of them.

    Args:
      table: of all training runs.
      rows: see `summary_rows`, as for `keys`.
      keys: likewise.
      labels: of the quantities to print, by their names, in the order of the table.

    Returns:
      The text, which is `table` alone if there is one training seed.
    """
    summary = summary_rows(rows, keys)
    if not summary:
        return table
    cells = [
        [*(row[key] for key in keys), label, *_cells(row)]
        for name, label in labels.items()
        for row in summary
        if row["quantity"] == name
    ]
    reading = _READING.format(seeds=", ".join(map(str, _training_seeds(rows))))
    return "\n".join([table, "", *aligned_rows(cells, (*keys.values(), *_HEADER)), "", reading])


def _training_seeds(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return list(dict.fromkeys(row["training_seed"] for row in rows))


def _is_estimate(entry: Any) -> bool:
    return isinstance(entry, Mapping) and {"value", "standard_error"} <= entry.keys()


def _over_runs(entries: Sequence[Mapping[str, Any] | None]) -> Row:
    values, errors = (
        np.array([math.nan if entry is None else entry[key] for entry in entries], np.float64)
        for key in ("value", "standard_error")  # None in an entry becomes NaN
    )
    numbers = {
        "mean": values.mean(),
        "spread": values.std(ddof=1),
        "standard_error": np.sqrt(np.square(errors).mean()),
    }
    return {
        "num_runs": len(entries),
        **{name: float(n) if math.isfinite(n) else None for name, n in numbers.items()},
    }


def _cells(row: Row) -> list[str]:
    """Mean and spread with two digits of the spread, and the standard error."""
    mean, spread, error = (row[name] for name in ("mean", "spread", "standard_error"))
    if mean is None or spread is None:
        return ["-", "-", "-"]
    error = math.nan if error is None else error
    shown, of_run = (str(Estimate(mean, each, 0)).split(" ± ") for each in (spread, error))
    return [*shown, of_run[1]]
