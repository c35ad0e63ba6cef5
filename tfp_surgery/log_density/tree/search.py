"""Compiled search of a tree over components for a block of queries.

The traversal is depth first over nodes. It visits a node once for all queries of the block that
reach it, so that the node's data comes from memory once. What is pruned for a query does not depend
on the other queries. See `component_tree` for the bounds, their proof and the symbols.

Scores and thresholds are in bits: a rate is an inverse scale times sqrt(log2(e) / 2), so that
log2 w_n q_n(z) = c_n - sum_d ((z_d - mu_nd) rate_nd)^2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tfp_surgery.log_density.tree import vectors as tv
from tfp_surgery.log_density.tree.build import BITS, HEAD, aligned, compiled
from tfp_surgery.log_density.tree.leaf_sums import REACH, Leaves, score_far, score_near
from tfp_surgery.log_density.tree.terms import ball_term, box_terms, exact_terms, inlined
from tfp_surgery.log_density.tree.vectors import WIDTH

_BATCH = 64  # queries that are compared with the children of a node at a time
_RAISE = 1.2  # a lane's sum grows by this factor before the threshold is raised


class Tree(NamedTuple):
    """The arrays of a built tree, flat; see `build` for their layouts."""

    first_child: Any  # [nodes]; for the last level, a number of a leaf
    num_children: Any  # [nodes]
    boxes: Any
    leaf_data: Any
    exact_rates: Any
    exact_log_weights: Any  # [leaves * 16]: c_n, -inf in empty lanes
    num_components: Any
    num_dims: Any
    num_boxed: Any
    height: Any
    top: Any  # the largest c_n
    near: Any  # the dtype rounds scores of at least this little enough


class Budget(NamedTuple):
    """What may be left out; see `component_tree`."""

    log_share: Any  # log2(a / N)
    margin: Any  # of the rounding of a bound, relative to its distance from `top`
    minor: Any  # bits; all components less than this above a threshold weigh at most 2^-6 together


class Work(NamedTuple):
    """The working memory for a block of B queries, made by `workspace`."""

    z: Any  # [B * D]: queries, dimensions in the tree's order
    distance: Any  # [B]
    threshold: Any  # [B]
    level: Any  # [B]: L of the threshold
    reference: Any  # [B]: scores are relative to it
    mass: Any  # [B * 16]: sums of 2^(score - reference)
    moment: Any  # [B * 16]: sums of 2^(score - reference) * (score - reference)
    ceiling: Any  # [B]: once a lane of the mass exceeds it, the threshold is raised
    skipped: Any  # [B]: slot of the excluded component, or -1
    visited: Any  # [B]: components scored
    queues: Any  # [((height - 1) * 16 + 1) * B]: queries that reach a child of a level; all queries
    sizes: Any  # [(height - 1) * 16]: of the queues
    # Of the queries that reach a node's children:
    heads: Any  # [64 * 16]: squared distances from the children's boxes, up to the head
    rests: Any  # [64 * 16]: beyond the head
    survivors: Any  # [64]: the queries
    masks: Any  # [64]: the children that they reach


def workspace(block: int, num_dims: int, height: int, dtype: Any) -> Work:
    """Returns the working memory for `search`."""
    children = (height - 1) * WIDTH  # the leaves have no queues: they are scored at once
    return Work(
        z=aligned((block * num_dims,), dtype),
        distance=np.empty(block, dtype),
        threshold=np.empty(block, dtype),
        level=np.empty(block),
        reference=np.empty(block),
        mass=aligned((block * WIDTH,), np.float64),
        moment=aligned((block * WIDTH,), np.float64),
        ceiling=np.empty(block),
        skipped=np.empty(block, np.int64),
        visited=np.empty(block, np.int64),
        queues=np.empty((children + 1) * block, np.int32),
        sizes=np.empty(children, np.int64),
        heads=aligned((_BATCH * WIDTH,), dtype),
        rests=aligned((_BATCH * WIDTH,), dtype),
        survivors=np.empty(_BATCH, np.int64),
        masks=np.empty(_BATCH, np.int64),
    )


@inlined
def _threshold(level: Any, top: Any, budget: Any, like: Any) -> Any:
    """Returns level + log_share less the rounding of bounds, rounded down to the dtype."""
    exact = level + budget.log_share
    rounded = like.dtype.type(exact - budget.margin * max(top - exact, 0.0))
    return rounded - (
        abs(rounded) * like.dtype.type(4 * np.finfo(like.dtype).eps) + like.dtype.type(1e-30)
    )


@compiled
def _prepare(
    queries: Any,
    rows: Any,
    dims: Any,
    leaves: Any,
    distance: Any,
    start: Any,
    skipped: Any,
    tree: Any,
    budget: Any,
    work: Any,
) -> None:
    """Fills the working memory; the sum over the leaf of each query gives its first L."""
    z, data = tv.pointer(work.z), tv.pointer(tree.leaf_data)
    rates, log_weights = tv.pointer(tree.exact_rates), tv.pointer(tree.exact_log_weights)
    # Rounds down by more than the distance is rounded, in float64 and to the dtype.
    shrink = 1.0 - (1e-6 if queries.itemsize == 4 else 1e-12)
    work.mass[:] = 0.0
    work.moment[:] = 0.0
    work.ceiling[:] = 0.0
    work.visited[:] = 0
    for i in range(rows.size):
        row = rows[i]
        first = i * tree.num_dims
        for d in range(tree.num_dims):
            work.z[first + d] = queries[row, dims[d]]
        work.distance[i] = distance[row] * shrink
        work.skipped[i] = skipped[row]
        leaf = leaves[row]
        squares = exact_terms(data, rates, leaf, z, first, tree.num_dims)
        scores = tv.subtract(tv.load(log_weights, leaf * WIDTH), squares)
        if work.skipped[i] // WIDTH == leaf:
            scores = tv.without_lane(scores, work.skipped[i] % WIDTH)
        level = tv.largest(scores)
        if level > -np.inf:
            level += np.log(tv.total(tv.exp2(tv.subtract(scores, tv.splat(level))))) * BITS
        work.level[i] = max(start[row] * BITS, level)
        work.reference[i] = work.level[i]
        work.threshold[i] = _threshold(work.level[i], tree.top, budget, work.z)


@inlined
def _reach(node: int, batch: int, stop: int, tree: Any, work: Any) -> int:
    """Finds the children of a node that the queries batch..stop of its queue reach.

    Writes the queries that reach some child to `survivors`, the children to `masks` and their
    bounds beyond the head to `rests`.

    Returns:
      The number of these queries.
    """
    z, boxes = tv.pointer(work.z), tv.pointer(tree.boxes)
    threshold, distance = tv.pointer(work.threshold), tv.pointer(work.distance)
    queues = tv.pointer(work.queues)
    heads, rests = tv.pointer(work.heads), tv.pointer(work.rests)
    survivors, masks = tv.pointer(work.survivors), tv.pointer(work.masks)
    dims, boxed = tree.num_dims, tree.num_boxed
    head = min(HEAD, boxed)
    at = node * (3 * boxed + 2) * WIDTH
    log_weight = tv.load(boxes, at + WIDTH)
    count = 0
    for k in range(batch, stop):
        i = np.int64(tv.element(queues, k))
        limit = tv.subtract(log_weight, tv.splat(tv.element(threshold, i)))
        if head == HEAD:
            near = box_terms(boxes, at + 2 * WIDTH, z, i * dims, HEAD)
        else:
            near = box_terms(boxes, at + 2 * WIDTH, z, i * dims, head)
        tail = ball_term(boxes, at, tv.element(distance, i))
        tv.store(heads, count * WIDTH, near)
        tv.store(rests, count * WIDTH, tail)
        tv.put(survivors, count, i)
        count += tv.any_less(tv.add(near, tail), limit)
    left = 0
    rest_at = at + (2 + 3 * head) * WIDTH
    for k in range(count):
        i = tv.element(survivors, k)
        limit = tv.subtract(log_weight, tv.splat(tv.element(threshold, i)))
        rest = box_terms(boxes, rest_at, z, i * dims + head, boxed - head)
        rest = tv.add(rest, tv.load(rests, k * WIDTH))
        mask = tv.less(tv.add(rest, tv.load(heads, k * WIDTH)), limit)
        tv.store(rests, left * WIDTH, rest)
        tv.put(survivors, left, i)
        tv.put(masks, left, mask)
        left += mask != 0
    return left


@compiled
def _expand(node: int, level: int, queue: int, size: int, tree: Any, work: Any) -> None:
    """Moves the queries of a node's queue to the queues of the children that they reach."""
    queues, sizes = tv.pointer(work.queues), tv.pointer(work.sizes)
    survivors, masks = tv.pointer(work.survivors), tv.pointer(work.masks)
    block = work.distance.size
    here = level * WIDTH
    for lane in range(WIDTH):
        tv.put(sizes, here + lane, 0)
    for batch in range(queue, queue + size, _BATCH):
        stop = min(batch + _BATCH, queue + size)
        for k in range(_reach(node, batch, stop, tree, work)):
            query = np.int32(tv.element(survivors, k))
            mask = tv.element(masks, k)
            while mask:
                lane = tv.lowest_bit(mask)
                mask &= mask - 1
                position = tv.element(sizes, here + lane)
                tv.put(queues, (here + lane) * block + position, query)
                tv.put(sizes, here + lane, position + 1)


