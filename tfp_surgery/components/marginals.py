"""Closed-form one-dimensional marginals of batches of distributions."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import plain_class
from tfp_surgery.components import components as components_lib

tfd = tfp.distributions

_INDEPENDENT = plain_class(tfd.Independent)


def is_factorised(components: tfd.Distribution) -> bool:
    """Returns whether the dimensions of a vector event are independent within each component."""
    return isinstance(components, tfd.MultivariateNormalDiag) or (
        isinstance(components, _INDEPENDENT)
        and components.distribution.event_shape.rank == 0
        and components_lib.event_rank(components) == 1
    )


def one_dimensional_marginals(components: tfd.Distribution) -> tfd.Distribution:
    """Returns the marginals q(z_j|x_n) of every component.

    Args:
      components: Distribution with batch shape `[B..., N]` and event shape `[D]`, every parameter
        broadcast to the batch shape.

    Returns:
      Distribution with batch shape `[B..., D, N]` and scalar events.

    Raises:
      ValueError: If the events are not vectors.
      NotImplementedError: If the marginals of the family are not implemented.
    """
    if components_lib.event_rank(components) != 1:
        raise ValueError(
            "One-dimensional marginals need vector events; got event shape "
            f"{components.event_shape}."
        )
    if isinstance(components, _INDEPENDENT) and is_factorised(components):
        scalar = components_lib.broadcast(components.distribution)  # batch [B..., N, D]
        batch_ndims = components_lib.batch_rank(components) - 1

        def swap(leaf: tf.Tensor) -> tf.Tensor:
            order = list(range(leaf.shape.rank))
            order[batch_ndims : batch_ndims + 2] = [batch_ndims + 1, batch_ndims]
            return tf.transpose(leaf, order)  # [B..., N, D, ...] -> [B..., D, N, ...]

        return components_lib.with_leaves(
            scalar, [swap(leaf) for leaf in components_lib.leaves(scalar)]
        )
    if isinstance(
        components,
        (
            tfd.MultivariateNormalLinearOperator,  # Diag, TriL and the like
            tfd.MultivariateNormalDiagPlusLowRankCovariance,
        ),
    ):
        return tfd.Normal(
            loc=tf.linalg.matrix_transpose(components.mean()),
            scale=tf.linalg.matrix_transpose(components.stddev()),
        )
    if isinstance(components, tfd.Dirichlet):
        concentration = components.concentration  # [B..., N, D]
        rest = tf.reduce_sum(concentration, axis=-1, keepdims=True) - concentration
        return tfd.Beta(
            concentration1=tf.linalg.matrix_transpose(concentration),
            concentration0=tf.linalg.matrix_transpose(rest),
        )
    raise NotImplementedError(
        f"The one-dimensional marginals of {type(components).__name__} have no closed form here; "
        "they are known for Gaussians, tfd.Independent over one dimension and tfd.Dirichlet."
    )
