"""What numba compiles for building a `component_tree`: splits, leaves and boxes.

The tree has one kind of node, with up to 16 children: the width of the vectors in
`vectors`, one lane a child. A leaf has a vector of 16 components, or, if it is a
group (see `groups`), one to four, the last of which may have empty lanes. Nodes are
numbered level by level, the root first; children of a node, and so the components below it, are
consecutive.
Every function works on a range of nodes, leaves or queries, so that threads can share the work.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from tfp_surgery.log_density.tree.vectors import WIDTH

BITS = 1.0 / math.log(2.0)  # in a nat: the unit of scores within the tree
UNIT = math.sqrt(BITS / 2)  # times 1 / s: squares are then in bits
HEAD = 10  # dimensions that are compared before the first look
_SPLIT_SAMPLE = 64  # components of a node that vote on the dimension to split
_ALIGNMENT = 64  # bytes: a line of the cache, and the longest vectors there are


def aligned(shape: Any, dtype: Any) -> Any:
    """An array of zeros whose vectors do not straddle lines of the cache."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def compiled(function: Any) -> Any:
    """Compiles without the interpreter's lock, and to the disk where numba finds a cache folder."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


@compiled
def _select(keys: Any, order: Any, start: int, stop: int, rank: int) -> None:
    """Reorders keys and order alike: smaller ones before position `rank`, larger ones after it.

    Hoare's selection. Both scans stop at keys equal to the pivot, so equal keys split evenly.
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
    """The dimension with the largest spread of locations in units of the scales; -1 for none."""
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
    per_leaf: int,
    nodes: Any,
    lows: Any,
    highs: Any,
    goes_on: bool,
    start: int,
    stop: int,
) -> None:
    """Splits parts start..stop of nodes of one level by halves, once or down to their children.

    Part i is made of the children lows[i]..highs[i] of nodes[i]. A node owns the components
    order[per_leaf * first_leaf[node] :][: per_leaf * num_leaves[node]]; child i gets its i-th part
    in equal numbers of leaves. The split between children i - 1 and i is kept in column i, for
    `route`.
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
            begin = (leaf + leaves * low // children) * per_leaf
            end = min(order.size, (leaf + leaves * high // children) * per_leaf)
            rank = (leaf + leaves * middle // children) * per_leaf
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
    members: Any,
    sizes: Any,
    dims: Any,
    leaf_data: Any,
    start: int,
    stop: int,
) -> None:
    """Writes locations and inverse scales, times `UNIT`, of vectors start..stop, lane by lane.

    Vector i has the components members[i, : sizes[i]]. leaf_data `[vectors, 1 + 2 D, 16]` has log
    weights in its first row, then location and rounded inverse scale of each dimension.
    """
    for i in range(start, stop):
        for lane in range(sizes[i]):
            n = members[i, lane]
            for d in range(dims.size):
                leaf_data[i, 1 + 2 * d, lane] = loc[n, dims[d]]
                leaf_data[i, 2 + 2 * d, lane] = UNIT / np.float64(scale[n, dims[d]])


@compiled
def fill_exact_rates(
    scale: Any, members: Any, sizes: Any, dims: Any, exact_rates: Any, start: int, stop: int
) -> None:
    """Writes the inverse scales of vectors start..stop to exact_rates `[vectors, D, 16]`."""
    for i in range(start, stop):
        for lane in range(sizes[i]):
            for d in range(dims.size):
                exact_rates[i, d, lane] = UNIT / np.float64(scale[members[i, lane], dims[d]])


@compiled
def _rate_factor(log_weight: float, largest: float, floor: float) -> float:
    """By how much inverse scales count for more than those of the largest log weight.

    What is `floor` or below can be left out whatever its scales.
    """
    if log_weight <= floor:
        return np.inf
    if floor == -np.inf or log_weight == largest:
        return 1.0
    return math.sqrt((largest - floor) / (log_weight - floor))


@compiled
def box_leaves(
    leaf_data: Any,
    ball_center: Any,
    ball_rate: Any,
    first_vector: Any,
    sizes: Any,
    first_child: Any,
    num_children: Any,
    boxes: Any,
    floor: float,
    start: int,
    stop: int,
) -> None:
    """Writes the boxes of nodes start..stop, whose children are leaves.

    boxes `[nodes, 2 + 3 K, 16]` has for each child the radius of its ball over the last D - K
    dimensions, its largest log weight, then for each of the first K dimensions its smallest and
    largest location and its smallest inverse scale, which holds for thresholds from `floor` up.
    Beyond the head it is that of the components themselves, each of which is compared with it.
    """
    num_boxed = (boxes.shape[1] - 2) // 3
    factors = np.empty(WIDTH)
    for node in range(start, stop):
        for lane in range(num_children[node]):
            leaf = first_child[node] + lane
            vectors = range(first_vector[leaf], first_vector[leaf + 1])
            box = boxes[node, :, lane]
            for i in vectors:
                box[1] = max(box[1], leaf_data[i, 0, : sizes[i]].max())
            box[2::3], box[3::3], box[4::3] = np.inf, -np.inf, np.inf
            radius = 0.0
            for i in vectors:
                data = leaf_data[i, :, : sizes[i]]
                for j in range(sizes[i]):
                    factors[j] = _rate_factor(data[0, j], box[1], floor)
                for d in range(num_boxed):
                    box[2 + 3 * d] = min(box[2 + 3 * d], data[1 + 2 * d].min())
                    box[3 + 3 * d] = max(box[3 + 3 * d], data[1 + 2 * d].max())
                    if d == HEAD:
                        factors[:] = 1.0
                    rate = _smallest_rate(data[2 + 2 * d], factors, sizes[i])
                    box[4 + 3 * d] = min(box[4 + 3 * d], rate)
                radius = max(radius, _square_radius(data, ball_center, ball_rate, num_boxed))
            for d in range(num_boxed):
                if box[4 + 3 * d] == np.inf:
                    box[4 + 3 * d] = 0.0
            # Upwards: float32 rounding is below 1e-6, float64 rounding below 1e-12.
            slack = 1e-6 if leaf_data.itemsize == 4 else 1e-12
            box[0] = np.sqrt(radius) * (1.0 + slack)


@compiled
def _square_radius(data: Any, ball_center: Any, ball_rate: Any, num_boxed: int) -> float:
    """The largest squared distance of a vector's components from the centre of the balls."""
    radius = 0.0
    for i in range(data.shape[1]):
        square = 0.0
        for d in range(num_boxed, ball_center.size):
            part = (np.float64(data[1 + 2 * d, i]) - ball_center[d]) * ball_rate[d]
            square += part * part
        radius = max(radius, square)
    return radius


