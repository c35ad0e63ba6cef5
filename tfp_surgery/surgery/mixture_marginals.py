"""Mixtures with known marginals over groups of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import MIXTURES, plain_class
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.flat_events import with_flat_events
from tfp_surgery.components.group_marginals import group_marginal
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior

tfd = tfp.distributions

_SAMPLE = plain_class(tfd.Sample)


def aggregate_group_marginal(
    aggregate_posterior: AggregatePosterior, dimensions: Sequence[int]
) -> AggregatePosterior:
    """Returns q(z_g) = sum_n w_n q(z_g|x_n) over a group of dimensions.

    Args:
      aggregate_posterior: Aggregate posterior with batch shape `[B...]` and event shape `[D]`.
      dimensions: As for `group_marginal`.

    Returns:
      `AggregatePosterior` with batch shape `[B...]` and event shape `[G]`.

    Raises:
      NotImplementedError: As for `group_marginal`.
    """
    components = components_lib.broadcast(aggregate_posterior.components_distribution)
    return AggregatePosterior(
        group_marginal(components, dimensions), weights=aggregate_posterior.weights
    )


def as_mixture(prior: tfd.Distribution) -> AggregatePosterior | None:
    """Converts a prior to a mixture with known marginals, if possible.

    An `AggregatePosterior` is scored without an array of queries times components.

    Args:
      prior: Distribution with batch shape `[]`.

    Returns:
      The same distribution over vectors as an `AggregatePosterior`: with the components of the
      prior if it is a mixture (`tfd.MixtureSameFamily` or `AggregatePosterior`), with one component
      if it is Gaussian, or `tfd.Independent` or `tfd.Sample` over scalars. None if the marginals
      are not known.
    """
    weights = None
    if isinstance(prior, AggregatePosterior):
        components, weights = prior.components_distribution, prior.weights
    elif isinstance(prior, MIXTURES):
        components = prior.components_distribution
        weights = prior.mixture_distribution.probs_parameter()
    elif isinstance(prior, _SAMPLE) and prior.distribution.event_shape.rank == 0:
        shape = prior.event_shape_tensor()
        scalar = prior.distribution._broadcast_parameters_with_batch_shape(shape)
        components = tfd.Independent(scalar, prior.event_shape.rank)
    else:
        components = prior
    try:
        flat = with_flat_events(components)
    except (NotImplementedError, TypeError):  # of another family, or without declared parameters
        return None
    if flat.batch_shape.rank == 0:
        single = components_lib.broadcast(flat)
        parameters = [leaf[tf.newaxis] for leaf in components_lib.leaves(single)]
        flat = components_lib.with_leaves(single, parameters)
    return AggregatePosterior(flat, weights=weights)
