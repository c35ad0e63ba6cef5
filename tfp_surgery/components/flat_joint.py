"""FlatJoint: a joint distribution over its parts, flattened and concatenated to one vector."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import unwrap
from tfp_surgery.checks.parts_given import has_dependent_parts, items
from tfp_surgery.tfp_internals import parameter_properties
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True, eq=False)
class CodeLayout:
    """Where the parts of a structured code lie in the vector [D] that represents it.

    Attributes:
      dtypes: The dtypes of the parts, in the structure of a code.
      event_shapes: Their static shapes, a list in the order of `tf.nest`.
      names: Their names, in the same order.
      is_named: Whether a user gave the names.
    """

    dtypes: Any
    event_shapes: list[tf.TensorShape]
    names: tuple[str, ...]
    is_named: bool

    @property
    def sizes(self) -> list[int]:
        """The number of dimensions of each part."""
        return [int(shape.num_elements()) for shape in self.event_shapes]

    @property
    def dtype(self) -> tf.DType:
        """The floating dtype of the vector, which also holds integer parts."""
        floats = [dtype for dtype in tf.nest.flatten(self.dtypes) if dtype.is_floating]
        return max(floats, key=lambda dtype: dtype.size, default=tf.float32)

    @property
    def slices(self) -> list[slice]:
        """The dimensions of each part."""
        ends = np.cumsum([0, *self.sizes]).tolist()
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def pack(self, code: Any) -> tf.Tensor:
        """Returns structured codes `[...]` as vectors `[..., D]`."""
        flat = []
        for part, shape, size in zip(
            tf.nest.flatten(code), self.event_shapes, self.sizes, strict=True
        ):
            outer = ps.shape(part)[: ps.rank(part) - shape.rank]
            vector = tf.reshape(part, ps.concat([outer, [size]], axis=0))  # [..., size of part]
            flat.append(tf.cast(vector, self.dtype))
        return tf.concat(flat, axis=-1)

    def unpack(self, z: tf.Tensor) -> Any:
        """Returns vectors `[..., D]` as structured codes."""
        outer = ps.shape(z)[:-1]
        parts = [
            tf.cast(tf.reshape(z[..., dims], ps.concat([outer, shape.as_list()], axis=0)), dtype)
            for dims, shape, dtype in zip(
                self.slices, self.event_shapes, tf.nest.flatten(self.dtypes), strict=True
            )
        ]
        return tf.nest.pack_sequence_as(self.dtypes, parts)

    def renamed(self, code: Any, other: CodeLayout) -> Any:
        """Returns a code of this layout in the structure of another one with the same names."""
        parts = dict(zip(self.names, tf.nest.flatten(code), strict=True))
        return tf.nest.pack_sequence_as(other.dtypes, [parts[name] for name in other.names])


class FlatJoint(tfd.Distribution):
    """A joint distribution whose event is the vector of its parts, in the order of `tf.nest`.

    The parts of a joint distribution of independent parts are declared parameters, so that a batch
    of such posteriors can be joined and picked by index as any other. Integer parts become floats.
    """

    def __init__(
        self,
        layout: CodeLayout,
        joint: Any = None,
        joint_layout: CodeLayout | None = None,
        distributions: list[tfd.Distribution] | None = None,
        name: str = "FlatJoint",
    ) -> None:
        """Makes the distribution; see `flattened`, which callers use.

        Args:
          layout: The layout of a code.
          joint: A `tfd.JointDistribution` of dependent parts, or None.
          joint_layout: Its own layout, whose parts have the same names in any order.
          distributions: The independent parts in the order of the layout, or None.
          name: Name of the ops.
        """
        parameters = dict(locals())
        self.layout = layout
        self._joint = joint
        self._joint_layout = layout if joint_layout is None else joint_layout
        self.distributions = distributions
        kinds = (
            tf.nest.flatten(joint.reparameterization_type)
            if distributions is None
            else [part.reparameterization_type for part in distributions]
        )
        reparameterized = all(each == tfd.FULLY_REPARAMETERIZED for each in kinds)
        super().__init__(
            dtype=layout.dtype,
            reparameterization_type=(
                tfd.FULLY_REPARAMETERIZED if reparameterized else tfd.NOT_REPARAMETERIZED
            ),
            validate_args=False,
            allow_nan_stats=True,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> dict[str, Any]:
        def no_event(distribution: Any) -> Any:
            return tf.nest.map_structure(lambda _: 0, distribution.distributions)

        return {
            "distributions": parameter_properties.BatchedComponentProperties(
                event_ndims=no_event, event_ndims_tensor=no_event
            )
        }

    @property
    def joint(self) -> Any:
        """The joint distribution of dependent parts; None if they are independent."""
        return self._joint

    def part(self, number: int) -> tfd.Distribution | None:
        """Returns the marginal distribution of a part; None where it is not known.

        It is known for independent parts, and for parts of a joint distribution on which it is not
        said to depend on others.
        """
        if self.distributions is not None:
            return self.distributions[number]
        return _independent_parts(self._joint, self._joint_layout).get(self.layout.names[number])

    def _batch_shape(self) -> tf.TensorShape:
        if self.distributions is None:
            return tf.nest.flatten(self._joint.batch_shape)[0]
        shape = self.distributions[0].batch_shape
        for part in self.distributions[1:]:
            shape = tf.broadcast_static_shape(shape, part.batch_shape)
        return shape

    def _batch_shape_tensor(self, **unused: Any) -> tf.Tensor:
        return tf.constant(self._batch_shape().as_list(), tf.int32)

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([sum(self.layout.sizes)])

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant([sum(self.layout.sizes)], tf.int32)

    def _sample_n(self, n: tf.Tensor, seed: Any) -> tf.Tensor:
        if self.distributions is None:
            draw = self._joint.sample(n, seed=seed)
            return self.layout.pack(self._joint_layout.renamed(draw, self.layout))
        seeds = tfp.random.split_seed(seed, len(self.distributions), salt="FlatJoint")
        draws = [
            part.sample(n, seed=seed)
            for part, seed in zip(self.distributions, tf.unstack(seeds), strict=True)
        ]
        return self.layout.pack(tf.nest.pack_sequence_as(self.layout.dtypes, draws))

    def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
        code = self.layout.unpack(z)
        if self.distributions is None:
            value = self.layout.renamed(code, self._joint_layout)
            return tf.cast(self._joint.log_prob(value), self.dtype)
        scores = [
            tf.cast(part.log_prob(value), self.dtype)
            for part, value in zip(self.distributions, tf.nest.flatten(code), strict=True)
        ]
        return sum(scores[1:], scores[0])

    def _moment(self, name: str) -> tf.Tensor:
        if self.distributions is None:
            raise NotImplementedError(f"{name} of a joint distribution of dependent parts.")
        parts = [getattr(part, name)() for part in self.distributions]
        return self.layout.pack(tf.nest.pack_sequence_as(self.layout.dtypes, parts))

    def _mean(self) -> tf.Tensor:
        return self._moment("mean")

    def _variance(self) -> tf.Tensor:
        return self._moment("variance")


def layout_of(distribution: Any) -> CodeLayout:
    """Returns the layout of the codes of a joint distribution.

    Args:
      distribution: A `tfd.Distribution` over structures.

    Returns:
      The layout.

    Raises:
      ValueError: If the shape of a part is not known statically.
    """
    dtype = distribution.dtype
    if any(tf.nest.is_nested(part) for _, part in items(dtype)):
        raise ValueError(
            f"the parts of {distribution.name} must be single tensors, and one of them is a "
            f"structure itself: {dtype}. Write one joint distribution of all parts."
        )
    shapes = tf.nest.flatten(distribution.event_shape)
    if not all(isinstance(s, tf.TensorShape) and s.is_fully_defined() for s in shapes):
        raise ValueError(
            f"the shapes of the parts of {distribution.name} must be known statically; got "
            f"{distribution.event_shape}."
        )
    floats = {each.name for each in tf.nest.flatten(dtype) if each.is_floating}
    if len(floats) > 1:
        raise ValueError(
            f"the parts of {distribution.name} must have one floating dtype, got "
            f"{' and '.join(sorted(floats))}."
        )
    batch_shapes = {str(shape) for shape in tf.nest.flatten(distribution.batch_shape)}
    if len(batch_shapes) > 1 and not _are_independent(distribution):
        raise ValueError(
            f"the parts of {distribution.name} depend on each other and must have one batch shape, "
            f"got {distribution.batch_shape}."
        )
    names, is_named = _names(distribution)
    return CodeLayout(dtype, shapes, tuple(names), is_named)


def _has_names(dtype: Any) -> bool:
    return isinstance(dtype, Mapping) or hasattr(dtype, "_fields")


def _are_independent(joint: Any) -> bool:
    return isinstance(joint, tfd.JointDistribution) and not has_dependent_parts(joint)


def _names(distribution: Any) -> tuple[list[str], bool]:
    """Returns the names of the parts, in the order of `tf.nest`, and whether a user gave them."""
    dtype = distribution.dtype
    if hasattr(dtype, "_fields"):
        unnamed = all(re.fullmatch(r"var\d+", name) for name in dtype._fields)
        return list(dtype._fields), not unnamed  # of a coroutine
    if isinstance(dtype, Mapping):
        return sorted(dtype), True
    resolved = getattr(distribution, "_flat_resolve_names", None)
    if resolved is None:
        return [str(i) for i in range(len(dtype))], False
    parts, _ = distribution.sample_distributions(seed=tf.constant([0, 0], tf.int32))
    own = [part.name for part in parts]
    given = [part.name != type(part).__name__.lstrip("_") for part in parts]
    if all(given) and len(set(own)) == len(own):
        return own, True
    return [str(name) for name in resolved()], False


def flattened(distribution: tfd.Distribution, layout: CodeLayout | None = None) -> FlatJoint:
    """Returns a joint distribution over the vectors that represent its structured codes.

    Parts that have names in both go by these, whatever their order; others go by their place, which
    says enough for independent parts and for parts that differ in shape.

    Args:
      distribution: A `tfd.JointDistribution`, or another distribution over structures.
      layout: The layout of the codes that it must be of; None for its own.

    Returns:
      The distribution over `[D]`, of declared parts if they are independent.

    Raises:
      ValueError: If its parts have another structure or other shapes than those of the layout, or
        parts of one shape depend on each other and have no names.
    """
    own = layout_of(distribution)
    is_independent = _are_independent(distribution)
    if layout is None:
        layout = own
    elif own.is_named and layout.is_named and set(own.names) == set(layout.names):
        _check_shapes(distribution, own, layout, by_name=True)
    else:
        _check_shapes(distribution, own, layout, by_name=False)
        if not is_independent and len({str(shape) for shape in own.event_shapes}) < len(own.names):
            raise ValueError(
                f"parts of {distribution.name} have one shape and depend on each other, and the "
                f"encoder's ({describe(layout)}) and the prior's ({describe(own)}) names do not "
                "say which belongs to which: give the parts the same names in both, as in a "
                "tfd.JointDistributionNamed or by name= of each distribution."
            )
        own = dataclasses.replace(own, names=layout.names)  # by their place
    parts = _independent_parts(distribution, own)
    if len(parts) == len(own.names):
        return FlatJoint(layout, distributions=[parts[name] for name in layout.names])
    return FlatJoint(layout, joint=distribution, joint_layout=own)


def _check_shapes(distribution: Any, own: CodeLayout, layout: CodeLayout, *, by_name: bool) -> None:
    """Raises a ValueError unless two layouts have the same parts: by name, or by place."""
    shapes = [[*map(list, each.event_shapes)] for each in (own, layout)]
    if by_name:
        named = [
            dict(zip(*pair, strict=True))
            for pair in ((own.names, shapes[0]), (layout.names, shapes[1]))
        ]
        same = named[0] == named[1]
    else:
        have_names = (
            _has_names(own.dtypes) and own.is_named,
            _has_names(layout.dtypes) and layout.is_named,
        )
        same = shapes[0] == shapes[1] and not any(have_names)
    if not same:
        raise ValueError(
            f"the prior must be over the codes of the encoder, of parts {describe(layout)}, but "
            f"{distribution.name} has {describe(own)}."
        )


def describe(layout: CodeLayout) -> str:
    """Returns the names and shapes of the parts of a code, in words."""
    parts = zip(layout.names, layout.event_shapes, strict=True)
    return ", ".join(f"{name} {list(shape)}" for name, shape in parts)


def _independent_parts(joint: Any, layout: CodeLayout) -> dict[str, tfd.Distribution]:
    """Returns the parts of a joint distribution that are distributions of their own, by name.

    A batch dimension of a part that its auto-batched joint distribution counts to the event becomes
    one of the event.
    """
    model: Any = getattr(joint, "model", None)
    if not isinstance(model, Mapping | list | tuple):
        return {}
    found = {
        name: unwrap(part)
        for name, (_, part) in zip(layout.names, items(model), strict=True)
        if isinstance(part, tfd.Distribution)
    }
    if not isinstance(joint.batch_shape, tf.TensorShape):
        return found
    rank, parts = joint.batch_shape.rank, {}
    for name, part in found.items():
        extra = part.batch_shape.rank - rank
        if extra >= 0 and part.batch_shape[:rank] == joint.batch_shape:
            parts[name] = tfd.Independent(part, extra) if extra else part
    return parts