@compiled
def _smallest_rate(rates: Any, factors: Any, count: int) -> float:
    """The smallest inverse scale times its factor, rounded down; inf where all factors are."""
    smallest = np.inf
    for i in range(count):
        if factors[i] < np.inf:
            smallest = min(smallest, rates[i] * factors[i])
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
            child = boxes[first_child[node] + lane, :, :count]
            largest = child[1].max()
            boxes[node, 0, lane] = child[0].max()
            boxes[node, 1, lane] = largest
            for i in range(count):
                factors[i] = _rate_factor(child[1, i], largest, floor)
            for d in range(num_boxed):
                boxes[node, 2 + 3 * d, lane] = child[2 + 3 * d].min()
                boxes[node, 3 + 3 * d, lane] = child[3 + 3 * d].max()
                rate = _smallest_rate(child[4 + 3 * d], factors, count)
                boxes[node, 4 + 3 * d, lane] = rate if rate < np.inf else 0.0


@compiled
def find_finite(queries: Any, is_finite: Any, start: int, stop: int) -> None:
    """Finds the queries start..stop whose coordinates are all finite."""
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
    """Finds the leaf on whose side of every split each query lies, and its distance to the balls.

    The distance sqrt(sum_d ((z_d - center_d) rate_d)^2), over the dimensions without boxes, is
    float64 and unrounded but for the arithmetic.
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
