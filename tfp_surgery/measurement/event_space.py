"""The bijector from unconstrained space, in which chains move, to the codes of a prior."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import MIXTURES, plain_class, unwrap
from tfp_surgery.components.flat_joint import FlatJoint
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior

tfb = tfp.bijectors
tfd = tfp.distributions

_WAY_OUT = "log_evidence_by_importance_sampling takes the prior as it is"
_LISTED_MIXTURE = plain_class(tfd.Mixture)
_MIXTURES = (MIXTURES, AggregatePosterior)


def event_space_bijector(prior: tfd.Distribution) -> Any:
    """Returns the bijector from unconstrained codes to codes of the prior.

    `code_space.check_code_space` checks that its range is the support of the prior.

    Args:
      prior: p(z).

    Returns:
      TFP's default bijector for the event space of the prior. TFP has none for mixtures; a mixture
      at any depth of the prior is replaced by its first component. The parts of a structured code,
      a vector here, have one each.

    Raises:
      TypeError: If the codes are not single floating tensors, or the prior has no default bijector.
    """
    if tf.nest.is_nested(prior.dtype) or not tf.as_dtype(prior.dtype).is_floating:
        raise TypeError(
            f"HMC moves codes that are single floating tensors, but those of {prior.name} have "
            f"dtype {prior.dtype}; {_WAY_OUT}."
        )
    if isinstance(prior, FlatJoint) and prior.distributions is not None:
        return _blockwise(prior.distributions)
    bijector = default_bijector(prior)
    if bijector is None and num_components(prior):
        bijector = default_bijector(with_components(prior, 0))
    if bijector is None:
        raise TypeError(
            f"HMC needs to know the space of the codes, and {prior.name} does not say it "
            f"(_default_event_space_bijector); {_WAY_OUT}."
        )
    return bijector


def _blockwise(parts: list[tfd.Distribution]) -> Any:
    """Returns the bijector of vectors in which the parts of a code follow each other."""
    bijectors, sizes = [], []
    for part in parts:
        inner = event_space_bijector(part)
        moved = inner.inverse_event_shape(part.event_shape)
        sizes.append(moved.num_elements())
        to_vector = tfb.Reshape([part.event_shape.num_elements()], part.event_shape.as_list())
        bijectors.append(tfb.Chain([to_vector, inner, tfb.Reshape(moved.as_list(), [-1])]))
    return tfb.Blockwise(bijectors, block_sizes=sizes)


def default_bijector(distribution: tfd.Distribution) -> Any:
    """Returns TFP's default event space bijector of a distribution, None if there is none."""
    try:
        return distribution.experimental_default_event_space_bijector()
    except NotImplementedError:
        return None


def num_components(distribution: tfd.Distribution) -> int:
    """Returns the number of components of the largest mixture in a distribution; 0 without one."""
    distribution = unwrap(distribution)
    if isinstance(distribution, _LISTED_MIXTURE):
        return max(len(distribution.components), *map(num_components, distribution.components))
    found = [num_components(inner) for inner in _inner(distribution).values()]
    if isinstance(distribution, _MIXTURES):
        found.append(int(distribution.components_distribution.batch_shape[-1]))
    return max(found, default=0)


def with_components(distribution: tfd.Distribution, index: int) -> tfd.Distribution:
    """Replaces every mixture inside a distribution by one of its components.

    Args:
      distribution: Any distribution.
      index: Index of the component, taken modulo K for a mixture of K components.

    Returns:
      The unwrapped distribution without mixtures.

    Raises:
      TypeError: If TFP cannot slice the components.
    """
    distribution = unwrap(distribution)
    if isinstance(distribution, _LISTED_MIXTURE):
        components = distribution.components
        return with_components(components[index % len(components)], index)
    if isinstance(distribution, _MIXTURES):
        components = unwrap(distribution.components_distribution)
        try:
            component = components[..., index % int(components.batch_shape[-1])]
        except NotImplementedError as error:
            raise TypeError(
                f"the components of {distribution.name} ({components.name}) cannot be taken apart "
                f"to see what space their codes are in: {error}"
            ) from error
        return with_components(component, index)
    inner = _inner(distribution)
    chosen = {name: with_components(value, index) for name, value in inner.items()}
    if all(chosen[name] is inner[name] for name in inner):
        return distribution
    return distribution.copy(**chosen)


def _inner(distribution: tfd.Distribution) -> dict[str, tfd.Distribution]:
    """Returns the arguments of a distribution that are distributions, by name."""
    return {
        name: value
        for name, value in distribution.parameters.items()
        if isinstance(value, tfd.Distribution)
    }
