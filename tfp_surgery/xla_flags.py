"""The flag that keeps XLA from fusions that can end the process; imported before all else.

TensorFlow 2.21 lets YNNPACK do reductions of many elements on CPUs. Such a fusion makes an
executable for each thread that is in it at the same time, when it is first needed, and every time
appends its constants to one vector that belongs to the fusion, without a lock
(`EmitYnnFusionBuilder` in `xla/backends/cpu/ynn_emitter.cc`). Two threads that do so at once can
end the process by SIGSEGV. To run a program once alone is no cure: it leaves one executable, and of
three threads that come next two make theirs at once.

TensorFlow reads XLA_FLAGS once, when XLA first compiles, not when it is imported. An XLA that does
not know a flag aborts the process; TensorFlow 2.20 does not know this one, and has no such fusions.
"""

from __future__ import annotations

import os

import tensorflow as tf

_NAME = "--xla_cpu_experimental_ynn_fusion_type"
FLAG = f"{_NAME}="  # no type


def set_flag() -> bool:
    """Turns the fusions off, where XLA_FLAGS does not name them and does not name a file.

    Returns:
      Whether XLA_FLAGS was changed.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    known = tf.__version__.startswith("2.21.")
    if not known or _NAME in flags or not (flags + "-").startswith("-"):
        return False
    # In front: XLA reads no further than what is no flag.
    os.environ["XLA_FLAGS"] = f"{FLAG} {flags}".strip()
    return True


def withdraw_flag() -> None:
    """Takes the flag out of the environment again, once XLA has read it.

    Another XLA in this process or in a child, such as an older JAX, may not know it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if IS_SET and flags.split(" ")[0] == FLAG:
        os.environ["XLA_FLAGS"] = flags.removeprefix(FLAG).strip()
        if not os.environ["XLA_FLAGS"]:
            del os.environ["XLA_FLAGS"]


IS_SET = set_flag()
