"""Blockwise log-sum-exp over mixture components, forward and backward.

For components q_n with log weights log w_n the pass computes

    log q(z) = logsumexp_n (log w_n + log q_n(z))
    H[q(n|z)] = - sum_n q(n|z) log q(n|z),    q(n|z) = w_n q_n(z) / q(z)

over blocks of components (see `online_softmax`): it needs the memory of one block, whatever the
numbers of queries M and components N. The backward pass computes the blocks again instead of
keeping them, as attention kernels do, and needs no more memory for gradients to the queries and to
the components' parameters.

Components may share the weights of a network (a flow): `tf.custom_gradient` names the variables
that the scores read, and each block adds to their gradients.

Gaussians have kernels of their own, compiled by XLA (see `gaussian_scores`). On CPUs, large numbers
of Gaussians with independent dimensions are screened first (see `screened_pass`; its backward pass
keeps gradients to the components in each of up to eight threads). All other distributions are
scored by their own `log_prob`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.log_density import gaussian_scores, generic_scores, screened_pass
from tfp_surgery.log_density.block_pass import BlockPass, CompiledBlockPass
from tfp_surgery.log_density.blocks import move_axis
from tfp_surgery.log_density.generic_scores import Term

tfd = tfp.distributions

# Components and queries of a block.
_DIAGONAL_BLOCK = (512, 1024)  # XLA fuses it: nothing of it is stored
_FULL_COVARIANCE_BLOCK = (64, 256)  # the matrix product is stored, and fits the cache
_SCREENED_PASS = screened_pass.ScreenedPass()
_SMALL_PROBLEM = 2**21  # M * N * E below which compiling costs more than it saves
_SMALL_BLOCK = (_SMALL_PROBLEM, _SMALL_PROBLEM)  # one block: eager loops are slow


def log_prob_and_index_entropy(
    distribution: tfd.Distribution,
    log_weights: tf.Tensor,
    queries: tf.Tensor,
    excluded_index: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Streams log q(z) and the index entropy over all components.

    Args:
      distribution: Components with batch shape `[B..., N]`, every parameter broadcast to it.
      log_weights: Floating `Tensor`, shape `[B..., N]`: normalised log weights.
      queries: `Tensor`, shape `[M, B..., E...]`.
      excluded_index: Optional integer `Tensor`, shape `[M, B...]`: a component that is masked
        inside the log-sum-exp of that query (the weights are not renormalised).

    Returns:
      log_prob: Floating `Tensor`, shape `[M, B...]`, in nats.
      index_entropy: Floating `Tensor`, shape `[M, B...]`, in nats.
    """
    return _differentiable(distribution, log_weights, queries, excluded_index, None)


def log_weighted_sum(
    distribution: tfd.Distribution, log_weights: tf.Tensor, queries: tf.Tensor, term: Term
) -> tf.Tensor:
    """Streams log sum_n w_n exp(term_n(z)), for other terms than log densities.

    Args:
      distribution: See `log_prob_and_index_entropy`, as for the next two.
      log_weights: Likewise.
      queries: Likewise.
      term: Takes components with batch shape `[B..., n]` and queries `[m, B..., 1, E...]`, and
        gives `[m, B..., n]`.

    Returns:
      Floating `Tensor`, shape `[M, B...]`.
    """
    batch_ndims = components_lib.batch_rank(distribution) - 1
    queries = move_axis(queries, 0, batch_ndims)  # [B..., M, E...]
    leaves, compute = _generic_leaves_and_pass(distribution, term, queries, batch_ndims)
    total, _ = _streamed(compute, queries, log_weights, leaves, None, None)
    return move_axis(total, batch_ndims, 0)


