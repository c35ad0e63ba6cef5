"""ElboSurgeryCallback: the three terms of the ELBO while a model trains."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.components.batch_size import checked_batch_size
from tfp_surgery.components.encoding import read_condition
from tfp_surgery.datasets import Dataset
from tfp_surgery.intensities import reject_raw_levels
from tfp_surgery.observations import read_observations
from tfp_surgery.surgery.elbo_surgery import elbo_surgery
from tfp_surgery.surgery.elbo_surgery_result import ElboSurgery

tfd = tfp.distributions


class ElboSurgeryCallback(keras.callbacks.Callback):
    """Decomposes the ELBO on a subset during training, and on all of the data at its end.

    The expectations run over a subset of `num_query` observations, and q(z) is the aggregate
    posterior of all N: the estimates are unbiased for the terms of the whole data set, and do not
    saturate at the logarithm of a batch. Every look has the same subset and the same random
    numbers.

    It goes into `fit` of any Keras model. Encoder, decoder and prior are the model's attributes of
    these names, or are handed in, as functions of the networks that are trained:

    ```python
    tfs.ElboSurgeryCallback(
        x,
        encoder=lambda x: tfd.MultivariateNormalDiag(mean_net(x), tf.exp(log_scale_net(x))),
        decoder=lambda z: tfd.Independent(tfd.Bernoulli(logits=pixel_net(z)), 3),
        prior=tfd.MultivariateNormalDiag(tf.zeros(8)),
    )
    ```

    Each look calls them anew. The terms are added to the logs of every epoch as `surgery_<term>`,
    in nats per observation, and are NaN in the epochs between two looks: `ModelCheckpoint` saves
    whenever what it monitors is absent. The progress bar, `History`, and `CSVLogger` or
    `TensorBoard` callbacks listed after this one show them. Callbacks that `monitor` one of them
    need a `mode`; the patience of `EarlyStopping` and `ReduceLROnPlateau` counts only epochs with a
    look.

    Attributes:
      history: `ElboSurgery` of each epoch that was looked at, as pairs (epoch, surgery).
      result: `ElboSurgery` over all observations, once training has ended; None before.
    """

    def __init__(
        self,
        x: Any,
        encoder: Callable[..., tfd.Distribution] | None = None,
        decoder: Callable[..., tfd.Distribution] | None = None,
        prior: tfd.Distribution | Callable[..., tfd.Distribution] | None = None,
        *,
        condition: Any = None,
        every: int = 1,
        num_query: int = 1000,
        num_samples: int = 2,
        seed: Any = 0,
        batch_size: int | None = None,
        reencode: bool = False,
        validate_args: bool = True,
    ) -> None:
        """Makes the callback.

        Args:
          x: The data set, as `elbo_surgery` takes it; a `tf.data.Dataset` is read once.
          encoder: See `elbo_surgery`, but only what can be called: posteriors that were made once
            do not see the training. None for `model.encoder`.
          decoder: See `elbo_surgery`. None for `model.decoder`.
          prior: See `elbo_surgery`. None for `model.prior`. A distribution of `tf.Variable`s is
            seen to change, one made of tensors stays what it was.
          condition: See `elbo_surgery`.
          every: Look at every so many epochs.
          num_query: Number of observations in the subset; all where there are fewer.
          num_samples: Draws of z an observation.
          seed: Integer in [0, 2**31) or pair of int32; see `elbo_surgery`.
          batch_size: See `elbo_surgery`.
          reencode: See `elbo_surgery`.
          validate_args: See `elbo_surgery`.

        Raises:
          TypeError: If x is no data set, a part is nothing that `elbo_surgery` takes, or a number
            is no integer.
          ValueError: If x is empty or not finite, or holds uint8 levels above 1, which `fit` does
            not take either; or if a number is less than 1.
        """
        super().__init__()
        for name, value in (
            ("every", every),
            ("num_query", num_query),
            ("num_samples", num_samples),
        ):
            checked_integer(name, value, 1)
        batch_size = checked_batch_size(batch_size)
        if not isinstance(x, Dataset):
            x = read_observations(x)
            if isinstance(x.parts, np.ndarray | tf.Tensor):
                reject_raw_levels(np.asarray(x.parts))
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            if part is not None and (not callable(part) or isinstance(part, tfd.Distribution)):
                raise TypeError(
                    f"{name} must be a callable that returns a tfd.Distribution, which each look "
                    f"calls anew, got {type(part).__name__}."
                )
        if prior is not None and not (isinstance(prior, tfd.Distribution) or callable(prior)):
            raise TypeError(
                "prior must be a tfd.Distribution or a callable that returns one, got "
                f"{type(prior).__name__}."
            )
        self._parts = {"encoder": encoder, "decoder": decoder, "prior": prior}
        self._condition = read_condition(condition, len(x))
        self._x = x
        self._every = every
        self._num_query = min(num_query, len(self._x))
        self._num_samples = num_samples
        self._seed = seeds.checked_seed(seed)
        self._batch_size = batch_size
        self._reencode = reencode
        self._validate_args = validate_args
        self.history: list[tuple[int, ElboSurgery]] = []
        self.result: ElboSurgery | None = None
        self._columns: list[str] = []
        self._others: list[Any] = []

    def set_model(self, model: keras.Model) -> None:
        """Takes the model.

        Raises:
          TypeError: If it has no encoder, decoder or prior, and none was handed in.
        """
        missing = [
            name
            for name, part in self._parts.items()
            if part is None and getattr(model, name, None) is None
        ]
        if missing:
            raise TypeError(
                "ElboSurgeryCallback needs an encoder, a decoder and a prior; "
                f"{type(model).__name__} has no {' and no '.join(missing)}. Hand in what the model "
                f"does not have as an attribute, ElboSurgeryCallback(x, "
                f"{', '.join(f'{name}=...' for name in missing)}): functions of its networks that "
                "return distributions, and a distribution for the prior."
            )
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Measures two observations, so that a model that cannot be measured fails before training.

        Raises:
          TypeError: As `elbo_surgery`.
          ValueError: As `elbo_surgery`.
        """
        self._others = self._callbacks_of_this_fit()
        few = read_observations(self._x, self._seed).rows(slice(0, 2))
        condition = None if self._condition is None else self._condition.rows(slice(0, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the number of observations
            self._columns = [*_logs(self._surgery(few, None, condition))]

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the terms on the subset to the logs."""
        columns = dict.fromkeys(self._columns, math.nan)
        if (epoch + 1) % self._every == 0:
            surgery = self._surgery(self._x, self._num_query, self._condition)
            self.history.append((epoch, surgery))
            columns.update(_logs(surgery))
        if logs is not None:
            logs.update(columns)
            self._prepare_others(epoch, logs)

    def _callbacks_of_this_fit(self) -> list[Any]:
        """The other callbacks, of which Keras does not tell."""
        kind = keras.callbacks.CallbackList
        lists = [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]
        found = {id(c): c for each in lists if self in each.callbacks for c in each.callbacks}
        return [callback for callback in found.values() if callback is not self]

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
        self.result = self._surgery(self._x, None, self._condition)

    def _surgery(self, x: Any, num_query: int | None, condition: Any) -> ElboSurgery:
        encoder, decoder, prior = (
            getattr(self.model, name) if part is None else part
            for name, part in self._parts.items()
        )
        return elbo_surgery(
            x,
            encoder,
            decoder,
            prior,
            condition=condition,
            num_query=num_query,
            num_samples=self._num_samples,
            seed=self._seed,
            batch_size=self._batch_size,
            reencode=self._reencode,
            validate_args=self._validate_args,
        )


def _logs(surgery: ElboSurgery) -> dict[str, float]:
    return {f"surgery_{name}": term.value for name, term in surgery.estimates().items()}
