"""TensorFlow's start-up lines and warnings of tracing do not reach who runs an experiment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).absolute().parents[2]


def stderr_of(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    ).stderr


def test_a_command_starts_quietly() -> None:
    arguments = ["-m", "experiments.elbo_surgery", "--dataset=none", "--workdir=/no/such"]
    lines = stderr_of(*arguments).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


def test_what_is_written_before_a_failed_start_is_shown() -> None:
    code = """
import os, sys
class Fails:
    def find_spec(self, name, *_):
        if name == "tensorflow":
            os.write(2, b"no such driver\\n")
            raise ImportError("no TensorFlow")
sys.meta_path.insert(0, Fails())
import experiments
"""
    stderr = stderr_of("-c", code)
    assert stderr.startswith("no such driver\n")
    assert stderr.endswith("ImportError: no TensorFlow\n")


@pytest.mark.slow
def test_the_demo_says_nothing_on_stderr(tmp_path: Path) -> None:
    arguments = ["--dataset=digits", "--epochs=5", f"--workdir={tmp_path / 'run'}"]
    assert stderr_of("-m", "experiments.elbo_surgery", *arguments) == ""
    assert (tmp_path / "run" / "results.json").is_file()
