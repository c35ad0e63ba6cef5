"""Compiles functions with XLA if several threads may run the program at once.

`tfp_surgery.xla_flags` turns off those fusions of XLA that are unsafe in several threads. If that
came too late, or if XLA_FLAGS turns them on, functions are not compiled.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfp_surgery import xla_flags

_SIZE = 300  # of a matrix that XLA reduces by such a fusion
_lock = threading.Lock()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that XLA compiles on its first call, if threads may run it at once.

    Args:
      function: Takes (nested) Tensors, None and Python objects.

    Returns:
      The function.
    """

    @functools.cache
    def program(jit_compile: bool | None) -> Any:
        return tf.function(function, jit_compile=jit_compile, autograph=False)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        # None still compiles it as a part of a caller that is compiled.
        traced = program(True if threads_are_safe() else None)
        if tf.executing_eagerly():
            # XLA makes a program for each shape. TensorFlow warns of many tracings in calls only.
            traced.get_concrete_function(*arguments)
        return traced(*arguments)

    return call


def threads_are_safe() -> bool:
    """Returns whether threads may run one XLA program on a CPU at once; warns if not."""
    with _lock:
        return _threads_are_safe()


@functools.cache
def _threads_are_safe() -> bool:
    if tf.__version__.startswith("2.20."):
        return True
    with tf.init_scope():
        # Flags do not tell whether they came in time; the compiled program does.
        program = tf.function(lambda x: tf.reduce_max(x, 1), jit_compile=True, autograph=False)
        compiler = program.experimental_get_compiler_ir(tf.zeros([_SIZE, _SIZE]))
        lowered = compiler(stage="optimized_hlo", platform_name="CPU")
    xla_flags.withdraw_flag()
    if "__ynn_fusion" not in lowered:
        return True
    warnings.warn(
        "XLA's YNN fusions are on, which can end the process where several threads run one "
        "compiled program: something was compiled before tfp_surgery was imported, or XLA_FLAGS "
        "asks for them. log q(z) is therefore computed without XLA, which is slower, and a program "
        "that you compile yourself (jit_compile=True) must not be run by several threads at once. "
        "Import tfp_surgery before anything is compiled, or start Python with "
        f"XLA_FLAGS={xla_flags.FLAG}",
        RuntimeWarning,
        stacklevel=2,
    )
    return False
