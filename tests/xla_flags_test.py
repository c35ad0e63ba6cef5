"""What importing tfp_surgery does to XLA_FLAGS, each time in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from tfp_surgery.xla_flags import FLAG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not tf.__version__.startswith("2.21."), reason="the flag is one of TensorFlow 2.21"
    ),
]

IMPORT = "import os; import tfp_surgery; print(os.environ.get('XLA_FLAGS'))"
FAKE_VERSION = "import tensorflow as tf; tf.__version__ = '{}'; "
COMPILE = "import tensorflow as tf; tf.function(lambda: tf.ones(3), jit_compile=True)(); "
SAFE = """
import os, warnings
from tfp_surgery.log_density import compiled
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    safe = [compiled.threads_are_safe() for _ in range(2)]
print(safe, sum("YNN fusions" in str(each.message) for each in caught), os.environ.get("XLA_FLAGS"))
"""


def printed(code: str, xla_flags: str | None = None) -> str:
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    environment.pop("XLA_FLAGS", None)
    if xla_flags is not None:
        environment["XLA_FLAGS"] = xla_flags
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, FLAG),
        ("--xla_cpu_multi_thread_eigen=true", f"{FLAG} --xla_cpu_multi_thread_eigen=true"),
        (f"{FLAG}individual_dot", f"{FLAG}individual_dot"),
        ("/a/file/of/flags", "/a/file/of/flags"),
    ],
)
def test_the_flag_is_added_to_what_the_user_has_set(before: str | None, after: str) -> None:
    assert printed(IMPORT, before) == after


@pytest.mark.parametrize("version", ["2.20.0", "2.22.0"])
def test_a_version_that_is_not_known_to_have_the_flag_is_left_alone(version: str) -> None:
    assert printed(FAKE_VERSION.format(version) + IMPORT) == "None"


def test_fusions_are_off_and_the_flag_is_withdrawn_once_it_is_read() -> None:
    assert printed(SAFE) == "[True, True] 0 None"
    assert printed(SAFE, "--xla_cpu_multi_thread_eigen=true").endswith(
        " 0 --xla_cpu_multi_thread_eigen=true"
    )


def test_a_flag_that_comes_too_late_is_told_once() -> None:
    assert printed(COMPILE + SAFE).startswith("[False, False] 1")


def test_fusions_that_the_user_asks_for_are_told_and_kept() -> None:
    assert printed(SAFE, f"{FLAG}reduce") == f"[False, False] 1 {FLAG}reduce"
    assert printed(SAFE, f"{FLAG}individual_dot") == f"[True, True] 0 {FLAG}individual_dot"


def test_what_xla_makes_decides_where_no_flag_is_set() -> None:
    assert printed(FAKE_VERSION.format("2.22.0") + SAFE) == "[False, False] 1 None"
