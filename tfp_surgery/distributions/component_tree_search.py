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
from tfp_surgery.distributions.component_tree_build import compiled
from tfp_surgery.distributions.component_tree_vectors import WIDTH

_HEAD = 8  # dimensions of a leaf's components that are compared before the first look
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


class Budget(NamedTuple):
    """What may be left out; see `component_tree`."""

    log_share: Any  # tau
    share: Any  # e^tau, rounded up
    total: Any  # the part of delta for dropped children, as opposed to pruned ones
    gain: Any  # 2 (1 + margin)


class Work(NamedTuple):
    """Room for a block of B queries, made by `workspace`."""

    z: Any  # [B * D]: queries, dimensions in the tree's order
    distance: Any  # [B]
    threshold: Any  # [B]
    level: Any  # [B]: L of the threshold
    used: Any  # [B]: R / e^L of the dropped children
    reference: Any  # [B]: scores are relative to it
    mass: Any  # [B * 16]: sums of exp(score - reference)
    moment: Any  # [B * 16]: sums of exp(score - reference) * (score - reference)
    ceiling: Any  # [B]: when a lane of the mass exceeds it the threshold rises
    skipped: Any  # [B]: slot of the excluded component, or -1
    visited: Any  # [B]
    lanes: Any  # [16]
    queues: Any  # [(height * 16 + 1) * B]: per level and child, the queries that reach it
    tails: Any  # the same, their bounds beyond the head
    sizes: Any  # [height * 16]
    heads: Any
    rests: Any
    survivors: Any
    masks: Any


