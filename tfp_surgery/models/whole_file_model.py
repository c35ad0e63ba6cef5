"""WholeFileModel: a Keras model whose files are written and loaded whole, or not at all."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import keras

from tfp_surgery.files import cause_of, replaced_when_whole


class WholeFileModel(keras.Model):
    """A Keras model that leaves no half-written file, and no half-loaded weights."""

    def save(self, filepath: str | Path, overwrite: bool = True, **kwargs: Any) -> None:
        """Saves the model with its optimizer; see `keras.Model.save`.

        A `.keras` file is replaced once the new one is whole: if the process is killed while it
        saves, the earlier file stays.

        Raises:
          FileExistsError: If the file exists and `overwrite` is False.
          ValueError: If Keras cannot write a part of the model. `save_weights` and `load_weights`
            work for any model.
        """
        if not str(filepath).endswith(".keras"):
            super().save(filepath, overwrite=overwrite, **kwargs)
            return
        if Path(filepath).exists() and not overwrite:
            raise FileExistsError(f"{filepath} exists, and overwrite is False.")
        with replaced_when_whole(filepath) as unfinished:
            super().save(unfinished, **kwargs)

    def save_weights(
        self, filepath: str | Path, overwrite: bool = True, max_shard_size: float | None = None
    ) -> None:
        """Saves weights and optimizer state, replacing the file once it is whole."""
        if max_shard_size is not None:
            super().save_weights(filepath, overwrite, max_shard_size)
            return
        if Path(filepath).exists() and not overwrite:
            raise FileExistsError(f"{filepath} exists, and overwrite is False.")
        with replaced_when_whole(filepath) as unfinished:
            super().save_weights(unfinished)

    def load_weights(self, filepath: str | Path, **kwargs: Any) -> None:
        """Loads weights and optimizer state; after an error the model is as it was.

        Args:
          filepath: a `.weights.h5` or `.keras` file.
          **kwargs: Of `keras.Model.load_weights`.

        Raises:
          FileNotFoundError: If there is no such file.
          OSError: If the file is damaged.
          ValueError: If it holds the weights of another model, or this one is not built.
        """
        if not self.built:
            raise ValueError(
                "the model has no weights yet to load into: call build([None, *event_shape])."
            )
        variables = [*self.variables]
        if self.compiled:
            if not self.optimizer.built:  # else Keras ignores its state in the file
                self.optimizer.build(self.trainable_variables)
            variables += self.optimizer.variables
        with restored_on_failure(variables, filepath):
            if str(filepath).endswith((".h5", ".keras")) and not kwargs.get("skip_mismatch"):
                check_same_weights(filepath, self.weights)
            super().load_weights(filepath, **kwargs)


@contextmanager
def restored_on_failure(
    variables: Sequence[keras.Variable], filepath: str | Path
) -> Iterator[None]:
    """Runs a block that loads a file into `variables`; if it fails, they get their values back.

    Args:
      variables: What the block assigns to.
      filepath: The file that errors name.

    Raises:
      FileNotFoundError: If there is no such file.
      OSError: If the file is damaged or of another format.
      ValueError: If the file holds other weights than the model has.
    """
    if not Path(filepath).exists():
        raise FileNotFoundError(f"there is no file {filepath} to load weights from.")
    before = [variable.numpy() for variable in variables]
    try:
        yield
    except Exception as error:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        unchanged = "The model is as it was before."
        # On a damaged file h5py raises OSError, RuntimeError or KeyError. Keras raises a ValueError
        # where the weights of one layer do not fit.
        if isinstance(error, ValueError):
            raise ValueError(
                f"{filepath} does not hold the weights of this model: {cause_of(error)} {unchanged}"
            ) from error
        raise OSError(
            f"{filepath} cannot be read as weights: {cause_of(error)} {unchanged}"
        ) from error


def check_same_weights(filepath: str | Path, weights: Sequence[keras.Variable]) -> None:
    """Checks that the arrays in a file have the shapes of `weights`, and that none is left over.

    Keras ignores arrays that it does not look for: it would load the file of a deeper network into
    a shallower one.

    Args:
      filepath: a `.weights.h5` or `.keras` file.
      weights: All weights of a model, without those of its optimizer.

    Raises:
      ValueError: If the shapes differ.
    """
    source: str | Path | io.BytesIO = filepath
    if str(filepath).endswith(".keras"):
        with zipfile.ZipFile(filepath) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
    found: list[tuple[int, ...]] = []

    def collect(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            found.append(item.shape)

    with h5py.File(source, "r") as file:
        file.visititems(collect)
    expected = [tuple(weight.shape) for weight in weights]
    extra, missing = _difference(found, expected), _difference(expected, found)
    if extra or missing:
        raise ValueError(
            f"shapes in the file and not in the model: {extra}; in the model and not in the file: "
            f"{missing}."
        )


def _difference(
    shapes: list[tuple[int, ...]], others: list[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """The shapes without those of `others`, each as often as it occurs."""
    return sorted((Counter(shapes) - Counter(others)).elements())
