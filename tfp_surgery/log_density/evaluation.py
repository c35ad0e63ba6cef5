"""Which way a mixture is evaluated: streamed, by a certified tree, or interpolated."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.log_density import gaussian_scores, interpolated_marginals, streamed_pass
from tfp_surgery.log_density.tree import component_tree

tfd = tfp.distributions


class Evaluation(NamedTuple):
    """What one pass over the components says about queries of shape `[S..., B..., E...]`.

    Attributes:
      log_prob: log q(z), floating `Tensor`, shape `[S..., B...]`, in nats; `-inf` where no
        component has z in its support.
      index_entropy: H[q(n|z)], the same; `NaN` where no component has z in its support.
      component_log_prob: log q(z|x_i) of the components i asked for, the same; or None.
      num_visited: int64 `Tensor`, shape `[S..., B...]`: components scored for each query.
      method: `"streamed"`: all components were accounted for, up to rounding; `"tree"`: within a
        certified tolerance.
    """

    log_prob: tf.Tensor
    index_entropy: tf.Tensor
    component_log_prob: tf.Tensor | None
    num_visited: tf.Tensor
    method: str


def checked_tolerance(tolerance: Any) -> float | None:
    """Returns a tolerance as `float`, or None as it is.

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
    queries: tf.Tensor,
    excluded_index: tf.Tensor | None,
    tolerance: float | None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, str]:
    """log q(z) and H[q(n|z)] by the fastest way within the tolerance.

    The tree serves eager evaluation of one mixture of Gaussians with independent dimensions, where
    numba is installed. Its results have the derivatives of the streamed ones.

    Args:
      components: Components with batch shape `[B..., N]`, every parameter broadcast to it.
      log_weights: Floating `Tensor`, shape `[B..., N]`: normalised log weights.
      queries: `Tensor`, shape `[M, B..., E...]`.
      excluded_index: Optional integer `Tensor`, shape `[M, B...]`; see `streamed_pass`.
      tolerance: Of the truncation, in nats, for log q(z) and for H[q(n|z)]; None for none.

    Returns:
      log q(z), H[q(n|z)] and the number of components visited, each `[M, B...]`, and the method.
    """
    if tolerance is not None and log_weights.shape.rank == 1 and tf.executing_eagerly():
        diagonal = gaussian_scores.diagonal_parameters(components)
        if diagonal is not None and component_tree.is_available():
            return _by_tree(components, log_weights, queries, excluded_index, tolerance, diagonal)
    log_prob, entropy = streamed_pass.log_prob_and_index_entropy(
        components, log_weights, queries, excluded_index
    )
    num_components = tf.cast(tf.shape(log_weights)[-1], tf.int64)
    return log_prob, entropy, tf.fill(tf.shape(log_prob), num_components), "streamed"


def _by_tree(
    components: tfd.Distribution,
    log_weights: tf.Tensor,
    queries: tf.Tensor,
    excluded_index: tf.Tensor | None,
    tolerance: float,
    diagonal: tuple[tf.Tensor, tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, str]:
    loc, scale = (part.numpy() for part in diagonal)
    points = queries.numpy().reshape(len(queries), -1)  # [M] or [M, D] -> [M, D]
    mixture = component_tree.ComponentTree(loc, scale, log_weights.numpy())
    *results, num_visited = mixture.evaluate(
        points, tolerance, None if excluded_index is None else excluded_index.numpy()
    )
    log_prob, entropy = streamed_pass.with_derivatives(
        components, log_weights, queries, excluded_index, tuple(tf.constant(r) for r in results)
    )
    return log_prob, entropy, tf.constant(num_visited, tf.int64), "tree"


def marginal_log_prob(
    components: tfd.Distribution, log_weights: tf.Tensor, queries: tf.Tensor, tolerance: float
) -> tf.Tensor | None:
    """log q(z) of B mixtures of scalar Gaussians, by interpolation.

    Args:
      components: Components with batch shape `[B, N]`, every parameter broadcast to it.
      log_weights: Floating `Tensor`, shape `[B, N]`.
      queries: `Tensor`, shape `[M, B]`.
      tolerance: Of the interpolation, in nats.

    Returns:
      `Tensor`, shape `[M, B]`; None where the components are something else, or in a graph.
    """
    if type(components) is not tfd.Normal or not tf.executing_eagerly():
        return None
    if components_lib.batch_rank(components) != 2:
        return None
    values, _ = interpolated_marginals.log_prob(
        components.loc, tf.abs(components.scale), log_weights, queries, tolerance
    )
    return values
