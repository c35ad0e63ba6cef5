"""Operations on a batch of distributions by its parameter tensors: broadcast, gather, join.

A batch of N posteriors is a list of parameter tensors ("leaves") with the full batch shape on the
left. Components can thus be picked, joined and differentiated whatever their distribution. Leaves
are found through TFP's `parameter_properties`, which works for every distribution or bijector that
declares its parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import DEFERRED, unwrap
from tfp_surgery.components.flat_joint import CodeLayout, describe, flattened
from tfp_surgery.tfp_internals import batch_shape_lib
from tfp_surgery.tfp_internals import prefer_static as ps

tfb = tfp.bijectors
tfd = tfp.distributions

# TFP declares a batch of their parameters but refuses one: all components share them.
_SHARED = (tfb.Permute,)
_REENCODE = "An encoder is called again, in place of joining its posteriors, with reencode=True."
_GIVEN = (
    "Of N posteriors q that no encoder gives, as surrogates of tfp.experimental.vi, "
    "elbo_surgery_from_log_probs takes the densities, q.log_prob(z[:, :, tf.newaxis])."
)
_OF_TFP = ("tensorflow_probability.", "tfp_surgery.")


def _map_leaves(node: Any, fn: Callable[[tf.Tensor], tf.Tensor], x_event_ndims: Any = None) -> Any:
    """Copies a distribution or bijector with `fn` applied to every parameter tensor."""
    return node.copy(**_mapped_parameters(node, fn, _map_leaves, x_event_ndims))


def _mapped_parameters(
    node: Any, fn: Callable[[tf.Tensor], Any], descend: Callable[..., Any], x_event_ndims: Any
) -> dict[str, Any]:
    """Applies `fn` to every parameter tensor of `node` and `descend` to every nested object."""

    def visit(parameter: Any, event_ndims: Any) -> Any:
        if isinstance(parameter, tfb.Bijector):
            return descend(parameter, fn, event_ndims)
        if isinstance(parameter, tfd.Distribution):
            return descend(parameter, fn)
        if isinstance(parameter, tf.linalg.LinearOperator):
            raise TypeError(
                f"{type(node).__name__} holds a {type(parameter).__name__}; components are "
                "handled by their parameter tensors. Use a distribution parameterised by tensors, "
                "for example tfd.MultivariateNormalTriL(loc, operator.to_dense()). "
                f"{_REENCODE} {_GIVEN}"
            )
        return fn(tf.convert_to_tensor(parameter))

    if isinstance(node, _SHARED):
        return {}
    try:
        mapped: dict[str, Any] = batch_shape_lib.map_fn_over_parameters_with_event_ndims(
            node, visit, bijector_x_event_ndims=x_event_ndims
        )
    except NotImplementedError as error:
        raise TypeError(
            f"{type(node).__name__} does not declare its parameters (`_parameter_properties`): "
            f"a batch that holds it cannot be indexed. {_REENCODE}"
        ) from error
    return mapped


def prepare(distribution: Any, what: str) -> tfd.Distribution:
    """Returns a distribution whose batch can be indexed, with densities of at least 32 bits.

    Distributions that a layer of `tfp.layers` made coercible to a tensor are unwrapped at every
    level. Parameters in float16 or bfloat16 are cast to float32, because densities and log-sum-exps
    in fewer bits are wrong by whole nats. NumPy arrays become tensors, because TFP would convert
    them anew whenever it is asked for a shape.

    Args:
      distribution: A `tfd.Distribution` that declares its parameters. A joint distribution of
        independent parts becomes one over vectors, see `FlatJoint`.
      what: What it is, for the message.

    Returns:
      The distribution.

    Raises:
      TypeError: If it is no `tfd.Distribution`, is a joint distribution of dependent parts, or does
        not declare its parameters (`_parameter_properties`).
    """
    if isinstance(distribution, DEFERRED):
        distribution = unwrap(distribution)
    if not isinstance(distribution, tfd.Distribution):
        raise TypeError(f"{what} must be a tfd.Distribution; got {type(distribution).__name__}.")
    if tf.nest.is_nested(distribution.dtype):
        distribution = flattened(distribution)
        if distribution.distributions is None:
            raise TypeError(
                f"{what} is a joint distribution whose parts depend on each other, or are not "
                f"known to be independent ({describe(distribution.layout)}): what they depend on "
                f"is not a parameter by which posteriors could be joined. {_REENCODE} {_GIVEN}"
            )
    distribution = _unwrap(distribution)
    arrays = {
        name: tf.convert_to_tensor(value)
        for name, value in distribution.parameters.items()
        # An array of integers may stand for floats.
        if isinstance(value, np.ndarray)
        and tf.as_dtype(distribution.dtype).is_floating
        and value.dtype == tf.as_dtype(distribution.dtype).as_numpy_dtype
    }
    if arrays:
        distribution = distribution.copy(**arrays)
    if any(leaf.dtype in (tf.float16, tf.bfloat16) for leaf in leaves(distribution)):
        return _map_leaves(
            distribution,
            lambda leaf: tf.cast(leaf, tf.float32) if leaf.dtype.is_floating else leaf,
        )
    return distribution


def _unwrap(distribution: tfd.Distribution) -> tfd.Distribution:
    distribution = unwrap(distribution)
    unwrapped = {
        name: _unwrap(parameter)
        for name, parameter in distribution.parameters.items()
        if isinstance(parameter, tfd.Distribution)
    }
    if all(inner is distribution.parameters[name] for name, inner in unwrapped.items()):
        return distribution
    return distribution.copy(**unwrapped)


def _kinds(distribution: tfd.Distribution) -> list[type]:
    """Returns the types of a distribution and of all distributions and bijectors in it."""
    found = [type(distribution)]

    def collect(inner: Any, ignore: Callable[[tf.Tensor], Any], x_event_ndims: Any = None) -> None:
        found.append(type(inner))
        _mapped_parameters(inner, ignore, collect, x_event_ndims)

    _mapped_parameters(distribution, lambda _: None, collect, None)
    return found


def undeclared(distribution: tfd.Distribution) -> list[str]:
    """Returns the places, in words, where a distribution may hold parameters it does not declare.

    These are functions (which may close over anything), undeclared arguments of TFP's classes (the
    bijectors of `tfb.Blockwise`), and classes that are not TFP's.
    """
    found: list[str] = []

    def collect(node: Any, ignore: Callable[[tf.Tensor], Any], x_event_ndims: Any = None) -> None:
        kind = type(node)
        declared = _mapped_parameters(node, ignore, collect, x_event_ndims)
        if isinstance(node, _SHARED) or getattr(node, "indexed_by_rows", False):
            return
        if not kind.__module__.startswith(_OF_TFP):
            found.append(kind.__name__)
            return
        properties = kind.parameter_properties()
        for name, value in node.parameters.items():
            is_shape = name in properties and properties[name].specifies_shape
            if name not in declared and not is_shape and not _is_plain(value):
                found.append(f"{name} of {kind.__name__}")

    collect(distribution, lambda _: None)
    return found


def _is_plain(value: Any) -> bool:
    """Whether a value is a number or an option, which no observation has a hand in."""
    if callable(value) and not isinstance(value, tf.Module):
        module = getattr(value, "__module__", None) or ""
        return module.startswith(_OF_TFP) and not getattr(value, "__closure__", None)
    plain = (bool, int, float, str, np.generic, tf.DType)
    return value is None or type(value) is object or isinstance(value, (*plain, CodeLayout))


def broadcast(distribution: tfd.Distribution, batch_shape: Any = None) -> tfd.Distribution:
    """Returns a copy whose every parameter tensor carries the full batch shape.

    A parameter that several components share, a `[D, D]` scale for instance, could otherwise not
    be told from one that varies with the component.

    Args:
      distribution: A distribution that declares its parameters.
      batch_shape: Shape to which its own batch shape broadcasts, int32; None for its own.

    Returns:
      The copy, of batch shape `batch_shape`.
    """
    own = batch_shape_tensor(distribution)
    if batch_shape is None or (
        isinstance(batch_shape, np.ndarray) and np.array_equal(own, batch_shape)
    ):
        batch_shape = own
        if _has_full_parameters(distribution):
            return distribution
    return _broadcast(distribution, batch_shape)


def _broadcast(node: Any, batch_shape: Any, x_event_ndims: Any = None) -> Any:
    """TFP's `_broadcast_parameters_with_batch_shape`, but for what is shared."""

    def visit(parameter: Any, event_ndims: Any) -> Any:
        if isinstance(parameter, tfb.Bijector):
            return _broadcast(parameter, batch_shape, event_ndims)
        shape = ps.concat([batch_shape, ps.ones([event_ndims], np.int32)], axis=0)
        if isinstance(parameter, tfd.Distribution):
            return _broadcast(parameter, shape)
        if isinstance(parameter, tf.linalg.LinearOperator):  # refused where leaves are asked for
            return parameter
        return tf.broadcast_to(parameter, ps.broadcast_shape(shape, ps.shape(parameter)))

    if isinstance(node, _SHARED):
        return node
    parameters = batch_shape_lib.map_fn_over_parameters_with_event_ndims(
        node, visit, bijector_x_event_ndims=x_event_ndims
    )
    return node.copy(**parameters) if parameters else node


