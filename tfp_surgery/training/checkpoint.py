"""Checkpoints of a training run: one file from which it goes on as if it had not stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import keras

from tfp_surgery.files import cause_of, replaced_when_whole

# What this module adds to the archive that a .keras file is.
_PROGRESS_FILE = "tfp_surgery_progress.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model in the middle or at the end of its training.

    Attributes:
      model: The compiled model, with its weights and the state of its optimizer.
      num_epochs: Number of epochs it was trained for: the `initial_epoch` to go on from.
      seconds: Time spent on them, over all the processes that took part.
    """

    model: keras.Model
    num_epochs: int
    seconds: float


class CheckpointCallback(keras.callbacks.Callback):
    """Saves the model with its optimizer and epoch at the end of epochs, in one file.

    The file is replaced once the new one is whole: a process that is killed at any moment leaves
    the last checkpoint, and loses only the epochs since then. Unlike
    `keras.callbacks.BackupAndRestore` it keeps weights and epoch in one file, so that they cannot
    disagree, and the file stays after training. `load_checkpoint` reads it:

    ```python
    checkpoint = load_checkpoint(path)
    data = dataset.batches(128, seed=0, initial_epoch=checkpoint.num_epochs)
    checkpoint.model.fit(
        data,
        initial_epoch=checkpoint.num_epochs,
        epochs=80,
        callbacks=[CheckpointCallback(path, seconds_before=checkpoint.seconds)],
    )
    ```

    List it after callbacks that stop the training, so that it sees which epoch is the last one.
    What it saves is what training goes on from: where `fit` ends by replacing the weights (an
    optimizer with `use_ema`, `EarlyStopping(restore_best_weights=True)`), the file of the last
    epoch holds the weights from before.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every_seconds: float = 0.0,
        seconds_before: float = 0.0,
    ) -> None:
        """Makes the callback.

        Args:
          path: File to write, in an existing folder; its name ends in `.keras`.
          every_seconds: Time that has to pass from one checkpoint to the next, so that saving
            does not outweigh short epochs; 0 saves after every epoch. The last epoch is always
            saved.
          seconds_before: Time spent on earlier epochs, from the checkpoint to go on from.

        Raises:
          FileNotFoundError: If the folder does not exist.
          ValueError: If `path` does not end in `.keras`, or a time is negative.
        """
        super().__init__()
        self._path = Path(path)
        if self._path.suffix != ".keras":
            raise ValueError(f"the path of a checkpoint must end in .keras, got {self._path}.")
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {self._path.parent} for checkpoints.")
        for name, value in (("every_seconds", every_seconds), ("seconds_before", seconds_before)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        self._every_seconds = every_seconds
        self._seconds_before = seconds_before

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock, once it is known that the model can be saved.

        Raises:
          ValueError: If a part of the model, its optimizer included, is nothing that Keras can
            write.
        """
        try:
            keras.saving.serialize_keras_object(self.model)
        except Exception as error:  # of the get_config of any layer
            raise ValueError(
                f"CheckpointCallback cannot save this model: {cause_of(error)}"
            ) from error
        self._start = self._last_saved = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves, if it is time."""
        is_last = epoch + 1 == self.params["epochs"] or self.model.stop_training
        if not is_last and time.monotonic() - self._last_saved < self._every_seconds:
            return
        progress = {
            "num_epochs": epoch + 1,
            "seconds": self._seconds_before + time.monotonic() - self._start,
        }
        with replaced_when_whole(self._path) as unfinished:
            self.model.save(unfinished)
            with zipfile.ZipFile(unfinished, "a") as archive:
                archive.writestr(_PROGRESS_FILE, json.dumps(progress))
        self._last_saved = time.monotonic()


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Loads what `CheckpointCallback` saved.

    The classes of the model must have been imported, and registered with
    `keras.saving.register_keras_serializable` if they are not the package's own.

    Args:
      path: The file.

    Returns:
      The `Checkpoint`.

    Raises:
      FileNotFoundError: If there is no such file.
      OSError: If the file is damaged.
      ValueError: If it is whole but no checkpoint of this module, or of classes unknown here.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            is_checkpoint = _PROGRESS_FILE in archive.namelist()
            progress = json.loads(archive.read(_PROGRESS_FILE)) if is_checkpoint else {}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        raise OSError(f"{path} is damaged, or no checkpoint at all: {error}") from error
    if damaged is not None:
        raise OSError(f"{path} is damaged: the checksum of {damaged} in it is wrong.")
    if not is_checkpoint:
        raise ValueError(
            f"{path} was not written by CheckpointCallback: it does not say for how many epochs "
            "the model was trained."
        )
    try:
        model = keras.saving.load_model(path)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{cause_of(error)} {path} is whole, but its model cannot be rebuilt here."
        ) from error
    return Checkpoint(model, int(progress["num_epochs"]), float(progress["seconds"]))