@compiled
def _score(node: int, queue: int, size: int, tree: Any, budget: Any, work: Any) -> None:
    """Adds the leaves below a node to the sums of the queries of its queue."""
    of = Leaves(
        tv.pointer(tree.leaf_data),
        tv.pointer(tree.exact_rates),
        tv.pointer(tree.exact_log_weights),
        tv.pointer(work.z),
        tv.pointer(work.threshold),
        tv.pointer(work.reference),
        tv.pointer(work.rests),
        tv.pointer(work.skipped),
        tv.pointer(work.mass),
        tv.pointer(work.moment),
        tv.pointer(work.ceiling),
        tree.num_components,
        tree.num_dims,
        min(HEAD, tree.num_boxed),
        tree.near,
        budget.minor,
    )
    survivors, masks = tv.pointer(work.survivors), tv.pointer(work.masks)
    visited = tv.pointer(work.visited)
    leaf = tree.first_child[node]
    for batch in range(queue, queue + size, _BATCH):
        stop = min(batch + _BATCH, queue + size)
        for k in range(_reach(node, batch, stop, tree, work)):
            i = tv.element(survivors, k)
            mask = tv.element(masks, k)
            # Scores just above the threshold are then rounded at most twice as much as at `near`.
            is_near = tv.element(of.threshold, i) > 2 * tree.near - tree.top
            if is_near and tree.top - tv.element(of.reference, i) < REACH:
                count = score_near(leaf, i, mask, k, of)
            else:
                count = score_far(leaf, i, mask, k, of)
            if count:
                tv.put(visited, i, tv.element(visited, i) + count)
                total = tv.load(of.mass, i * WIDTH)
                if tv.any_less(tv.splat(tv.element(of.ceiling, i)), total):
                    _raise_threshold(i, tv.total(total), tv.largest(total), tree, budget, work)


