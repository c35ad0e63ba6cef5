"""Terms of a block of components of any family, by the components' own methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.log_density.blocks import move_axis
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions

# score(block_leaves, block_queries) -> log q_n(z_m), [B..., n, m], from leaves with batch
# [B..., n] and queries [B..., m, E...].
Score = Callable[[Sequence[tf.Tensor], tf.Tensor], tf.Tensor]
# term(components, queries) -> [m, B..., n], from batch [B..., n] and queries [m, B..., 1, E...].
Term = Callable[[tfd.Distribution, tf.Tensor], tf.Tensor]

_BLOCK_ELEMENTS = 2**21  # of the [m, B..., n, E] array that a log_prob builds
_BLOCK_QUERIES = 256


def score(distribution: tfd.Distribution, batch_ndims: int, term: Term) -> Score:
    """Returns the score of blocks of a family.

    Args:
      distribution: Components with batch shape `[B..., N]`, every parameter broadcast to it.
      batch_ndims: Number of batch dimensions `[B...]`.
      term: What is asked of the components.

    Returns:
      The score.
    """
    event_ndims = components_lib.event_rank(distribution)

    def block_score(leaves: Sequence[tf.Tensor], z: tf.Tensor) -> tf.Tensor:
        block = components_lib.with_leaves(distribution, leaves)
        z = tf.expand_dims(move_axis(z, batch_ndims, 0), -1 - event_ndims)  # [m, B..., 1, E...]
        return move_axis(term(block, z), 0, batch_ndims + 1)  # [B..., n, m]

    return block_score


def block_sizes(
    leaves: Sequence[tf.Tensor], queries: tf.Tensor, batch_ndims: int, width: int
) -> tuple[Any, Any]:
    """Returns the sizes of component and query blocks that keep a block within its budget.

    Args:
      leaves: Parameters, shape `[B..., N, ...]`.
      queries: Shape `[B..., M, E...]`.
      batch_ndims: Number of batch dimensions `[B...]`.
      width: That of the widest layer of a network that scores one query at a time.

    Returns:
      Numbers of components and of queries.
    """
    shape = ps.shape(queries)
    per_query = ps.maximum(
        ps.reduce_prod(ps.concat([shape[:batch_ndims], shape[batch_ndims + 1 :]], axis=0)),
        ps.reduce_prod(shape[:batch_ndims]) * width,
    )
    # As many as leave room for all components, since each block costs the family's own code.
    num_components = ps.maximum(ps.shape(leaves[0])[batch_ndims], 1)
    with_all = _BLOCK_ELEMENTS // ps.maximum(per_query * num_components, 1)
    query_block = ps.minimum(
        ps.maximum(shape[batch_ndims], 1), ps.maximum(_BLOCK_QUERIES, with_all)
    )
    per_component = query_block * per_query
    for leaf in leaves:
        leaf_shape = ps.shape(leaf)
        per_component = ps.maximum(
            per_component,
            ps.reduce_prod(
                ps.concat([leaf_shape[:batch_ndims], leaf_shape[batch_ndims + 1 :]], axis=0)
            ),
        )
    return ps.maximum(1, _BLOCK_ELEMENTS // ps.maximum(per_component, 1)), query_block


def network_width(
    block_score: Score, leaves: Sequence[tf.Tensor], queries: tf.Tensor, batch_ndims: int
) -> int:
    """Returns the largest dimension of the variables that the scores read, or 1.

    Args:
      block_score: The score.
      leaves: Parameters, shape `[B..., N, ...]`.
      queries: Shape `[B..., M, E...]`.
      batch_ndims: Number of batch dimensions `[B...]`.

    Returns:
      The width.
    """
    first = (*[slice(None)] * batch_ndims, slice(0, 1))
    with tf.GradientTape() as tape:
        block_score([leaf[first] for leaf in leaves], queries[first])
    return max(
        (size for variable in tape.watched_variables() for size in variable.shape), default=1
    )
