"""What the conditions of a model look like: their structure, shapes and dtypes."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def spec_of_condition(condition: Any) -> Any:
    """Returns the specs of conditions, for batches of any size.

    Args:
      condition: Arrays, `Tensor`s or `tf.TensorSpec`s `[B, ...]`, or a dict or tuple of these; None
        for none.

    Returns:
      `tf.TensorSpec`s `[None, ...]` in the same structure, or None.

    Raises:
      ValueError: If a part is something else, or of a shape that is not known.
    """
    if condition is None:
        return None
    if isinstance(condition, dict) and condition:
        return {name: spec_of_condition(part) for name, part in condition.items()}
    if type(condition) is tuple and condition:
        return tuple(map(spec_of_condition, condition))
    if isinstance(condition, np.ndarray | tf.Tensor):
        condition = tf.TensorSpec(condition.shape, condition.dtype)
    is_dense = isinstance(condition, tf.TensorSpec) and condition.dtype != tf.string
    if not is_dense or not condition.shape.rank or not condition.shape[1:].is_fully_defined():
        raise ValueError(
            '"condition" must be dense numbers of a known shape, [B, ...], where a VAE is trained, '
            f"or a dict or tuple of these; got {condition!r}."
        )
    return tf.TensorSpec([None, *condition.shape[1:]], condition.dtype)


def zero_condition(spec: Any, batch_size: int) -> Any:
    """Returns zeros for specs from `spec_of_condition`, in the dtypes of `checked_condition`."""
    if spec is None:
        return None
    return tf.nest.map_structure(
        lambda leaf: _as_trained(tf.zeros([batch_size, *leaf.shape[1:]], leaf.dtype)), spec
    )


def checked_condition(condition: Any, x: Any, spec: Any) -> Any:
    """Checks the conditions of a batch against the model and against its observations.

    Args:
      condition: Arrays or `Tensor`s `[B, ...]` in any structure; None for none.
      x: Observations, `[B, *event_shape]`.
      spec: From `spec_of_condition`, what the model was built for.

    Returns:
      The conditions as `Tensor`s, floating ones in the dtype of `keras.config.floatx()`.

    Raises:
      ValueError: If they are of another structure or shape, or known to be of another number.
    """
    check_same_condition(spec_of_condition(condition), spec)
    if condition is None:
        return None
    for leaf in tf.nest.flatten(condition):
        if None not in (leaf.shape[0], x.shape[0]) and leaf.shape[0] != x.shape[0]:
            raise ValueError(
                f"condition must have one row an observation, {x.shape[0]}, but it has "
                f"{leaf.shape[0]}."
            )
    return tf.nest.map_structure(_as_trained, condition)


def check_same_condition(found: Any, expected: Any) -> None:
    """Raises a ValueError unless conditions have the shapes that a model was built for.

    Args:
      found: From `spec_of_condition`.
      expected: Likewise, of the model.
    """
    if _words(found) != _words(expected):
        raise ValueError(
            f"the model was built for observations with {_words(expected)}, but x comes with "
            f"{_words(found)}."
        )


def split_shape(input_shape: Any) -> tuple[tuple[int, ...], Any]:
    """Returns the event shape and the specs of conditions that a model is to be built for.

    Args:
      input_shape: From `joined_shape`, with any batch size.

    Raises:
      ValueError: If the shape of an observation is not known, or conditions are no `tf.TensorSpec`.
    """
    shape, spec = input_shape, None
    if isinstance(input_shape, dict):
        if set(input_shape) != {"x", "condition"}:
            raise ValueError(f"{_WAY_TO_BUILD}; got {input_shape}.")
        shape, spec = input_shape["x"], input_shape["condition"]
        if not all(isinstance(leaf, tf.TensorSpec) for leaf in tf.nest.flatten(spec)):
            raise ValueError(f"{_WAY_TO_BUILD}; got the condition {spec}.")
    event_shape = tuple(size for size in shape[1:] if size is not None)
    if not event_shape or len(event_shape) != len(shape) - 1:
        raise ValueError(f"input_shape must be [B, *event_shape], got {tuple(shape)}.")
    return event_shape, spec_of_condition(spec)


def joined_shape(shape: Any, condition: Any) -> Any:
    """Returns what `VAE.build` takes.

    Args:
      shape: `[B or None, *event_shape]`.
      condition: Conditions, or specs of them; None for none.

    Returns:
      The shape; with conditions a dict of it, `"x"`, and of their specs, `"condition"`.
    """
    shape = tuple(shape)
    return shape if condition is None else {"x": shape, "condition": spec_of_condition(condition)}


def written_spec(spec: Any) -> Any:
    """Returns specs as JSON: a leaf is its dtype and shape without the batch, as `int32[2, 3]`."""
    if isinstance(spec, dict):
        return {name: written_spec(part) for name, part in spec.items()}
    if isinstance(spec, tuple):
        return [written_spec(part) for part in spec]
    return f"{spec.dtype.name}{[*spec.shape[1:]]}"


def read_spec(written: Any) -> Any:
    """Returns what `written_spec` was given."""
    if isinstance(written, dict):
        return {name: read_spec(part) for name, part in written.items()}
    if isinstance(written, list):
        return tuple(map(read_spec, written))
    dtype, _, sizes = written.partition("[")
    return tf.TensorSpec([None, *json.loads(f"[{sizes}")], dtype)


_WAY_TO_BUILD = (
    "a conditional model is built by fit or train_on_batch, or by "
    'build({"x": [None, *event_shape], "condition": tf.TensorSpec([None, ...], dtype)})'
)


def _as_trained(leaf: Any) -> tf.Tensor:
    leaf = tf.convert_to_tensor(leaf)
    return tf.cast(leaf, keras.config.floatx()) if leaf.dtype.is_floating else leaf


def _words(spec: Any) -> str:
    if spec is None:
        return "no condition"
    shapes = tf.nest.map_structure(lambda leaf: str([*leaf.shape]), spec)
    return f"a condition of shape {shapes}".replace("'[", "[").replace("]'", "]")
