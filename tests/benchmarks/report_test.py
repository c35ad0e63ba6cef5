from __future__ import annotations

from typing import Any

import pytest

from benchmarks import report, sections

ROW: dict[str, Any] = {
    "section": "evaluation",
    "latent_size": 2,
    "num_components": 60000,
    "num_queries": 60000,
    "shrink": 1.0,
    "method": sections.EXACT,
    "seconds": 2.0,
    "seconds_min": 1.9,
    "seconds_max": 2.1,
    "repeats": 5,
    "times_base": 1.0,
    "base": sections.EXACT,
    "share_timed": 1.0,
    "first_call_seconds": 3.0,
    "peak_mib": 123.4,
    "log_prob_error": 2e-5,
    "log_prob_error_over_bound": 0.2,
    "index_entropy_error": None,
    "index_entropy_error_over_bound": None,
    "mean_visited": None,
    "loss": None,
    "note": None,
}


def page(rows: list[dict[str, Any]], gpu: str | None = None) -> str:
    return report.markdown(
        {
            "machine": {"processor": "a CPU", "cores": 2, "memory_gib": 7.9, "gpu": gpu},
            "versions": {"tensorflow": "2.21"},
            "command": "make bench",
            "date": "2025-01-01",
            "codes": "codes",
            "rows": rows,
        }
    )


def test_ratios_shares_errors_and_notes() -> None:
    peer = {**ROW, "method": sections.TFD, "seconds": 30.0, "times_base": 15.0}
    rows = [
        ROW,
        {**ROW, "method": sections.TREE, "seconds": 0.5, "times_base": 0.25},
        {**peer, "share_timed": 0.025},
        {**peer, "method": sections.TORCH, "seconds": None, "note": "left out: no torch"},
    ]
    text = page(rows)
    assert "a CPU, 2 cores, 8 GiB of memory; GPU: not measured" in text
    assert (
        f"| 2 | 60000 | {sections.TFD} | 30 | 15 | 2.5% | 123 | 2.0e-05 (0.20) |  |  |  "
        "| not measured |" in text
    )
    assert "left out: no torch" in text
    assert "| 2 | 15 | 4 |  |" in text
    assert "## Training" not in text


def test_times_on_a_gpu_have_a_column() -> None:
    gpu = {**ROW, "method": f"{sections.EXACT}{sections.ON_GPU}", "seconds": 0.03}
    text = page([ROW, gpu], gpu="a GPU")
    assert "GPU: a GPU" in text
    assert "|  |  | 0.03 |" in text
    assert gpu["method"] not in text


def test_the_exponent_of_large_sizes_stands_beside_that_of_all() -> None:
    rows = [
        {
            **ROW,
            "section": "scaling, M = N",
            "num_components": num,
            "seconds": num**2 if num < 60000 else 60000**2 * (num / 60000) ** 1.25,
        }
        for num in (15000, 60000, 250000, 1000000)
    ]
    (found,) = report.exponents(rows)
    assert found["M"] == "N"
    assert found["p, N >= 60000"] == "1.25"
    assert 1.25 < float(found["p, all N"]) < 2.0
    assert "## Growth with N" in page(rows)
    assert "numba compiles" not in page(rows)
    compiled = {**ROW, "method": sections.COMPILATION, "section": "scaling, compilation"}
    assert "which took 1 s" in page([{**compiled, "first_call_seconds": 3.0}, *rows])
    (found,) = report.exponents(rows[:1])
    assert found["p, all N"] == found["p, N >= 60000"] == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (2.5, "2.5"), (99.94, "99.9"), (1234.5, "1234")]
)
def test_three_figures(value: float, text: str) -> None:
    assert f"| {text} |" in page([{**ROW, "seconds": value}])


def test_training_stands_beside_a_hand_written_loop_and_pytorch() -> None:
    row = {**ROW, "section": "training", "loss": 101.234}
    rows = [
        {**row, "method": sections.FIT, "seconds": 2.2},
        {**row, "method": sections.HAND_WRITTEN, "seconds": 2.0},
        {**row, "method": sections.TORCH_COMPILED, "seconds": 4.4},
    ]
    assert f"| {sections.FIT} | 2.2 | 1.9 to 2.1 | 1.1 | 0.5 | 3 | 123 | 101.23 |" in page(rows)
    without = [*rows[:2], {**rows[2], "seconds": None, "loss": None, "note": "left out"}]
    assert f"| {sections.FIT} | 2.2 | 1.9 to 2.1 | 1.1 |  | 3 |" in page(without)
