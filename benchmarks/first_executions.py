r"""Runs XLA programs for the first time in many threads at once, in fresh processes.

    python -m benchmarks.first_executions --processes=3

Each process makes `--shapes` times 32 first executions of a small program of three reductions, each
time at a new shape, and then computes log q(z) and its gradient at new shapes in threads of Python,
which must give what one thread alone gives. With `--fusions` the flag of `tfp_surgery.xla_flags`
comes too late and the small program is compiled nevertheless, as it was before: a death by SIGSEGV
is then possible, but rare: a program like it died in one of three processes of 100 shapes, on two
busy cores, this one in none of four.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

THREADS = 32
_MIXTURE_THREADS = 6
_COLUMNS = 256


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_integer("processes", 3, "fresh processes, one after another", flag_values=values)
    flags.DEFINE_integer("shapes", 100, "new shapes of the small program", flag_values=values)
    flags.DEFINE_integer("mixtures", 2, "new shapes of log q(z)", flag_values=values)
    flags.DEFINE_boolean("fusions", False, "compile before the import", flag_values=values)
    flags.DEFINE_boolean("worker", False, "be one of the processes", flag_values=values)


def first_executions(shapes: int, fusions: bool) -> int:
    """Runs the small program at new shapes, each in `THREADS` threads of TensorFlow at once.

    Args:
      shapes: How many.
      fusions: Whether to compile the program where that is not safe.

    Returns:
      The number of executions.

    Raises:
      RuntimeError: If threads differ.
    """
    import tensorflow as tf

    from tfp_surgery.log_density.compiled import compiled

    def reductions(x: Any) -> Any:
        # Each has a constant of its own, without which a fusion has nothing to append.
        return [reduce(x, axis=1) for reduce in (tf.reduce_sum, tf.reduce_max, tf.reduce_min)]

    program = (
        tf.function(reductions, jit_compile=True, autograph=False)
        if fusions
        else compiled(reductions)
    )

    @tf.function(autograph=False)
    def at_once(x: Any) -> Any:
        # Different inputs: equal calls would be merged into one.
        return [program(x + float(i)) for i in range(THREADS)]

    for k in range(shapes):
        x = tf.reshape(tf.range((129 + k) * _COLUMNS) % 251, [-1, _COLUMNS])
        largest = tf.stack([out[1] for out in at_once(tf.cast(x, tf.float32))])  # [threads, rows]
        if not bool(tf.reduce_all(largest - largest[0] == tf.range(float(THREADS))[:, None])):
            raise RuntimeError(f"threads differ at {129 + k} rows.")
    return shapes * THREADS


def mixtures_in_threads(shapes: int) -> int:
    """Computes log q(z) and its gradient at new shapes, first in several threads, then in one.

    Args:
      shapes: How many.

    Returns:
      The number of executions by threads.

    Raises:
      RuntimeError: If a thread gets another result than one alone.
    """
    import numpy as np
    import tensorflow as tf
    import tensorflow_probability as tfp

    import tfp_surgery as tfs

    tfd = tfp.distributions

    def compute(distribution: Any, queries: Any) -> tuple[np.ndarray, np.ndarray]:
        with tf.GradientTape() as tape:
            tape.watch(queries)
            log_prob = distribution.log_prob(queries)
        return log_prob.numpy(), tape.gradient(log_prob, queries).numpy()

    done = 0
    for k in range(shapes):
        rng = np.random.default_rng(k)
        loc = rng.normal(size=[4200 + k, 6]).astype(np.float32)
        z = tf.constant(loc[rng.integers(len(loc), size=8200 + k)] + np.float32(0.1))
        scale = np.float32(0.3)
        kinds = (  # the screened pass, and the one that is compiled as a whole
            (tfd.MultivariateNormalDiag(loc, np.full_like(loc, scale)), z),
            (tfd.MultivariateNormalTriL(loc, scale * np.eye(6, dtype=np.float32)), z[: 500 + k]),
        )
        for components, queries in kinds:
            distribution = tfs.AggregatePosterior(components)
            results: list[Any] = [None] * _MIXTURE_THREADS
            barrier = threading.Barrier(_MIXTURE_THREADS)

            def work(
                i: int, distribution: Any, queries: Any, results: list[Any], barrier: Any
            ) -> None:
                barrier.wait()
                results[i] = compute(distribution, queries)

            threads = [
                threading.Thread(target=work, args=(i, distribution, queries, results, barrier))
                for i in range(_MIXTURE_THREADS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            alone = compute(distribution, queries)
            for result in results:
                if result is None or not all(map(np.array_equal, result, alone)):
                    raise RuntimeError(f"a thread differs from one alone: {components.name}, {k}.")
            done += _MIXTURE_THREADS
    return done


def run_processes(processes: int, arguments: Sequence[str]) -> list[int]:
    """Runs the worker in fresh processes.

    Args:
      processes: How many, one after another.
      arguments: Flags of the worker.

    Returns:
      The exit code of each; -11 is SIGSEGV.
    """
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks.first_executions", "--worker", *arguments]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "PYTHONPATH": str(root)}
    environment.pop("XLA_FLAGS", None)
    return [
        subprocess.run(command, cwd=root, env=environment, check=False).returncode
        for _ in range(processes)
    ]


def _work(shapes: int, mixtures: int, fusions: bool) -> None:
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    if fusions:
        tf.function(lambda x: x + 1.0, jit_compile=True)(tf.zeros([]))
    done = first_executions(shapes, fusions) + mixtures_in_threads(mixtures)
    print(f"{done} first executions at new shapes by threads at once")


def main(argv: Sequence[str]) -> None:
    del argv
    values = flags.FLAGS
    if values.worker:
        _work(values.shapes, values.mixtures, values.fusions)
        return
    arguments = [
        f"--shapes={values.shapes}",
        f"--mixtures={values.mixtures}",
        f"--fusions={values.fusions}",
    ]
    codes = run_processes(values.processes, arguments)
    print(f"exit codes: {codes}")
    sys.exit(int(any(codes)))


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
