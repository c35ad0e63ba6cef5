"""What numba compiles for evaluating queries with a `component_tree`, a block at a time.

The traversal is depth first over nodes, and a node is visited once for all queries of the block
that reach it: its data comes from memory once, and the queries follow one another without branches
that depend on each other. Nothing is pruned for a query because of another one. `component_tree`
has the bounds and their proof; the words used here are its own.

Scores and all that is compared with them are in bits: rates are inverse scales times
sqrt(log2(e) / 2), so that log2 w_n q_n(z) = c_n - sum_d ((z_d - mu_nd) rate_nd)^2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tfp_surgery.log_density.tree import vectors as tv
from tfp_surgery.log_density.tree.build import BITS, HEAD, aligned, compiled
from tfp_surgery.log_density.tree.terms import (
    ball_term,
    box_terms,
    component_terms,
    exact_terms,
    inlined,
)
from tfp_surgery.log_density.tree.vectors import WIDTH

_BATCH = 64
CHUNK = 8  # and between further looks
_RAISE = 1.2  # S grows by this factor, lane by lane, before the threshold follows
_HEADROOM = 14.0  # bits that a score may exceed the reference by before the sums are rescaled
REACH = 100.0  # bits: no sum is rescaled where no score can exceed the reference by more


class Tree(NamedTuple):
    """The arrays of a built tree, flat; see `build` for their layouts."""

    first_child: Any
    num_children: Any
    boxes: Any
    leaf_data: Any
    exact_rates: Any
    exact_log_weights: Any
    first_vector: Any  # of each leaf, and the number of vectors
    sizes: Any  # of vectors, in components
    num_components: Any
    num_dims: Any
    num_boxed: Any
    height: Any
    top: Any  # the largest c_n
    near: Any  # scores from here up are rounded little enough in the dtype


class Budget(NamedTuple):
    """What may be left out; see `component_tree`."""

    log_share: Any  # log2(a / N)
    margin: Any  # of the rounding of a bound, relative to its distance from `top`
    minor: Any  # bits: components less than this above a threshold count for 2^-6 at most, together


class Work(NamedTuple):
    """Room for a block of B queries, made by `workspace`."""

    z: Any  # [B * D]: queries, dimensions in the tree's order
    distance: Any  # [B]
    threshold: Any  # [B]
    level: Any  # [B]: L of the threshold
    reference: Any  # [B]: scores are relative to it
    mass: Any  # [B * 16]: sums of 2^(score - reference)
    moment: Any  # [B * 16]: sums of 2^(score - reference) * (score - reference)
    ceiling: Any  # [B]: when a lane of the mass exceeds it the threshold rises
    skipped: Any  # [B]: slot of the excluded component, or -1
    visited: Any  # [B]
    # Per level of inner nodes and child, the queries that reach it.
    queues: Any  # [((height - 1) * 16 + 1) * B]
    sizes: Any  # [(height - 1) * 16]
    heads: Any
    rests: Any
    survivors: Any
    masks: Any


def workspace(block: int, num_dims: int, height: int, dtype: Any) -> Work:
    """Room for `search`."""
    children = (height - 1) * WIDTH  # those of the last level are scored at once
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
    """level + log_share, less the rounding of bounds, rounded down to the dtype of `like`."""
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
    """Fills the workspace; the sum over the leaf that each query is routed to gives its first L."""
    z, data = tv.pointer(work.z), tv.pointer(tree.leaf_data)
    rates, log_weights = tv.pointer(tree.exact_rates), tv.pointer(tree.exact_log_weights)
    # Downwards, by more than the rounding of the distance in float64 and to the dtype.
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
        vector = tree.first_vector[np.int64(leaves[row])]
        squares = exact_terms(data, rates, vector, z, first, tree.num_dims)
        scores = tv.subtract(tv.load(log_weights, vector * WIDTH), squares)
        if work.skipped[i] // WIDTH == vector:
            scores = tv.without_lane(scores, work.skipped[i] % WIDTH)
        level = tv.largest(scores)
        if level > -np.inf:
            level += np.log(tv.total(tv.exp2(tv.subtract(scores, tv.splat(level))))) * BITS
        work.level[i] = max(start[row] * BITS, level)
        work.reference[i] = work.level[i]
        work.threshold[i] = _threshold(work.level[i], tree.top, budget, work.z)


@inlined
def _reach(node: int, batch: int, stop: int, tree: Any, work: Any) -> int:
    """Finds which children of a node the queries batch..stop of its queue reach.

    Returns how many queries reach any: `survivors` says which, `masks` whom, and `rests` has their
    bounds beyond the head.
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
    """Queues the queries of a node's queue at those of its children that they reach."""
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