@compiled
def _raise_threshold(i: int, mass: float, lane: float, tree: Any, budget: Any, work: Any) -> None:
    """Raises the threshold of query i as far as its sums allow."""
    work.ceiling[i] = _RAISE * lane
    level = work.reference[i] + np.log(mass) * BITS
    if level > work.level[i]:
        work.level[i] = level
        work.threshold[i] = _threshold(level, tree.top, budget, work.z)


@compiled
def search(
    queries: Any,
    rows: Any,
    dims: Any,
    leaves: Any,
    distance: Any,
    start: Any,
    skipped: Any,
    tree: Any,
    budget: Any,
    work: Any,
    log_prob: Any,
    entropy: Any,
    visited: Any,
) -> None:
    """Evaluates queries[rows] and writes the results to the same rows of the outputs.

    Args:
      queries: `[M, D]`.
      rows: `[m]`, at most as many as `work` has room for.
      dims: `[D]`, the tree's order of dimensions.
      leaves: int64 `[M]`, the leaf of each query; see `build.route`.
      distance: `[M]`, likewise.
      start: `[M]`, an assumed lower bound of log q(z), in nats; -inf for none. A result is
        certified if its log_prob is at least that.
      skipped: `[M]`, slots of excluded components, -1 for none.
      tree: The `Tree`.
      budget: The `Budget`.
      work: A `workspace`.
      log_prob: float64 `[M]`, written to: in nats, -inf if no component was visited.
      entropy: float64 `[M]`, written to: in nats, NaN likewise.
      visited: int64 `[M]`, written to: the number of components scored.
    """
    _prepare(queries, rows, dims, leaves, distance, start, skipped, tree, budget, work)
    block = work.distance.size
    nodes = np.zeros(tree.height, np.int64)
    everyone = (tree.height - 1) * WIDTH * block
    for i in range(rows.size):
        work.queues[everyone + i] = i
    level = -1
    if tree.height == 1:
        _score(0, everyone, rows.size, tree, budget, work)
    else:
        level = 0
        _expand(0, 0, everyone, rows.size, tree, work)
    while level >= 0:
        # The child that most queries reach comes first: it raises L most.
        slot = level * WIDTH
        for other in range(slot + 1, (level + 1) * WIDTH):
            if work.sizes[other] > work.sizes[slot]:
                slot = other
        size = work.sizes[slot]
        if size == 0:
            level -= 1
            continue
        work.sizes[slot] = 0
        child = tree.first_child[nodes[level]] + slot - level * WIDTH
        if level == tree.height - 2:
            _score(child, slot * block, size, tree, budget, work)
        else:
            level += 1
            nodes[level] = child
            _expand(child, level, slot * block, size, tree, work)
    masses, moments = tv.pointer(work.mass), tv.pointer(work.moment)
    for i in range(rows.size):
        row = rows[i]
        mass = tv.total(tv.load(masses, i * WIDTH))
        moment = tv.total(tv.load(moments, i * WIDTH))
        visited[row] = work.visited[i]
        log_prob[row], entropy[row] = -np.inf, np.nan
        if mass > 0.0:
            log_prob[row] = work.reference[i] / BITS + np.log(mass)
            entropy[row] = max(0.0, np.log(mass) - moment / (mass * BITS))
