"""ElboSurgeryCallback: the three terms of the ELBO while a model trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import keras

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import check_observations, checked_integer
from tfp_surgery.datasets import Dataset
from tfp_surgery.intensities import reject_raw_levels
from tfp_surgery.observations import read_observations
from tfp_surgery.surgery.elbo_surgery import elbo_surgery
from tfp_surgery.surgery.elbo_surgery_result import ElboSurgery


class ElboSurgeryCallback(keras.callbacks.Callback):
    """Decomposes the ELBO on a subset during training, and on all of the data at its end.

    The expectations run over a subset of `num_query` observations, and q(z) is the aggregate
    posterior of all N: the estimates are unbiased for the terms of the whole data set, and do not
    saturate at the logarithm of a batch. Every epoch has the same subset and the same random
    numbers.

    The terms are added to the logs of every epoch as `surgery_<term>`, in nats per observation, and
    are NaN in the epochs between two looks. The progress bar, `History`, and `CSVLogger` or
    `TensorBoard` callbacks listed after this one show them. Callbacks that `monitor` one of them
    need a `mode`. Under `tfs.VAE` the patience of `EarlyStopping` and `ReduceLROnPlateau` counts
    only epochs with a look; under other models NaN counts as no improvement.

    Attributes:
      history: `ElboSurgery` of each epoch that was looked at, as pairs (epoch, surgery).
      result: `ElboSurgery` over all observations, once training has ended; None before.
    """

    def __init__(
        self,
        x: Any,
        *,
        every: int = 1,
        num_query: int = 1000,
        num_samples: int = 2,
        seed: Any = 0,
        batch_size: int = 2000,
    ) -> None:
        """Makes the callback for a model with `encoder`, `decoder` and `prior`, as `tfs.VAE`.

        Args:
          x: The data set: array of shape `[N, *event_shape]` or `tfp_surgery.datasets.Dataset`.
          every: Look at every so many epochs.
          num_query: Number of observations in the subset; all where there are fewer.
          num_samples: Draws of z an observation.
          seed: Integer in [0, 2**31) or pair of int32; see `elbo_surgery`.
          batch_size: See `elbo_surgery`.

        Raises:
          TypeError: If x is no data set, or a number is no integer.
          ValueError: If x is empty or not finite, or holds uint8 levels above 1, which `fit` does
            not take either; or if a number is less than 1.
        """
        super().__init__()
        for name, value in (
            ("every", every),
            ("num_query", num_query),
            ("num_samples", num_samples),
            ("batch_size", batch_size),
        ):
            checked_integer(name, value, 1)
        if not isinstance(x, Dataset):
            x = check_observations(x)
            reject_raw_levels(x)
        self._x = x
        self._every = every
        self._num_query = min(num_query, len(self._x))
        self._num_samples = num_samples
        self._seed = seeds.checked_seed(seed)
        self._batch_size = batch_size
        self.history: list[tuple[int, ElboSurgery]] = []
        self.result: ElboSurgery | None = None
        self._columns: list[str] = []
        self._others: list[Any] = []

    def set_model(self, model: keras.Model) -> None:
        """Takes the model.

        Raises:
          TypeError: If it has no encoder, decoder and prior.
        """
        missing = [name for name in ("encoder", "decoder", "prior") if not hasattr(model, name)]
        if missing:
            raise TypeError(
                f"ElboSurgeryCallback needs a model with an encoder, a decoder and a prior, as "
                f"tfs.VAE; {type(model).__name__} has no {' and no '.join(missing)}."
            )
        super().set_model(model)

    def take_note_of(self, callbacks: Iterable[Any]) -> None:
        """Takes the callbacks of the same `fit`, which `tfs.VAE` tells of each other.

        Args:
          callbacks: All of them.
        """
        self._others = [callback for callback in callbacks if callback is not self]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Measures two observations, so that a model that cannot be measured fails before training.

        Raises:
          TypeError: As `elbo_surgery`.
          ValueError: As `elbo_surgery`.
        """
        few = read_observations(self._x, self._seed).rows(slice(0, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the number of observations
            self._columns = [*_logs(self._surgery(few, None))]

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the terms on the subset to the logs."""
        columns = dict.fromkeys(self._columns, math.nan)
        if (epoch + 1) % self._every == 0:
            surgery = self._surgery(self._x, self._num_query)
            self.history.append((epoch, surgery))
            columns.update(_logs(surgery))
        if logs is not None:
            logs.update(columns)
            self._prepare_others(epoch, logs)

    def _prepare_others(self, epoch: int, logs: dict[str, Any]) -> None:
        """Adjusts other callbacks, which would misread NaN in the logs of an epoch."""
        for callback in self._others:
            if isinstance(callback, keras.callbacks.CSVLogger) and callback.keys is None:
                # Its columns are those of the first epoch, and once more with val_ where that had
                # no validation. There is none of these terms.
                keys = sorted(logs)
                if not any(key.startswith("val_") for key in keys):
                    keys += [f"val_{key}" for key in keys if key not in self._columns]
                callback.keys = keys
            if getattr(callback, "monitor", None) not in self._columns:
                continue
            if getattr(callback, "best", 0) is None:
                # The first value, which may be NaN, would be the best for ever.
                callback.best = -math.inf if callback.mode == "max" else math.inf
            is_counting = epoch >= getattr(callback, "start_from_epoch", 0)
            if (epoch + 1) % self._every and is_counting and hasattr(callback, "wait"):
                callback.wait -= 1  # it is about to count this epoch, which had no look

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Decomposes the ELBO on all of the data."""
        self.result = self._surgery(self._x, None)

    def _surgery(self, x: Any, num_query: int | None) -> ElboSurgery:
        model = self.model
        return elbo_surgery(
            x,
            model.encoder,
            model.decoder,
            model.prior,
            num_query=num_query,
            num_samples=self._num_samples,
            seed=self._seed,
            batch_size=self._batch_size,
        )


def _logs(surgery: ElboSurgery) -> dict[str, float]:
    return {f"surgery_{name}": term.value for name, term in surgery.estimates().items()}
