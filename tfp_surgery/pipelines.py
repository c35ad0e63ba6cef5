"""Reads a `tf.data.Dataset` into memory."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import tensorflow as tf

# The kinds of steps, by their classes. Those that no set names may regroup observations.
_BATCHED = frozenset(
    {
        "_BatchDataset",
        "_ParallelBatchDataset",
        "_PaddedBatchDataset",
        "_DenseToSparseBatchDataset",
        "_MapAndBatchDataset",
        "_RebatchDataset",
        "_TensorDataset",
    }
)
_SINGLE = frozenset({"_UnbatchDataset", "_TensorSliceDataset"})
_MAPS = frozenset({"_MapDataset", "_ParallelMapDataset"})
_SIDE_BY_SIDE = frozenset({"_ZipDataset", "_ConcatenateDataset"})
_KEEPING = frozenset(
    {
        "CacheDataset",
        "_AssertCardinalityDataset",
        "_CopyToDeviceDataset",
        "_FilterDataset",
        "_GlobalShuffleDataset",
        "_IgnoreErrorsDataset",
        "_OptionsDataset",
        "_PrefetchDataset",
        "_RepeatDataset",
        "_ShardDataset",
        "_ShuffleAndRepeatDataset",
        "_ShuffleDataset",
        "_SkipDataset",
        "_SnapshotDataset",
        "_TakeDataset",
        "_TakeWhileDataset",
        "_UniqueDataset",
    }
)
_ENDING = frozenset({"_TakeWhileDataset", "_UniqueDataset"})  # they may end an infinite pipeline
MAX_BYTES = 2**33
_BYTES_OF_ELEMENT = 2**10  # in memory, beside its values


def collected(name: str, pipeline: tf.data.Dataset) -> tuple[Any, str]:
    """Reads all elements of a pipeline, twice, to see that their order is fixed.

    Elements are x, `(x,)` or `(x, y)`, as in Keras, where y is left out; a structured observation
    is a dict, a named tuple, or the first of a pair.

    The last step that batches or unbatches says whether elements are batches. Steps that keep an
    element as it is (filter, shuffle, cache, take and the like) are looked through, and so is a map
    whose results have the leading dimension of its inputs, or, from single observations, a static
    shape: a map that reads a whole file of observations must be followed by `.unbatch()`. Elements
    without dimensions are single, whatever they come from, as the records that TensorFlow Datasets
    decodes. After other steps and sources (interleave, flat_map, grouping, generators, saved data
    sets) it is not known, and the pipeline is refused.

    A pipeline that filters or generates does not always say that it is infinite. It is given up
    after 8 GiB, with 1 KiB for each element beside its values.

    Args:
      name: Name of the argument, for error messages.
      pipeline: The pipeline, of single observations or of batches.

    Returns:
      x: Arrays of shape `[N, ...]`, `tf.RaggedTensor`s of N rows or `tf.SparseTensor`s, in the
        structure of an x.
      left_out: What was left out, in words; an empty string if nothing was.

    Raises:
      TypeError: If elements are of another structure, are not numbers, or are pairs of one int64
        and something else, as `.enumerate()` makes them.
      ValueError: If the pipeline is infinite, too large, empty, of single observations of different
        shapes, or of another order on each pass, or if it does not say whether its elements are
        batches.
    """
    if _is_infinite(pipeline):
        raise ValueError(
            f"{name} is an infinite pipeline, and a data set has N observations: leave .repeat() "
            f"out, or take one pass, {name}.take(number_of_batches)."
        )
    has_target = type(pipeline.element_spec) is tuple  # and no named one
    if has_target and not 1 <= len(pipeline.element_spec) <= 2:
        raise TypeError(
            f"the elements of {name} are tuples of {len(pipeline.element_spec)}, expected x or "
            f"(x, y) as in Keras: for a structured observation map them to a dict, "
            f'{name}.map(lambda a, b, c: {{"a": a, "b": b, "c": c}}).'
        )
    specs = pipeline.element_spec[0] if has_target else pipeline.element_spec
    _check_are_numbers(name, specs)
    if has_target and len(pipeline.element_spec) == 2:
        _check_is_no_index(name, pipeline)
    batched = _is_batched(name, pipeline, specs)
    digests, elements, num_bytes = [], [], 0
    for is_kept in (True, False):
        digest = hashlib.sha256()
        for element in pipeline:
            x = element[0] if has_target else element
            for leaf in tf.nest.flatten(x, expand_composites=True):
                values = leaf.numpy()
                num_bytes += values.nbytes if is_kept else 0
                digest.update(values.tobytes())
            if is_kept:
                elements.append(x if batched else tf.nest.map_structure(_as_batch, x, specs))
                if num_bytes + _BYTES_OF_ELEMENT * len(elements) > MAX_BYTES:
                    raise ValueError(
                        f"{name} is still going on after {len(elements)} elements, which take "
                        f"{MAX_BYTES / 2**30:.3g} GiB, and a data set is held in memory: if it "
                        f"never ends, take a part of it, {name}.take(number_of_elements)."
                    )
        digests.append(digest.digest())
    if digests[0] != digests[1]:
        raise ValueError(
            f"two passes over {name} give other observations or another order, and posteriors are "
            "matched to observations by their place: leave .shuffle() and random maps out, or fix "
            "the order with .shuffle(..., reshuffle_each_iteration=False)."
        )
    if not elements:
        raise ValueError(f"{name} is an empty pipeline: it holds no observations.")
    x = tf.nest.map_structure(lambda *leaves: _joined(name, leaves), *elements)
    return x, " (x, y), of which y is left out" if has_target and len(element) == 2 else ""


def _is_infinite(pipeline: tf.data.Dataset) -> bool:
    """Returns whether a pipeline is known never to end, by itself or by the steps before it."""
    cardinality = int(pipeline.cardinality())
    if cardinality != tf.data.UNKNOWN_CARDINALITY:
        return bool(cardinality == tf.data.INFINITE_CARDINALITY)
    kind = type(pipeline).__name__
    is_endless = kind in (_KEEPING - _ENDING) | _MAPS | _BATCHED | _SINGLE
    return is_endless and any(map(_is_infinite, pipeline._inputs()))


def _check_are_numbers(name: str, specs: Any) -> None:
    for spec in tf.nest.flatten(specs):
        is_array = isinstance(spec, tf.TensorSpec | tf.RaggedTensorSpec | tf.SparseTensorSpec)
        if not is_array or not (spec.dtype.is_numpy_compatible and spec.dtype != tf.string):
            raise TypeError(f"the elements of {name} must be arrays of numbers; got {spec}.")


def _check_is_no_index(name: str, pipeline: tf.data.Dataset) -> None:
    spec = pipeline.element_spec[0]
    is_index = isinstance(spec, tf.TensorSpec) and spec.dtype == tf.int64
    if is_index and (spec.shape.rank == 0 or (spec.shape.rank == 1 and _known_batched(pipeline))):
        raise TypeError(
            f"the elements of {name} are pairs whose first is one int64 an observation, which may "
            f"be its index, as of .enumerate(): {name}.map(lambda index, x: x) leaves it out; if "
            f"it is the observation itself, {name}.map(lambda x, y: x) says so."
        )


def _is_batched(name: str, pipeline: tf.data.Dataset, specs: Any) -> bool:
    """Returns whether elements are batches, of which `specs` are the specifications of x."""
    batched = _known_batched(pipeline)
    is_scalar = any(spec.shape.rank == 0 for spec in tf.nest.flatten(specs))
    if batched is None or (batched and is_scalar):
        raise ValueError(
            f"{name} does not say whether its elements, {pipeline.element_spec}, are batches or "
            f"single observations: {name}.unbatch() as its last step says that they are batches, "
            f"and {name}.batch(size) that they are single observations. Of a "
            "tfp_surgery.datasets.Dataset hand in the Dataset itself."
        )
    return batched


def _known_batched(pipeline: tf.data.Dataset) -> bool | None:
    """Returns whether elements are batches; None if that is not known."""
    shapes = [spec.shape for spec in _arrays(pipeline)]
    if shapes and all(shape.rank == 0 for shape in shapes):
        return False
    kind, inputs = type(pipeline).__name__, pipeline._inputs()
    if kind in _BATCHED:
        return True
    if kind in _SINGLE:
        return False
    if kind not in _KEEPING | _MAPS | _SIDE_BY_SIDE:
        return None
    known = {_known_batched(each) for each in inputs}
    batched = known.pop() if len(known) == 1 else None
    if batched is None or kind not in _MAPS:
        return batched
    sizes = {_leading(spec.shape) for spec in _arrays(inputs[0])}
    if not batched and all(shape.is_fully_defined() for shape in shapes):
        return False
    return batched if sizes.issuperset(map(_leading, shapes)) else None


def _arrays(pipeline: tf.data.Dataset) -> list[Any]:
    """Returns the specifications of the arrays of an element."""
    return [spec for spec in tf.nest.flatten(pipeline.element_spec) if hasattr(spec, "shape")]


def _leading(shape: tf.TensorShape) -> Any:
    """Returns the leading dimension, None if it is not static, or what the shape has instead."""
    return shape[0] if shape.rank else str(shape)


def _as_batch(leaf: Any, spec: Any) -> Any:
    if isinstance(leaf, tf.SparseTensor):
        return tf.sparse.expand_dims(leaf, 0)
    batch = tf.expand_dims(leaf, 0)
    if isinstance(spec, tf.RaggedTensorSpec) and not isinstance(leaf, tf.RaggedTensor):
        return tf.RaggedTensor.from_tensor(batch)  # a row of ragged rows is a plain Tensor
    return batch


def _joined(name: str, leaves: tuple[Any, ...]) -> Any:
    if isinstance(leaves[0], tf.RaggedTensor):
        return tf.concat(leaves, axis=0)
    shapes = {tuple(leaf.shape[1:]) for leaf in leaves}
    if len(shapes) > 1:
        found = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
        raise ValueError(
            f"the observations of {name} differ in shape, {found}: pad them, "
            f"{name}.padded_batch(size) of single ones, or make them ragged, "
            f"{name}.ragged_batch(size)."
        )
    if isinstance(leaves[0], tf.SparseTensor):
        return tf.sparse.concat(0, list(leaves))
    return np.concatenate([leaf.numpy() for leaf in leaves])
