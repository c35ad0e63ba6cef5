"""What numba compiles for evaluating queries with a `component_tree`, a block at a time.

The traversal is depth first over nodes, and a node is visited once for all queries of the block
that reach it: its data comes from memory once, and the queries follow one another without branches
that depend on each other. Nothing is pruned for a query because of another one. `component_tree`
has the bounds and their proof; the words used here are its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from tfp_surgery.distributions import component_tree_vectors as tv
from tfp_surgery.distributions.component_tree_build import aligned, compiled
from tfp_surgery.distributions.component_tree_vectors import WIDTH

_HEAD = 10  # dimensions of a leaf's components that are compared before the first look
_BATCH = 64
_CHUNK = 8  # and between further looks
_RAISE = 1.2  # S grows by this factor, lane by lane, before the threshold follows
_HEADROOM = 10.0  # a score may exceed the reference by this much before the sums are rescaled

inlined = numba.njit(nogil=True, error_model="numpy", forceinline=True)


class Tree(NamedTuple):
    """The arrays of a built tree, flat; see `component_tree_build` for their layouts."""

    first_child: Any
    num_children: Any
    boxes: Any
    leaf_data: Any
    exact_rates: Any
    exact_log_weights: Any
    num_components: Any
    num_dims: Any
    num_boxed: Any
    height: Any
    near: Any  # a threshold above which scores are rounded little enough in the dtype


class Budget(NamedTuple):
    """What may be left out; see `component_tree`."""

    log_share: Any  # log(a / N)
    gain: Any  # 2 (1 + margin)


class Work(NamedTuple):
    """Room for a block of B queries, made by `workspace`."""

    z: Any  # [B * D]: queries, dimensions in the tree's order
    distance: Any  # [B]
    threshold: Any  # [B]
    level: Any  # [B]: L of the threshold
    reference: Any  # [B]: scores are relative to it
    mass: Any  # [B * 16]: sums of exp(score - reference)
    moment: Any  # [B * 16]: sums of exp(score - reference) * (score - reference)
    ceiling: Any  # [B]: when a lane of the mass exceeds it the threshold rises
    skipped: Any  # [B]: slot of the excluded component, or -1
    visited: Any  # [B]
    lanes: Any  # [16]
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
        lanes=aligned((WIDTH,), dtype),
        queues=np.empty((children + 1) * block, np.int32),
        sizes=np.empty(children, np.int64),
        heads=aligned((_BATCH * WIDTH,), dtype),
        rests=aligned((_BATCH * WIDTH,), dtype),
        survivors=np.empty(_BATCH, np.int64),
        masks=np.empty(_BATCH, np.int64),
    )


@inlined
def _box_terms(boxes: Any, at: int, z: Any, first: int, start: int, stop: int) -> Any:
    """sum_d (max(low - z, z - high, 0) * rate)^2 over dims start..stop, for 16 children."""
    zero = tv.zeros(z)
    even, odd = zero, zero
    for d in range(start, stop - 1, 2):
        x = tv.splat(tv.element(z, first + d))
        t = tv.maximum(
            tv.subtract(tv.load(boxes, at), x), tv.subtract(x, tv.load(boxes, at + WIDTH))
        )
        t = tv.multiply(tv.maximum(t, zero), tv.load(boxes, at + 2 * WIDTH))
        even = tv.multiply_add(t, t, even)
        x = tv.splat(tv.element(z, first + d + 1))
        t = tv.maximum(
            tv.subtract(tv.load(boxes, at + 3 * WIDTH), x),
            tv.subtract(x, tv.load(boxes, at + 4 * WIDTH)),
        )
        t = tv.multiply(tv.maximum(t, zero), tv.load(boxes, at + 5 * WIDTH))
        odd = tv.multiply_add(t, t, odd)
        at += 6 * WIDTH
    if (stop - start) % 2:
        x = tv.splat(tv.element(z, first + stop - 1))
        t = tv.maximum(
            tv.subtract(tv.load(boxes, at), x), tv.subtract(x, tv.load(boxes, at + WIDTH))
        )
        t = tv.multiply(tv.maximum(t, zero), tv.load(boxes, at + 2 * WIDTH))
        even = tv.multiply_add(t, t, even)
    return tv.add(even, odd)


@inlined
def _component_terms(data: Any, at: int, z: Any, first: int, start: int, stop: int) -> Any:
    """sum_d ((z - loc) * rate)^2 over dims start..stop, for 16 components."""
    even = tv.zeros(z)
    odd = even
    for d in range(start, stop - 1, 2):
        t = tv.multiply(
            tv.subtract(tv.splat(tv.element(z, first + d)), tv.load(data, at)),
            tv.load(data, at + WIDTH),
        )
        even = tv.multiply_add(t, t, even)
        t = tv.multiply(
            tv.subtract(tv.splat(tv.element(z, first + d + 1)), tv.load(data, at + 2 * WIDTH)),
            tv.load(data, at + 3 * WIDTH),
        )
        odd = tv.multiply_add(t, t, odd)
        at += 4 * WIDTH
    if (stop - start) % 2:
        t = tv.multiply(
            tv.subtract(tv.splat(tv.element(z, first + stop - 1)), tv.load(data, at)),
            tv.load(data, at + WIDTH),
        )
        even = tv.multiply_add(t, t, even)
    return tv.add(even, odd)


@inlined
def _ball_term(boxes: Any, at: int, distance: Any) -> Any:
    """max(distance - radius, 0)^2, for 16 children."""
    gap = tv.subtract(tv.splat(distance), tv.load(boxes, at))
    gap = tv.maximum(gap, tv.zeros(boxes))
    return tv.multiply(gap, gap)


@inlined
def _exact_terms(data: Any, rates: Any, leaf: int, z: Any, first: int, dims: int) -> Any:
    """sum_d ((z - loc) / scale)^2 for a leaf's components, in float64."""
    total = tv.splat(0.0)
    at = leaf * (2 * dims + 1) * WIDTH + WIDTH
    rate = leaf * dims * WIDTH
    for d in range(dims):
        x = tv.splat(np.float64(tv.element(z, first + d)))
        t = tv.multiply(tv.subtract(x, tv.widen(tv.load(data, at))), tv.load(rates, rate))
        total = tv.multiply_add(t, t, total)
        at += 2 * WIDTH
        rate += WIDTH
    return total


