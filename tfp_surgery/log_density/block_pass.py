"""The forward and backward passes over blocks of queries and components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfp_surgery.log_density import online_softmax
from tfp_surgery.log_density.blocks import Blocks
from tfp_surgery.log_density.compiled import compiled
from tfp_surgery.log_density.generic_scores import Score
from tfp_surgery.tfp_internals import prefer_static as ps


class BlockPass:
    """The forward and backward passes over blocks, for one way of scoring a block."""

    def __init__(
        self, score: Score, batch_ndims: int, component_block: Any, query_block: Any
    ) -> None:
        """Makes the pass.

        Args:
          score: How a block is scored.
          batch_ndims: Number of batch dimensions `[B...]`.
          component_block: Largest number of components of a block.
          query_block: Largest number of queries of a block.
        """
        self._score = score
        self._batch_ndims = batch_ndims
        self._component_block = component_block
        self._query_block = query_block

    def forward(
        self,
        queries: tf.Tensor,
        log_weights: tf.Tensor,
        leaves: Sequence[tf.Tensor],
        excluded_index: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns log q(z) and H[q(n|z)], each `[B..., M]`."""
        axis = self._batch_ndims
        dtype = log_weights.dtype
        query_blocks = Blocks(ps.shape(queries)[axis], self._query_block)
        component_blocks = Blocks(ps.shape(log_weights)[axis], self._component_block)

        def query_step(i: tf.Tensor, outputs: Any) -> Any:
            z = query_blocks.gather(queries, i, axis)
            excluded = (
                None if excluded_index is None else query_blocks.gather(excluded_index, i, axis)
            )

            def component_step(j: tf.Tensor, state: online_softmax.State) -> Any:
                scores = self._weighted_scores(
                    component_blocks, j, z, log_weights, leaves, excluded
                )
                return j + 1, online_softmax.add(state, scores, axis)

            _, state = tf.while_loop(
                lambda j, _: j < component_blocks.count,
                component_step,
                (0, online_softmax.start(ps.shape(z)[: axis + 1], dtype)),
                parallel_iterations=1,
            )
            log_prob, entropy = online_softmax.finish(state)
            stacked = tf.stack([log_prob, entropy])  # [2, B..., m]
            return i + 1, outputs.write(i, stacked)

        outputs = tf.TensorArray(dtype, size=query_blocks.count)
        _, outputs = tf.while_loop(
            lambda i, _: i < query_blocks.count, query_step, (0, outputs), parallel_iterations=1
        )
        stacked = query_blocks.join(outputs.stack(), axis + 1)  # [2, B..., M]
        return stacked[0], stacked[1]

    def backward(
        self,
        queries: tf.Tensor,
        log_weights: tf.Tensor,
        leaves: Sequence[tf.Tensor],
        excluded_index: tf.Tensor | None,
        results: tuple[tf.Tensor, tf.Tensor],
        upstream: tuple[tf.Tensor, tf.Tensor],
        variables: Sequence[tf.Variable] = (),
    ) -> tuple[tf.Tensor | None, ...]:
        """Returns the gradients to queries, log weights, leaves and the variables of the scores.

        Every block is computed anew.
        """
        axis = self._batch_ndims
        query_blocks = Blocks(ps.shape(queries)[axis], self._query_block)
        component_blocks = Blocks(ps.shape(log_weights)[axis], self._component_block)
        sources = (log_weights, *leaves)
        wanted = [source.dtype.is_floating for source in sources]
        queries_wanted = queries.dtype.is_floating
        query_floats = queries if queries_wanted else tf.zeros(ps.shape(queries), log_weights.dtype)

        def query_step(
            i: tf.Tensor, query_grads: Any, source_grads: Any, variable_grads: Any
        ) -> Any:
            z = query_blocks.gather(queries, i, axis)
            excluded = (
                None if excluded_index is None else query_blocks.gather(excluded_index, i, axis)
            )
            log_prob, entropy, log_prob_grad, entropy_grad = (
                tf.expand_dims(query_blocks.gather(part, i, axis), axis)
                for part in (*results, *upstream)
            )
            valid = query_blocks.valid(i)
            outside = tf.math.is_inf(log_prob)
            log_prob = tf.where(outside, tf.zeros_like(log_prob), log_prob)
            log_prob_grad, entropy_grad = (
                tf.where(valid & ~outside, part, tf.zeros_like(part))
                for part in (log_prob_grad, entropy_grad)
            )

            def component_step(
                j: tf.Tensor, z_grad: tf.Tensor, source_grads: Any, variable_grads: Any
            ) -> Any:
                block = [component_blocks.gather(source, j, axis) for source in sources]
                watched = [part for part, want in zip(block, wanted, strict=True) if want]
                if queries_wanted:
                    watched.insert(0, z)
                with tf.GradientTape() as tape:
                    tape.watch([*watched, *variables])
                    scores = tf.expand_dims(block[0], -1) + self._score(block[1:], z)
                keep = component_blocks.mask(j, excluded)
                scores_kept = tf.where(keep, scores, tf.constant(-math.inf, scores.dtype))
                score_grad = online_softmax.score_gradient(
                    tf.stop_gradient(scores_kept),
                    (log_prob, entropy),
                    (log_prob_grad, entropy_grad),
                )
                grads = tape.gradient(
                    scores,
                    [*watched, *variables],
                    output_gradients=score_grad,
                    unconnected_gradients=tf.UnconnectedGradients.ZERO,
                )
                if queries_wanted:
                    z_grad = z_grad + grads.pop(0)
                source_grads = tuple(
                    component_blocks.scatter_add(total, part, j, axis)
                    for total, part in zip(source_grads, grads[: len(source_grads)], strict=True)
                )
                variable_grads = tuple(
                    total + part  # which may be sparse
                    for total, part in zip(variable_grads, grads[len(source_grads) :], strict=True)
                )
                return j + 1, z_grad, source_grads, variable_grads

            z_grad = tf.zeros_like(query_blocks.gather(query_floats, i, axis))
            _, z_grad, source_grads, variable_grads = tf.while_loop(
                lambda j, *_: j < component_blocks.count,
                component_step,
                (0, z_grad, source_grads, variable_grads),
                parallel_iterations=1,
            )
            return i + 1, query_grads.write(i, z_grad), source_grads, variable_grads

        _, query_grads, source_grads, variable_grads = tf.while_loop(
            lambda i, *_: i < query_blocks.count,
            query_step,
            (
                0,
                tf.TensorArray(query_floats.dtype, size=query_blocks.count),
                tuple(
                    tf.zeros_like(source)
                    for source, want in zip(sources, wanted, strict=True)
                    if want
                ),
                tuple(tf.zeros(variable.shape, variable.dtype) for variable in variables),
            ),
            parallel_iterations=1,
        )
        remaining = iter(source_grads)
        return (
            query_blocks.join(query_grads.stack(), axis) if queries_wanted else None,
            *(next(remaining) if want else None for want in wanted),
            *variable_grads,
        )

    def _weighted_scores(
        self,
        blocks: Blocks,
        j: tf.Tensor,
        z: tf.Tensor,
        log_weights: tf.Tensor,
        leaves: Sequence[tf.Tensor],
        excluded: tf.Tensor | None,
    ) -> tf.Tensor:
        axis = self._batch_ndims
        block = [blocks.gather(leaf, j, axis) for leaf in leaves]
        weights = tf.expand_dims(blocks.gather(log_weights, j, axis), -1)
        scores = weights + self._score(block, z)  # [B..., n, m]
        return tf.where(blocks.mask(j, excluded), scores, tf.constant(-math.inf, scores.dtype))


class CompiledBlockPass(BlockPass):
    """A pass compiled by XLA: the block is fused and never stored."""

    forward = compiled(BlockPass.forward)
    backward = compiled(BlockPass.backward)
