"""Tables of the terms of the ELBO, as plain text and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfp_surgery.estimate import Estimate

_TERMS = {
    "elbo": "ELBO",
    "average_reconstruction": "(1) reconstruction",
    "index_code_mutual_information": "(2) index-code MI",
    "marginal_kl": "(3) marginal KL",
    "average_kl": "(2)+(3) average KL",
    "cross_term": "cross term",
}
_READING = (
    "D is the latent size. Nats per observation, ± the Monte Carlo standard error. "
    "ELBO = (1) - (2) - (3); log N is the ceiling of (2)."
)
_READING_CROSS_TERM = (
    "Each split has its own aggregate posterior q(z); cross term = E_q_test[log q_train(z) - "
    "log p(z)]."
)


def text_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the terms of all latent sizes as a plain text table.

    Args:
      records: One `ElboSurgery.to_dict()` of the training set with the entry `"latent_size"` per
        latent size. `ElboSurgery.to_dict()` of a held-out set, if any, is under `"test"`.

    Returns:
      Text: the data sets, one row per latent size and split, a legend and warnings.

    Raises:
      ValueError: If there are no records.
    """
    lines = aligned_lines(_rows(records))
    return "\n".join(
        [*_data_lines(records), "", *lines, "", *_reading(records), *warning_lines(records)]
    )


def markdown_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of `text_table` in Markdown.

    Args:
      records: See `text_table`.

    Returns:
      Markdown text.

    Raises:
      ValueError: If there are no records.
    """
    header, *rows = _rows(records)
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---:"] * len(header), *rows)]
    data = [f"- {line}" for line in _data_lines(records)]
    return "\n".join([*data, "", *lines, "", *_reading(records), *warning_lines(records)])


def aligned_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table with right-aligned columns and a rule below the header.

    Args:
      rows: The header and the rows, all with the same number of cells.

    Returns:
      The lines.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    header, *others = rows
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (header, ["-" * width for width in widths], *others)
    ]


def format_estimate(record: Mapping[str, Any], name: str) -> str:
    """Formats an estimate of a record as value ± standard error; see `Estimate`.

    Args:
      record: `ElboSurgery.to_dict()`.
      name: Field name of the estimate.

    Returns:
      The text, or a dash if the record has no such estimate.
    """
    entry = record.get(name)
    if entry is None:
        return "-"
    value, error = (
        math.nan if entry[key] is None else entry[key] for key in ("value", "standard_error")
    )
    return str(Estimate(value, error, record["num_query"] * record["num_samples"]))


def warning_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the warnings of all records, one line each, with latent size and split."""
    return [
        f"WARNING, D = {record['latent_size']}, {split}: {sentence}"
        for record in records
        for split, surgery in _splits(record).items()
        for sentence in surgery.get("warnings", ())
    ]


def _splits(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    splits = {"train": record}
    if record.get("test") is not None:
        splits["test"] = record["test"]
    return splits


def _rows(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the header and one row per latent size and split."""
    if not records:
        raise ValueError("a table needs at least one record.")
    held_out = any("test" in _splits(record) for record in records)
    terms = {name: label for name, label in _TERMS.items() if held_out or name != "cross_term"}
    rows = [["D", *(["split"] if held_out else []), *terms.values(), "log N"]]
    for record in records:
        for split, surgery in _splits(record).items():
            rows.append(
                [
                    str(record["latent_size"]),
                    *([split] if held_out else []),
                    *(format_estimate(surgery, name) for name in terms),
                    f"{surgery['log_num_observations']:.3f}",
                ]
            )
    return rows


def _data_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the descriptions of the data sets without duplicates."""
    return list(
        dict.fromkeys(surgery["data"] for record in records for surgery in _splits(record).values())
    )


def _reading(records: Sequence[Mapping[str, Any]]) -> list[str]:
    held_out = any("test" in _splits(record) for record in records)
    return [_READING, _READING_CROSS_TERM] if held_out else [_READING]
