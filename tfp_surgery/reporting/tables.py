"""The table of the terms of the ELBO, for several models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement.result import aligned_rows

TERMS = {
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
    """Returns the terms of all models as a plain text table.

    Args:
      records: One `ElboSurgery.to_dict()` of the training set with the entry `"latent_size"` per
        model. `ElboSurgery.to_dict()` of a held-out set, if any, is under `"test"`. Models of
        several training runs have the entry `"training_seed"` too.

    Returns:
      Text: the data sets, one row per model and split, a legend and warnings.

    Raises:
      ValueError: If there are no records.
    """
    header, *rows = _rows(records)
    lines = aligned_rows(rows, header)
    return "\n".join(
        [*_data_lines(records), "", *lines, "", *_reading(records), *warning_lines(records)]
    )


def format_estimate(entry: Mapping[str, Any] | None) -> str:
    """Formats an estimate as value ± standard error; see `Estimate`.

    Args:
      entry: `Estimate.to_dict()`, or None.

    Returns:
      The text, or a dash if there is no estimate.
    """
    if entry is None:
        return "-"
    value, error = (
        math.nan if entry[key] is None else entry[key] for key in ("value", "standard_error")
    )
    return str(Estimate(value, error, 0))


def warning_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the warnings of all records, one line each, with model and split."""
    several = _has_several_runs(records)
    return [
        f"WARNING, {_model(record, several)}, {split}: {sentence}"
        for record in records
        for split, surgery in _splits(record).items()
        for sentence in surgery.get("warnings", ())
    ]


def _splits(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    splits = {"train": record}
    if record.get("test") is not None:
        splits["test"] = record["test"]
    return splits


def _has_several_runs(records: Sequence[Mapping[str, Any]]) -> bool:
    return len({record.get("training_seed") for record in records}) > 1


def _model(record: Mapping[str, Any], several: bool) -> str:
    run = f"training seed {record['training_seed']}, " if several else ""
    return f"{run}D = {record['latent_size']}"


def _rows(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the header and one row per model and split."""
    if not records:
        raise ValueError("a table needs at least one record.")
    held_out = any("test" in _splits(record) for record in records)
    terms = {name: label for name, label in TERMS.items() if held_out or name != "cross_term"}
    several = _has_several_runs(records)
    first = [*(["training seed"] if several else []), "D"]
    rows = [[*first, *(["split"] if held_out else []), *terms.values(), "log N"]]
    for record in records:
        for split, surgery in _splits(record).items():
            rows.append(
                [
                    *([str(record["training_seed"])] if several else []),
                    str(record["latent_size"]),
                    *([split] if held_out else []),
                    *(format_estimate(surgery.get(name)) for name in terms),
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
