r"""Diagonal Gaussians on CPUs: only the components that count for some query are scored.

Components and queries are put in spatial order (see `spatial_order`); a block of queries meets the
components leaf by leaf. Before a leaf is scored it is screened by an upper bound of its scores that
costs a part of them: with mu', z' relative to the mean of all locations and a_n, f(z) of the
dimensions A in which the components differ most,

    log w_n + log q_n(z) = b_n - 1/2 sum_d ((z_d - mu_nd) / s_nd)^2
                        <= c_n + a_n . f(z) + u(z) + e(z),

    f = (z'^2, z')_A,  a_n = (-1/(2 s_n^2), mu'_n / s_n^2)_A,  c_n = b_n - sum_A mu'_n^2/(2 s_n^2),

one matrix product for all dimensions in A; u(z) <= 0 bounds the other dimensions by the box around
the locations of a group of leaves, and e(z) bounds the rounding of the product: every one of its K
terms carries a relative error of at most K + 8 units in the last place, hence
e = (2 K + 16) 2^-24 sum_k |a_k| |f_k|, which pays for its own rounding and that of u too (Higham
2002, section 3.1). The product cancels where s is small against |z - mu|, so that its error may be
many nats; it then screens less, but never enters a result: what passes is scored by the difference
z - mu.

A leaf is passed over if its bound lies C nats below a score known for every query of the block, C =
log N - log eps. All leaves passed over hold less than N exp(-C) = eps of q(z), with eps the
rounding unit of the dtype: log q(z) is low by at most eps, H[q(n|z)] is off by at most
eps (1 + log N - log eps). Both are below the rounding of the sum that is formed.

#### References

Nicholas J. Higham. Accuracy and Stability of Numerical Algorithms. SIAM, second edition, 2002.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_surgery.distributions import online_softmax, spatial_order

_LEAF = 16  # components that are screened and scored together
_GROUP = 64  # leaves that one matrix product screens
_QUERY_BLOCK = 128
_CHUNK = 2048  # queries of one call of the compiled kernel
_SCREENED_DIMENSIONS = 16
_MIN_COMPONENTS = 4096
_MIN_PAIRS = 2**25  # below, the order costs more than it saves


class _Components(NamedTuple):
    """Components by group and leaf: G groups, L leaves a group, P places a leaf, all padded."""

    loc: tf.Tensor  # [G L, P, D]
    inverse_scale: tf.Tensor  # [G L, P, D]
    constant: tf.Tensor  # [G L, P]: log weight + log normaliser, -inf where there is none
    index: tf.Tensor  # [G L, P]
    screen: tf.Tensor  # [G, L P, K]: (a_n, c_n)
    screen_bound: tf.Tensor  # [G, L, K]: the largest |a_n|, |c_n| of a leaf
    box: tf.Tensor  # [G, 3, D - |A|]: low, high, smallest 1 / s
    center: tf.Tensor  # [D]
    screened: tf.Tensor  # [|A|]: the dimensions A
    boxed: tf.Tensor  # [D - |A|]: the others


def is_suitable(queries: tf.Tensor, loc: tf.Tensor) -> bool:
    """Whether screening pays: many pairs of queries `[M, D]` and components `[N, D]`, on a CPU."""
    num_components, num_queries = loc.shape[0], queries.shape[0]
    if loc.shape.rank != 2 or not loc.shape.is_fully_defined():
        return False
    if num_components < _MIN_COMPONENTS or tf.config.list_physical_devices("GPU"):
        return False
    return num_queries is None or num_queries * num_components >= _MIN_PAIRS


class ScreenedPass:
    """The forward and backward passes over the leaves that pass; see `streaming`.

    The `leaves` are those of `gaussian.diagonal_leaves`, without batch dimensions: location and
    inverse scale `[N, D]`, log normaliser `[N]`.
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
        order, components = _arrange(log_weights, *leaves)
        chunks = _Chunks(queries, components.screened, order)

        def step(i: tf.Tensor, outputs: tf.TensorArray) -> Any:
            z, leaf, excluded = chunks.take(i, queries, chunks.leaf, excluded_index)
            results = _forward_chunk(z, leaf, excluded, components)
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
        order, components = _arrange(log_weights, *leaves)
        chunks = _Chunks(queries, components.screened, order)

        def step(i: tf.Tensor, outputs: tf.TensorArray, totals: Any) -> Any:
            z, excluded, *scalars = chunks.take(i, queries, excluded_index, *results, *upstream)
            z_grad, *grads = _backward_chunk(z, excluded, chunks.valid(i), scalars, components)
            totals = tuple(total + part for total, part in zip(totals, grads, strict=True))
            return i + 1, outputs.write(i, z_grad), totals

        outputs = tf.TensorArray(
            queries.dtype, size=chunks.count, element_shape=[chunks.size, queries.shape[-1]]
        )
        totals = tuple(
            tf.zeros_like(part)
            for part in (components.constant, components.loc, components.inverse_scale)
        )
        _, outputs, totals = tf.while_loop(
            lambda i, *_: i < chunks.count,
            step,
            (0, outputs, totals),
            parallel_iterations=_num_threads(),
        )
        constant, loc, inverse_scale = (
            tf.math.unsorted_segment_sum(
                # [G L, P, ...] -> [G L P, ...]
                tf.reshape(total, [-1, *total.shape[2:]]),
                order.indices,
                log_weights.shape[0],
            )
            for total in totals
        )
        return chunks.join(outputs.stack()), constant, loc, inverse_scale, constant


