"""The folder of a run: whose it is, how far it has come, and files that are whole or not there."""

from __future__ import annotations

import csv
import enum
import importlib.metadata
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tfp_surgery.files import UNFINISHED, replaced_when_whole

CONFIG_FILE = "config.json"
RESULTS_FILE = "results.json"

_PACKAGES = ("tensorflow", "tensorflow-probability", "keras", "numpy", "tfp-surgery")


class State(enum.Enum):
    """How far the run of a folder has come."""

    NEW = "new"
    BEGUN = "begun"
    FINISHED = "finished"


def find_state(folder: Path, experiment: str, config: Mapping[str, Any]) -> State:
    """Looks at the folder of a run, and changes nothing.

    Args:
      folder: the folder, which need not exist.
      experiment: name of the experiment.
      config: its settings, in types that JSON knows.

    Returns:
      Whether the run with these settings has begun there, and is finished.

    Raises:
      OSError: if `folder` is no folder, or cannot be written to.
      ValueError: if it holds something else: other files, or a run with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--workdir={folder} is a file, not a folder.")
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"--workdir={folder}: {nearest} is a file, not a folder.")
    if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(f"--workdir={folder}: there is no permission to write in {nearest}.")
    if not folder.exists() or all(path.name.startswith(UNFINISHED) for path in folder.iterdir()):
        return State.NEW
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"--workdir={folder} is not empty and holds no run of {experiment} (there is no "
            f"{CONFIG_FILE}): name an empty or new folder. Nothing was changed."
        )
    _check_same_run(folder, experiment, config)
    return State.FINISHED if (folder / RESULTS_FILE).is_file() else State.BEGUN


def begin(
    folder: Path, experiment: str, config: Mapping[str, Any], dataset: Mapping[str, Any]
) -> str | None:
    """Makes the folder and its `config.json`, or clears what a killed run left half written.

    Args:
      folder: the folder, whose state is NEW or BEGUN.
      experiment: name of the experiment.
      config: its settings, in types that JSON knows.
      dataset: what names the data set.

    Returns:
      A warning where the run was begun with other versions of the software, which may not give
      the same numbers bit for bit.

    Raises:
      OSError: if the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.rglob(f"{UNFINISHED}*"):
            path.unlink()
        if not (folder / CONFIG_FILE).exists():
            description = {
                "experiment": experiment,
                "config": config,
                "dataset": dataset,
                "versions": versions(),
            }
            write_json(folder / CONFIG_FILE, description)
    except OSError as error:
        raise OSError(f"--workdir={folder} cannot be written to: {error}") from error
    before = read_json(folder / CONFIG_FILE).get("versions", {})
    changed = [
        f"{name} {before.get(name)} -> {version}"
        for name, version in versions().items()
        if before.get(name) != version
    ]
    if not changed:
        return None
    return f"this run was begun with other versions ({', '.join(changed)}): numbers may differ."


def announce(folder: Path, state: State, subject: str, warning: str | None) -> None:
    """Prints what is about to be done.

    Args:
      folder: the folder of the run.
      state: what it was found to be.
      subject: what is measured.
      warning: what `begin` returned.
    """
    print(f"{'Going on with' if state is State.BEGUN else 'New run in'} {folder}\n{subject}")
    if warning:
        print(f"Warning: {warning}")
    sys.stdout.flush()


def show_finished(folder: Path, table: str) -> None:
    """Prints the results of a run that was finished before.

    Args:
      folder: the folder of the run.
      table: its results.
    """
    print(f"{folder} holds the finished run of these settings; nothing was changed.\n\n{table}")
    sys.stdout.flush()


def finished_records(path: Path, is_record: Callable[[Any], bool]) -> list[dict[str, Any]]:
    """The records in a results file.

    Args:
      path: the file.
      is_record: whether a value read from JSON can be a record.

    Returns:
      The records, at least one, in order.

    Raises:
      ValueError: if the file is damaged.
    """
    results = read_json(path)
    records = results.get("results") if isinstance(results, dict) else None
    if not (isinstance(records, list) and records and all(map(is_record, records))):
        raise ValueError(f"{path} is damaged, it holds no results: delete it to have it made anew.")
    return records


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # the package itself, run from a checkout
            found[package] = "not installed"
    return found


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      ValueError: if it holds no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it holds no JSON: {error}") from error


def write_json(path: Path, content: Any) -> None:
    """Writes strict JSON, whole or not at all.

    Raises:
      ValueError: if there is NaN or infinity in the content.
    """
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    _write_text(path, f"{text}\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows that have the same keys as CSV, whole or not at all."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write_text(path, buffer.getvalue())


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG, whole or not at all; makes its folder."""
    path.parent.mkdir(exist_ok=True)
    with replaced_when_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png")


def _write_text(path: Path, text: str) -> None:
    with replaced_when_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _check_same_run(folder: Path, experiment: str, config: Mapping[str, Any]) -> None:
    found = read_json(folder / CONFIG_FILE)
    if not isinstance(found, dict) or found.get("experiment") != experiment:
        raise ValueError(
            f"--workdir={folder} holds something other than a run of {experiment}: name an empty "
            "or new folder. Nothing was changed."
        )
    before = found.get("config")
    if not (isinstance(before, dict) and isinstance(found.get("versions"), dict)):
        raise ValueError(f"{folder / CONFIG_FILE} is damaged: the run cannot go on from it.")
    differing = [
        f"{name} was {before.get(name)!r}, is {config.get(name)!r}"
        for name in {**before, **config}
        if before.get(name) != config.get(name)
    ]
    if differing:
        raise ValueError(
            f"--workdir={folder} holds a run with other settings ({'; '.join(differing)}): give "
            "the same settings to go on with it, or name another folder. Nothing was changed."
        )
