r"""log q(z) and H[q(n|z)] of diagonal Gaussians on CPUs, from the components that can count.

Queries are put in spatial order (see `spatial_order`) and taken in blocks. The bounds of
`score_bounds` skip components for a whole block; the others are scored from the difference z - mu.

A component is skipped if, for every query of the block, its bound is C = log N - log eps nats or
more below the score of some component near the block. With eps the rounding unit of the dtype, all
components skipped hold less than N exp(-C) = eps of q(z): log q(z) is low by at most eps, and
H[q(n|z)] is off by at most eps (1 + log N - log eps). Both errors are below the rounding of the
sum. Gradients weigh q(n|z) by 1 / s; the backward pass therefore adds to C the logarithm of the
ratio of the largest scale to the smallest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfp_surgery.log_density import gaussian_scores, online_softmax, score_bounds
from tfp_surgery.log_density.compiled import compiled
from tfp_surgery.log_density.spatial_order import spatial_order
from tfp_surgery.tfp_internals import prefer_static as ps

_QUERY_BLOCK = 128
_SUM_WIDTH = 8
_CHUNK = 2048  # queries of one call of the compiled forward pass
_MAX_LANES = 8  # of the backward pass; each keeps gradients to all components
_MIN_COMPONENTS = 4096
_MIN_PAIRS = 2**25  # with fewer pairs of query and component, the order costs more than it saves


def is_suitable(queries: tf.Tensor, loc: tf.Tensor) -> bool:
    """Returns whether screening is faster: on a CPU, for many queries `[M, D]` and components."""
    num_components, num_queries = loc.shape[0], queries.shape[0]
    if loc.shape.rank != 2 or not loc.shape.is_fully_defined():
        return False
    if not _MIN_COMPONENTS <= num_components < 2**24 or loc.dtype not in (tf.float32, tf.float64):
        return False
    if any(device.device_type != "CPU" for device in tf.config.list_physical_devices()):
        return False
    return num_queries is None or num_queries * num_components >= _MIN_PAIRS


class ScreenedPass:
    """The forward and backward passes; see `streamed_pass`.

    The `leaves` are location and scale, `[N, D]`: those of `gaussian_scores.diagonal_leaves`
    without batch dimensions.
    """

    @tf.function(autograph=False)
    def forward(
        self,
        queries: tf.Tensor,
        log_weights: tf.Tensor,
        leaves: Sequence[tf.Tensor],
        excluded_index: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns log q(z) and H[q(n|z)], each `[M]`."""
        queries, components, chunks = _prepare(queries, log_weights, leaves)

        def step(i: tf.Tensor, outputs: tf.TensorArray) -> Any:
            places = chunks.size * i + tf.range(chunks.size)
            # [size, ...] -> [blocks, m, ...]
            places = tf.reshape(places, [-1, _QUERY_BLOCK])
            z, excluded = chunks.take(places, queries, excluded_index)
            results = _forward_chunk(z, excluded, score_bounds.features(components, z), components)
            return i + 1, outputs.write(i, tf.stack(results, axis=-1))

        outputs = tf.TensorArray(queries.dtype, size=chunks.count, element_shape=[chunks.size, 2])
        _, outputs = tf.while_loop(
            lambda i, _: i < chunks.count, step, (0, outputs), parallel_iterations=_num_threads()
        )
        results = chunks.join(outputs.stack())  # [M, 2]
        return results[:, 0], results[:, 1]

    @tf.function(autograph=False)
    def backward(
        self,
        queries: tf.Tensor,
        log_weights: tf.Tensor,
        leaves: Sequence[tf.Tensor],
        excluded_index: tf.Tensor | None,
        results: tuple[tf.Tensor, tf.Tensor],
        upstream: tuple[tf.Tensor, tf.Tensor],
    ) -> tuple[tf.Tensor, ...]:
        """Returns the gradients to queries, log weights and leaves."""

        def compute() -> tuple[tf.Tensor, ...]:
            return _gradients(queries, log_weights, leaves, excluded_index, results, upstream)

        if queries.shape[0] is not None:
            return compute()

        def nothing() -> tuple[tf.Tensor, ...]:
            return tuple(tf.zeros_like(part) for part in (queries, log_weights, *leaves))

        # XLA compiles no loop over nothing.
        grads: tuple[tf.Tensor, ...] = tf.cond(tf.shape(queries)[0] > 0, compute, nothing)
        return grads


