from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from benchmarks.measure import Method, Task, UnavailableError, side_by_side

MIB = 2**20


def task(label: str, function: str, requires: tuple[str, ...] = (), **arguments: Any) -> Task:
    return Task(label, __name__, function, arguments, requires)


# -- methods, which run in other processes


def allocating(mib: int) -> Method:
    loaded = np.ones(100 * MIB, np.uint8)  # data: not counted

    def run(_: int) -> dict[str, Any]:
        return {"sum": int(np.ones(mib * MIB, np.uint8).sum()) + int(loaded[0]) - 1}

    return Method(run)


def counting(num_queries: int, chunk: int | None) -> Method:
    asked: list[int] = []

    def run(num_queries: int) -> dict[str, Any]:
        asked.append(num_queries)
        return {"asked": list(asked), "seconds": 0.5 * num_queries}

    return Method(run, num_queries, chunk)


def unavailable() -> Method:
    raise UnavailableError("it has no compiler")


def failing() -> Method:
    def run(_: int) -> dict[str, Any]:
        raise ArithmeticError("no such number")

    return Method(run)


def dying() -> Method:
    def run(_: int) -> dict[str, Any]:
        raise SystemExit(3)

    return Method(run)


def ticking() -> Method:
    def run(_: int) -> dict[str, Any]:
        start = time.monotonic()
        time.sleep(0.02)
        return {"interval": (start, time.monotonic())}

    return Method(run)


# -- tests


def test_the_peak_of_memory_is_that_of_the_calls_above_the_data() -> None:
    measured = side_by_side(
        [task("small", "allocating", mib=4), task("large", "allocating", mib=200)], 2, 1.0
    )
    small, large = measured["small"].peak_mib, measured["large"].peak_mib
    if small is None or large is None:
        pytest.skip("this system does not tell the peak of resident memory")
    # The kernel counts pages in lots of a fraction of a MiB for each thread.
    assert 199 <= large <= 215
    assert 3 <= small <= 19
    assert measured["large"].outputs == {"sum": 200 * MIB}
    assert measured["large"].share == 1.0


def test_all_queries_or_a_share_that_is_scaled_up() -> None:
    tasks = [
        task("whole", "counting", num_queries=7, chunk=None),
        task("share", "counting", num_queries=100, chunk=4),
        task("short", "counting", num_queries=6, chunk=4),
        task("one chunk", "counting", num_queries=3, chunk=4),
    ]
    measured = side_by_side(tasks, 3, share_seconds=20.0)
    assert list(measured) == ["whole", "share", "short", "one chunk"]
    # A chunk of 4 takes 2 seconds: 10 of them take 20.
    assert measured["whole"].outputs["asked"] == [7, 7, 7, 7]
    assert measured["share"].outputs["asked"] == [4, 4, 40, 40, 40]
    assert measured["short"].outputs["asked"] == [4, 4, 4, 4, 4]
    assert measured["one chunk"].outputs["asked"] == [3, 3, 3, 3]
    assert measured["share"].share == 0.4
    assert measured["share"].seconds == (50.0, 50.0, 50.0)
    assert measured["share"].median == 50.0
    assert measured["share"].first_call_seconds == 2.0


def test_a_peer_that_is_not_there_is_left_out_with_a_note(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = [
        task("missing", "allocating", ("numpy", "no_such_package"), mib=1),
        task("unavailable", "unavailable"),
        task("there", "counting", ("numpy",), num_queries=1, chunk=None),
    ]
    measured = side_by_side(tasks, 1, 1.0)
    assert measured["missing"].note == "left out: no_such_package is not installed"
    assert measured["unavailable"].note == "left out: it has no compiler"
    assert measured["missing"].seconds == measured["unavailable"].seconds == ()
    assert measured["there"].note is None
    assert "missing: left out: no_such_package is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "message"),
    [("failing", "a method failed.*no such number"), ("dying", "ended with code 3")],
)
def test_a_method_that_fails_ends_the_measurement(function: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        side_by_side([task("a method", function)], 1, 1.0)


def test_one_computes_at_a_time() -> None:
    measured = side_by_side([task("one", "ticking"), task("other", "ticking")], 2, 1.0)
    (start, end), (other_start, _) = (
        measured[name].outputs["interval"] for name in ("one", "other")
    )
    assert start < end <= other_start
