from __future__ import annotations

import pytest

from benchmarks.first_executions import THREADS, run_processes


@pytest.mark.slow
def test_a_thousand_first_executions_at_once_in_a_fresh_process() -> None:
    shapes = 40
    assert shapes * THREADS >= 1000
    assert run_processes(1, [f"--shapes={shapes}", "--mixtures=1"]) == [0]
