"""Tests of the folder of a run."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
from matplotlib.figure import Figure

from experiments.common import workdir
from experiments.common.workdir import Run

CONFIG: dict[str, Any] = {"epochs": 3, "latent_sizes": [2, 10]}
DATASET = {"name": "digits"}
RECORDS: list[dict[str, Any]] = [{"D": 2, "term": 0.1}, {"D": 10, "term": 0.2}]


def table(records: list[dict[str, Any]]) -> str:
    return f"{len(records)} records"


def snapshot(folder: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def run_in(folder: pathlib.Path, config: dict[str, Any] = CONFIG) -> Run:
    return Run(folder, "surgery", config, fields=("D", "term"))


def begun(folder: pathlib.Path) -> Run:
    run = run_in(folder)
    run.begin(DATASET, "the digits")
    return run


def test_a_run_is_new_then_begun_then_finished(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "first"
    run = run_in(folder)
    assert not folder.parent.exists()
    run.begin(DATASET, "the digits")
    assert capsys.readouterr().out == f"New run in {folder}\nthe digits\n"
    written = workdir.read_json(folder / "config.json")
    assert written["config"] == CONFIG
    assert written["dataset"] == DATASET
    assert set(written["versions"]) == {
        "python", "tensorflow", "tensorflow-probability", "keras", "numpy", "tfp-surgery"
    }  # fmt: skip

    run = run_in(folder)
    assert not run.is_finished
    run.begin(DATASET, "the digits")
    assert "Going on with" in capsys.readouterr().out
    records = run.finish(RECORDS, RECORDS, table, seconds=3)
    assert records == RECORDS
    assert "2 records" in capsys.readouterr().out
    results = workdir.read_json(folder / "results.json")
    assert results == {
        "dataset": DATASET,
        "config": CONFIG,
        "versions": workdir.versions(),
        "seconds": 3,
        "results": RECORDS,
    }
    assert (folder / "results.csv").read_text() == "D,term\n2,0.1\n10,0.2\n"

    before = snapshot(folder)
    run = run_in(folder)
    assert run.is_finished
    assert run.show(table) == RECORDS
    assert "nothing was changed.\n\n2 records" in capsys.readouterr().out
    assert snapshot(folder) == before


def test_a_part_is_made_once(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def make() -> dict[str, Any]:
        calls.append(1)
        return RECORDS[0]

    run = begun(tmp_path)
    assert run.part("latent_02/record", "D = 2", make) == RECORDS[0]
    assert "done before" not in capsys.readouterr().out
    assert begun(tmp_path).part("latent_02/record", "D = 2", make) == RECORDS[0]
    assert "D = 2: done before.\n" in capsys.readouterr().out
    assert len(calls) == 1
    for damaged in ('{"D": 2}', "[1]"):
        (tmp_path / "latent_02" / "record.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"record\.json is damaged"):
            run.part("latent_02/record", "D = 2", make)


@pytest.mark.parametrize(
    "content", ["{}", '{"results": []}', '{"results": [{"D": 2}]}', "[1]", "{"]
)
def test_damaged_results_are_not_shown(content: str, tmp_path: pathlib.Path) -> None:
    begun(tmp_path)
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json is damaged"):
        run_in(tmp_path).show(table)


def test_a_run_of_another_version_is_not_mixed_with_this_one(tmp_path: pathlib.Path) -> None:
    begun(tmp_path)
    description = workdir.read_json(tmp_path / "config.json")
    for other in ({**description, "format": 1}, {k: description[k] for k in list(description)[2:]}):
        workdir.write_json(tmp_path / "config.json", {**other, "experiment": "surgery"})
        before = snapshot(tmp_path)
        with pytest.raises(ValueError, match="run of another version of surgery"):
            run_in(tmp_path)
        assert snapshot(tmp_path) == before


def test_an_empty_folder_is_new(tmp_path: pathlib.Path) -> None:
    # What is left where a run was killed while it wrote its first file.
    (tmp_path / ".unfinished-12-config.json").write_text('{"exper')
    begun(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_going_on_clears_what_was_half_written_and_nothing_else(tmp_path: pathlib.Path) -> None:
    begun(tmp_path)
    (tmp_path / "latent_02").mkdir()
    (tmp_path / "latent_02" / "checkpoint.keras").write_text("whole")
    before = snapshot(tmp_path)
    (tmp_path / "latent_02" / ".unfinished-12-checkpoint.keras").write_text("half")
    begun(tmp_path)
    assert snapshot(tmp_path) == before


def test_says_which_settings_differ_and_changes_nothing(tmp_path: pathlib.Path) -> None:
    begun(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="epochs was 3, is 4") as raised:
        run_in(tmp_path, {**CONFIG, "epochs": 4})
    assert "latent_sizes" not in str(raised.value)
    with pytest.raises(ValueError, match="momentum was None, is 1"):
        run_in(tmp_path, {**CONFIG, "momentum": 1})
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.tex", "\\section{VAE}", "not empty and holds no run"),
        ("config.json", '{"lr": 1}', "something other than a run"),
        ("config.json", "[1, 2]", "something other than a run"),
        ("config.json", '{"experiment": "another", "config": {}}', "something other than a run"),
        ("config.json", '{"experiment', "damaged"),
    ],
)
def test_a_foreign_folder_is_left_alone(
    name: str, content: str, message: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / name).write_text(content)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=message):
        run_in(tmp_path)
    assert snapshot(tmp_path) == before


def test_a_file_is_no_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="is a file"):
            run_in(folder)


def test_says_that_a_folder_cannot_be_written_to(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write anywhere, whatever the permissions say: the answer of the system is put on.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK or path != tmp_path)
    with pytest.raises(PermissionError, match="no permission to write"):
        run_in(tmp_path / "new" / "run")


@pytest.mark.skipif(not pathlib.Path("/proc/self").is_dir(), reason="there is no /proc here")
def test_says_that_a_folder_cannot_be_made() -> None:
    with pytest.raises(OSError, match=r"--workdir=/proc/self/run.*(cannot be|permission to)"):
        begun(pathlib.Path("/proc/self/run"))


def test_warns_of_other_versions(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path)
    assert "Warning" not in capsys.readouterr().out
    now = {**workdir.versions(), "keras": "99.0"}
    monkeypatch.setattr(workdir, "versions", lambda: now)
    begun(tmp_path)
    warning = capsys.readouterr().out.splitlines()[-1]
    assert warning.startswith("Warning: this run was begun with other versions")
    assert "-> 99.0" in warning
    assert "numpy" not in warning


def test_json_is_strict_and_whole_or_not_there(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.json"
    workdir.write_json(path, {"value": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        workdir.write_json(path, {"value": float("nan")})
    assert workdir.read_json(path) == {"value": 1.5}
    assert list(tmp_path.iterdir()) == [path]


def test_csv_has_a_header_and_a_line_a_row(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.csv"
    workdir.write_csv(path, [{"D": 2, "term": 0.1}, {"D": 10, "term": None}])
    assert path.read_text() == "D,term\n2,0.1\n10,\n"


def test_an_estimate_has_two_columns_of_csv(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.csv"
    estimate = {"value": 1.5, "standard_error": 0.1, "per_observation": [1, 2]}
    rows: list[dict[str, Any]] = [
        {"D": 2, "term": None, "warnings": []},
        {"D": 3, "term": estimate, "warnings": ["One.", "Two."]},
        {
            "D": 4,
            "term": {"value": 2.5, "standard_error": None, "population_standard_error": 0.2},
            "warnings": [],
        },
    ]
    workdir.write_csv(path, rows)
    assert path.read_text() == (
        "D,term,term_standard_error,term_population_standard_error,warnings\n"
        "2,,,,\n3,1.5,0.1,,One. Two.\n4,2.5,,0.2,\n"
    )


def test_what_training_runs_say_together_has_a_file(tmp_path: pathlib.Path) -> None:
    summary = [{"quantity": "term", "mean": 0.15}]
    begun(tmp_path).finish(RECORDS, RECORDS, table, summary)
    assert (tmp_path / "summary.csv").read_text() == "quantity,mean\nterm,0.15\n"
    assert workdir.read_json(tmp_path / "results.json")["summary"] == summary


def test_settings_of_a_run_that_another_one_reads(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"--run=.* holds no run of experiments\.surgery"):
        workdir.settings_of("run", tmp_path, "surgery")
    begun(tmp_path)
    assert workdir.settings_of("run", tmp_path, "surgery") == CONFIG
    with pytest.raises(ValueError, match="something other than a run of priors"):
        workdir.settings_of("run", tmp_path, "priors")
    description = workdir.read_json(tmp_path / "config.json")
    for damage, message in (
        ({"format": 2}, "a run of another version of surgery"),
        ({"config": None}, r"config\.json is damaged"),
    ):
        workdir.write_json(tmp_path / "config.json", {**description, **damage})
        with pytest.raises(ValueError, match=message):
            workdir.settings_of("run", tmp_path, "surgery")


def test_figures_have_folders(tmp_path: pathlib.Path) -> None:
    begun(tmp_path).write_figure("training_seed_1/terms", Figure())
    path = tmp_path / "figures" / "training_seed_1" / "terms.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_cannot_be_drawn_leaves_the_earlier_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = begun(tmp_path), tmp_path / "figures" / "terms.png"
    run.write_figure("terms", Figure())
    before = snapshot(tmp_path)

    def save_half(self: Figure, target: pathlib.Path, **kwargs: Any) -> None:
        del self, kwargs
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", save_half)
    with pytest.raises(OSError, match="no space"):
        run.write_figure("terms", Figure())
    assert snapshot(tmp_path) == before
    assert path.read_bytes().startswith(b"\x89PNG")
