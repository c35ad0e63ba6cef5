from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from absl import flags

from experiments.common.command import Command
from experiments.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class Steps(Settings):
    steps: int = setting(3, "how many")


def main(run: Callable[..., Any], *arguments: str, data: bool = True) -> int:
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    command = Command(Steps, run, "from the start", data)
    command.define_flags(values)
    return command.main(values(["run.py", "--workdir=here", *arguments]), values)


def test_the_run_gets_what_the_flags_say() -> None:
    given: list[Any] = []

    def run(config: Steps, folder: Path, data_dir: str | None, manual_dir: str | None) -> None:
        given.extend([config, folder, data_dir, manual_dir])

    assert main(run, "--steps=4", "--manual_dir=there") == 0
    assert given == [Steps(4), Path("here"), None, "there"]
    assert main(lambda config, folder: given.extend([config, folder]), data=False) == 0
    assert given[4:] == [Steps(3), Path("here")]
    with pytest.raises(flags.UnrecognizedFlagError):
        main(run, "--manual_dir=there", data=False)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (ValueError("no epochs"), 1, "error: no epochs\n"),
        (FileNotFoundError("no folder"), 1, "error: no folder\n"),
        (KeyboardInterrupt(), 130, "Stopped; the same command goes on from the start.\n"),
    ],
)
def test_what_stops_the_work_is_one_line_and_a_code(
    error: BaseException | None, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any, **__: Any) -> None:
        if error is not None:
            raise error

    assert main(run) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["a", "b"], "error: unexpected arguments: a b; see --helpshort.\n"),
        (["--steps=0"], "error: --steps must be at least 1, got 0.\n"),
    ],
)
def test_what_is_wrong_is_refused_before_the_work(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Any] = []
    assert main(lambda *given, **_: done.append(given), *arguments) == 1
    assert done == []
    assert capsys.readouterr().err == line


def test_other_errors_are_bugs_and_come_out() -> None:
    def run(*_: Any, **__: Any) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        main(run)