@inlined
def _threshold(level: Any, log_share: Any, like: Any) -> Any:
    """level + log_share, rounded down to the dtype of `like`."""
    rounded = like.dtype.type(level + log_share)
    return rounded - (
        abs(rounded) * like.dtype.type(4 * np.finfo(like.dtype).eps) + like.dtype.type(1e-30)
    )


@compiled
def _prepare(
    queries: Any,
    rows: Any,
    dims: Any,
    distance: Any,
    start: Any,
    skipped: Any,
    tree: Any,
    budget: Any,
    work: Any,
) -> None:
    """Fills the workspace and dives: the leaf that greedy descent by bounds reaches gives L."""
    z, lanes = tv.pointer(work.z), tv.pointer(work.lanes)
    boxes, data = tv.pointer(tree.boxes), tv.pointer(tree.leaf_data)
    rates, log_weights = tv.pointer(tree.exact_rates), tv.pointer(tree.exact_log_weights)
    half = tv.splat(queries.dtype.type(0.5))
    stride = (3 * tree.num_boxed + 2) * WIDTH
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
        node = 0
        for _ in range(tree.height):
            at = node * stride
            bound = _ball_term(boxes, at, work.distance[i])
            bound = tv.add(bound, _box_terms(boxes, at + 2 * WIDTH, z, first, 0, tree.num_boxed))
            bound = tv.subtract(tv.load(boxes, at + WIDTH), tv.multiply(bound, half))
            tv.store(lanes, 0, bound)
            lane = 0
            for j in range(1, tree.num_children[node]):
                if work.lanes[j] > work.lanes[lane]:
                    lane = j
            node = tree.first_child[node] + lane
        squares = _exact_terms(data, rates, node, z, first, tree.num_dims)
        scores = tv.subtract_product(squares, tv.splat(0.5), tv.load(log_weights, node * WIDTH))
        if work.skipped[i] // WIDTH == node:
            scores = tv.without_lane(scores, work.skipped[i] % WIDTH)
        work.reference[i] = tv.largest(scores)
        work.level[i] = max(start[row], work.reference[i])
        work.threshold[i] = _threshold(work.level[i], budget.log_share, work.z)


@inlined
def _reach(node: int, batch: int, stop: int, tree: Any, budget: Any, work: Any) -> int:
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
    head = min(_HEAD, boxed)
    at = node * (3 * boxed + 2) * WIDTH
    log_weight = tv.load(boxes, at + WIDTH)
    gain = tv.splat(work.z.dtype.type(budget.gain))
    count = 0
    for k in range(batch, stop):
        i = np.int64(tv.element(queues, k))
        limit = tv.multiply(tv.subtract(log_weight, tv.splat(tv.element(threshold, i))), gain)
        near = _box_terms(boxes, at + 2 * WIDTH, z, i * dims, 0, head)
        tail = _ball_term(boxes, at, tv.element(distance, i))
        tv.store(heads, count * WIDTH, near)
        tv.store(rests, count * WIDTH, tail)
        tv.put(survivors, count, i)
        count += tv.any_less(tv.add(near, tail), limit)
    left = 0
    for k in range(count):
        i = tv.element(survivors, k)
        limit = tv.multiply(tv.subtract(log_weight, tv.splat(tv.element(threshold, i))), gain)
        rest = _box_terms(boxes, at + (2 + 3 * head) * WIDTH, z, i * dims, head, boxed)
        rest = tv.add(rest, tv.load(rests, k * WIDTH))
        mask = tv.less(tv.add(rest, tv.load(heads, k * WIDTH)), limit)
        tv.store(rests, left * WIDTH, rest)
        tv.put(survivors, left, i)
        tv.put(masks, left, mask)
        left += mask != 0
    return left


