"""The results of `experiments.learned_priors` as a table and as rows of CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.priors.families import POSTHOC
from tfp_surgery.estimate import Estimate
from tfp_surgery.reporting.tables import aligned_lines, format_estimate

_TERMS = {
    "elbo": "ELBO",
    "average_reconstruction": "(1) reconstruction",
    "index_code_mutual_information": "(2) index-code MI",
    "marginal_kl": "(3) marginal KL",
}
_READING = """\
Nats per observation, ± the Monte Carlo standard error given model and data. Each split is carved
with its own aggregate posterior q(z). gain: E_q(z)[log p(z) - log N(z; 0, I)], by how much
the marginal KL of a prior fitted afterwards is below that of N(0, I). (3) left out: the marginal
KL on training data with each observation's own component taken out of the prior. gap: test minus
training marginal KL. log evidence: of {num_images} test images by {num_importance_samples}
importance samples, a lower bound; against standard: its difference on the same images, ± the
standard error over images."""


def text_table(records: Sequence[Mapping[str, Any]]) -> str:
    """All priors in one table, for a terminal.

    Args:
      records: of all latent sizes, modes and priors.

    Returns:
      The data sets, two rows for each record, how to read them.
    """
    rows = [
        [
            "D",
            "mode",
            "prior",
            "split",
            *_TERMS.values(),
            "gain",
            "(3) left out",
            "gap",
            "log evidence",
            "against standard",
            "parameters",
            "seconds",
        ]
    ]
    for record in records:
        for split in ("train", "test"):
            is_train = split == "train"
            rows.append(
                [
                    str(record["latent_size"]),
                    record["mode"],
                    record["prior"],
                    split,
                    *(format_estimate(record[split], name) for name in _TERMS),
                    _text(record[f"{split}_gain"] if record["mode"] == POSTHOC else None),
                    _text(record["leave_one_out_marginal_kl"]) if is_train else "",
                    "" if is_train else _text(record["memorisation_gap"]),
                    "" if is_train else _text(record["log_evidence"]),
                    "" if is_train else _text(record["log_evidence_gain"]),
                    str(record["num_parameters"]) if is_train else "",
                    f"{record['seconds']:.0f}" if is_train else "",
                ]
            )
    first = records[0]
    data = [first[split]["data"] for split in ("train", "test")]
    reading = _READING.format(
        num_images=len(first["log_evidence"]["per_observation"]),
        num_importance_samples=first["num_importance_samples"],
    )
    estimated = [
        f"{record['prior']} at D = {record['latent_size']}: the estimate of the normaliser of p(z) "
        f"adds a standard error of {record['normalizer_error']:.2g} to all that holds log p(z)."
        for record in records
        if record["normalizer_error"] > 0
    ]
    return "\n".join([*data, "", *aligned_lines(rows), "", reading, *estimated])


def csv_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each record, each estimate with its standard error.

    Args:
      records: of all latent sizes, modes and priors.

    Returns:
      Rows with the same keys; what a record does not have is empty.
    """
    rows = []
    for record in records:
        row = {
            name: record[name]
            for name in (
                "latent_size",
                "mode",
                "prior",
                "family",
                "num_components",
                "num_parameters",
                "seconds",
                "num_importance_samples",
                "normalizer_error",
            )
        }
        for split in ("train", "test"):
            row[f"{split}_data"] = record[split]["data"]
            for name in (*_TERMS, "average_kl"):
                _add(row, f"{split}_{name}", record[split][name])
            _add(row, f"{split}_gain", record[f"{split}_gain"])
        for name in (
            "leave_one_out_marginal_kl",
            "memorisation_gap",
            "log_evidence",
            "log_evidence_gain",
        ):
            _add(row, name, record[name])
        rows.append(row)
    return rows


def _add(row: dict[str, Any], name: str, entry: Mapping[str, Any] | None) -> None:
    row[name] = "" if entry is None else entry["value"]
    row[f"{name}_standard_error"] = "" if entry is None else entry["standard_error"]


def _text(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    error = entry["standard_error"]
    return str(Estimate(entry["value"], math.nan if error is None else error, 0))