def workspace(block: int, num_dims: int, height: int, dtype: Any) -> Work:
    """Room for `search`."""
    queues = (height * WIDTH + 1) * block
    return Work(
        z=np.empty(block * num_dims, dtype),
        distance=np.empty(block, dtype),
        threshold=np.empty(block, dtype),
        level=np.empty(block),
        used=np.empty(block),
        reference=np.empty(block),
        mass=np.empty(block * WIDTH),
        moment=np.empty(block * WIDTH),
        ceiling=np.empty(block),
        skipped=np.empty(block, np.int64),
        visited=np.empty(block, np.int64),
        lanes=np.empty(WIDTH, dtype),
        queues=np.empty(queues, np.int32),
        tails=np.empty(queues, dtype),
        sizes=np.empty(height * WIDTH, np.int64),
        heads=np.empty(_BATCH * WIDTH, dtype),
        rests=np.empty(_BATCH * WIDTH, dtype),
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
def _exact_scores(
    data: Any, rates: Any, log_weights: Any, leaf: int, z: Any, first: int, dims: int
) -> Any:
    """log w_n + log N(z; mu_n, s_n) of a leaf's components in float64; -inf for empty lanes."""
    total = tv.splat(0.0)
    at = leaf * (2 * dims + 1) * WIDTH + WIDTH
    rate = leaf * dims * WIDTH
    for d in range(dims):
        x = tv.splat(np.float64(tv.element(z, first + d)))
        t = tv.multiply(tv.subtract(x, tv.widen(tv.load(data, at))), tv.load(rates, rate))
        total = tv.multiply_add(t, t, total)
        at += 2 * WIDTH
        rate += WIDTH
    half = tv.multiply(total, tv.splat(0.5))
    return tv.subtract(tv.load(log_weights, leaf * WIDTH), half)


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
    work.used[:] = 0.0
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
        scores = _exact_scores(data, rates, log_weights, node, z, first, tree.num_dims)
        if work.skipped[i] // WIDTH == node:
            scores = tv.without_lane(scores, work.skipped[i] % WIDTH)
        work.reference[i] = tv.largest(scores)
        work.level[i] = max(start[row], work.reference[i])
        work.threshold[i] = _threshold(work.level[i], budget.log_share, work.z)


@compiled
def _expand(
    node: int, level: int, queue: int, size: int, tree: Any, budget: Any, work: Any
) -> None:
    """Finds which children of a node the queries of its queue reach."""
    z, boxes = tv.pointer(work.z), tv.pointer(tree.boxes)
    threshold, distance = tv.pointer(work.threshold), tv.pointer(work.distance)
    queues, tails = tv.pointer(work.queues), tv.pointer(work.tails)
    sizes, used = tv.pointer(work.sizes), tv.pointer(work.used)
    heads, rests = tv.pointer(work.heads), tv.pointer(work.rests)
    survivors, masks = tv.pointer(work.survivors), tv.pointer(work.masks)
    dims, boxed = tree.num_dims, tree.num_boxed
    block = work.distance.size
    head = min(_HEAD, boxed)
    at = node * (3 * boxed + 2) * WIDTH
    log_weight = tv.load(boxes, at + WIDTH)
    gain = tv.splat(work.z.dtype.type(budget.gain))
    # A child's components, at most; and the bound above which it is not worth dropping: 1/32 of
    # the budget.
    unit = float(WIDTH) ** (tree.height - level) * budget.share
    window = tv.splat(work.z.dtype.type(max(0.0, 2.0 * np.log(budget.total / (64.0 * unit)))))
    here = level * WIDTH
    for lane in range(WIDTH):
        tv.put(sizes, here + lane, 0)
    for batch in range(queue, queue + size, _BATCH):
        count = 0
        for k in range(batch, min(batch + _BATCH, queue + size)):
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
            excess = tv.subtract(limit, tv.add(rest, tv.load(heads, k * WIDTH)))
            mask = tv.less(tv.zeros(z), excess)
            tv.store(heads, left * WIDTH, excess)
            tv.store(rests, left * WIDTH, rest)
            tv.put(survivors, left, i)
            tv.put(masks, left, mask)
            left += mask != 0
        for k in range(left):
            i = tv.element(survivors, k)
            mask = tv.element(masks, k)
            excess = tv.load(heads, k * WIDTH)
            kept = tv.less(window, excess)
            if kept != mask:
                drop = unit * tv.sum_exp_half_between(excess, window)
                spent = tv.element(used, i) + drop
                if spent <= budget.total:
                    tv.put(used, i, spent)
                    mask = kept
            while mask:
                lane = tv.lowest_bit(mask)
                mask &= mask - 1
                position = tv.element(sizes, here + lane)
                slot = (here + lane) * block + position
                tv.put(queues, slot, np.int32(i))
                tv.put(tails, slot, tv.element(rests, k * WIDTH + lane))
                tv.put(sizes, here + lane, position + 1)


@compiled
def _score_leaves(node: int, tree: Any, budget: Any, work: Any) -> None:
    """Adds the components of a node's leaves to the sums of the queries that reach them."""
    z, data = tv.pointer(work.z), tv.pointer(tree.leaf_data)
    rates, log_weights = tv.pointer(tree.exact_rates), tv.pointer(tree.exact_log_weights)
    threshold, reference = tv.pointer(work.threshold), tv.pointer(work.reference)
    queues, tails = tv.pointer(work.queues), tv.pointer(work.tails)
    mass, moment = tv.pointer(work.mass), tv.pointer(work.moment)
    skipped, visited = tv.pointer(work.skipped), tv.pointer(work.visited)
    ceiling = tv.pointer(work.ceiling)
    heads, survivors = tv.pointer(work.heads), tv.pointer(work.survivors)
    dims = tree.num_dims
    block = work.distance.size
    head = min(_HEAD, tree.num_boxed)
    gain = tv.splat(work.z.dtype.type(budget.gain))
    bottom = (tree.height - 1) * WIDTH
    for lane in range(tree.num_children[node]):
        leaf = tree.first_child[node] + lane
        at = leaf * (2 * dims + 1) * WIDTH
        valid = min(WIDTH, tree.num_components - leaf * WIDTH)
        log_weight = tv.load(data, at)
        begin = (bottom + lane) * block
        end = begin + work.sizes[bottom + lane]
        for batch in range(begin, end, _BATCH):
            left = 0
            for k in range(batch, min(batch + _BATCH, end)):
                i = np.int64(tv.element(queues, k))
                limit = tv.multiply(
                    tv.subtract(log_weight, tv.splat(tv.element(threshold, i))), gain
                )
                terms = _component_terms(data, at + WIDTH, z, i * dims, 0, head)
                tv.store(heads, left * WIDTH, terms)
                tv.put(survivors, left, i)
                left += tv.any_less(tv.add(terms, tv.splat(tv.element(tails, k))), limit)
            for k in range(left):
                i = tv.element(survivors, k)
                first = i * dims
                limit = tv.multiply(
                    tv.subtract(log_weight, tv.splat(tv.element(threshold, i))), gain
                )
                terms = tv.load(heads, k * WIDTH)
                mask = np.int64(1)
                d = head
                while mask and d < dims:
                    stop = min(dims, d + _CHUNK)
                    more = _component_terms(data, at + (2 * d + 1) * WIDTH, z, first, d, stop)
                    terms = tv.add(terms, more)
                    mask = tv.less(terms, limit)
                    d = stop
                if not mask:
                    continue
                scores = _exact_scores(data, rates, log_weights, leaf, z, first, dims)
                count = valid
                slot = tv.element(skipped, i)
                if slot // WIDTH == leaf:
                    scores = tv.without_lane(scores, slot % WIDTH)
                    count -= 1
                tv.put(visited, i, tv.element(visited, i) + count)
                base = tv.element(reference, i)
                if tv.less(tv.splat(base + _HEADROOM), scores):
                    _rescale(i, tv.largest(scores), work)
                    base = tv.element(reference, i)
                elif base == -np.inf:
                    continue
                scores = tv.subtract(scores, tv.splat(base))
                parts = tv.exp(scores, z)
                # Where a part is zero the score may be -inf.
                scores = tv.maximum(scores, tv.splat(-1000.0))
                sums = tv.add(tv.load(mass, i * WIDTH), parts)
                tv.store(mass, i * WIDTH, sums)
                products = tv.multiply_add(parts, scores, tv.load(moment, i * WIDTH))
                tv.store(moment, i * WIDTH, products)
                if tv.less(tv.splat(tv.element(ceiling, i)), sums):
                    _raise_threshold(i, tv.total(sums), tv.largest(sums), budget, work)


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
        work.used[i] *= np.exp(work.level[i] - level)
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
    everyone = tree.height * WIDTH * block
    for i in range(rows.size):
        work.queues[everyone + i] = i
    level = 0
    _expand(0, 0, everyone, rows.size, tree, budget, work)
    while level >= 0:
        if level == tree.height - 1:
            _score_leaves(nodes[level], tree, budget, work)
            lanes[level] = WIDTH
        slot = level * WIDTH + lanes[level]
        if lanes[level] == WIDTH:
            level -= 1
        elif work.sizes[slot] == 0:
            lanes[level] += 1
        else:
            child = tree.first_child[nodes[level]] + lanes[level]
            lanes[level] += 1
            level += 1
            nodes[level], lanes[level] = child, 0
            _expand(child, level, slot * block, work.sizes[slot], tree, budget, work)
    for i in range(rows.size):
        row = rows[i]
        mass = work.mass[i * WIDTH : (i + 1) * WIDTH].sum()
        moment = work.moment[i * WIDTH : (i + 1) * WIDTH].sum()
        visited[row] = work.visited[i]
        log_prob[row] = work.reference[i] + np.log(mass) if mass > 0.0 else -np.inf
        entropy[row] = max(0.0, np.log(mass) - moment / mass) if mass > 0.0 else np.nan