@compiled
def _expand(
    node: int, level: int, queue: int, size: int, tree: Any, budget: Any, work: Any
) -> None:
    """Queues the queries of a node's queue at those of its children that they reach."""
    queues, sizes = tv.pointer(work.queues), tv.pointer(work.sizes)
    survivors, masks = tv.pointer(work.survivors), tv.pointer(work.masks)
    block = work.distance.size
    here = level * WIDTH
    for lane in range(WIDTH):
        tv.put(sizes, here + lane, 0)
    for batch in range(queue, queue + size, _BATCH):
        stop = min(batch + _BATCH, queue + size)
        for k in range(_reach(node, batch, stop, tree, budget, work)):
            query = np.int32(tv.element(survivors, k))
            mask = tv.element(masks, k)
            while mask:
                lane = tv.lowest_bit(mask)
                mask &= mask - 1
                position = tv.element(sizes, here + lane)
                tv.put(queues, (here + lane) * block + position, query)
                tv.put(sizes, here + lane, position + 1)


@inlined
def _add(i: int, sums: Any, products: Any, work: Any) -> None:
    """Adds to the float64 sums of query i."""
    mass, moment = tv.pointer(work.mass), tv.pointer(work.moment)
    at = i * WIDTH
    tv.store(mass, at, tv.add(tv.load(mass, at), tv.widen(sums)))
    tv.store(moment, at, tv.add(tv.load(moment, at), tv.widen(products)))


@compiled
def _score(node: int, queue: int, size: int, tree: Any, budget: Any, work: Any) -> None:
    """Adds the components of a node's leaves to the sums of the queries of its queue."""
    z, data = tv.pointer(work.z), tv.pointer(tree.leaf_data)
    rates, log_weights = tv.pointer(tree.exact_rates), tv.pointer(tree.exact_log_weights)
    threshold, reference = tv.pointer(work.threshold), tv.pointer(work.reference)
    mass = tv.pointer(work.mass)
    skipped, visited = tv.pointer(work.skipped), tv.pointer(work.visited)
    ceiling, rests = tv.pointer(work.ceiling), tv.pointer(work.rests)
    survivors, masks = tv.pointer(work.survivors), tv.pointer(work.masks)
    dims = tree.num_dims
    head = min(_HEAD, tree.num_boxed)
    gain = tv.splat(work.z.dtype.type(budget.gain))
    zero, half = tv.zeros(z), tv.splat(work.z.dtype.type(0.5))
    wide_half, lowest = tv.splat(0.5), tv.splat(work.z.dtype.type(-1000.0))
    for batch in range(queue, queue + size, _BATCH):
        stop = min(batch + _BATCH, queue + size)
        for k in range(_reach(node, batch, stop, tree, budget, work)):
            i = tv.element(survivors, k)
            mask = tv.element(masks, k)
            first = i * dims
            slot = tv.element(skipped, i)
            floor = tv.splat(tv.element(threshold, i))
            is_near = tv.element(threshold, i) > tree.near
            base = tv.element(reference, i)
            origin = base if base > -np.inf else 0.0
            highest = base - origin + _HEADROOM
            sums, products = zero, zero
            count = 0
            while mask:
                lane = tv.lowest_bit(mask)
                mask &= mask - 1
                leaf = tree.first_child[node] + lane
                at = leaf * (2 * dims + 1) * WIDTH
                limit = tv.multiply(tv.subtract(tv.load(data, at), floor), gain)
                terms = _component_terms(data, at + WIDTH, z, first, 0, head)
                rest = tv.splat(tv.element(rests, k * WIDTH + lane))
                alive = tv.any_less(tv.add(terms, rest), limit)
                d = head
                while alive and d < dims:
                    end = min(dims, d + _CHUNK)
                    more = _component_terms(data, at + (2 * d + 1) * WIDTH, z, first, d, end)
                    terms = tv.add(terms, more)
                    alive = tv.any_less(terms, limit)
                    d = end
                if not alive:
                    continue
                # Relative to the reference from here on.
                wide = tv.subtract(tv.load(log_weights, leaf * WIDTH), tv.splat(origin))
                count += min(WIDTH, tree.num_components - leaf * WIDTH)
                if slot // WIDTH == leaf:
                    wide = tv.without_lane(wide, slot % WIDTH)
                    count -= 1
                if is_near:
                    scores = tv.subtract_product(terms, half, tv.narrow(wide, z))
                else:
                    squares = _exact_terms(data, rates, leaf, z, first, dims)
                    scores = tv.narrow(tv.subtract_product(squares, wide_half, wide), z)
                if tv.any_less(tv.splat(work.z.dtype.type(highest)), scores):
                    _add(i, sums, products, work)
                    sums, products = zero, zero
                    # Anew, since the distance to the old reference may be large, and its rounding.
                    squares = _exact_terms(data, rates, leaf, z, first, dims)
                    wide = tv.load(log_weights, leaf * WIDTH)
                    wide = tv.subtract_product(squares, wide_half, wide)
                    if slot // WIDTH == leaf:
                        wide = tv.without_lane(wide, slot % WIDTH)
                    base = tv.largest(wide)
                    _rescale(i, base, work)
                    scores = tv.narrow(tv.subtract(wide, tv.splat(base)), z)
                    origin, highest = base, _HEADROOM
                elif base == -np.inf:
                    continue
                parts = tv.exp(scores)
                sums = tv.add(sums, parts)
                # Where a part is zero the score may be -inf.
                products = tv.multiply_add(parts, tv.maximum(scores, lowest), products)
            if count:
                _add(i, sums, products, work)
                tv.put(visited, i, tv.element(visited, i) + count)
                total = tv.load(mass, i * WIDTH)
                if tv.any_less(tv.splat(tv.element(ceiling, i)), total):
                    _raise_threshold(i, tv.total(total), tv.largest(total), budget, work)


