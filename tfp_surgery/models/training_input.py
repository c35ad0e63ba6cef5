"""TrainingInput: an array of observations or a `tf.data.Dataset` of batches, with its checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_surgery.checks.arguments import check_observations
from tfp_surgery.checks.arrays import way_out

_BAD_BATCH = "observations that tfp_surgery refuses"


class TrainingInput:
    """What `fit` was given, of a known event shape.

    `check_values` checks a whole array. A `tf.data.Dataset` is checked while Keras reads it: the
    first batch of each pass in full, later batches for NaN and infinity. No batch is read
    beforehand, since a pipeline that counts its passes would lose an epoch.

    Attributes:
      event_shape: The shape of one observation.
      data: What to hand to Keras.
      is_indexed: Whether each observation comes with its index in the data set.
    """

    def __init__(self, x: Any):
        """Takes what `fit` was given as `x`.

        Args:
          x: Array-like `[N, *event_shape]`, or a `tf.data.Dataset` with elements
            `[B, *event_shape]`, alone, in a tuple of one, or as `"x"` in a dict whose `"index"`
            holds int32 or int64 `[B]`.

        Raises:
          TypeError: If `x` is neither, or not floating.
          ValueError: If it has no observations, values that are not finite, no batch dimension,
            an event shape that is not known, or targets beside the observations.
        """
        self._failure: Exception | None = None
        self.is_indexed = False
        if isinstance(x, tf.data.Dataset):
            spec = _observation_spec(x.element_spec)
            dtype, shape = spec.dtype.as_numpy_dtype, spec.shape
            if shape.rank is None or shape.rank < 2 or not shape[1:].is_fully_defined():
                raise ValueError(
                    "a dataset must give batches of observations of a known shape, "
                    f"[B, *event_shape], but its elements have shape {shape}. Has it been batched?"
                )
            self.event_shape = tuple(shape[1:].as_list())
            self.is_indexed = isinstance(x.element_spec, dict)
            self.data = x
        else:
            if isinstance(x, tuple) and len(x) == 1:
                x = x[0]
            if isinstance(x, (tuple, dict)):
                raise TypeError(
                    "x must be observations alone, an array of shape [N, *event_shape] or a "
                    "tf.data.Dataset of batches: each is its own target. Give x in the place of "
                    f"(x, x) or (x, y), as validation_data too; got {_described(x)}."
                )
            if not (hasattr(x, "__array__") or isinstance(x, list)):
                raise TypeError(
                    "x must be an array of shape [N, *event_shape] or a tf.data.Dataset of "
                    f"batches, got {type(x).__name__}. A tfp_surgery Dataset has batches(...). "
                    + way_out("x", x)
                )
            self.data = check_observations(x)
            dtype = self.data.dtype
            self.event_shape = self.data.shape[1:]
            if not self.event_shape:
                raise ValueError(f"x must have shape [N, *event_shape], got {[*self.data.shape]}.")
        if not tf.as_dtype(dtype).is_floating:
            raise TypeError(
                f"x must be floating, with intensities in [0, 1] for images, got dtype {dtype}. "
                "tfp_surgery.datasets.Dataset makes them of levels, and its batches(...) are to be "
                "trained on; other numbers are x.astype('float32')."
            )

    def check_values(self, check: Callable[[np.ndarray], None]) -> None:
        """Checks an array now; makes a pipeline check its batches as they are read.

        Args:
          check: Function of observations `[N, *event_shape]`; raises a TypeError or ValueError
            where they are not accepted.
        """
        if not isinstance(self.data, tf.data.Dataset):
            check(self.data)
            return

        def check_batch(batch: tf.Tensor) -> bool:
            try:
                check(check_observations(batch.numpy()))
            except (TypeError, ValueError) as error:
                self._failure = error  # raised here, it would be logged with a traceback
            return self._failure is None

        def check_first(index: tf.Tensor, element: Any) -> Any:
            batch, number = observations_and_index(element)
            is_good = tf.cond(
                index == 0,
                lambda: tf.py_function(check_batch, [batch], tf.bool),
                lambda: tf.reduce_all(tf.math.is_finite(batch)),
            )
            with tf.control_dependencies([tf.debugging.Assert(is_good, [_BAD_BATCH])]):
                batch = tf.identity(batch)
            return batch if number is None else {"x": batch, "index": number}

        self.data = self.data.enumerate().map(check_first)

    @contextmanager
    def failures_raised(self) -> Iterator[None]:
        """Raises the error of a check itself, and not that of TensorFlow which wraps it."""
        try:
            yield
        except tf.errors.OpError as error:
            if self._failure is not None:
                raise self._failure from None
            if _BAD_BATCH in str(error):
                raise ValueError(
                    "x must be finite, but a later batch of the dataset holds NaN or infinite "
                    "values."
                ) from None
            raise


def reject_targets(**arguments: Any) -> None:
    """Raises a ValueError unless all targets and weights are None.

    Args:
      **arguments: By name.
    """
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise ValueError(
            f"a VAE models x alone and takes no {', '.join(given)}: call fit(x), where the "
            "observations are their own target and count the same."
        )


def observations_and_index(element: Any) -> tuple[Any, Any]:
    """The observations in one element of a pipeline, and their indices or None.

    Indices need a name: the second of a tuple may be labels, which are integers too.

    Args:
      element: x, alone or in a tuple of one; or `{"x": x, "index": index}`.

    Returns:
      x and index.

    Raises:
      ValueError: If the element has another form.
    """
    if isinstance(element, tuple) and len(element) == 1:
        element = element[0]
    if isinstance(element, dict) and set(element) == {"x", "index"}:
        return element["x"], element["index"]
    if isinstance(element, (tuple, list, dict)):
        raise ValueError(
            "a dataset must give observations alone, one Tensor [B, *event_shape] an element, or "
            'with their indices as {"x": x, "index": index}, but its elements are '
            f"{element}. Map it to the observations, as in dataset.map(lambda x, y: x)."
        )
    return element, None


def _observation_spec(element_spec: Any) -> tf.TensorSpec:
    spec, index = observations_and_index(element_spec)
    if not isinstance(spec, tf.TensorSpec):
        raise ValueError(f"a dataset must give dense Tensors of observations, got {spec}.")
    if index is None:
        return spec
    is_index = isinstance(index, tf.TensorSpec) and index.dtype in (tf.int32, tf.int64)
    if not is_index or index.shape.rank != 1:
        raise ValueError(f'"index" must be int32 or int64 of shape [B], got {index}.')
    return spec


def _described(x: tuple[Any, ...] | dict[Any, Any]) -> str:
    parts = x.items() if isinstance(x, dict) else enumerate(x)
    shapes = [f"{name}: {getattr(part, 'shape', type(part).__name__)}" for name, part in parts]
    return f"a {type(x).__name__} with the shapes {', '.join(shapes)}"
