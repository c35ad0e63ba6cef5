"""Reads a `tf.data.Dataset` into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

# The kinds of data sets whose elements are batches, or single observations, whatever came before.
_BATCHED = ("_BatchDataset", "_ParallelBatchDataset", "_PaddedBatchDataset", "_TensorDataset")
_SINGLE = ("_UnbatchDataset", "_TensorSliceDataset")
_UNKNOWN = ("_FlatMapDataset", "_InterleaveDataset", "_ParallelInterleaveDataset")


def collected(name: str, pipeline: tf.data.Dataset) -> tuple[Any, str]:
    """Reads all elements of a pipeline, twice, to see that their order is fixed.

    Elements are x, `(x,)` or `(x, y)`, as in Keras, where y is left out; a structured observation
    is a dict, or the first of a pair.

    Args:
      name: Name of the argument, for error messages.
      pipeline: The pipeline, of single observations or of batches.

    Returns:
      x: Arrays of shape `[N, ...]`, or `tf.RaggedTensor`s, in the structure of an x.
      left_out: What was left out, in words; an empty string if nothing was.

    Raises:
      TypeError: If elements are of another structure.
      ValueError: If the pipeline is infinite, empty, or of another order on each pass, or if it
        does not say whether its elements are batches.
    """
    if int(pipeline.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            f"{name} is an infinite pipeline, and a data set has N observations: leave .repeat() "
            f"out, or take one pass, {name}.take(number_of_batches)."
        )
    has_target = isinstance(pipeline.element_spec, tuple)
    if has_target and not 1 <= len(pipeline.element_spec) <= 2:
        raise TypeError(
            f"the elements of {name} are tuples of {len(pipeline.element_spec)}, expected x or "
            f"(x, y) as in Keras: for a structured observation map them to a dict, "
            f'{name}.map(lambda a, b, c: {{"a": a, "b": b, "c": c}}).'
        )
    batched = _is_batched(name, pipeline)
    digests, elements = [], []
    for is_kept in (True, False):
        digest = hashlib.sha256()
        for element in pipeline:
            x = element[0] if has_target else element
            for leaf in tf.nest.flatten(x, expand_composites=True):
                digest.update(leaf.numpy().tobytes())
            if is_kept:
                elements.append(x if batched else tf.nest.map_structure(_as_batch, x))
        digests.append(digest.digest())
    if digests[0] != digests[1]:
        raise ValueError(
            f"two passes over {name} give other observations or another order, and posteriors are "
            "matched to observations by their place: leave .shuffle() and random maps out, or fix "
            "the order with .shuffle(..., reshuffle_each_iteration=False)."
        )
    if not elements:
        raise ValueError(f"{name} is an empty pipeline: it holds no observations.")
    x = tf.nest.map_structure(_joined, *elements)
    return x, " (x, y), of which y is left out" if has_target and len(element) == 2 else ""


def _is_batched(name: str, pipeline: tf.data.Dataset) -> bool:
    """Returns whether elements are batches, from how they were made or their specification."""
    for made_by in _history(pipeline):
        if made_by in _BATCHED:
            return True
        if made_by in _SINGLE:
            return False
        if made_by in _UNKNOWN:
            break
    shapes = [spec.shape for spec in tf.nest.flatten(pipeline.element_spec)]
    if all(shape.is_fully_defined() for shape in shapes):  # as those of TFDS
        return False
    raise ValueError(
        f"{name} does not say whether its elements, {pipeline.element_spec}, are batches or single "
        f"observations: {name}.unbatch() or {name}.batch(size) as its last step says it. Of a "
        "tfp_surgery.datasets.Dataset hand in the Dataset itself."
    )


def _history(pipeline: tf.data.Dataset) -> Iterator[str]:
    """Yields the kinds of the steps of a pipeline, the last one first."""
    inputs = [pipeline]
    while inputs:
        yield type(inputs[0]).__name__
        inputs = inputs[0]._inputs()


def _as_batch(leaf: Any) -> Any:
    return tf.expand_dims(leaf, 0)


def _joined(*leaves: Any) -> Any:
    if isinstance(leaves[0], tf.RaggedTensor | tf.SparseTensor):
        if isinstance(leaves[0], tf.SparseTensor):
            return tf.sparse.concat(0, leaves)
        return tf.concat(leaves, axis=0)
    return np.concatenate([leaf.numpy() for leaf in leaves])