def with_derivatives(
    distribution: tfd.Distribution,
    log_weights: tf.Tensor,
    queries: tf.Tensor,
    excluded_index: tf.Tensor | None,
    results: tuple[tf.Tensor, tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Attaches the derivatives of the streamed pass to log q(z) and H[q(n|z)] computed elsewhere.

    Args:
      distribution: See `log_prob_and_index_entropy`, as for the next three.
      log_weights: Likewise.
      queries: Likewise.
      excluded_index: Likewise.
      results: log q(z) and H[q(n|z)], floating `Tensor`s, shape `[M]`, for components with batch
        shape `[N]`.

    Returns:
      The results.
    """
    parameters = components_lib.leaves(distribution)

    @tf.custom_gradient
    def computed(*inputs: tf.Tensor) -> Any:
        def grad(*gradients: tf.Tensor) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = _differentiable(
                    components_lib.with_leaves(distribution, inputs[2:]),
                    *(inputs[1], inputs[0], excluded_index, results),
                )
            return tape.gradient(outputs, inputs, output_gradients=gradients)

        return results, grad

    # The streamed pass is built only if derivatives are asked for.
    log_prob, entropy = computed(queries, log_weights, *parameters)
    return log_prob, entropy


def _differentiable(
    distribution: tfd.Distribution,
    log_weights: tf.Tensor,
    queries: tf.Tensor,
    excluded_index: tf.Tensor | None,
    results: tuple[tf.Tensor, tf.Tensor] | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    batch_ndims = components_lib.batch_rank(distribution) - 1
    queries = move_axis(queries, 0, batch_ndims)  # [B..., M, E...]
    if excluded_index is not None:
        excluded_index = move_axis(excluded_index, 0, batch_ndims)  # [B..., M]

    if type(distribution) is tfd.Normal:
        queries = queries[..., tf.newaxis]  # [B..., M, 1]: a scalar is a vector of size one
    leaves, compute = _leaves_and_pass(distribution, queries, log_weights, batch_ndims)
    log_prob, entropy = _streamed(compute, queries, log_weights, leaves, excluded_index, results)
    return move_axis(log_prob, batch_ndims, 0), move_axis(entropy, batch_ndims, 0)


def _streamed(
    compute: BlockPass | screened_pass.ScreenedPass,
    queries: tf.Tensor,
    log_weights: tf.Tensor,
    leaves: Sequence[tf.Tensor],
    excluded_index: tf.Tensor | None,
    results: tuple[tf.Tensor, tf.Tensor] | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs a pass, forward or from its results, with its backward as the derivative."""

    @tf.custom_gradient
    def streamed(queries: tf.Tensor, log_weights: tf.Tensor, *leaves: tf.Tensor) -> Any:
        inputs = [tf.stop_gradient(part) for part in (queries, log_weights, *leaves)]
        # An eager tape would record, and keep, every block of the forward.
        with tf.init_scope() if tf.executing_eagerly() else contextlib.nullcontext():
            log_prob, entropy = results or compute.forward(
                inputs[0], inputs[1], inputs[2:], excluded_index
            )

        def grad(
            log_prob_grad: tf.Tensor,
            entropy_grad: tf.Tensor,
            variables: Sequence[tf.Variable] | None = None,
        ) -> Any:
            network: Any = [variables] if variables else []
            grads = [
                _first_order_only(part)
                for part in compute.backward(
                    queries,
                    log_weights,
                    leaves,
                    excluded_index,
                    (log_prob, entropy),
                    (log_prob_grad, entropy_grad),
                    *network,
                )
            ]
            num_inputs = 2 + len(leaves)
            return (grads[:num_inputs], grads[num_inputs:]) if variables else grads

        return (log_prob, entropy), grad

    log_prob, entropy = streamed(queries, log_weights, *leaves)
    return log_prob, entropy


def _first_order_only(gradient: tf.Tensor | None) -> tf.Tensor | None:
    """Makes second derivatives an error: the backward pass takes the results as constants."""
    if gradient is None:
        return None
    return tf.raw_ops.PreventGradient(
        input=gradient, message="The aggregate posterior's log_prob has first derivatives only."
    )


def _leaves_and_pass(
    distribution: tfd.Distribution, queries: tf.Tensor, log_weights: tf.Tensor, batch_ndims: int
) -> tuple[tuple[tf.Tensor, ...], BlockPass | screened_pass.ScreenedPass]:
    """Returns the fastest pass for these components, and the parameters in the form it uses."""
    small = _is_small(queries, log_weights)
    diagonal = gaussian_scores.diagonal_leaves(distribution)
    if diagonal is not None:
        if batch_ndims == 0 and screened_pass.is_suitable(queries, diagonal[0]):
            return diagonal, _SCREENED_PASS
        return diagonal, _gaussian_pass(batch_ndims, False, small)
    full_covariance = gaussian_scores.full_covariance_leaves(distribution)
    if full_covariance is not None:
        return full_covariance, _gaussian_pass(batch_ndims, True, small)
    return _generic_leaves_and_pass(distribution, _log_prob, queries, batch_ndims)


def _generic_leaves_and_pass(
    distribution: tfd.Distribution, term: Term, queries: tf.Tensor, batch_ndims: int
) -> tuple[tuple[tf.Tensor, ...], BlockPass]:
    """Returns a pass that calls the components for their terms, and their parameters."""
    leaves = tuple(components_lib.leaves(distribution))
    score = generic_scores.score(distribution, batch_ndims, term)
    width = 1
    if components_lib.undeclared(distribution):
        width = generic_scores.network_width(score, leaves, queries, batch_ndims)
    blocks = generic_scores.block_sizes(leaves, queries, batch_ndims, width)
    return leaves, BlockPass(score, batch_ndims, *blocks)


def _log_prob(components: tfd.Distribution, z: tf.Tensor) -> tf.Tensor:
    return components.log_prob(z)


@functools.cache
def _gaussian_pass(batch_ndims: int, full_covariance: bool, small: bool) -> BlockPass:
    score = (
        gaussian_scores.full_covariance_score if full_covariance else gaussian_scores.diagonal_score
    )
    if small:
        return BlockPass(score, batch_ndims, *_SMALL_BLOCK)
    blocks = _FULL_COVARIANCE_BLOCK if full_covariance else _DIAGONAL_BLOCK
    return CompiledBlockPass(score, batch_ndims, *blocks)


def _is_small(queries: tf.Tensor, log_weights: tf.Tensor) -> bool:
    if not (queries.shape.is_fully_defined() and log_weights.shape.is_fully_defined()):
        return False
    return bool(math.prod(queries.shape) * log_weights.shape[-1] <= _SMALL_PROBLEM)
