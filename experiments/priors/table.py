"""The results of `experiments.learned_priors` as a table and as rows of CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import over_runs
from experiments.common.trained_model import model_label
from experiments.priors.families import POSTHOC
from tfp_surgery.measurement.result import aligned_rows
from tfp_surgery.reporting.tables import format_estimate

KEYS = {"latent_size": "D", "mode": "mode", "prior": "prior"}
_TERMS = {
    "elbo": "ELBO",
    "average_reconstruction": "(1) reconstruction",
    "index_code_mutual_information": "(2) index-code MI",
    "marginal_kl": "(3) marginal KL",
}
_SUMMARIZED = {
    "train_elbo": "ELBO, train",
    "test_elbo": "ELBO, test",
    "train_marginal_kl": "(3), train",
    "test_marginal_kl": "(3), test",
    "train_gain": "gain, train",
    "test_gain": "gain, test",
    "memorisation_gap": "gap",
    "log_evidence": "log evidence",
    "log_evidence_gain": "against standard",
}
_OF_TEST_DATA = ("memorisation_gap", "log_evidence", "log_evidence_gain")
_MODEL = (
    *("training_seed", *KEYS, "family", "num_components", "num_parameters", "seconds"),
    *("num_importance_samples", "normalizer_error"),
)
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
      records: of all training seeds, latent sizes, modes and priors.

    Returns:
      The data sets, two rows for each record, how to read them, and what the training runs say
      together.
    """
    several = len({record["training_seed"] for record in records}) > 1
    first_columns = [*(["training_seed"] if several else []), *KEYS]
    header = (
        *(["training seed"] if several else []),
        *("D", "mode", "prior", "split", *_TERMS.values(), "gain", "(3) left out", "gap"),
        *("log evidence", "against standard", "parameters", "seconds"),
    )
    rows = []
    for record in records:
        for split in ("train", "test"):
            is_train, is_fitted = split == "train", record["mode"] == POSTHOC
            row = [record[name] for name in first_columns]
            row += [split, *(format_estimate(record[split][name]) for name in _TERMS)]
            row.append(format_estimate(record[f"{split}_gain"] if is_fitted else None))
            if is_train:
                left_out = format_estimate(record["leave_one_out_marginal_kl"])
                row += [left_out, "", "", "", record["num_parameters"], f"{record['seconds']:.0f}"]
            else:
                row += ["", *(format_estimate(record[name]) for name in _OF_TEST_DATA), "", ""]
            rows.append(row)
    first = records[0]
    data = [first[split]["data"] for split in ("train", "test")]
    reading = _READING.format(
        num_images=len(first["log_evidence"]["per_observation"]),
        num_importance_samples=first["num_importance_samples"],
    )
    estimated = [
        f"{record['prior']}, {model_label(record['training_seed'], record['latent_size'])}: the "
        "estimate of the normaliser of p(z) adds a standard error of "
        f"{record['normalizer_error']:.2g} to all that holds log p(z)."
        for record in records
        if record["normalizer_error"] > 0
    ]
    table = "\n".join([*data, "", *aligned_rows(rows, header), "", reading, *estimated])
    shown = [
        row if row["mode"] == POSTHOC else {**row, "train_gain": None, "test_gain": None}
        for row in csv_rows(records)
    ]
    return over_runs.with_summary(table, shown, KEYS, _SUMMARIZED)


def csv_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each record.

    Args:
      records: of all training seeds, latent sizes, modes and priors.

    Returns:
      Rows with the same keys; what a record does not have is None.
    """
    rows = []
    for record in records:
        row = {name: record[name] for name in _MODEL}
        for split in ("train", "test"):
            for name in ("data", *_TERMS, "average_kl"):
                row[f"{split}_{name}"] = record[split][name]
            row[f"{split}_gain"] = record[f"{split}_gain"]
        for name in ("leave_one_out_marginal_kl", *_OF_TEST_DATA):
            row[name] = record[name]
        rows.append(row)
    return rows
