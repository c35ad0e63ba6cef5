"""parts_given: the distributions of the parts of a joint distribution, given their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow_probability as tfp

from tfp_surgery.checks.networks import unwrap

tfd = tfp.distributions


class Part(NamedTuple):
    """A part of a value, and its distribution.

    Attributes:
      place: The place of the part, such as `['image']` or `[0]`.
      distribution: Its distribution, given the parts that it depends on.
      value: Its value; a structure if the part is a joint distribution itself.
    """

    place: str
    distribution: tfd.Distribution
    value: Any


def parts_given(joint: Any, value: Any) -> list[Part]:
    """Returns the parts of a joint distribution, each given the value of those it depends on.

    Args:
      joint: A distribution over structures, batch shape `[]`, `[1]` or that of the value.
      value: A value in its structure, batch shape `[...]`.

    Returns:
      The parts, in the order of the structure. A part that depends on others has their batch shape,
      others keep their own. Empty unless `joint` is a `tfd.JointDistribution`, since TFP does not
      tell the parts of other distributions.
    """
    if not isinstance(joint, tfd.JointDistribution):
        return []
    distributions, _ = joint.sample_distributions(value=value)
    parts = zip(items(distributions), items(value), strict=True)
    return [
        Part(f"[{name!r}]", unwrap(distribution), given)
        for (name, distribution), (_, given) in parts
    ]


def has_dependent_parts(joint: Any) -> bool:
    """Returns whether the distribution of a part may depend on other parts.

    Args:
      joint: A distribution over structures.
    """
    if not isinstance(joint, tfd.JointDistribution):
        return False
    model: Any = getattr(joint, "model", None)
    if not (isinstance(model, Mapping | list | tuple)):  # a generator
        return True
    return any(
        not isinstance(part, tfd.Distribution) or has_dependent_parts(unwrap(part))
        for _, part in items(model)
    )


def items(structure: Any) -> list[tuple[Any, Any]]:
    """Returns the parts of a structure with their names, or numbers if they have none.

    Args:
      structure: A dict, named tuple, tuple or list.

    Returns:
      Pairs of name and part, in the order of `tf.nest`.
    """
    if hasattr(structure, "_asdict"):
        return list(structure._asdict().items())
    if isinstance(structure, Mapping):
        return sorted(structure.items())
    return list(enumerate(structure))