def _gradients(
    queries: tf.Tensor,
    log_weights: tf.Tensor,
    leaves: Sequence[tf.Tensor],
    excluded_index: tf.Tensor | None,
    results: tuple[tf.Tensor, tf.Tensor],
    upstream: tuple[tf.Tensor, tf.Tensor],
) -> tuple[tf.Tensor, ...]:
    queries, components, chunks = _prepare(queries, log_weights, leaves)
    scale = tf.abs(components.scale)
    cutoff = score_bounds.cutoff(components.loc.shape[0], queries.dtype)
    cutoff += tf.math.log(tf.reduce_max(scale) / tf.reduce_min(scale))

    # Blocks go to the lanes in turn, because neighbouring blocks take similar times.
    num_lanes = min(_MAX_LANES, _num_threads())
    per_lane = chunks.blocks_per_lane(num_lanes)

    def lane_grads(lane: int) -> tuple[tf.Tensor, ...]:
        block = lane + num_lanes * tf.range(per_lane)
        places = block[:, tf.newaxis] * _QUERY_BLOCK + tf.range(_QUERY_BLOCK)  # [blocks, m]
        z, excluded, log_prob, *scalars = chunks.take(
            places, queries, excluded_index, *results, *upstream
        )
        used = (places < chunks.num_queries) & ~tf.math.is_inf(log_prob)
        # An unused query gets probability 0 from every component, and no component passes for it.
        log_prob = tf.where(used, log_prob, tf.constant(math.inf, log_prob.dtype))
        scalars = [tf.where(used, part, tf.zeros_like(part)) for part in scalars]
        grads: tuple[tf.Tensor, ...] = _backward_blocks(
            *(z, excluded, score_bounds.features(components, z)),
            *((log_prob, *scalars), log_prob - cutoff, components),
        )
        return grads

    z_grads, *grads = zip(*[lane_grads(lane) for lane in range(num_lanes)], strict=True)
    # [blocks, m, D] of each lane -> [blocks * lanes * m, D]
    z_grad = tf.reshape(tf.stack(z_grads, axis=1), [-1, queries.shape[1]])
    z_grad = tf.gather(z_grad, chunks.place_of_each())
    constant, loc, scale = (tf.add_n(parts) for parts in grads)
    return z_grad, constant, loc, scale


def _prepare(
    queries: tf.Tensor, log_weights: tf.Tensor, leaves: Sequence[tf.Tensor]
) -> tuple[tf.Tensor, score_bounds.Components, _Chunks]:
    loc, scale = leaves
    queries = tf.ensure_shape(queries, [queries.shape[0], loc.shape[1]])
    constant = log_weights + gaussian_scores.log_normaliser(scale)
    components, weights = score_bounds.prepare(loc, scale, constant)
    points = tf.gather(queries, components.screened, axis=1) * weights
    return queries, components, _Chunks(queries, points)


