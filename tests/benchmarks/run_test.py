from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from absl import flags

from benchmarks import run as run_lib
from benchmarks import sections

TINY = (
    "--num_components=300",
    "--sizes=100,300",
    "--fixed_queries=50",
    "--repeats=2",
    "--error_queries=40",
    "--share_seconds=0.05",
)
SYNTHETIC = ("--synthetic", "--latent_sizes=2", *TINY)


def run_main(*arguments: str) -> int:
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    run_lib.define_flags(values)
    return run_lib.main(values(["run.py", *arguments]), values)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["rows"]
    return rows


@pytest.mark.slow
def test_a_tiny_run_measures_itself_and_its_peers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, page = tmp_path / "run", tmp_path / "performance.md"
    command = (*SYNTHETIC, "--sections=evaluation", f"--workdir={folder}", f"--report={page}")
    assert run_main(*command) == 0
    rows = {row["method"]: row for row in rows_of(folder)}
    assert {sections.EXACT, sections.TREE, sections.GRADIENT, sections.TFD} < rows.keys()
    for row in rows.values():
        assert (row["seconds"] is None) == (row["note"] is not None)
        if row["seconds"] is None:
            continue
        assert row["repeats"] == 2
        assert row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
        assert row["log_prob_error_over_bound"] <= 1.0
        base = rows[sections.EXACT]["seconds"]
        assert row["times_base"] == pytest.approx(row["seconds"] / base)
    assert rows[sections.EXACT]["index_entropy_error_over_bound"] <= 1.0
    assert rows[sections.TREE]["mean_visited"] <= 300
    with (folder / "results.csv").open(encoding="utf-8") as file:
        assert [row["method"] for row in csv.DictReader(file)] == list(rows)
    text = page.read_text(encoding="utf-8")
    assert text == (folder / "report.md").read_text(encoding="utf-8")
    for part in ("2 cores", "python -m benchmarks.run", "synthetic, of no VAE", sections.TFD):
        assert part in text or part == "2 cores"
    assert not list(folder.glob("*.np[yz]"))

    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    capsys.readouterr()
    assert run_main(*command) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert run_main(*command, "--repeats=3") == 1
    assert "repeats was 2, is 3" in capsys.readouterr().err


@pytest.mark.slow
def test_the_other_sections_on_the_codes_of_a_run(tmp_path: Path) -> None:
    # A process of its own, as a user starts it; it makes the run that the codes come from.
    folder = tmp_path / "run"
    arguments = (
        "--sections=small_scales,marginals,scaling,surgery,training",
        *("--dataset=digits", "--epochs=1", "--hidden_sizes=8", "--latent_sizes=2"),
        *("--surgery_latent_size=2", f"--codes_run={tmp_path / 'codes'}", *TINY),
    )
    subprocess.run(
        [sys.executable, "-m", "benchmarks.run", *arguments, f"--workdir={folder}"], check=True
    )
    rows = rows_of(folder)
    assert list(dict.fromkeys(row["section"] for row in rows)) == [
        *("small_scales", "marginals", "scaling, compilation"),
        *("scaling, M fixed", "scaling, M = N", "surgery", "training"),
    ]
    for row in rows:
        for name in ("log_prob_error_over_bound", "index_entropy_error_over_bound"):
            assert row[name] is None or row[name] <= 1.0, row
    training = {row["method"]: row for row in rows if row["section"] == "training"}
    losses = [row["loss"] for row in training.values() if row["loss"] is not None]
    assert len(losses) >= 2
    assert max(losses) < 1.2 * min(losses)
    surgery = {row["method"]: row for row in rows if row["section"] == "surgery"}
    assert surgery[sections.SURGERY]["num_components"] == 1500
    assert surgery[sections.NETWORKS]["times_base"] == 1.0
    assert surgery[sections.SURGERY_TREE]["times_base"] > 0.0
    text = (folder / "report.md").read_text(encoding="utf-8")
    for title in ("Narrower", "marginals log", "Growth with N", "whole of", "Training"):
        assert title in text
    assert "digits, binarization fixed" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sections=speed",), "takes some of evaluation"),
        (("--sections=",), "got none"),
        (("--sections=training",), "leave out --synthetic"),
        (("--latent_sizes=0",), "integers from 1 on"),
        (("--latent_sizes=two",), "got two"),
        (("--repeats=0",), "--repeats must be at least 1"),
        (("something",), "unexpected arguments: something"),
    ],
)
def test_settings_that_do_not_work(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command = (*SYNTHETIC, "--sections=evaluation", f"--workdir={folder}", *arguments)
    assert run_main(*command) == 1
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_a_surgery_needs_a_model_of_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run_main("--latent_sizes=2", "--sections=surgery", f"--workdir={folder}") == 1
    assert "--surgery_latent_size=20 is none of --latent_sizes" in capsys.readouterr().err
