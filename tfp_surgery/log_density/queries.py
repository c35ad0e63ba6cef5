"""Query points as the passes over the components take them."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions


def check_event_shape(z: tf.Tensor, components: tfd.Distribution) -> None:
    """Checks that z ends in the event shape, as far as the shapes are known statically.

    Args:
      z: `Tensor`, shape `[S..., B..., E...]`.
      components: Components with event shape `[E...]`.

    Raises:
      ValueError: If it does not.
    """
    if z.shape.rank is None:
        return
    event_ndims = components_lib.event_rank(components)
    given = z.shape[z.shape.rank - event_ndims :]
    if z.shape.rank < event_ndims or not given.is_compatible_with(components.event_shape):
        raise ValueError(
            f"z of shape {z.shape} does not end in the event shape {components.event_shape}."
        )


def flattened(z: tf.Tensor, components: tfd.Distribution) -> tuple[tf.Tensor, tf.Tensor]:
    """Broadcasts z to the batch of mixtures and flattens the sample dimensions.

    Args:
      z: `Tensor`, shape broadcastable to `[S..., B..., E...]`.
      components: Components with batch shape `[B..., N]` and event shape `[E...]`.

    Returns:
      The queries, `[M, B..., E...]`, and the shape `[S..., B...]`.

    Raises:
      ValueError: If z does not end in the event shape.
    """
    check_event_shape(z, components)
    shape = ps.shape(z)
    outer_ndims = ps.rank_from_shape(shape) - components_lib.event_rank(components)
    batch_shape = components_lib.batch_shape_tensor(components)[:-1]
    outer_shape = ps.broadcast_shape(shape[:outer_ndims], batch_shape)
    event_shape = shape[outer_ndims:]
    z = tf.broadcast_to(z, ps.concat([outer_shape, event_shape], axis=0))
    return tf.reshape(z, ps.concat([[-1], batch_shape, event_shape], axis=0)), outer_shape
