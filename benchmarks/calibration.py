r"""Measures whether the standard errors of tfp_surgery's estimates are what they claim.

    python -m benchmarks.calibration --workdir=runs/calibration --page=docs/calibration.md

computes every public estimate with many seeds, on data sets of three regimes, and compares it with
a float64 reference: how often 95% intervals cover it, the bias in units of the standard error, and
the ratio of reported to actual standard deviation. What is measured is left in --workdir as
results.json, results.csv and report.md. A run that was stopped goes on with the parts that are
missing when the same command is given again.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime as dt
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import calibration_page, calibration_references
from benchmarks.calibration_cases import REGIMES, case
from benchmarks.calibration_measurements import MEASUREMENTS
from benchmarks.calibration_setting import Setting
from benchmarks.calibration_statistics import calibration

_EXPERIMENT = "calibration"
_COUNTS = ("num_seeds", "num_dear_seeds", "num_data_sets", "num_observations", "num_query")


@dataclasses.dataclass(frozen=True)
class Part:
    """A measurement in a regime, over all observations or over a random subset.

    Attributes:
      measurement: Name in `MEASUREMENTS`.
      setting: What it is computed for.
    """

    measurement: str
    setting: Setting

    @property
    def name(self) -> str:
        """The name of its file, without the ending."""
        setting = self.setting
        observations = "all" if setting.num_query is None else "subset"
        return f"{self.measurement}_{setting.regime}_{observations}"

    @property
    def seconds(self) -> float:
        """About how long it takes."""
        return MEASUREMENTS[self.measurement].seconds * self.setting.num_seeds


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("workdir", None, "folder of the run", required=True, flag_values=values)
    flags.DEFINE_string("page", None, "further file for the report", flag_values=values)
    flags.DEFINE_list("measurements", list(MEASUREMENTS), "what to calibrate", flag_values=values)
    flags.DEFINE_list("regimes", list(REGIMES), "on what data", flag_values=values)
    flags.DEFINE_integer("num_seeds", 500, "seeds of most measurements", flag_values=values)
    flags.DEFINE_integer("num_dear_seeds", 100, "seeds of the dear ones", flag_values=values)
    flags.DEFINE_integer(
        "num_data_sets", 300, "data sets drawn from a population", flag_values=values
    )
    flags.DEFINE_integer("num_observations", 200, "N", flag_values=values)
    flags.DEFINE_integer("num_query", 60, "M where it is less than N", flag_values=values)
    flags.DEFINE_integer("processes", 2, "parts computed at a time", flag_values=values)


def run(folder: Path, config: Mapping[str, Any], command: str, processes: int) -> dict[str, Any]:
    """Brings the run in `folder` to its end.

    Args:
      folder: Its folder.
      config: The values of the flags by name, without those of folders and processes.
      command: What started it, for the report.
      processes: Parts computed at a time, each in one thread of a process of its own.

    Returns:
      The content of `results.json`.

    Raises:
      OSError: If the folder cannot be used.
      ValueError: If the folder holds something else, a setting is wrong, or an estimate has neither
        a truth nor a reason why there is none.
    """
    from experiments.common import workdir

    _check(config, processes)
    work = workdir.Run(folder, _EXPERIMENT, config)
    results: dict[str, Any]
    if work.is_finished:
        print(f"{folder} holds the finished run of these settings; nothing was changed.\n")
        results = workdir.read_json(folder / workdir.RESULTS_FILE)
        return results
    parts = parts_of(config)
    work.begin({"regimes": config["regimes"]}, f"{len(parts)} parts in {processes} processes")
    missing = [part for part in parts if not (folder / f"{part.name}.json").exists()]
    print(f"{len(parts) - len(missing)} parts were done before.", flush=True)
    with _pool(min(processes, max(1, len(missing)))) as pool:
        regimes = dict.fromkeys(part.setting.regime for part in missing)
        references = [
            pool.submit(_write_references, folder, regime, config["num_observations"])
            for regime in regimes
            if not _references_file(folder, regime).exists()
        ]
        for written in concurrent.futures.as_completed(references):
            written.result()
        waiting = [pool.submit(_write_record, folder, part) for part in missing]
        for number, done in enumerate(concurrent.futures.as_completed(waiting), start=1):
            if done.exception() is not None:
                pool.shutdown(cancel_futures=True)
            print(f"{number}/{len(missing)} {done.result()}", flush=True)
    records = [workdir.read_json(folder / f"{part.name}.json") for part in parts]
    rows = [row for record in records for row in record["rows"]]
    results = {
        "command": command,
        "date": dt.date.today().isoformat(),
        "versions": workdir.versions(),
        "config": dict(config),
        "seconds": {record["part"]: record["seconds"] for record in records},
        "cpu_seconds": {record["part"]: record["cpu_seconds"] for record in records},
        "rows": rows,
    }
    workdir.write_csv(folder / "results.csv", rows)
    (folder / "report.md").write_text(calibration_page.markdown(results), encoding="utf-8")
    # Written last: where it is, the run is finished.
    workdir.write_json(folder / workdir.RESULTS_FILE, results)
    return results


def parts_of(config: Mapping[str, Any]) -> list[Part]:
    """Returns the parts of a run, the longest first."""
    parts = []
    for name in config["measurements"]:
        measurement = MEASUREMENTS[name]
        queries = (None, config["num_query"]) if measurement.with_query else (None,)
        for regime in config["regimes"]:
            for num_query in queries:
                setting = Setting(
                    regime, config["num_observations"], num_query, config[measurement.seeds]
                )
                parts.append(Part(name, setting))
    return sorted(parts, key=lambda part: -part.seconds)


def record_of(folder: Path, part: Part) -> dict[str, Any]:
    """Computes a part.

    Args:
      folder: That of the run, with the references of its regime.
      part: The part.

    Returns:
      Its name, its duration and CPU time in seconds, and its rows, JSON-ready.

    Raises:
      ValueError: If an estimate has neither a truth nor a reason why there is none.
    """
    began, cpu_began = time.perf_counter(), time.process_time()
    with np.load(_references_file(folder, part.setting.regime)) as file:
        means = dict(file)
    found = MEASUREMENTS[part.measurement].run(part.setting, means)
    unknown = sorted(set(found.estimates) - set(found.truths))
    if unknown:
        raise ValueError(
            f"{part.measurement} has estimates without a truth: {', '.join(unknown)}. Name one in "
            "benchmarks/calibration_measurements.py, or the reason why there is none."
        )
    heading = {
        "measurement": part.measurement,
        "regime": part.setting.regime,
        "num_query": part.setting.num_query,
    }
    rows = [
        {**heading, "estimate": name, **calibration(estimates, found.truths[name])}
        for name, estimates in found.estimates.items()
    ]
    return {
        "part": part.name,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu_began,
        "rows": rows,
    }


def _write_record(folder: Path, part: Part) -> str:
    """Computes a part and writes its file; returns its name and duration."""
    from experiments.common import workdir

    record = record_of(folder, part)
    workdir.write_json(folder / f"{part.name}.json", record)
    return f"{part.name}: {record['seconds']:.0f} s, {record['cpu_seconds']:.0f} of the CPU"


def _references_file(folder: Path, regime: str) -> Path:
    return folder / f"references_{regime}.npz"


def _write_references(folder: Path, regime: str, num_observations: int) -> None:
    from tfp_surgery.files import replaced_when_whole

    means: dict[str, Any] = calibration_references.code_expectations(case(regime, num_observations))
    path = _references_file(folder, regime)
    with replaced_when_whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **means)


def _pool(processes: int) -> concurrent.futures.Executor:
    return concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_begin_process
    )


def _begin_process() -> None:
    """Keeps to one thread, since there is a process for each core."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _check(config: Mapping[str, Any], processes: int) -> None:
    for name, known in (("measurements", MEASUREMENTS), ("regimes", REGIMES)):
        unknown = sorted(set(config[name]) - set(known))
        if unknown or not config[name]:
            given = ",".join(config[name]) or "none"
            raise ValueError(f"--{name} takes some of {', '.join(known)}, got {given}.")
    for name in _COUNTS:
        if config[name] < 2:
            raise ValueError(f"--{name} must be at least 2, got {config[name]}.")
    if config["num_query"] >= config["num_observations"]:
        raise ValueError(
            f"--num_query={config['num_query']} must be less than "
            f"--num_observations={config['num_observations']}."
        )
    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}.")


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Measures what the flags describe."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments: {' '.join(argv[1:])}; see --help.")
        given = values.flag_values_dict()
        config = {name: given[name] for name in ("measurements", "regimes", *_COUNTS)}
        command = f"python -m benchmarks.calibration {shlex.join(sys.argv[1:])}"
        results = run(Path(values.workdir), config, command, values.processes)
        page = calibration_page.markdown(results)
        print(page, flush=True)
        if values.page is not None:
            Path(values.page).write_text(page, encoding="utf-8")
    except (OSError, ValueError, BrokenProcessPool) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on with the parts that are missing.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    define_flags(flags.FLAGS)
    app.run(main)
