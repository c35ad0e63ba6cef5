"""An experiment as a command: what the shell gets back, and what a user reads when it stops."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging


def exit_code(argv: Sequence[str], work: Callable[[], Any], goes_on: str) -> int:
    """Does the work of a command, and tells what stops it in one line.

    Args:
      argv: the arguments that are no flags, the name of the command first.
      work: what the flags ask for.
      goes_on: where the same command goes on after it was interrupted.

    Returns:
      What the command returns to the shell.
    """
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments: {' '.join(argv[1:])}; see --helpshort.")
        work()
    except (OSError, ValueError) as error:
        logging.debug("where it happened:", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Stopped; the same command goes on {goes_on}.", file=sys.stderr)
        return 130
    return 0
