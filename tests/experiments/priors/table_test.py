"""Tests of the table of priors and of its rows of CSV."""

from __future__ import annotations

from typing import Any

from experiments.priors.table import csv_rows, text_table


def estimate(value: float, error: float | None = 0.01) -> dict[str, float | None]:
    return {"value": value, "standard_error": error}


def surgery(split: str, marginal_kl: float) -> dict[str, Any]:
    return {
        "data": f"digits/{split}",
        "num_query": 10,
        "num_samples": 2,
        "elbo": estimate(-30.0),
        "average_reconstruction": estimate(-20.0),
        "index_code_mutual_information": estimate(4.0),
        "marginal_kl": estimate(marginal_kl),
        "average_kl": estimate(4.0 + marginal_kl),
    }


def record(prior: str, left_out: float | None) -> dict[str, Any]:
    return {
        "training_seed": 0,
        "latent_size": 2,
        "mode": "posthoc",
        "prior": prior,
        "family": prior,
        "num_components": None,
        "num_parameters": 17,
        "seconds": 12.3,
        "num_importance_samples": 20,
        "normalizer_error": 0.0,
        "train": surgery("train", 1.5),
        "test": surgery("test", 2.25),
        "train_gain": estimate(0.5),
        "test_gain": estimate(0.25),
        "leave_one_out_marginal_kl": None if left_out is None else estimate(left_out),
        "memorisation_gap": estimate(0.75),
        "log_evidence": {**estimate(-29.0), "per_observation": [-28.0, -29.0, -30.0]},
        "log_evidence_gain": estimate(0.4, None),
    }


RECORDS = [record("mog", None), record("aggregate", 3.5)]


def test_two_rows_a_prior_and_how_to_read_them() -> None:
    lines = text_table(RECORDS).splitlines()
    assert lines[:2] == ["digits/train", "digits/test"]
    rows = [line.split() for line in lines if "posthoc" in line]
    assert [row[2:4] for row in rows] == [
        ["mog", "train"], ["mog", "test"], ["aggregate", "train"], ["aggregate", "test"],
    ]  # fmt: skip
    assert "1.500 ± 0.010" in lines[5]
    assert "3.500 ± 0.010" not in lines[5]
    assert "3.500 ± 0.010" in lines[7]
    assert lines[5].split()[-2:] == ["17", "12"]
    assert "0.750 ± 0.010" in lines[6]
    assert "0.4000 ± unknown" in lines[6]
    assert "of 3 test images by 20 importance" in " ".join(lines)


def test_an_estimated_normaliser_is_told() -> None:
    resampled = {**record("resampled", None), "normalizer_error": 0.0123}
    text = text_table([*RECORDS, resampled])
    assert text.splitlines()[-1].startswith("resampled, training seed 0, D = 2: the estimate")
    assert "standard error of 0.012 to" in text
    assert "normaliser" not in text_table(RECORDS)


def test_gain_is_of_priors_fitted_afterwards() -> None:
    joint = {**record("vamp", None), "mode": "joint"}
    assert "0.500 ± 0.010" in text_table(RECORDS)
    assert "0.500 ± 0.010" not in text_table([joint])


def test_gains_are_summarized_over_training_runs() -> None:
    other = {**record("mog", None), "training_seed": 1, "test_gain": estimate(0.75)}
    joint = [
        {**record("vamp", None), "training_seed": seed, "mode": "joint", "test_gain": estimate(9.0)}
        for seed in (0, 1)
    ]
    text = text_table([RECORDS[0], joint[0], other, joint[1]])
    assert "training seed" in text.splitlines()[3]
    summary = text[text.index("spread") :].splitlines()
    gains = [line.split() for line in summary if "gain, test" in line]
    # Of 0.25 and 0.75: the distance over sqrt(2).
    assert [cells[-3:] for cells in gains] == [["0.50", "0.35", "0.010"]]
    assert any("vamp" in line and "(3), test" in line for line in summary)
    assert "spread" not in text_table(RECORDS)


def test_rows_of_csv_have_the_same_keys() -> None:
    first, second = csv_rows(RECORDS)
    assert first.keys() == second.keys()
    assert first["leave_one_out_marginal_kl"] is None
    assert second["leave_one_out_marginal_kl"] == estimate(3.5)
    assert first["test_marginal_kl"] == estimate(2.25)
    assert first["train_average_kl"] == estimate(5.5)
    assert first["log_evidence"]["value"] == -29.0
