"""Compiled functions that build a tree over components: splits, leaves and boxes.

A node has up to 16 children and a leaf up to 16 components: one for each lane of the vectors in
`vectors`. Nodes are numbered level by level from the root; the children of a node, and therefore
the components below it, are consecutive. Leaf i holds the components order[16 i : 16 (i + 1)].
Each function works on a range of nodes, leaves or queries, so that threads can share the work.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from tfp_surgery.log_density.tree.vectors import WIDTH

BITS = 1.0 / math.log(2.0)  # bits in a nat; scores within the tree are in bits
UNIT = math.sqrt(BITS / 2)  # an inverse scale times it is a rate: squared distances are in bits
HEAD = 10  # dimensions compared before the first test against the threshold
_SPLIT_SAMPLE = 64  # components of a node that determine the dimension to split
_ALIGNMENT = 64  # bytes: the size of a cache line and of the longest vector registers


def aligned(shape: Any, dtype: Any) -> Any:
    """Returns an array of zeros that starts at a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def compiled(function: Any) -> Any:
    """Compiles a function that holds no interpreter lock; caches it where numba has a folder."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


@compiled
def _select(keys: Any, order: Any, start: int, stop: int, rank: int) -> None:
    """Partitions keys[start:stop], and order alike, around the key of rank `rank` (Hoare).

    Both scans stop at keys equal to the pivot, so that equal keys split evenly.
    """
    low, high = start, stop - 1
    while low < high:
        pivot = keys[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while pivot < keys[j]:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if j < rank:
            low = i
        if rank < i:
            high = j


@compiled
def _widest_dimension(loc: Any, scale: Any, order: Any, start: int, stop: int, moments: Any) -> int:
    """Returns the dimension whose locations spread most in units of the scales; -1 if none does."""
    moments[:] = 0.0
    step = max(1, (stop - start) // _SPLIT_SAMPLE)
    origin = order[start]
    count = 0
    for position in range(start, stop, step):
        n = order[position]
        count += 1
        for d in range(loc.shape[1]):
            shifted = np.float64(loc[n, d]) - np.float64(loc[origin, d])
            moments[d, 0] += shifted
            moments[d, 1] += shifted * shifted
            moments[d, 2] += np.float64(scale[n, d])
    best, largest = -1, 0.0
    for d in range(loc.shape[1]):
        variance = moments[d, 1] - moments[d, 0] * moments[d, 0] / count
        spread = variance / (moments[d, 2] * moments[d, 2])
        if spread > largest:
            best, largest = d, spread
    return best


@compiled
def split(
    loc: Any,
    scale: Any,
    order: Any,
    keys: Any,
    first_leaf: Any,
    num_leaves: Any,
    num_children: Any,
    split_dim: Any,
    split_value: Any,
    nodes: Any,
    lows: Any,
    highs: Any,
    goes_on: bool,
    start: int,
    stop: int,
) -> None:
    """Halves parts start..stop of the nodes of a level, once or down to single children.

    Part i consists of the children lows[i]..highs[i] of nodes[i]. A node owns the leaves
    first_leaf[node] + (0..num_leaves[node]), and its children share them equally. Column i of
    `split_dim` and `split_value` gets the split between children i - 1 and i, for `route`.
    """
    moments = np.empty((loc.shape[1], 3))
    pending = np.empty((2 * WIDTH, 2), np.int64)
    for part in range(start, stop):
        node = nodes[part]
        leaf, leaves, children = first_leaf[node], num_leaves[node], num_children[node]
        pending[0, 0], pending[0, 1] = lows[part], highs[part]
        depth = 1
        while depth:
            depth -= 1
            low, high = pending[depth]
            if high - low < 2:
                continue
            middle = (low + high) // 2
            begin = (leaf + leaves * low // children) * WIDTH
            end = min(order.size, (leaf + leaves * high // children) * WIDTH)
            rank = (leaf + leaves * middle // children) * WIDTH
            dim = _widest_dimension(loc, scale, order, begin, end, moments)
            if dim >= 0:
                for position in range(begin, end):
                    keys[position] = loc[order[position], dim]
                _select(keys, order, begin, end, rank)
            split_dim[node, middle] = max(dim, 0)
            split_value[node, middle] = loc[order[rank], max(dim, 0)]
            if goes_on:
                pending[depth, 0], pending[depth, 1] = low, middle
                pending[depth + 1, 0], pending[depth + 1, 1] = middle, high
                depth += 2


@compiled
def fill_leaves(
    loc: Any,
    scale: Any,
    order: Any,
    dims: Any,
    leaf_data: Any,
    exact_rates: Any,
    start: int,
    stop: int,
) -> None:
    """Writes locations and rates of leaves start..stop, lane by lane.

    leaf_data `[leaves, 1 + 2 D, 16]` has the log weights in its first row, written elsewhere, then
    location and rounded rate of each dimension; exact_rates `[leaves, D, 16]` is float64.
    """
    for i in range(start, stop):
        for lane in range(min(WIDTH, order.size - WIDTH * i)):
            n = order[WIDTH * i + lane]
            for d in range(dims.size):
                rate = UNIT / np.float64(scale[n, dims[d]])
                leaf_data[i, 1 + 2 * d, lane] = loc[n, dims[d]]
                leaf_data[i, 2 + 2 * d, lane] = rate
                exact_rates[i, d, lane] = rate


@compiled
def _rate_factor(log_weight: float, largest: float, floor: float) -> float:
    """Returns sqrt(f_n) of `component_tree`, for F = `floor` and c = `largest`.

    It is infinite for a log weight of at most `floor`: the component never counts.
    """
    if log_weight <= floor:
        return np.inf
    if floor == -np.inf or log_weight == largest:
        return 1.0
    return math.sqrt((largest - floor) / (log_weight - floor))


@compiled
def box_leaves(
    leaf_data: Any,
    num_components: int,
    ball_center: Any,
    ball_rate: Any,
    first_child: Any,
    num_children: Any,
    boxes: Any,
    floor: float,
    start: int,
    stop: int,
) -> None:
    """Writes the boxes of nodes start..stop, whose children are leaves.

    boxes `[nodes, 2 + 3 K, 16]` has for each child the radius of its ball over the last D - K
    dimensions, its largest log weight, and for each of the first K dimensions its smallest and
    largest location and its smallest rate, for thresholds of at least `floor`. A rate beyond the
    head has no factor, since each component is compared with its own log weight there.
    """
    num_boxed = (boxes.shape[1] - 2) // 3
    factors = np.empty(WIDTH)
    # Rounds upwards: float32 rounding is below 1e-6, float64 rounding below 1e-12.
    slack = 1e-6 if leaf_data.itemsize == 4 else 1e-12
    for node in range(start, stop):
        for lane in range(num_children[node]):
            leaf = first_child[node] + lane
            size = min(WIDTH, num_components - WIDTH * leaf)
            data, box = leaf_data[leaf, :, :size], boxes[node, :, lane]
            radius = _square_radius(data, ball_center, ball_rate, num_boxed)
            box[0] = np.sqrt(radius) * (1.0 + slack)
            _, box[1] = _extremes(data[0])
            for j in range(size):
                factors[j] = _rate_factor(data[0, j], box[1], floor)
            for d in range(num_boxed):
                if d == HEAD:
                    factors[:] = 1.0
                box[2 + 3 * d], box[3 + 3 * d] = _extremes(data[1 + 2 * d])
                box[4 + 3 * d] = _smallest_rate(data[2 + 2 * d], factors)


@compiled
def _square_radius(data: Any, ball_center: Any, ball_rate: Any, num_boxed: int) -> float:
    """Returns the largest squared distance of a leaf's components from the centre of the balls."""
    radius = 0.0
    for i in range(data.shape[1]):
        square = 0.0
        for d in range(num_boxed, ball_center.size):
            part = (np.float64(data[1 + 2 * d, i]) - ball_center[d]) * ball_rate[d]
            square += part * part
        radius = max(radius, square)
    return radius