class _Chunks:
    """Queries in the order of their leaves, in chunks of one size, the last one repeated."""

    def __init__(
        self, queries: tf.Tensor, screened: tf.Tensor, order: spatial_order.SpatialOrder
    ) -> None:
        static = queries.shape[0]
        self.size = _CHUNK
        if static is not None:
            self.size = min(_CHUNK, -(-static // _QUERY_BLOCK) * _QUERY_BLOCK)
        self.num_queries = tf.shape(queries)[0]
        self.count = -(-self.num_queries // self.size)
        self.leaf = spatial_order.leaf_of(tf.gather(queries, screened, axis=1), order)
        self._sorting = tf.argsort(self.leaf, stable=True)  # [M]

    def take(self, i: tf.Tensor, *tensors: tf.Tensor | None) -> list[tf.Tensor | None]:
        """The rows of chunk i, `[size, ...]` each."""
        places = tf.minimum(i * self.size + tf.range(self.size), self.num_queries - 1)
        rows = tf.gather(self._sorting, places)
        return [None if tensor is None else tf.gather(tensor, rows) for tensor in tensors]

    def valid(self, i: tf.Tensor) -> tf.Tensor:
        """Which rows of chunk i are no repetition, `[size]`."""
        return i * self.size + tf.range(self.size) < self.num_queries

    def join(self, stacked: tf.Tensor) -> tf.Tensor:
        """Turns `[count, size, ...]` into `[M, ...]`."""
        flat = tf.reshape(stacked, [-1, *stacked.shape[2:]])
        return tf.gather(flat, tf.math.invert_permutation(self._sorting))


def _num_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _arrange(
    log_weights: tf.Tensor, loc: tf.Tensor, inverse_scale: tf.Tensor, log_normaliser: tf.Tensor
) -> tuple[spatial_order.SpatialOrder, _Components]:
    spread = tf.math.reduce_std(loc, axis=0) * tf.reduce_mean(inverse_scale, axis=0)
    by_spread = tf.argsort(spread, direction="DESCENDING", stable=True)
    screened, boxed = by_spread[:_SCREENED_DIMENSIONS], by_spread[_SCREENED_DIMENSIONS:]
    order = spatial_order.order_components(
        tf.gather(loc, screened, axis=1), tf.gather(inverse_scale, screened, axis=1), _LEAF
    )
    num_leaves = 2 ** len(order.dimensions)
    leaf_size = order.indices.shape[0] // num_leaves
    num_groups = -(-num_leaves // _GROUP)
    event_size = loc.shape[-1]
    dtype = loc.dtype

    def place(tensor: tf.Tensor) -> tf.Tensor:
        tensor = tf.gather(tensor, order.indices)
        # [G L P, ...] -> [G L, P, ...]
        return tf.reshape(tensor, [num_leaves, leaf_size, *tensor.shape[1:]])

    constant = place(log_weights + log_normaliser)
    is_component = tf.reshape(order.is_component, constant.shape)
    constant = tf.where(is_component, constant, tf.constant(-math.inf, dtype))

    center = tf.reduce_mean(loc, axis=0)
    num_screened = min(event_size, _SCREENED_DIMENSIONS)

    placed_loc, placed_inverse_scale = place(loc), place(inverse_scale)
    centred = tf.gather(placed_loc - center, screened, axis=-1)  # [G L, P, |A|]
    precision = tf.gather(placed_inverse_scale, screened, axis=-1) ** 2
    square = 0.5 * tf.reduce_sum(centred**2 * precision, axis=-1)  # [G L, P]
    screen = tf.concat(
        [-0.5 * precision, centred * precision, (constant - square)[..., tf.newaxis]], axis=-1
    )
    finite = tf.where(is_component & tf.math.is_finite(constant), constant, tf.zeros([], dtype))
    bound = tf.concat(
        [0.5 * precision, tf.abs(centred) * precision, (tf.abs(finite) + square)[..., tf.newaxis]],
        axis=-1,
    )
    size = 2 * num_screened + 1
    # [G L, P, K] -> [G, L P, K]
    screen = tf.reshape(tf.cast(screen, tf.float32), [num_groups, -1, size])
    # [G L, K] -> [G, L, K]
    bound = tf.reshape(tf.cast(tf.reduce_max(bound, axis=1), tf.float32), [num_groups, -1, size])
    rest_shape = [num_groups, -1, event_size - num_screened]
    rest_loc = tf.reshape(tf.gather(placed_loc, boxed, axis=-1), rest_shape)  # [G, L P, D - |A|]
    rest_inverse_scale = tf.reshape(tf.gather(placed_inverse_scale, boxed, axis=-1), rest_shape)
    box = tf.stack(
        [
            tf.reduce_min(rest_loc, axis=1),
            tf.reduce_max(rest_loc, axis=1),
            tf.reduce_min(tf.abs(rest_inverse_scale), axis=1),
        ],
        axis=1,
    )
    components = _Components(
        placed_loc,
        placed_inverse_scale,
        constant,
        place(tf.range(loc.shape[0])),
        screen,
        bound,
        box,
        center,
        screened,
        boxed,
    )
    return order, components


class _Screen:
    """The screen of a block of queries `[m, D]`."""

    def __init__(self, components: _Components, z: tf.Tensor) -> None:
        self._components = components
        centred = tf.gather(z - components.center, components.screened, axis=-1)  # [m, |A|]
        features = tf.concat([centred**2, centred, tf.ones_like(centred[:, :1])], axis=-1)
        self._features = tf.cast(tf.transpose(features), tf.float32)  # [K, m]
        self._rest = tf.transpose(tf.gather(z, components.boxed, axis=-1))  # [D - |A|, m]

    def passing(self, group: tf.Tensor, threshold: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The leaves of a group that may reach the threshold `[m]` of some query.

        Returns:
          Their number, and the leaves of the group `[L]`, those that pass first.
        """
        components = self._components
        screen, bound = components.screen[group], components.screen_bound[group]
        num_leaves, size = bound.shape
        scores = tf.matmul(screen, self._features)  # [L P, m]
        # [L P, m] -> [L, P, m]
        scores = tf.reshape(scores, [num_leaves, -1, scores.shape[-1]])
        scores = tf.reduce_max(scores, axis=1)  # [L, m]
        rounding = (2 * size + 16) * 2.0**-24 * tf.matmul(bound, tf.abs(self._features))
        low, high, inverse_scale = (
            part[:, tf.newaxis] for part in tf.unstack(components.box[group])
        )
        distance = tf.maximum(tf.maximum(low - self._rest, self._rest - high), 0.0)
        rest = -0.499 * tf.reduce_sum((distance * inverse_scale) ** 2, axis=0)  # [m]
        threshold = tf.cast(threshold - rest, tf.float32)
        # What is no number passes.
        failing = tf.reduce_all(scores + rounding <= threshold, axis=1)  # [L]
        order = tf.argsort(tf.cast(failing, tf.int32), stable=True)
        return tf.reduce_sum(tf.cast(~failing, tf.int32)), order


def _cutoff(components: _Components) -> float:
    """C = log N - log eps."""
    rounding_unit = 0.5 * float(np.finfo(components.loc.dtype.as_numpy_dtype).eps)
    return math.log(components.index.shape.num_elements()) - math.log(rounding_unit)


def _scores(
    standardised: tf.Tensor, components: _Components, leaf: tf.Tensor, excluded: tf.Tensor | None
) -> tf.Tensor:
    """Scores `[P, m]` of a leaf from (z - mu) / s, `[P, D, m]`."""
    constant = tf.gather(components.constant, leaf)[:, tf.newaxis]
    scores = constant - 0.5 * tf.reduce_sum(standardised**2, axis=1)
    if excluded is not None:
        same = tf.equal(tf.gather(components.index, leaf)[:, tf.newaxis], excluded)
        scores = tf.where(same, tf.constant(-math.inf, scores.dtype), scores)
    return scores


def _visit(
    components: _Components,
    z: tf.Tensor,
    threshold: Callable[[Any], tf.Tensor],
    visit: Callable[[tf.Tensor, Any], Any],
    state: Any,
) -> Any:
    """Calls `visit(leaf, state)` for the leaves that pass the screen of queries `[m, D]`."""
    screen = _Screen(components, z)
    num_groups, num_leaves = components.screen_bound.shape[:2]

    def group_step(group: tf.Tensor, state: Any) -> Any:
        count, order = screen.passing(group, threshold(state))

        def leaf_step(k: tf.Tensor, state: Any) -> Any:
            return k + 1, visit(group * num_leaves + tf.gather(order, k), state)

        _, state = tf.while_loop(lambda k, _: k < count, leaf_step, (0, state))
        return group + 1, state

    return tf.while_loop(lambda group, _: group < num_groups, group_step, (0, state))[1]


@tf.function(jit_compile=True, autograph=False)
def _forward_chunk(
    queries: tf.Tensor, leaf: tf.Tensor, excluded: tf.Tensor | None, components: _Components
) -> tuple[tf.Tensor, tf.Tensor]:
    dtype = queries.dtype
    cutoff = _cutoff(components)
    queries, leaf = _blocks(queries), _blocks(leaf)
    excluded = None if excluded is None else _blocks(excluded)
    num_blocks = queries.shape[0]
    outputs = tf.TensorArray(dtype, size=num_blocks, element_shape=[2, _QUERY_BLOCK])

    def step(i: tf.Tensor, outputs: tf.TensorArray) -> Any:
        z, own = queries[i], leaf[i]
        block_excluded = None if excluded is None else excluded[i]
        lower = _own_leaf_score(z, own, block_excluded, components)
        transposed = tf.transpose(z)  # [D, m]

        def visit(leaf: tf.Tensor, state: online_softmax.State) -> online_softmax.State:
            standardised = _standardised(components, leaf, transposed)
            scores = _scores(standardised, components, leaf, block_excluded)
            return online_softmax.add(state, scores, axis=0)

        state = _visit(
            components,
            z,
            lambda state: tf.maximum(state.top, lower) - cutoff,
            visit,
            online_softmax.start([_QUERY_BLOCK], dtype),
        )
        return i + 1, outputs.write(i, tf.stack(online_softmax.finish(state)))

    _, outputs = tf.while_loop(lambda i, _: i < num_blocks, step, (0, outputs))
    # [blocks, 2, m] -> [2, blocks, m] -> [2, size]
    results = tf.reshape(tf.transpose(outputs.stack(), [1, 0, 2]), [2, -1])
    return results[0], results[1]


@tf.function(jit_compile=True, autograph=False)
def _backward_chunk(
    queries: tf.Tensor,
    excluded: tf.Tensor | None,
    valid: tf.Tensor,
    scalars: Sequence[tf.Tensor],
    components: _Components,
) -> tuple[tf.Tensor, ...]:
    """Gradients to the queries `[size, D]` and to constant, loc and inverse scale of `components`.

    `scalars` are log q(z), H[q(n|z)] and the gradients to them, `[size]` each.
    """
    dtype = queries.dtype
    cutoff = _cutoff(components)
    log_prob, entropy, *upstream = scalars
    used = valid & ~tf.math.is_inf(log_prob)
    zeros = tf.zeros_like(log_prob)
    # Nothing passes the screen of a query without use.
    threshold = tf.where(used, log_prob - cutoff, tf.constant(math.inf, dtype))
    log_prob, entropy, *upstream = (
        _blocks(tf.where(used, part, zeros)) for part in (log_prob, entropy, *upstream)
    )
    queries, threshold = _blocks(queries), _blocks(threshold)
    excluded = None if excluded is None else _blocks(excluded)
    num_blocks, _, event_size = queries.shape

    def step(i: tf.Tensor, outputs: tf.TensorArray, totals: Any) -> Any:
        z = queries[i]
        block_excluded = None if excluded is None else excluded[i]
        transposed = tf.transpose(z)  # [D, m]
        results = (log_prob[i], entropy[i])
        block_upstream = (upstream[0][i], upstream[1][i])

        def add(leaf: tf.Tensor, score_grad: tf.Tensor, state: Any) -> Any:
            """Adds what the gradient to the scores `[P, m]` of a leaf contributes."""
            z_grad, *totals = state
            standardised = _standardised(components, leaf, transposed)  # t, [P, D, m]
            inverse_scale = tf.gather(components.inverse_scale, leaf)  # [P, D]
            # d score / d mu = t / s, d score / d (1 / s) = -t^2 s, d score / d z = -t / s
            pull = score_grad[:, tf.newaxis] * standardised
            z_grad -= tf.reduce_sum(pull * inverse_scale[..., tf.newaxis], axis=0)
            ones = tf.ones([_QUERY_BLOCK], dtype)
            parts = (
                tf.linalg.matvec(score_grad, ones),
                inverse_scale * tf.linalg.matvec(pull, ones),
                -tf.linalg.matvec(pull * standardised, ones) / inverse_scale,
            )
            return z_grad, *(
                tf.tensor_scatter_nd_add(total, [[leaf]], part[tf.newaxis])
                for total, part in zip(totals, parts, strict=True)
            )

        # Each leaf's contribution is added when the next one is met: carried through the loop, the
        # gradient to its scores is computed once. XLA would fuse it into all that it enters.
        def visit(leaf: tf.Tensor, state: Any) -> Any:
            last_leaf, last_score_grad, state = state
            state = add(last_leaf, last_score_grad, state)
            scores = _scores(
                _standardised(components, leaf, transposed), components, leaf, block_excluded
            )
            return leaf, online_softmax.score_gradient(scores, results, block_upstream), state

        nothing = tf.zeros([components.constant.shape[1], _QUERY_BLOCK], dtype)
        z_grad = tf.zeros([event_size, _QUERY_BLOCK], dtype)
        state = _visit(
            components, z, lambda _: threshold[i], visit, (0, nothing, (z_grad, *totals))
        )
        z_grad, *totals = add(*state)
        return i + 1, outputs.write(i, tf.transpose(z_grad)), tuple(totals)

    outputs = tf.TensorArray(dtype, size=num_blocks, element_shape=[_QUERY_BLOCK, event_size])
    totals = tuple(
        tf.zeros_like(part)
        for part in (components.constant, components.loc, components.inverse_scale)
    )
    _, outputs, totals = tf.while_loop(lambda i, *_: i < num_blocks, step, (0, outputs, totals))
    return tf.reshape(outputs.stack(), [-1, event_size]), *totals


def _blocks(tensor: tf.Tensor) -> tf.Tensor:
    """Turns `[size, ...]` into `[blocks, m, ...]`."""
    return tf.reshape(tensor, [-1, _QUERY_BLOCK, *tensor.shape[1:]])


def _standardised(components: _Components, leaf: tf.Tensor, transposed: tf.Tensor) -> tf.Tensor:
    # XLA would compile anew for every value of an index [leaf].
    loc, inverse_scale = tf.gather(components.loc, leaf), tf.gather(components.inverse_scale, leaf)
    return (transposed - loc[..., tf.newaxis]) * inverse_scale[..., tf.newaxis]  # [P, D, m]


def _own_leaf_score(
    z: tf.Tensor, leaf: tf.Tensor, excluded: tf.Tensor | None, components: _Components
) -> tf.Tensor:
    """The largest score `[m]` in the leaf that each query lies in: a lower bound of log q(z)."""
    loc, inverse_scale = tf.gather(components.loc, leaf), tf.gather(components.inverse_scale, leaf)
    standardised = (z[:, tf.newaxis] - loc) * inverse_scale  # [m, P, D]
    scores = tf.gather(components.constant, leaf) - 0.5 * tf.reduce_sum(standardised**2, axis=-1)
    if excluded is not None:
        same = tf.equal(tf.gather(components.index, leaf), excluded[:, tf.newaxis])
        scores = tf.where(same, tf.constant(-math.inf, scores.dtype), scores)
    return tf.reduce_max(scores, axis=1)
