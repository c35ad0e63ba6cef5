"""TrainingInput: an array of observations or a `tf.data.Dataset` of batches, with its checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_surgery.checks.arguments import check_observations
from tfp_surgery.checks.arrays import way_out
from tfp_surgery.components.encoding import read_condition
from tfp_surgery.models.condition_spec import spec_of_condition

_BAD_BATCH = "observations that tfp_surgery refuses"


class BatchParts(NamedTuple):
    """The parts of one batch, or of what describes it.

    Attributes:
      x: Observations, `[B, *event_shape]`.
      index: Their places in the data set, int32 or int64 `[B]`, or None.
      condition: Their conditions, `[B, ...]` in any structure, or None.
    """

    x: Any
    index: Any = None
    condition: Any = None


class TrainingInput:
    """What `fit` was given, of a known event shape.

    `check_values` checks a whole array. A `tf.data.Dataset` is checked while Keras reads it: the
    first batch of each pass in full, later batches for NaN and infinity. No batch is read
    beforehand, since a pipeline that counts its passes would lose an epoch.

    Attributes:
      event_shape: The shape of one observation.
      data: What to hand to Keras.
      is_indexed: Whether each observation comes with its index in the data set.
      condition_spec: `tf.TensorSpec`s `[None, ...]` in the structure of the conditions; None if
        there are none.
    """

    def __init__(self, x: Any):
        """Takes what `fit` was given as `x`.

        Args:
          x: Array-like `[N, *event_shape]`, or `{"x": x, "condition": condition}` of this and of
            its conditions `[N, ...]`. Or a `tf.data.Dataset` with elements `[B, *event_shape]`,
            alone, in a tuple of one, or as `"x"` in a dict with `"index"`, int32 or int64 `[B]`,
            with `"condition"`, `[B, ...]`, or with both.

        Raises:
          TypeError: If `x` is neither, or not floating.
          ValueError: If it has no observations, values that are not finite, no batch dimension,
            an event shape that is not known, targets beside the observations, or conditions of
            another number or an unknown shape.
        """
        self._failure: Exception | None = None
        self.is_indexed = False
        self.condition_spec: Any = None
        if isinstance(x, tf.data.Dataset):
            parts = batch_parts(x.element_spec)
            spec = _observation_spec(parts)
            dtype, shape = spec.dtype.as_numpy_dtype, spec.shape
            if shape.rank is None or shape.rank < 2 or not shape[1:].is_fully_defined():
                raise ValueError(
                    "a dataset must give batches of observations of a known shape, "
                    f"[B, *event_shape], but its elements have shape {shape}. Has it been batched?"
                )
            self.event_shape = tuple(shape[1:].as_list())
            self.is_indexed = parts.index is not None
            self.condition_spec = spec_of_condition(parts.condition)
            self.data = x
        else:
            condition = None
            if isinstance(x, dict) and set(x) == {"x", "condition"}:
                x, condition = x["x"], x["condition"]
            if isinstance(x, tuple) and len(x) == 1:
                x = x[0]
            if isinstance(x, (tuple, dict)):
                raise TypeError(
                    "x must be observations alone, an array of shape [N, *event_shape] or a "
                    "tf.data.Dataset of batches: each is its own target. Give x in the place of "
                    f"(x, x) or (x, y), as validation_data too; got {_described(x)}. Conditions go "
                    'beside x as {"x": x, "condition": condition}.'
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
            conditions = read_condition(condition, len(self.data))
            if conditions is not None:
                self.condition_spec = spec_of_condition(conditions.parts)
                condition = tf.nest.map_structure(np.asarray, conditions.parts)
                self.data = {"x": self.data, "condition": condition}
        if not tf.as_dtype(dtype).is_floating:
            raise TypeError(
                f"x must be floating, with intensities in [0, 1] for images, got dtype {dtype}. "
                "tfp_surgery.datasets.Dataset makes them of levels, and its batches(...) are to be "
                "trained on; other numbers are x.astype('float32')."
            )

    def check_values(self, check: Callable[[np.ndarray, Any], None]) -> None:
        """Checks an array now; makes a pipeline check its batches as they are read.

        Args:
          check: Function of observations `[N, *event_shape]` and their conditions, arrays
            `[N, ...]` or None; raises a TypeError or ValueError where they are not accepted.
        """
        if not isinstance(self.data, tf.data.Dataset):
            parts = batch_parts(self.data)
            check(parts.x, parts.condition)
            return

        def check_batch(batch: tf.Tensor, *leaves: tf.Tensor) -> bool:
            try:
                values = check_observations(batch.numpy())
                condition = None
                if leaves:
                    arrays = [leaf.numpy() for leaf in leaves]
                    condition = tf.nest.pack_sequence_as(self.condition_spec, arrays)
                    read_condition(condition, len(values))
                check(values, condition)
            except (TypeError, ValueError) as error:
                self._failure = error  # raised here, it would be logged with a traceback
            return self._failure is None

        def check_first(index: tf.Tensor, element: Any) -> Any:
            batch, _, condition = batch_parts(element)
            leaves = [] if condition is None else tf.nest.flatten(condition)
            is_good = tf.cond(
                index == 0,
                lambda: tf.py_function(check_batch, [batch, *leaves], tf.bool),
                lambda: tf.reduce_all([_are_finite_rows(leaf, batch) for leaf in (batch, *leaves)]),
            )
            with tf.control_dependencies([tf.debugging.Assert(is_good, [_BAD_BATCH])]):
                batch = tf.identity(batch)
            return {**element, "x": batch} if isinstance(element, dict) else batch

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
                conditions = " in x or condition, or not one condition an observation"
                raise ValueError(
                    "x must be finite, but a later batch of the dataset holds NaN or infinite "
                    f"values{'' if self.condition_spec is None else conditions}."
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
            "observations are their own target and count the same. Labels that the model depends "
            'on are a condition: fit({"x": x, "condition": labels}).'
        )


def batch_parts(element: Any) -> BatchParts:
    """The observations in one element of a pipeline, their indices and their conditions.

    Indices and conditions need a name: the second of a tuple may be labels.

    Args:
      element: x, alone or in a tuple of one; or a dict of `"x"` and `"index"`, `"condition"` or
        both.

    Returns:
      x, index and condition.

    Raises:
      ValueError: If the element has another form.
    """
    if isinstance(element, tuple) and len(element) == 1:
        element = element[0]
    if isinstance(element, dict) and {"x"} < set(element) <= {*BatchParts._fields}:
        return BatchParts(**element)
    if isinstance(element, (tuple, list, dict)):
        raise ValueError(
            "a dataset must give observations alone, one Tensor [B, *event_shape] an element, or "
            'with their indices as {"x": x, "index": index}, with conditions as {"x": x, '
            '"condition": condition} or with both, but its elements are '
            f"{element}. Map it to the observations, as in dataset.map(lambda x, y: x)."
        )
    return BatchParts(element)


def _observation_spec(parts: BatchParts) -> tf.TensorSpec:
    spec, index, _ = parts
    if not isinstance(spec, tf.TensorSpec):
        raise ValueError(f"a dataset must give dense Tensors of observations, got {spec}.")
    if index is None:
        return spec
    is_index = isinstance(index, tf.TensorSpec) and index.dtype in (tf.int32, tf.int64)
    if not is_index or index.shape.rank != 1:
        raise ValueError(f'"index" must be int32 or int64 of shape [B], got {index}.')
    return spec


def _are_finite_rows(leaf: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
    is_whole = tf.shape(leaf)[0] == tf.shape(batch)[0]
    if not leaf.dtype.is_floating:
        return is_whole
    return is_whole & tf.reduce_all(tf.math.is_finite(leaf))


def _described(x: tuple[Any, ...] | dict[Any, Any]) -> str:
    parts = x.items() if isinstance(x, dict) else enumerate(x)
    shapes = [f"{name}: {getattr(part, 'shape', type(part).__name__)}" for name, part in parts]
    return f"a {type(x).__name__} with the shapes {', '.join(shapes)}"