@compiled
def _extremes(values: Any) -> tuple[float, float]:
    """Returns the smallest and the largest of the values (numba compiles NumPy's in seconds)."""
    low = high = values[0]
    for value in values:
        low, high = min(low, value), max(high, value)
    return low, high


@compiled
def _smallest_rate(rates: Any, factors: Any) -> float:
    """Returns the smallest rate times its factor, rounded down; 0 if all factors are infinite."""
    smallest = np.inf
    for i in range(rates.size):
        if factors[i] < np.inf:
            smallest = min(smallest, rates[i] * factors[i])
    if smallest == np.inf:
        return 0.0
    return float(smallest * (1.0 - np.finfo(rates.dtype).eps))


@compiled
def box_nodes(
    boxes: Any, first_child: Any, num_children: Any, floor: float, start: int, stop: int
) -> None:
    """Writes the boxes of nodes start..stop, whose children are nodes with boxes."""
    num_boxed = (boxes.shape[1] - 2) // 3
    factors = np.empty(WIDTH)
    for node in range(start, stop):
        for lane in range(num_children[node]):
            count = num_children[first_child[node] + lane]
            child, box = boxes[first_child[node] + lane, :, :count], boxes[node, :, lane]
            _, box[0] = _extremes(child[0])
            _, box[1] = _extremes(child[1])
            for i in range(count):
                factors[i] = _rate_factor(child[1, i], box[1], floor)
            for d in range(num_boxed):
                box[2 + 3 * d], _ = _extremes(child[2 + 3 * d])
                _, box[3 + 3 * d] = _extremes(child[3 + 3 * d])
                box[4 + 3 * d] = _smallest_rate(child[4 + 3 * d], factors)


@compiled
def find_finite(queries: Any, is_finite: Any, start: int, stop: int) -> None:
    """Marks the queries start..stop whose coordinates are all finite."""
    for m in range(start, stop):
        finite = True
        for d in range(queries.shape[1]):
            finite &= np.isfinite(queries[m, d])
        is_finite[m] = finite


@compiled
def route(
    queries: Any,
    split_dim: Any,
    split_value: Any,
    first_child: Any,
    num_children: Any,
    height: int,
    dims: Any,
    ball_center: Any,
    ball_rate: Any,
    num_boxed: int,
    leaves: Any,
    distance: Any,
    start: int,
    stop: int,
) -> None:
    """Finds the leaf on whose side of every split each query lies, and its distance to the centre.

    The distance, to the centre of the balls, is sqrt(sum_d ((z_d - center_d) rate_d)^2) over the
    dimensions without boxes, in float64.
    """
    for m in range(start, stop):
        node = 0
        for _ in range(height):
            low, high = 0, num_children[node]
            while high - low > 1:
                middle = (low + high) // 2
                if queries[m, split_dim[node, middle]] < split_value[node, middle]:
                    high = middle
                else:
                    low = middle
            node = first_child[node] + low
        leaves[m] = node
        square = 0.0
        for d in range(num_boxed, dims.size):
            part = (np.float64(queries[m, dims[d]]) - ball_center[d]) * ball_rate[d]
            square += part * part
        distance[m] = np.sqrt(square)
