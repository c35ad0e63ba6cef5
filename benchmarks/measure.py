"""Methods measured side by side: each in a process of its own, called in turn.

Only one of the processes computes at a time, and the repeats go round all methods, so that what
slows the machine down for a while slows all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import importlib.util
import math
import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class UnavailableError(Exception):
    """A method cannot run on this machine; the message says why."""


@dataclasses.dataclass(frozen=True)
class Method:
    """What a process calls.

    Attributes:
      run: takes a number of queries, the first ones of the data, and returns what it has computed;
        `seconds` among that is taken for its time.
      num_queries: how many there are.
      chunk: queries that the method takes at a time where its cost is proportional to the number
        of chunks; such a method may be timed on a share of the queries. None: always all of them.
    """

    run: Callable[[int], Mapping[str, Any]]
    num_queries: int = 1
    chunk: int | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A method by name, since it is made in another process.

    Attributes:
      label: its name in tables.
      module: module of the function that makes the `Method`.
      function: name of that function. It imports what it needs and loads its data; memory is
        counted from there.
      arguments: of the function.
      requires: names of the packages without which it is left out.
      on_gpu: whether the process may see a GPU.
    """

    label: str
    module: str
    function: str
    arguments: Mapping[str, Any]
    requires: tuple[str, ...] = ()
    on_gpu: bool = False


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was measured of a task.

    Attributes:
      label: of the task.
      seconds: of each repeat, scaled up to all queries; empty if the method was left out.
      share: of the queries that was timed.
      first_call_seconds: of the first call, which compiles; not scaled.
      peak_mib: peak resident memory above that after imports and data, None where the system does
        not tell.
      outputs: of the last call.
      note: why the method was left out, or None.
    """

    label: str
    seconds: tuple[float, ...] = ()
    share: float = 1.0
    first_call_seconds: float = math.nan
    peak_mib: float | None = None
    outputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str | None = None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


def side_by_side(
    tasks: Sequence[Task], repeats: int, share_seconds: float
) -> dict[str, Measurement]:
    """Measures methods in turn.

    Args:
      tasks: what to measure; labels differ.
      repeats: timed calls of each.
      share_seconds: a method that works in chunks is timed on as many as take about so long.

    Returns:
      The measurements by label, in order.

    Raises:
      RuntimeError: if a method fails.
    """
    notes: dict[str, str] = {}
    workers: dict[str, _Worker] = {}
    try:
        for task in tasks:
            missing = [name for name in task.requires if importlib.util.find_spec(name) is None]
            if missing:
                notes[task.label] = f"left out: {', '.join(missing)} is not installed"
            else:
                worker = _Worker(task)
                try:
                    worker.warm_up(share_seconds)
                except UnavailableError as reason:
                    notes[task.label] = f"left out: {reason}"
                    worker.close()
                else:
                    workers[task.label] = worker
            if task.label in notes:
                print(f"  {task.label}: {notes[task.label]}", flush=True)
        for _ in range(repeats):
            for worker in workers.values():
                worker.repeat()
        return {
            task.label: workers[task.label].measurement()
            if task.label in workers
            else Measurement(task.label, note=notes[task.label])
            for task in tasks
        }
    finally:
        for worker in workers.values():
            worker.close()


class _Worker:
    """A process with one method, and what it has taken so far."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, task), daemon=True)
        self._process.start()
        theirs.close()
        self._label = task.label
        self._seconds: list[float] = []
        self._outputs: Mapping[str, Any] = {}

    def warm_up(self, share_seconds: float) -> None:
        self._num_queries, chunk = self._answer()
        self._timed = self._num_queries if chunk is None else min(chunk, self._num_queries)
        self._first, _ = self._call()
        if chunk is None or self._timed == self._num_queries:
            return
        seconds, _ = self._call()
        chunks = max(1, min(self._num_queries // chunk, round(share_seconds / seconds)))
        self._timed = chunks * chunk

    def repeat(self) -> None:
        seconds, self._outputs = self._call()
        self._seconds.append(seconds * self._num_queries / self._timed)

    def measurement(self) -> Measurement:
        self._connection.send("peak")
        return Measurement(
            self._label,
            tuple(self._seconds),
            self._timed / self._num_queries,
            self._first,
            self._answer(),
            self._outputs,
        )

    def close(self) -> None:
        self._connection.close()  # the process ends when it reads that
        self._process.join(20)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _call(self) -> tuple[float, Mapping[str, Any]]:
        self._connection.send(self._timed)
        answer: tuple[float, Mapping[str, Any]] = self._answer()
        return answer

    def _answer(self) -> Any:
        try:
            kind, content = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"the process of {self._label} ended with code {self._process.exitcode}."
            ) from None
        if kind == "unavailable":
            raise UnavailableError(content)
        if kind == "failed":
            raise RuntimeError(f"{self._label} failed:\n{content}")
        return content


def _serve(connection: Any, task: Task) -> None:
    """Makes the method and calls it as often as it is asked to."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # what matters comes as an exception
    if not task.on_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        method = getattr(importlib.import_module(task.module), task.function)(**task.arguments)
        before = reset_peak()
        connection.send(("ready", (method.num_queries, method.chunk)))
        while True:
            request = connection.recv()
            if request == "peak":
                connection.send(("peak", peak_above(before)))
                continue
            # A tfd.MultivariateNormalDiag refers to itself: the arrays of earlier calls would stay
            # until Python happens to look for such.
            gc.collect()
            start = time.perf_counter()
            outputs = dict(method.run(request))
            seconds = time.perf_counter() - start
            connection.send(("called", (outputs.pop("seconds", seconds), outputs)))
    except (EOFError, BrokenPipeError):  # the other side has closed
        return
    except UnavailableError as reason:
        connection.send(("unavailable", str(reason)))
    except Exception:
        connection.send(("failed", traceback.format_exc()))


def reset_peak() -> int | None:
    """Forgets the peak of this process's resident memory so far, and returns its size now.

    `ru_maxrss` of `getrusage` would not do: a new process inherits it from its parent.

    Returns:
      KiB, or None where there is no /proc.
    """
    with contextlib.suppress(OSError):  # the peak of the imports stays then, and counts
        _CLEAR_REFS.write_text("5")
    return _status("VmRSS")


def peak_above(before: int | None) -> float | None:
    """Peak resident memory since `reset_peak`, above what it returned, in MiB."""
    peak = _status("VmHWM")
    return None if before is None or peak is None else max(0, peak - before) / 1024


def _status(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
