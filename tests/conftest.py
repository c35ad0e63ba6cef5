from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Keeps the collector away from the millions of objects that imports and tests leave alive.

    It took a twentieth of the CPU seconds: tracing makes many objects and few cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
