"""Disables XLA fusions of TensorFlow 2.21 that can crash the process; imported first.

TensorFlow 2.21 computes reductions of many elements on CPUs with YNNPACK. Such a fusion builds one
executable for each thread that runs it concurrently, when it is first needed. Each build appends
constants to a vector of the fusion without a lock (`EmitYnnFusionBuilder` in
`xla/backends/cpu/ynn_emitter.cc`), and two concurrent builds can crash the process by SIGSEGV.
Running a program once in a single thread does not help: it builds one executable, and three later
threads build two more concurrently.

TensorFlow reads XLA_FLAGS once, when XLA first compiles, not on import. XLA aborts the process if
it does not know a flag. TensorFlow 2.20 does not know this flag, and has no such fusions.
"""

from __future__ import annotations

import os

import tensorflow as tf

_NAME = "--xla_cpu_experimental_ynn_fusion_type"
FLAG = f"{_NAME}="  # an empty list of fusion types


def set_flag() -> bool:
    """Adds the flag to XLA_FLAGS, unless that already has it or is the name of a file.

    Returns:
      Whether XLA_FLAGS was changed.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    known = tf.__version__.startswith("2.21.")
    if not known or _NAME in flags or not (flags + "-").startswith("-"):
        return False
    # In front, because XLA stops reading at the first word that is not a flag.
    os.environ["XLA_FLAGS"] = f"{FLAG} {flags}".strip()
    return True


def withdraw_flag() -> None:
    """Removes the flag from XLA_FLAGS after XLA has read it.

    Another XLA in this process or in a child process, such as that of an older JAX, may not know
    the flag.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if IS_SET and flags.split(" ")[0] == FLAG:
        os.environ["XLA_FLAGS"] = flags.removeprefix(FLAG).strip()
        if not os.environ["XLA_FLAGS"]:
            del os.environ["XLA_FLAGS"]


IS_SET = set_flag()
