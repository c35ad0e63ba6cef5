from __future__ import annotations

import pytest

from experiments.common import command


def _raising(error: BaseException) -> None:
    raise error


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
    def work() -> None:
        if error is not None:
            _raising(error)

    assert command.exit_code(["run.py"], work, "from the start") == code
    assert capsys.readouterr().err == line


def test_other_arguments_than_flags_are_refused_before_the_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done: list[int] = []
    assert command.exit_code(["run.py", "a", "b"], lambda: done.append(1), "") == 1
    assert done == []
    assert capsys.readouterr().err == "error: unexpected arguments: a b; see --helpshort.\n"


def test_other_errors_are_bugs_and_come_out() -> None:
    with pytest.raises(KeyError):
        command.exit_code(["run.py"], lambda: _raising(KeyError("x")), "")
