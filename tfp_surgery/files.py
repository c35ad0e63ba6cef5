"""Files that are whole or not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How the name of a file begins that is not yet whole: a killed process may leave one.
UNFINISHED = ".unfinished-"


@contextmanager
def replaced_when_whole(filepath: str | Path) -> Iterator[Path]:
    """A file to write beside `filepath`, which it replaces once it is written.

    A process that is killed while it saves leaves the earlier file as it was.

    Args:
      filepath: The file to replace.

    Yields:
      The path to write to, with the same ending.
    """
    filepath = Path(filepath)
    unfinished = filepath.with_name(f"{UNFINISHED}{filepath.name}")
    try:
        yield unfinished
        unfinished.replace(filepath)
    finally:
        unfinished.unlink(missing_ok=True)


def cause_of(error: Exception) -> str:
    """What Keras could not load, without the configuration of the model that it prints along.

    Args:
      error: From loading a model or weights.
    """
    innermost = str(error).rpartition("Exception encountered: ")[2]
    text = re.split(r"Full object config:|\n\nconfig=|List of objects", innermost)[0].strip()
    return text if text.endswith(".") else f"{text}."