class Leaves(NamedTuple):
    """What is used leaf by leaf: see `Tree` and `Work`, of whose arrays it has the addresses."""

    leaf_data: Any
    exact_rates: Any
    exact_log_weights: Any
    z: Any
    threshold: Any
    reference: Any
    rests: Any
    skipped: Any
    mass: Any
    moment: Any
    ceiling: Any
    first_vector: Any
    sizes: Any
    num_dims: Any
    head: Any
    near: Any
    minor: Any


@inlined
def _add(i: int, sums: Any, products: Any, to: Any) -> None:
    """Adds to the float64 sums of query i."""
    at = i * WIDTH
    tv.store(to.mass, at, tv.add(tv.load(to.mass, at), tv.widen(sums)))
    tv.store(to.moment, at, tv.add(tv.load(to.moment, at), tv.widen(products)))


@inlined
def _rescale(i: int, reference: float, of: Any) -> None:
    """Makes the sums of query i relative to a larger reference."""
    old = tv.element(of.reference, i)
    tv.put(of.reference, i, reference)
    if old == -np.inf:
        return
    shift = old - reference
    factor = np.exp(shift / BITS)
    at = i * WIDTH
    mass, moment = tv.load(of.mass, at), tv.load(of.moment, at)
    moment = tv.multiply_add(mass, tv.splat(shift), moment)
    if factor == 0.0:
        moment = tv.zeros(of.moment)
    tv.store(of.mass, at, tv.multiply(mass, tv.splat(factor)))
    tv.store(of.moment, at, tv.multiply(moment, tv.splat(factor)))
    tv.put(of.ceiling, i, tv.element(of.ceiling, i) * factor)


@inlined
def _leaf_terms(vector: int, rest: Any, floor: Any, i: int, of: Any) -> Any:
    """How far components may lie from query i, their sums of squares, and whether one is near.

    Where none is, the sums may be over some of the dimensions only. `rest` bounds those that are
    not in the head from below, for each component.
    """
    dims, head = of.num_dims, of.head
    at = vector * (2 * dims + 1) * WIDTH
    limit = tv.subtract(tv.load(of.leaf_data, at), floor)
    first = i * dims
    if head == HEAD:
        terms = component_terms(of.leaf_data, at + WIDTH, of.z, first, HEAD)
    else:
        terms = component_terms(of.leaf_data, at + WIDTH, of.z, first, head)
    alive = tv.any_less(tv.add(terms, tv.splat(rest)), limit)
    d = head
    while alive and d + CHUNK <= dims:
        more = component_terms(of.leaf_data, at + (2 * d + 1) * WIDTH, of.z, first + d, CHUNK)
        terms = tv.add(terms, more)
        alive = tv.any_less(terms, limit)
        d += CHUNK
    if alive and d < dims:
        last = component_terms(of.leaf_data, at + (2 * d + 1) * WIDTH, of.z, first + d, dims - d)
        terms = tv.add(terms, last)
        alive = tv.any_less(terms, limit)
    return limit, terms, alive


@inlined
def _weigh(scores: Any, lowest: Any, sums: Any, products: Any) -> Any:
    """Adds 2^scores to the sums, and the scores times that to the products."""
    parts = tv.exp2(scores)
    # Where a part is zero the score may be -inf.
    return tv.add(sums, parts), tv.multiply_add(parts, tv.maximum(scores, lowest), products)


@inlined
def _score_near(first_leaf: int, i: int, mask: int, k: int, of: Any) -> int:
    """Adds the leaves in a mask to the sums of query i, survivor k, in the dtype.

    Scores that it rounds too much, and that may count, are computed in float64. Returns the number
    of components added.
    """
    zero, lowest = tv.zeros(of.z), tv.narrow(tv.splat(tv.LOWEST), of.z)
    slot = tv.element(of.skipped, i)
    floor = tv.splat(tv.element(of.threshold, i))
    shift = np.float64(tv.element(of.threshold, i)) - tv.element(of.reference, i)
    shift = tv.narrow(tv.splat(shift), of.z)
    minor = tv.narrow(tv.splat(of.minor), of.z)
    height = of.near - np.float64(tv.element(of.threshold, i))
    is_rough = height > of.minor
    near = tv.narrow(tv.splat(height), of.z)
    sums, products = zero, zero
    count = 0
    while mask:
        lane = tv.lowest_bit(mask)
        mask &= mask - 1
        leaf = first_leaf + lane
        rest = tv.element(of.rests, k * WIDTH + lane)
        end = tv.element(of.first_vector, leaf + 1)
        for vector in range(tv.element(of.first_vector, leaf), end):
            limit, terms, alive = _leaf_terms(vector, rest, floor, i, of)
            if not alive:
                continue
            count += tv.element(of.sizes, vector)
            scores = tv.subtract(limit, terms)
            if is_rough and tv.less(minor, scores) & tv.less(scores, near):
                wide = _exact_scores(vector, i, of)
                wide = tv.subtract(wide, tv.splat(tv.element(of.reference, i)))
                scores = tv.narrow(wide, of.z)
            else:
                scores = tv.add(scores, shift)
            if slot // WIDTH == vector:
                scores = tv.without_lane(scores, slot % WIDTH)
                count -= 1
            sums, products = _weigh(scores, lowest, sums, products)
    if count:
        _add(i, sums, products, of)
    return count