def _has_full_parameters(distribution: tfd.Distribution) -> bool:
    """Returns whether all parameters are tensors that statically have the full batch shape.

    Such a distribution need not be made anew, which takes TFP milliseconds.
    """
    batch_shape = distribution.batch_shape
    if not batch_shape.is_fully_defined():
        return False
    for name, properties in type(distribution).parameter_properties().items():
        value = distribution.parameters.get(name)
        if value is None:
            continue
        if not isinstance(value, tf.Tensor | np.ndarray) or properties.event_ndims not in (0, 1):
            return False
        shape = tf.TensorShape(value.shape)
        if shape.rank is None or shape[: shape.rank - properties.event_ndims] != batch_shape:
            return False
    return True


def batch_shape_tensor(distribution: tfd.Distribution) -> Any:
    """Returns the batch shape: an int32 `np.ndarray` if it is known statically, else a `Tensor`."""
    static = distribution.batch_shape
    if static.is_fully_defined():
        return np.array(static.as_list(), np.int32)
    return distribution.batch_shape_tensor()


def leaves(distribution: tfd.Distribution) -> list[tf.Tensor]:
    """Returns the parameter tensors of a `broadcast` distribution, in a fixed order."""
    found: list[tf.Tensor] = []

    def collect(node: Any, fn: Callable[[tf.Tensor], Any], x_event_ndims: Any = None) -> None:
        _mapped_parameters(node, fn, collect, x_event_ndims)

    collect(distribution, found.append)
    return found


