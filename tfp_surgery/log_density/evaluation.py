"""log q(z) of a mixture by the fastest pass: streamed, by the certified tree, or interpolated."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors
from tfp_surgery.log_density import (
    gaussian_scores,
    interpolated_marginals,
    reencoded_pass,
    streamed_pass,
)
from tfp_surgery.log_density.queries import flattened
from tfp_surgery.log_density.tree import component_tree
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions


class Evaluation(NamedTuple):
    """What one pass over the N components says about queries of shape `[S..., B..., E...]`.

    Attributes:
      log_prob: log q(z), floating `Tensor`, shape `[S..., B...]`, in nats; `-inf` where no
        component has z in its support.
      index_entropy: H[q(n|z)], likewise; `NaN` where no component has z in its support.
      component_log_prob: log q(z|x_i) of the components i asked for, likewise; or None.
      num_visited: int64 `Tensor`, shape `[S..., B...]`: the number of components that were
        accounted for. Below N, the result is within the tolerance; at N nothing was left out, and
        it is exact up to rounding.
    """

    log_prob: tf.Tensor
    index_entropy: tf.Tensor
    component_log_prob: tf.Tensor | None
    num_visited: tf.Tensor


def checked_tolerance(tolerance: Any) -> float | None:
    """Returns a tolerance as a `float`; None stays None.

    Args:
      tolerance: Positive Python number, or None.

    Returns:
      The tolerance.

    Raises:
      TypeError: If it is no number.
      ValueError: If it is not positive and finite.
    """
    if tolerance is None:
        return None
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise TypeError(f"tolerance must be a positive number of nats or None; got {tolerance!r}.")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be positive and finite, in nats; got {tolerance!r}.")
    return float(tolerance)


def evaluate(
    components: tfd.Distribution,
    log_weights: tf.Tensor,
    z: tf.Tensor,
    excluded_index: tf.Tensor | None = None,
    tolerance: float | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns log q(z), H[q(n|z)] and the number of components visited.

    With a tolerance the tree serves eager evaluation of one mixture of Gaussians with independent
    dimensions, if numba is installed; its results have the derivatives of the streamed pass.
    Everything else is streamed.

    Args:
      components: Components with batch shape `[B..., N]`, every parameter broadcast to it.
      log_weights: Floating `Tensor`, shape `[B..., N]`: normalised log weights.
      z: `Tensor`, shape broadcastable to `[S..., B..., E...]`.
      excluded_index: Optional int32 `Tensor`, shape broadcastable to `[S..., B...]`: the component
        that is masked for each query; negative for none. The weights are not renormalised.
      tolerance: Bound on the truncation error of log q(z) and of H[q(n|z)], in nats; None for none.

    Returns:
      Three `Tensor`s, shape `[S..., B...]`; the last one is int64.

    Raises:
      ValueError: If z does not end in the event shape.
    """
    queries, shape = flattened(z, components)
    if queries.shape[0] == 0:
        nothing = tf.zeros(shape, log_weights.dtype)
        return nothing, nothing, tf.zeros(shape, tf.int64)
    if excluded_index is not None:
        # [S..., B...] -> [M, B...]
        excluded_index = tf.reshape(
            tf.broadcast_to(excluded_index, shape),
            ps.concat([[-1], components_lib.batch_shape_tensor(components)[:-1]], axis=0),
        )
    results: tuple[tf.Tensor, tf.Tensor, tf.Tensor] | None = None
    num_components = tf.cast(tf.shape(log_weights)[-1], tf.int64)
    if isinstance(components, ReencodedPosteriors):
        log_prob, entropy = reencoded_pass.log_prob_and_index_entropy(
            components, log_weights, queries, excluded_index
        )
        results = log_prob, entropy, tf.fill(tf.shape(log_prob), num_components)
    elif tolerance is not None and log_weights.shape.rank == 1 and tf.executing_eagerly():
        results = _by_tree(components, log_weights, queries, excluded_index, tolerance)
    if results is None:
        log_prob, entropy = streamed_pass.log_prob_and_index_entropy(
            components, log_weights, queries, excluded_index
        )
        results = log_prob, entropy, tf.fill(tf.shape(log_prob), num_components)
    log_prob, entropy, num_visited = (tf.reshape(part, shape) for part in results)
    return log_prob, entropy, num_visited


def log_prob(
    components: tfd.Distribution,
    log_weights: tf.Tensor,
    z: tf.Tensor,
    tolerance: float | None = None,
) -> tf.Tensor:
    """Returns log q(z); with a tolerance, of batches of scalar Gaussians by interpolation.

    Args:
      components: See `evaluate`, as for the other arguments.
      log_weights: Likewise.
      z: Likewise.
      tolerance: Likewise; also a bound on the error of the interpolation.

    Returns:
      `Tensor`, shape `[S..., B...]`, in nats. It has no derivatives if it is interpolated.

    Raises:
      ValueError: If z does not end in the event shape.
    """
    is_served = type(components) is tfd.Normal and components_lib.batch_rank(components) == 2
    if tolerance is None or not is_served or not tf.executing_eagerly():
        return evaluate(components, log_weights, z, tolerance=tolerance)[0]
    queries, shape = flattened(z, components)
    values, _ = interpolated_marginals.log_prob(
        components.loc, tf.abs(components.scale), log_weights, queries, tolerance
    )
    return tf.reshape(values, shape)


def _by_tree(
    components: tfd.Distribution,
    log_weights: tf.Tensor,
    queries: tf.Tensor,
    excluded_index: tf.Tensor | None,
    tolerance: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor] | None:
    """Returns the results for queries `[M, E...]`, each `[M]`; None if no tree can give them."""
    diagonal = gaussian_scores.diagonal_parameters(components)
    if diagonal is None or not component_tree.is_available():
        return None
    loc, scale = (part.numpy() for part in diagonal)
    points = queries.numpy().reshape(len(queries), -1)  # [M] or [M, D] -> [M, D]
    tree = component_tree.ComponentTree(loc, scale, log_weights.numpy())
    *results, num_visited = tree.evaluate(
        points, tolerance, None if excluded_index is None else excluded_index.numpy()
    )
    log_prob, entropy = streamed_pass.with_derivatives(
        components, log_weights, queries, excluded_index, tuple(tf.constant(r) for r in results)
    )
    return log_prob, entropy, tf.constant(num_visited, tf.int64)
