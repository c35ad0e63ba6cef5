"""An experiment as a command: its flags, what the shell gets back, what a user reads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from experiments.common.settings import Settings

flags.disclaim_key_flags()

_DATA_FOLDERS = {
    "data_dir": "folder of prepared TFDS data; TFDS's own if none",
    "manual_dir": "folder with the data set's original files, for machines without network",
}


class Command:
    """The command of an experiment.

    Settings have one name in several experiments: flags are defined when one is started, and not
    when it is imported.
    """

    def __init__(
        self, settings: type[Settings], run: Callable[..., Any], goes_on: str, data: bool = True
    ) -> None:
        """Names the parts.

        Args:
          settings: of the experiment.
          run: brings a run to its end: from settings and folder, and from `data_dir` and
            `manual_dir` by keyword, if the experiment reads data.
          goes_on: where the same command goes on after it was interrupted.
          data: whether the experiment reads data.
        """
        self._settings = settings
        self._run = run
        self._goes_on = goes_on
        self._data_folders = _DATA_FOLDERS if data else {}

    def define_flags(self, values: flags.FlagValues) -> None:
        """Defines the flags.

        Args:
          values: where.
        """
        flags.DEFINE_string(
            "workdir", None, "folder of this run", required=True, flag_values=values
        )
        self._settings.define_flags(values)
        for name, text in self._data_folders.items():
            flags.DEFINE_string(name, None, text, flag_values=values)

    def main(self, argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
        """Runs the experiment that the flags describe, and tells what stops it in one line.

        Args:
          argv: the arguments that are no flags, the name of the command first.
          values: the flags.

        Returns:
          What the command returns to the shell.
        """
        try:
            if len(argv) > 1:
                raise ValueError(f"unexpected arguments: {' '.join(argv[1:])}; see --helpshort.")
            config = self._settings.from_flags(values)
            folders = {name: values[name].value for name in self._data_folders}
            self._run(config, Path(values.workdir), **folders)
        except (OSError, ValueError) as error:
            logging.debug("where it happened:", exc_info=True)
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"Stopped; the same command goes on {self._goes_on}.", file=sys.stderr)
            return 130
        return 0

    def start(self) -> None:
        """Runs the experiment with the arguments of this process, and ends the process."""
        self.define_flags(flags.FLAGS)
        logging.set_verbosity(logging.WARNING)  # TFDS tells every step otherwise
        app.run(self.main)