def with_leaves(distribution: tfd.Distribution, tensors: Sequence[tf.Tensor]) -> tfd.Distribution:
    """Returns a copy of `distribution` with its parameter tensors replaced, in `leaves` order."""
    remaining = iter(tensors)
    return _map_leaves(distribution, lambda _: next(remaining))


def gather(
    distribution: tfd.Distribution, indices: tf.Tensor, axis: int = 0, batch_dims: int = 0
) -> tfd.Distribution:
    """Picks components of a `broadcast` distribution.

    Args:
      distribution: A `broadcast` distribution with batch shape `[..., N]`.
      indices: Integer `Tensor`; see `tf.gather`.
      axis: The batch dimension to index, counted from the left.
      batch_dims: See `tf.gather`.

    Returns:
      The distribution with `indices.shape[batch_dims:]` in place of that dimension.
    """
    return _map_leaves(
        distribution, lambda leaf: tf.gather(leaf, indices, axis=axis, batch_dims=batch_dims)
    )


def deep_copy(node: Any, memo: dict[int, Any]) -> Any:
    """Copies a distribution or bijector with copies of its variables, for `copy.deepcopy`.

    `copy` cannot copy TFP's wrappers. Tensors and functions (such as the networks of a flow) are
    shared with the original, as `copy.deepcopy` shares functions.
    """

    def visit(parameter: Any, _: Any) -> Any:
        if isinstance(parameter, tfb.Bijector | tfd.Distribution):
            return deep_copy(parameter, memo)
        return copy.deepcopy(parameter, memo) if isinstance(parameter, tf.Variable) else parameter

    event_ndims = node.forward_min_event_ndims if isinstance(node, tfb.Bijector) else None
    copied = batch_shape_lib.map_fn_over_parameters_with_event_ndims(
        node, visit, bijector_x_event_ndims=event_ndims
    )
    return type(node)(**{**node.parameters, **copied})  # node.copy keeps the original


def concatenate(distributions: Sequence[tfd.Distribution]) -> tfd.Distribution:
    """Joins batches of one kind of distribution along their single batch dimension.

    Args:
      distributions: Non-empty sequence of distributions of the same type, each with batch shape
        `[B_i]`.

    Returns:
      One distribution with batch shape `[sum_i B_i]`.

    Raises:
      TypeError: If the distributions differ in type, at any level, or in the parameters they were
        given.
    """
    first = distributions[0]
    parts = [leaves(broadcast(part)) for part in distributions]
    kinds = _kinds(first)
    for part, tensors in zip(distributions, parts, strict=True):
        if _kinds(part) != kinds or len(tensors) != len(parts[0]):
            raise TypeError(
                "All batches must give the same kind of distribution; got "
                f"{_names(kinds)} and {_names(_kinds(part))}."
            )
    return with_leaves(
        broadcast(first), [tf.concat(tensors, axis=0) for tensors in zip(*parts, strict=True)]
    )


def _names(kinds: Sequence[type]) -> str:
    return " of ".join(kind.__name__ for kind in kinds)


def event_rank(distribution: tfd.Distribution) -> int:
    """Returns the static rank of the event.

    Raises:
      ValueError: If the rank is not known statically.
    """
    rank = distribution.event_shape.rank
    if rank is None:
        raise ValueError(f"The event rank of {distribution} must be known statically.")
    return int(rank)


def batch_rank(distribution: tfd.Distribution) -> int:
    """Returns the static rank of the batch.

    Raises:
      ValueError: If the rank is not known statically.
    """
    rank = distribution.batch_shape.rank
    if rank is None:
        raise ValueError(f"The batch rank of {distribution} must be known statically.")
    return int(rank)


def num_components(distribution: tfd.Distribution) -> Any:
    """Returns N, the rightmost batch dimension: an `int` where static, else a scalar tensor."""
    static = distribution.batch_shape[-1]
    return static if static is not None else distribution.batch_shape_tensor()[-1]


def dtype_of(distribution: tfd.Distribution) -> tf.DType:
    """Returns the floating dtype in which the distribution's `log_prob` comes."""
    for leaf in leaves(distribution):
        if leaf.dtype.is_floating:
            return leaf.dtype
    dtype = tf.as_dtype(distribution.dtype)
    return dtype if dtype.is_floating else tf.float32