@compiled
def _rescale(i: int, reference: float, work: Any) -> None:
    """Makes the sums of query i relative to a larger reference."""
    old = work.reference[i]
    work.reference[i] = reference
    if old == -np.inf:
        return
    shift = old - reference
    factor = np.exp(shift)
    for j in range(i * WIDTH, (i + 1) * WIDTH):
        if factor > 0.0:
            work.moment[j] = factor * (work.moment[j] + shift * work.mass[j])
        else:
            work.moment[j] = 0.0
        work.mass[j] *= factor
    work.ceiling[i] *= factor


@compiled
def _raise_threshold(i: int, mass: float, lane: float, budget: Any, work: Any) -> None:
    """Raises the threshold of query i to what its sums allow."""
    work.ceiling[i] = _RAISE * lane
    level = work.reference[i] + np.log(mass)
    if level > work.level[i]:
        work.level[i] = level
        work.threshold[i] = _threshold(level, budget.log_share, work.z)


@compiled
def search(
    queries: Any,
    rows: Any,
    dims: Any,
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
      distance: `[M]`, see `component_tree_build.route`.
      start: `[M]`, what log q(z) is assumed to be at least. The answer of a query is certified
        where its log_prob turns out to be at least that, or positive mass was found and it is -inf.
      skipped: `[M]`, slots of excluded components, -1 for none.
      tree: The `Tree`.
      budget: The `Budget`.
      work: A `workspace`.
      log_prob: `[M]` float64, -inf where nothing was visited.
      entropy: `[M]` float64.
      visited: `[M]`, int64.
    """
    _prepare(queries, rows, dims, distance, start, skipped, tree, budget, work)
    block = work.distance.size
    nodes = np.zeros(tree.height, np.int64)
    lanes = np.zeros(tree.height, np.int64)
    everyone = (tree.height - 1) * WIDTH * block
    for i in range(rows.size):
        work.queues[everyone + i] = i
    level = -1
    if tree.height == 1:
        _score(0, everyone, rows.size, tree, budget, work)
    else:
        level = 0
        _expand(0, 0, everyone, rows.size, tree, budget, work)
    while level >= 0:
        slot = level * WIDTH + lanes[level]
        if lanes[level] == WIDTH:
            level -= 1
            continue
        lanes[level] += 1
        size = work.sizes[slot]
        if size == 0:
            continue
        child = tree.first_child[nodes[level]] + slot - level * WIDTH
        if level == tree.height - 2:
            _score(child, slot * block, size, tree, budget, work)
        else:
            level += 1
            nodes[level], lanes[level] = child, 0
            _expand(child, level, slot * block, size, tree, budget, work)
    for i in range(rows.size):
        row = rows[i]
        mass = work.mass[i * WIDTH : (i + 1) * WIDTH].sum()
        moment = work.moment[i * WIDTH : (i + 1) * WIDTH].sum()
        visited[row] = work.visited[i]
        log_prob[row] = work.reference[i] + np.log(mass) if mass > 0.0 else -np.inf
        entropy[row] = max(0.0, np.log(mass) - moment / mass) if mass > 0.0 else np.nan
