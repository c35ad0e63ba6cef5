"""The folder of a run: whose it is, how far it has come, and files that are whole or not there."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from matplotlib.figure import Figure

from tfp_surgery.files import UNFINISHED, replaced_when_whole

CONFIG_FILE = "config.json"
RESULTS_FILE = "results.json"
# Raised when parts that were made before do not go with those made now: other fields or draws.
_FORMAT = 3
_PACKAGES = ("tensorflow", "tensorflow-probability", "keras", "numpy", "tfp-surgery")

Record = dict[str, Any]


class Run:
    """A run of an experiment in a folder of its own, which goes on where it was stopped.

    The folder holds the settings (`config.json`), a JSON file for each finished part, and at the
    end the records of all parts (`results.json`, `results.csv`) and, of several training runs, what
    they say together (`summary.csv`). What is there is never written over.

    Attributes:
      folder: the folder.
      is_finished: whether the run with these settings was finished before.
    """

    def __init__(
        self, folder: Path, experiment: str, config: Mapping[str, Any], fields: Collection[str] = ()
    ) -> None:
        """Looks at the folder, and changes nothing.

        Args:
          folder: the folder, which need not exist.
          experiment: name of the experiment.
          config: its settings, in types that JSON knows.
          fields: what the record of a part has at least.

        Raises:
          OSError: if `folder` is no folder, or cannot be written to.
          ValueError: if it holds something else: other files, or a run with other settings.
        """
        self.folder = folder
        self._experiment = experiment
        self._config = dict(config)
        self._fields = set(fields)
        self._dataset: Any = None
        _check_writable(folder)
        is_new = not folder.exists() or all(
            path.name.startswith(UNFINISHED) for path in folder.iterdir()
        )
        if not is_new:
            self._check_same_run()
        self._goes_on = not is_new
        self.is_finished = (folder / RESULTS_FILE).is_file()

    def show(self, table: Callable[[list[Record]], str]) -> list[Record]:
        """Prints the results of a run that was finished before.

        Args:
          table: makes the table of the records.

        Returns:
          The records of all parts.

        Raises:
          ValueError: if the file of the results is damaged.
        """
        path = self.folder / RESULTS_FILE
        content = read_json(path)
        records = content.get("results") if isinstance(content, dict) else None
        if not (isinstance(records, list) and records and all(map(self._is_record, records))):
            _raise_damaged(path)
        print(
            f"{self.folder} holds the finished run of these settings; nothing was changed.\n\n"
            f"{table(records)}",
            flush=True,
        )
        return records

    def begin(self, dataset: Mapping[str, Any], subject: str) -> None:
        """Makes the folder, or clears what a killed run left half written; says what is to be done.

        Args:
          dataset: what names the data set, in types that JSON knows.
          subject: what is measured.

        Raises:
          OSError: if the folder cannot be made or written to.
        """
        self._dataset = dict(dataset)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.rglob(f"{UNFINISHED}*"):
                path.unlink()
            if not self._goes_on:
                description = {
                    "experiment": self._experiment,
                    "format": _FORMAT,
                    "config": self._config,
                    "dataset": self._dataset,
                    "versions": versions(),
                }
                write_json(self.folder / CONFIG_FILE, description)
        except OSError as error:
            raise OSError(f"--workdir={self.folder} cannot be written to: {error}") from error
        print(f"{'Going on with' if self._goes_on else 'New run in'} {self.folder}\n{subject}")
        before = read_json(self.folder / CONFIG_FILE)["versions"]
        changed = [
            f"{name} {before.get(name)} -> {version}"
            for name, version in versions().items()
            if before.get(name) != version
        ]
        if changed:
            print(
                f"Warning: this run was begun with other versions ({', '.join(changed)}): numbers "
                "may differ."
            )
        print(end="", flush=True)

    def part(self, name: str, label: str, make: Callable[[], Record]) -> Record:
        """The record of a part: as it was written, or made and written now.

        Args:
          name: of its file, without the ending, below the folder of the run.
          label: what is printed of it.
          make: makes the record, in types that JSON knows.

        Returns:
          The record.

        Raises:
          ValueError: if there is a record, and it is damaged.
        """
        path = self.folder / f"{name}.json"
        if path.exists():
            record: Record = read_json(path)
            if not self._is_record(record):
                _raise_damaged(path)
            print(f"{label}: done before.", flush=True)
            return record
        path.parent.mkdir(parents=True, exist_ok=True)
        record = make()
        write_json(path, record)  # where it is, this part is done
        return record

    def finish(
        self,
        records: list[Record],
        rows: Sequence[Mapping[str, Any]],
        table: Callable[[list[Record]], str],
        summary: Sequence[Mapping[str, Any]] = (),
        **content: Any,
    ) -> list[Record]:
        """Writes the results of all parts and prints them.

        Args:
          records: of all parts.
          rows: of `results.csv`; see `write_csv`.
          table: makes the table of the records.
          summary: rows of `summary.csv`, over training runs; there is no such file without any.
          **content: what else `results.json` has, in types that JSON knows.

        Returns:
          The records.
        """
        write_csv(self.folder / "results.csv", rows)
        if summary:
            write_csv(self.folder / "summary.csv", summary)
            content["summary"] = list(summary)
        # Written last: where it is, the run is finished.
        write_json(
            self.folder / RESULTS_FILE,
            {
                "dataset": self._dataset,
                "config": self._config,
                "versions": versions(),
                **content,
                "results": records,
            },
        )
        print(f"\n{table(records)}\n\nWritten to {self.folder}", flush=True)
        return records

    def write_figure(self, name: str, figure: Figure) -> None:
        """Writes a figure into the folder of figures, whole or not at all.

        Args:
          name: of its file, without the ending, below the folder of figures.
          figure: the figure.
        """
        path = self.folder / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_when_whole(path) as unfinished:
            figure.savefig(unfinished, dpi=150, format="png")

    def _is_record(self, value: Any) -> bool:
        return isinstance(value, dict) and self._fields <= value.keys()

    def _check_same_run(self) -> None:
        path, where = self.folder / CONFIG_FILE, f"--workdir={self.folder}"
        if not path.is_file():
            raise ValueError(
                f"{where} is not empty and holds no run of {self._experiment} (there is no "
                f"{CONFIG_FILE}): name an empty or new folder. Nothing was changed."
            )
        found = read_json(path)
        if not isinstance(found, dict) or found.get("experiment") != self._experiment:
            raise ValueError(
                f"{where} holds something other than a run of {self._experiment}: name an empty "
                "or new folder. Nothing was changed."
            )
        if found.get("format") != _FORMAT:
            raise ValueError(
                f"{where} holds a run of another version of {self._experiment}, whose parts do not "
                "go with those of this one: name an empty or new folder. Nothing was changed."
            )
        before = found.get("config")
        if not (isinstance(before, dict) and isinstance(found.get("versions"), dict)):
            raise ValueError(f"{path} is damaged: the run cannot go on from it.")
        differing = [
            f"{name} was {before.get(name)!r}, is {self._config.get(name)!r}"
            for name in {**before, **self._config}
            if before.get(name) != self._config.get(name)
        ]
        if differing:
            raise ValueError(
                f"{where} holds a run with other settings ({'; '.join(differing)}): give the same "
                "settings to go on with it, or name another folder. Nothing was changed."
            )


def settings_of(flag: str, folder: Path, experiment: str) -> dict[str, Any]:
    """The settings of a run that another one reads.

    Args:
      flag: which names the folder.
      folder: of the run.
      experiment: whose run it must be.

    Returns:
      The settings, in types that JSON knows.

    Raises:
      ValueError: if the folder holds no such run, or one of another version.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"--{flag}={folder} holds no run of experiments.{experiment}.")
    description = read_json(path)
    if not isinstance(description, dict) or description.get("experiment") != experiment:
        raise ValueError(f"--{flag}={folder} holds something other than a run of {experiment}.")
    if description.get("format") != _FORMAT:
        raise ValueError(
            f"--{flag}={folder} holds a run of another version of {experiment}, whose files this "
            "one does not read: make that run anew in an empty folder."
        )
    settings = description.get("config")
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is damaged: it holds no settings.")
    return settings


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
    """Writes CSV, whole or not at all.

    Args:
      path: the file.
      rows: with the same keys. `{"value", "standard_error"}` of an estimate becomes two columns,
        three with a population standard error, a list one text, None an empty cell.
    """
    estimates = {name for row in rows for name, value in row.items() if isinstance(value, Mapping)}
    buffer = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        cells: dict[str, Any] = {}
        for name, value in row.items():
            if name in estimates:
                entry = value or {}
                cells[name] = entry.get("value")
                for key in ("standard_error", "population_standard_error"):
                    if any(key in (other[name] or {}) for other in rows):
                        cells[f"{name}_{key}"] = entry.get(key)
            else:
                cells[name] = " ".join(map(str, value)) if isinstance(value, list) else value
        if writer is None:
            writer = csv.DictWriter(buffer, fieldnames=list(cells), lineterminator="\n")
            writer.writeheader()
        writer.writerow(cells)
    _write_text(path, buffer.getvalue())


def _write_text(path: Path, text: str) -> None:
    with replaced_when_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _check_writable(folder: Path) -> None:
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"--workdir={folder}: {nearest} is a file, not a folder.")
    if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(f"--workdir={folder}: there is no permission to write in {nearest}.")


def _raise_damaged(path: Path) -> NoReturn:
    raise ValueError(f"{path} is damaged, it holds no results: delete it to have it made anew.")
