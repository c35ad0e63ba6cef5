"""Atomic replacement of files, and errors of loading them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Prefix of the names of incomplete files, which a killed process may leave behind.
UNFINISHED = ".unfinished-"


@contextmanager
def replaced_when_whole(filepath: str | Path) -> Iterator[Path]:
    """Replaces a file atomically when the body of the context succeeds.

    If the process is killed while it writes, the earlier file remains unchanged.

    Args:
      filepath: The file to replace.

    Yields:
      The path to write to, in the same folder and with the same suffix.
    """
    filepath = Path(filepath)
    unfinished = filepath.with_name(f"{UNFINISHED}{filepath.name}")
    try:
        yield unfinished
        unfinished.replace(filepath)
    finally:
        unfinished.unlink(missing_ok=True)


def cause_of(error: Exception) -> str:
    """Returns the message of a loading error without the model configuration that Keras adds.

    Args:
      error: Error raised by Keras while it loaded a model or weights.

    Returns:
      The message, which ends with a period.
    """
    innermost = str(error).rpartition("Exception encountered: ")[2]
    text = re.split(r"Full object config:|\n\nconfig=|List of objects", innermost)[0].strip()
    return text if text.endswith(".") else f"{text}."
