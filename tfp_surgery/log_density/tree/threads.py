"""Threads that share the work of compiled functions, which hold no lock of the interpreter."""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable
from typing import Any


def in_threads(
    function: Callable[..., None], count: int, *arguments: Any, most: int | None = None
) -> None:
    """Calls function(*arguments, start, stop) for ranges that cover 0..count.

    Uses the number of threads that numba is set to. A range has at most `most` entries.
    """
    import numba

    threads = numba.get_num_threads()
    step = max(1, -(-count // (4 * threads)))
    if most is not None:
        step = min(step, most)
    ranges = [(start, min(count, start + step)) for start in range(0, count, step)]
    if threads == 1 or len(ranges) == 1:
        for each in ranges:
            function(*arguments, *each)
        return
    for done in [_pool(threads).submit(function, *arguments, *each) for each in ranges]:
        done.result()


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="component_tree")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)
