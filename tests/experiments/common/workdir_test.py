"""Tests of the folder of a run."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
from matplotlib.figure import Figure

from experiments.common import workdir
from experiments.common.workdir import State

CONFIG: dict[str, Any] = {"epochs": 3, "latent_sizes": [2, 10]}
DATASET = {"name": "digits"}


def snapshot(folder: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_run_is_new_then_begun_then_finished(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "runs" / "first"
    assert workdir.find_state(folder, "surgery", CONFIG) is State.NEW
    assert not folder.parent.exists()
    assert workdir.begin(folder, "surgery", CONFIG, DATASET) is None
    assert workdir.find_state(folder, "surgery", CONFIG) is State.BEGUN
    written = workdir.read_json(folder / "config.json")
    assert written["config"] == CONFIG
    assert written["dataset"] == DATASET
    assert set(written["versions"]) == {
        "python", "tensorflow", "tensorflow-probability", "keras", "numpy", "tfp-surgery"
    }  # fmt: skip
    workdir.write_json(folder / "results.json", {"results": []})
    assert workdir.find_state(folder, "surgery", CONFIG) is State.FINISHED


def test_an_empty_folder_is_new(tmp_path: pathlib.Path) -> None:
    assert workdir.find_state(tmp_path, "surgery", CONFIG) is State.NEW
    # What is left where a run was killed while it wrote its first file.
    (tmp_path / ".unfinished-12-config.json").write_text('{"exper')
    assert workdir.find_state(tmp_path, "surgery", CONFIG) is State.NEW
    workdir.begin(tmp_path, "surgery", CONFIG, DATASET)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_going_on_clears_what_was_half_written_and_nothing_else(tmp_path: pathlib.Path) -> None:
    workdir.begin(tmp_path, "surgery", CONFIG, DATASET)
    (tmp_path / "latent_02").mkdir()
    (tmp_path / "latent_02" / "checkpoint.keras").write_text("whole")
    before = snapshot(tmp_path)
    (tmp_path / "latent_02" / ".unfinished-12-checkpoint.keras").write_text("half")
    workdir.begin(tmp_path, "surgery", CONFIG, DATASET)
    assert snapshot(tmp_path) == before


def test_says_which_settings_differ_and_changes_nothing(tmp_path: pathlib.Path) -> None:
    workdir.begin(tmp_path, "surgery", CONFIG, DATASET)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="epochs was 3, is 4") as raised:
        workdir.find_state(tmp_path, "surgery", {**CONFIG, "epochs": 4})
    assert "latent_sizes" not in str(raised.value)
    with pytest.raises(ValueError, match="momentum was None, is 1"):
        workdir.find_state(tmp_path, "surgery", {**CONFIG, "momentum": 1})
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
        workdir.find_state(tmp_path, "surgery", CONFIG)
    assert snapshot(tmp_path) == before


def test_a_file_is_no_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="is a file"):
            workdir.find_state(folder, "surgery", CONFIG)


def test_says_that_a_folder_cannot_be_written_to(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write anywhere, whatever the permissions say: the answer of the system is put on.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK or path != tmp_path)
    with pytest.raises(PermissionError, match="no permission to write"):
        workdir.find_state(tmp_path / "new" / "run", "surgery", CONFIG)


@pytest.mark.skipif(not pathlib.Path("/proc/self").is_dir(), reason="there is no /proc here")
def test_says_that_a_folder_cannot_be_made() -> None:
    with pytest.raises(OSError, match="--workdir=/proc/self/run cannot be written to"):
        workdir.begin(pathlib.Path("/proc/self/run"), "surgery", CONFIG, DATASET)


def test_warns_of_other_versions(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir.begin(tmp_path, "surgery", CONFIG, DATASET)
    now = {**workdir.versions(), "keras": "99.0"}
    monkeypatch.setattr(workdir, "versions", lambda: now)
    warning = workdir.begin(tmp_path, "surgery", CONFIG, DATASET)
    assert warning is not None
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
    workdir.write_csv(path, [{"D": 2, "term": 0.1}, {"D": 10, "term": ""}])
    assert path.read_text() == "D,term\n2,0.1\n10,\n"


def test_a_figure_that_cannot_be_drawn_leaves_the_earlier_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figures" / "terms.png"
    workdir.write_figure(path, Figure())
    before = snapshot(tmp_path)

    def save_half(self: Figure, target: pathlib.Path, **kwargs: Any) -> None:
        del self, kwargs
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", save_half)
    with pytest.raises(OSError, match="no space"):
        workdir.write_figure(path, Figure())
    assert snapshot(tmp_path) == before
    assert path.read_bytes().startswith(b"\x89PNG")
