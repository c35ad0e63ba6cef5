"""Marginals over groups of dimensions, and priors as the mixtures whose marginals are known."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import MIXTURES, plain_class
from tfp_surgery.distributions import components as components_lib
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.distributions.marginals import is_factorised

tfd = tfp.distributions

_INDEPENDENT, _SAMPLE = plain_class(tfd.Independent), plain_class(tfd.Sample)
_GAUSSIANS = (
    tfd.MultivariateNormalLinearOperator,  # Diag, TriL and the like
    tfd.MultivariateNormalDiagPlusLowRankCovariance,
)


def has_group_marginals(distribution: tfd.Distribution) -> bool:
    """Whether `group_marginal` knows the family: Gaussians, and scalars under `Independent`."""
    return isinstance(distribution, _GAUSSIANS) or is_factorised(distribution)


def group_marginal(components: tfd.Distribution, dimensions: Sequence[int]) -> tfd.Distribution:
    """Returns the marginals q(z_g|x_n) over a group of dimensions.

    Args:
      components: Distribution with batch shape `[B..., N]` and event shape `[D]`, every parameter
        broadcast to the batch shape.
      dimensions: The G dimensions of the group, each in [0, D).

    Returns:
      Distribution with batch shape `[B..., N]` and event shape `[G]`.

    Raises:
      NotImplementedError: If the family's marginals are not known here.
    """
    if not has_group_marginals(components):
        raise NotImplementedError(
            f"The marginals of {type(components).__name__} over groups of dimensions are not known "
            "here; they are for Gaussians and tfd.Independent over one dimension."
        )
    if isinstance(components, _INDEPENDENT):
        scalar = components_lib.broadcast(components.distribution)  # batch [B..., N, D]
        axis = components_lib.batch_rank(components)
        return tfd.Independent(components_lib.gather(scalar, dimensions, axis=axis), 1)
    loc = tf.gather(components.mean(), dimensions, axis=-1)
    if isinstance(components, tfd.MultivariateNormalDiag):
        return tfd.MultivariateNormalDiag(loc, tf.gather(components.stddev(), dimensions, axis=-1))
    if isinstance(components, tfd.MultivariateNormalLinearOperator):
        rows = tf.gather(components.scale.to_dense(), dimensions, axis=-2)  # [B..., N, G, D]
        # Rows S have covariance S S^T = R^T R, where S^T = Q R: no product is formed, so that the
        # condition number is not squared.
        _, upper = tf.linalg.qr(tf.linalg.matrix_transpose(rows))  # [B..., N, G, G]
        upper *= tf.sign(tf.linalg.diag_part(upper))[..., tf.newaxis]
        return tfd.MultivariateNormalTriL(loc, tf.linalg.matrix_transpose(upper))
    covariance = tf.gather(components.covariance(), dimensions, axis=-1)
    covariance = tf.gather(covariance, dimensions, axis=-2)
    return tfd.MultivariateNormalTriL(loc, tf.linalg.cholesky(covariance))


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
    """Returns a prior as a mixture whose marginals are known, if it is such a one.

    Mixtures are then scored without an array of queries times components.

    Args:
      prior: Distribution with batch shape `[]` and event shape `[D]`.

    Returns:
      The same distribution as an `AggregatePosterior`: of its components where it is a
      `tfd.MixtureSameFamily` (or an `AggregatePosterior` already), of one where it is Gaussian, or
      `tfd.Independent` or `tfd.Sample` over scalars. None for other distributions.
    """
    if isinstance(prior, AggregatePosterior):
        mixture = prior
    elif isinstance(prior, MIXTURES):
        mixture = AggregatePosterior(
            prior.components_distribution, weights=prior.mixture_distribution.probs_parameter()
        )
    else:
        if isinstance(prior, _SAMPLE) and prior.distribution.event_shape.rank == 0:
            shape = prior.event_shape_tensor()
            scalar = prior.distribution._broadcast_parameters_with_batch_shape(shape)
            prior = tfd.Independent(scalar, 1)
        if not has_group_marginals(prior):
            return None
        single = components_lib.broadcast(prior)
        parameters = [leaf[tf.newaxis] for leaf in components_lib.leaves(single)]
        mixture = AggregatePosterior(components_lib.with_leaves(single, parameters))
    return mixture if has_group_marginals(mixture.components_distribution) else None