@inlined
def _exact_scores(vector: int, i: int, of: Any) -> Any:
    """Scores of query i, in float64."""
    dims = of.num_dims
    squares = exact_terms(of.leaf_data, of.exact_rates, vector, of.z, i * dims, dims)
    return tv.subtract(tv.load(of.exact_log_weights, vector * WIDTH), squares)


@inlined
def _score_far(first_leaf: int, i: int, mask: int, k: int, of: Any) -> int:
    """The same, with scores in float64 and a reference that may have to rise."""
    zero, lowest = tv.zeros(of.z), tv.narrow(tv.splat(tv.LOWEST), of.z)
    slot = tv.element(of.skipped, i)
    floor = tv.splat(tv.element(of.threshold, i))
    base = tv.element(of.reference, i)
    sums, products = zero, zero
    count = 0
    while mask:
        lane = tv.lowest_bit(mask)
        mask &= mask - 1
        leaf = first_leaf + lane
        rest = tv.element(of.rests, k * WIDTH + lane)
        end = tv.element(of.first_vector, leaf + 1)
        for vector in range(tv.element(of.first_vector, leaf), end):
            _, _, alive = _leaf_terms(vector, rest, floor, i, of)
            if not alive:
                continue
            wide = _exact_scores(vector, i, of)
            count += tv.element(of.sizes, vector)
            if slot // WIDTH == vector:
                wide = tv.without_lane(wide, slot % WIDTH)
                count -= 1
            if base == -np.inf or tv.any_less(tv.splat(base + _HEADROOM), wide):
                largest = tv.largest(wide)
                if largest == -np.inf:
                    continue
                _add(i, sums, products, of)
                sums, products = zero, zero
                base = largest
                _rescale(i, base, of)
            scores = tv.narrow(tv.subtract(wide, tv.splat(base)), of.z)
            sums, products = _weigh(scores, lowest, sums, products)
    if count:
        _add(i, sums, products, of)
    return count


@compiled
def _score(node: int, queue: int, size: int, tree: Any, budget: Any, work: Any) -> None:
    """Adds the components of a node's leaves to the sums of the queries of its queue."""
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
        tv.pointer(tree.first_vector),
        tv.pointer(tree.sizes),
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
            # Scores just above the threshold are rounded at most twice as much as at `near`.
            is_near = tv.element(of.threshold, i) > 2 * tree.near - tree.top
            if is_near and tree.top - tv.element(of.reference, i) < REACH:
                count = _score_near(leaf, i, mask, k, of)
            else:
                count = _score_far(leaf, i, mask, k, of)
            if count:
                tv.put(visited, i, tv.element(visited, i) + count)
                total = tv.load(of.mass, i * WIDTH)
                if tv.any_less(tv.splat(tv.element(of.ceiling, i)), total):
                    _raise_threshold(i, tv.total(total), tv.largest(total), tree, budget, work)


@compiled
def _raise_threshold(i: int, mass: float, lane: float, tree: Any, budget: Any, work: Any) -> None:
    """Raises the threshold of query i to what its sums allow."""
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
    """Evaluates queries[rows] and writes the answers to the same rows of the outputs.

    Args:
      queries: `[M, D]`.
      rows: `[m]`, at most as many as `work` has room for.
      dims: `[D]`, the tree's order of dimensions.
      leaves: `[M]`, the leaf of each query; see `build.route`.
      distance: `[M]`, see there.
      start: `[M]`, what log q(z) is assumed to be at least, in nats. The answer of a query is
        certified where its log_prob turns out to be at least that, or positive mass was found and
        it is -inf.
      skipped: `[M]`, slots of excluded components, -1 for none.
      tree: The `Tree`.
      budget: The `Budget`.
      work: A `workspace`.
      log_prob: `[M]` float64, in nats, -inf where nothing was visited.
      entropy: `[M]` float64, in nats.
      visited: `[M]`, int64.
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
        # Where most queries go is near most of them: L is then high for the rest.
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
    for i in range(rows.size):
        row = rows[i]
        mass = work.mass[i * WIDTH : (i + 1) * WIDTH].sum()
        moment = work.moment[i * WIDTH : (i + 1) * WIDTH].sum()
        visited[row] = work.visited[i]
        log_prob[row], entropy[row] = -np.inf, np.nan
        if mass > 0.0:
            log_prob[row] = work.reference[i] / BITS + np.log(mass)
            entropy[row] = max(0.0, np.log(mass) - moment / (mass * BITS))