class _Chunks:
    """Queries in spatial order, in chunks of one size; the last query fills up the last chunk."""

    def __init__(self, queries: tf.Tensor, points: tf.Tensor) -> None:
        static = queries.shape[0]
        self.size = _CHUNK
        if static is not None:
            num_chunks = max(1, -(-static // _CHUNK))
            self.size = max(1, -(-static // (num_chunks * _QUERY_BLOCK))) * _QUERY_BLOCK
        self.num_queries = ps.shape(queries)[0]
        self.num_blocks = -(-self.num_queries // _QUERY_BLOCK)
        self.count = -(-self.num_queries // self.size)
        self._order = spatial_order(points, _QUERY_BLOCK)  # [M]

    def blocks_per_lane(self, num_lanes: int) -> Any:
        """Returns the number of blocks of each lane; the last ones may be empty.

        XLA compiles once for each number. A number that is not known statically is rounded up to a
        power of two.
        """
        exact = -(-self.num_blocks // num_lanes)
        if not tf.is_tensor(exact):
            return exact
        powers = tf.constant([2**k for k in range(31)], exact.dtype)
        return tf.gather(powers, tf.searchsorted(powers, exact[tf.newaxis])[0])

    def take(self, places: tf.Tensor, *tensors: tf.Tensor | None) -> list[Any]:
        """Returns the rows of tensors `[M, ...]` of the queries at some places of the order."""
        rows = tf.gather(self._order, tf.minimum(places, self.num_queries - 1))
        return [None if tensor is None else tf.gather(tensor, rows) for tensor in tensors]

    def place_of_each(self) -> tf.Tensor:
        """Returns the place of each query in the order, `[M]`."""
        return tf.math.invert_permutation(self._order)

    def join(self, stacked: tf.Tensor) -> tf.Tensor:
        """Turns `[count, size, ...]` into `[M, ...]`."""
        flat = tf.reshape(stacked, [-1, *stacked.shape[2:]])
        return tf.gather(flat, self.place_of_each())


def _num_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Block:
    """A block of queries `[m, D]` and the components."""

    def __init__(
        self, z: tf.Tensor, excluded: tf.Tensor | None, components: score_bounds.Components
    ) -> None:
        self._components = components
        self._z = z
        self._transposed = tf.transpose(z)[tf.newaxis]  # [1, D, m]
        self._excluded = excluded

    def standardised(self, index: tf.Tensor, is_valid: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns t = (z - mu) / s, `[B, D, m]`, and 1 / s, `[B, D]`; z and 1 if not valid."""
        is_valid = is_valid[:, tf.newaxis]
        # tf.gather, because XLA would compile loc[index] for every value of the index.
        loc, scale = (
            tf.where(is_valid, tf.gather(part, index), filling)
            for part, filling in (
                (self._components.loc, tf.zeros([], self._z.dtype)),
                (self._components.scale, tf.ones([], self._z.dtype)),
            )
        )
        inverse_scale = 1.0 / scale
        difference = self._transposed - loc[..., tf.newaxis]
        return difference * inverse_scale[..., tf.newaxis], inverse_scale

    def scores(self, squares: tf.Tensor, index: tf.Tensor, is_valid: tf.Tensor) -> tf.Tensor:
        """Returns scores `[B, m]` from the sums of t^2, -inf for components that are not valid."""
        constant = tf.gather(self._components.constant, index)
        nothing = tf.constant(-math.inf, constant.dtype)
        constant = tf.where(is_valid, constant, nothing)[:, tf.newaxis]
        scores = constant - 0.5 * squares
        return self.without_excluded(scores, index[:, tf.newaxis])

    def without_excluded(self, scores: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """Sets scores `[..., m]` to -inf where component `[..., m]` or `[..., 1]` is excluded."""
        if self._excluded is None:
            return scores
        nothing = tf.constant(-math.inf, scores.dtype)
        return tf.where(tf.equal(index, self._excluded), nothing, scores)

    def score_of_each(self, index: tf.Tensor) -> tf.Tensor:
        """Returns the score of one component for each query, `[m]`; -inf where it is excluded."""
        loc, scale, constant = (
            tf.gather(part, index)
            for part in (self._components.loc, self._components.scale, self._components.constant)
        )
        scores = constant - 0.5 * tf.reduce_sum(((self._z - loc) / scale) ** 2, axis=1)
        return self.without_excluded(scores, index)


def _sum_over_events(x: tf.Tensor) -> tf.Tensor:
    """Returns the sum of `[B, D, m]` over D."""
    # XLA turns a longer sum into a tree, and writes all its terms to memory for that.
    size = x.shape[1]
    parts = (x[:, d : d + _SUM_WIDTH] for d in range(0, size, _SUM_WIDTH))
    return tf.add_n([tf.reduce_sum(part, axis=1) for part in parts])


@compiled
def _forward_chunk(
    queries: tf.Tensor,
    excluded: tf.Tensor | None,
    features: score_bounds.Features,
    components: score_bounds.Components,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log q(z) and H[q(n|z)], each `[blocks * m]`, of queries `[blocks, m, D]`."""
    dtype = queries.dtype
    cutoff = score_bounds.cutoff(components.loc.shape[0], dtype)
    num_blocks = queries.shape[0]
    screen = score_bounds.Screen(components, features)

    def step(i: tf.Tensor, outputs: tf.TensorArray) -> Any:
        block = _Block(queries[i], None if excluded is None else excluded[i], components)
        box = screen.box_bounds(i)  # [N]
        near = score_bounds.first_tile(score_bounds.listed(box >= score_bounds.cut_near(box)))
        likely = block.without_excluded(screen.products(i, near), near[:, tf.newaxis])
        known = block.score_of_each(tf.gather(near, score_bounds.leaders(likely)))  # [m]
        nothing = tf.constant(-math.inf, dtype)
        threshold = tf.where(tf.math.is_finite(known), known - cutoff, nothing)

        def visit(index: tf.Tensor, is_valid: tf.Tensor, softmax: Any) -> Any:
            standardised, _ = block.standardised(index, is_valid)
            scores = block.scores(_sum_over_events(standardised**2), index, is_valid)
            return online_softmax.add(softmax, scores, axis=0)

        passing = score_bounds.listed(~(box <= tf.reduce_min(threshold)))
        passing = score_bounds.without(passing, screen.below(i, threshold))
        softmax = online_softmax.start([_QUERY_BLOCK], dtype)
        softmax = score_bounds.in_parts(passing, score_bounds.BATCH, visit, softmax)
        return i + 1, outputs.write(i, tf.stack(online_softmax.finish(softmax)))

    outputs = tf.TensorArray(dtype, size=num_blocks, element_shape=[2, _QUERY_BLOCK])
    _, outputs = tf.while_loop(lambda i, _: i < num_blocks, step, (0, outputs))
    # [blocks, 2, m] -> [2, blocks, m] -> [2, size]
    results = tf.reshape(tf.transpose(outputs.stack(), [1, 0, 2]), [2, -1])
    return results[0], results[1]


@compiled
def _backward_blocks(
    queries: tf.Tensor,
    excluded: tf.Tensor | None,
    features: score_bounds.Features,
    scalars: Sequence[tf.Tensor],
    threshold: tf.Tensor,
    components: score_bounds.Components,
) -> tuple[tf.Tensor, ...]:
    """Returns the gradients to queries `[blocks, m, D]` and to constant, loc and scale.

    `scalars` are log q(z), H[q(n|z)] and the gradients to them, `[blocks, m]` each. Components with
    a score above the `threshold` `[blocks, m]` of some query add to the gradients.
    """
    dtype, event_size = queries.dtype, queries.shape[2]
    log_prob, entropy, *upstream = scalars
    num_blocks = tf.shape(queries)[0]
    screen = score_bounds.Screen(components, features)

    def step(i: tf.Tensor, outputs: tf.TensorArray, totals: Any) -> Any:
        block = _Block(queries[i], None if excluded is None else excluded[i], components)
        results = (log_prob[i], entropy[i])
        block_upstream = (upstream[0][i], upstream[1][i])

        def add(index: tf.Tensor, is_valid: tf.Tensor, score_grad: tf.Tensor, state: Any) -> Any:
            """Adds the contribution of the gradient to the scores `[B, m]` of some components."""
            z_grad, *totals = state
            standardised, inverse_scale = block.standardised(index, is_valid)
            # d score / d mu = t / s, d score / d s = (t^2 - 1) / s, d score / d z = -t / s
            # t may be infinite, but the gradient to the score is 0 then.
            pull = tf.math.multiply_no_nan(standardised, score_grad[:, tf.newaxis])  # [B, D, m]
            z_grad -= tf.reduce_sum(pull * inverse_scale[..., tf.newaxis], axis=0)
            ones = tf.ones([_QUERY_BLOCK], dtype)
            constant_grad = tf.linalg.matvec(score_grad, ones)
            squares = tf.linalg.matvec(tf.math.multiply_no_nan(standardised, pull), ones)
            parts = (
                constant_grad,
                inverse_scale * tf.linalg.matvec(pull, ones),
                inverse_scale * (squares - constant_grad[:, tf.newaxis]),
            )
            # Components that are not valid add 0.
            return z_grad, *(
                tf.tensor_scatter_nd_add(total, index[:, tf.newaxis], part)
                for total, part in zip(totals, parts, strict=True)
            )

        # Few components that pass the bounds change the result, and gradients cost more than
        # scores. Those that do are collected, and their gradients added a full batch at a time.
        # Score gradients are carried along, because XLA would otherwise compute them again.
        def visit_batch(index: tf.Tensor, is_valid: tf.Tensor, state: Any) -> Any:
            waiting, grads, sums = state
            standardised, _ = block.standardised(index, is_valid)
            squares = tf.reduce_sum(standardised**2, axis=1)
            scores = block.scores(squares, index, is_valid)
            score_grad = online_softmax.score_gradient(scores, results, block_upstream)
            counts = is_valid & ~tf.reduce_all(scores <= threshold[i], axis=1)
            waiting, places = score_bounds.append(waiting, index, counts)
            grads = tf.tensor_scatter_nd_update(grads, places[:, tf.newaxis], score_grad)
            # The last call has no valid component, and adds whatever is left.
            least = tf.where(is_valid[0], score_bounds.BATCH, 1)

            def add_waiting(waiting: score_bounds.Listed, grads: tf.Tensor, sums: Any) -> Any:
                is_waiting = tf.range(score_bounds.BATCH) < waiting.count
                first = tf.where(is_waiting[:, tf.newaxis], grads[: score_bounds.BATCH], 0.0)
                sums = add(waiting.index[: score_bounds.BATCH], is_waiting, first, sums)
                left = score_bounds.Listed(
                    tf.roll(waiting.index, -score_bounds.BATCH, axis=0),
                    tf.maximum(waiting.count - score_bounds.BATCH, 0),
                )
                return left, tf.roll(grads, -score_bounds.BATCH, axis=0), sums

            return tf.while_loop(
                lambda waiting, *_: waiting.count >= least, add_waiting, (waiting, grads, sums)
            )

        far = screen.box_bounds(i) <= tf.reduce_min(threshold[i])
        passing = score_bounds.without(score_bounds.listed(~far), screen.below(i, threshold[i]))
        room = 2 * score_bounds.BATCH + 1  # the last place is never read
        state = (
            score_bounds.Listed(tf.zeros([room], tf.int32), tf.constant(0)),
            tf.zeros([room, _QUERY_BLOCK], dtype),
            (tf.zeros([event_size, _QUERY_BLOCK], dtype), *totals),
        )
        state = score_bounds.in_parts(passing, score_bounds.BATCH, visit_batch, state, lag=1)
        z_grad, *totals = state[2]
        return i + 1, outputs.write(i, tf.transpose(z_grad)), tuple(totals)

    outputs = tf.TensorArray(dtype, size=num_blocks, element_shape=[_QUERY_BLOCK, event_size])
    totals = tuple(
        tf.zeros_like(part) for part in (components.constant, components.loc, components.scale)
    )
    _, outputs, totals = tf.while_loop(lambda i, *_: i < num_blocks, step, (0, outputs, totals))
    return outputs.stack(), *totals
