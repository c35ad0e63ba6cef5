"""What numba compiles for `local_expansion`: cells of queries, and sums over a tree for each cell.

The words are those of `local_expansion`, which has the equations; arrays of a tree are laid out as
`build` says. Scores are in bits, all that multiplies them in nats.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from tfp_surgery.log_density.tree import vectors as tv
from tfp_surgery.log_density.tree.build import BITS, UNIT, compiled
from tfp_surgery.log_density.tree.terms import inlined
from tfp_surgery.log_density.tree.vectors import WIDTH

_BATCH = 4  # vectors whose coefficients are added up at a time: they stay in the first cache
_NAT = 1.0 / BITS
_HIGHEST = 900.0  # bits above q at the centre
_FEWEST_TERMS = 4
_CRAMER = 1.0864**2  # of two dimensions


class Rule(NamedTuple):
    """When components are left out, when series end, and what is certain then."""

    share: Any  # of q(z) that may be left out
    far: Any  # bits below log2 q of a cell's centre from which nodes are left out: all of them
    # together add at most `far_share` to the sum
    far_share: Any
    depth: Any  # bits below it from which leaves are left out, and counted
    leaf_size: Any  # components of a leaf, at most
    excess: Any  # what terms left out may add to the sum over a vector, relative to it
    least: Any  # and to 1, where the sum over the vector is small
    tolerance: Any  # of the series, in nats
    reach: Any  # the largest rho of a component whose series is used
    tails: Any  # [steps + 1, terms + 1]: R_p at rho = reach * sqrt(step / steps)


class _Work(NamedTuple):
    vectors: Any  # [vectors of the tree]: those of a cell
    pending: Any  # [nodes of the tree]
    batch: Any  # [4, 6, 16]: w, t, then u rho and rho^2 of two dimensions
    series: (
        Any  # [4, 4, P, 16]: w a and w (t a + b) of one dimension, a and b of the other; vectors
    )
    lanes: Any  # [2, P, P, 16]: sums and moments of each lane
    lost: Any  # [2, 16]: E and F of each lane
    sums: Any  # [P, P]
    moments: Any  # [P, P]
    narrow: Any  # [5, components of the tree]: locations, inverse scales, log weights


class _Data(NamedTuple):
    """What is used vector by vector: addresses, and numbers."""

    leaf_data: Any
    rates: Any
    log_weights: Any
    tails: Any
    batch: Any
    lost: Any
    num_dims: Any
    most: Any  # P
    steps: Any  # of the table of tails


class _Cell(NamedTuple):
    centre: Any  # of the first dimension
    centre_2: Any
    half: Any  # the width
    half_2: Any
    level: Any  # log2 q at the centre, about
    mean: Any  # and sum_n p_n log p_n there: scores in nats are relative to it


@compiled
def divide(
    queries: Any,
    dims: Any,
    vectors: Any,
    leaf_data: Any,
    reach: float,
    fewest: int,
    rows: Any,
    cells: Any,
) -> int:
    """Divides queries[rows] into cells, and reorders the rows so that those of a cell follow.

    Args:
      queries: `[M, D]`.
      dims: `[D]`, the tree's order of dimensions.
      vectors: `[M]`, a vector of components near each query.
      leaf_data: `[vectors, 1 + 2 D, 16]`.
      reach: what |rho| of components near a cell may be.
      fewest: queries of a cell; fewer make none.
      rows: `[m]`, reordered.
      cells: float64 `[m // fewest, 6]`: for each cell where its rows start and stop, its centre and
        half its width in two dimensions; those of a second dimension that is not there stay 0.

    Returns:
      The number of cells.
    """
    num_dims = dims.size
    pending = [(0, rows.size)]
    low, high, rate = np.empty(2), np.empty(2), np.empty(2)
    count = 0
    while len(pending) > 0:
        start, stop = pending.pop()
        if stop - start < fewest:
            continue
        data = leaf_data[vectors[rows[(start + stop) // 2]]]
        square, widest, width = 0.0, 0, 0.0
        for d in range(num_dims):
            low[d] = high[d] = queries[rows[start], dims[d]]
            for position in range(start + 1, stop):
                x = np.float64(queries[rows[position], dims[d]])
                low[d] = min(low[d], x)
                high[d] = max(high[d], x)
            rate[d] = np.float64(np.median(data[2 + 2 * d])) / UNIT
            rho = 0.5 * (high[d] - low[d]) * rate[d]
            square += rho * rho
            if rho > width:
                widest, width = d, rho
        if square <= reach * reach:
            cells[count, 0], cells[count, 1] = start, stop
            for d in range(num_dims):
                centre = 0.5 * (low[d] + high[d])
                cells[count, 2 + d] = centre
                cells[count, 4 + d] = max(high[d] - centre, centre - low[d])
            count += 1
            continue
        middle = 0.5 * (low[widest] + high[widest])
        i, j = start, stop - 1
        while i <= j:
            if queries[rows[i], dims[widest]] <= middle:
                i += 1
            else:
                rows[i], rows[j] = rows[j], rows[i]
                j -= 1
        if i < stop:  # else the numbers are too near to one another to be told apart
            pending.append((start, i))
            pending.append((i, stop))
    return count


@inlined
def _find_vectors(
    cell: Any, level: float, rule: Any, tree: Any, bottom: int, work: Any
) -> tuple[int, float]:
    """Finds the vectors of the leaves that may count in a cell.

    Returns their number, and at most what the others add to the sum, relative to 2^level.
    """
    boxes = tv.pointer(tree.boxes)
    work.pending[0] = 0
    depth, count = 1, 0
    omitted = tv.splat(0.0)
    while depth:
        depth -= 1
        node = work.pending[depth]
        at = node * (3 * tree.num_boxed + 2) * WIDTH
        total = tv.splat(0.0)
        for d in range(tree.num_boxed):
            x = at + (2 + 3 * d) * WIDTH
            below = tv.splat(cell[2 + d] - cell[4 + d])
            above = tv.splat(cell[2 + d] + cell[4 + d])
            gap = tv.maximum(
                tv.subtract(tv.widen(tv.load(boxes, x)), above),
                tv.subtract(below, tv.widen(tv.load(boxes, x + WIDTH))),
            )
            gap = tv.multiply(
                tv.maximum(gap, tv.splat(0.0)), tv.widen(tv.load(boxes, x + 2 * WIDTH))
            )
            total = tv.multiply_add(gap, gap, total)
        bound = tv.subtract(tv.widen(tv.load(boxes, at + WIDTH)), total)
        bound = tv.subtract(bound, tv.splat(level))
        if node < bottom:
            mask = tv.less(tv.splat(-rule.far), bound)
        else:
            limit = tv.splat(-rule.depth)
            mask = tv.less(limit, bound)
            part = tv.multiply(tv.exp2(bound), tv.splat(float(rule.leaf_size)))
            omitted = tv.add(omitted, tv.where_less(limit, bound, tv.splat(0.0), part))
        while mask:
            child = tree.first_child[node] + tv.lowest_bit(mask)
            mask &= mask - 1
            if node >= bottom:
                for vector in range(tree.first_vector[child], tree.first_vector[child + 1]):
                    work.vectors[count] = vector
                    count += 1
            else:
                work.pending[depth] = child
                depth += 1
    return count, tv.total(omitted) + rule.far_share


@inlined
def _weigh(vector: int, k: int, cell: Any, rule: Any, of: Any) -> Any:
    """Prepares a vector, the k-th of its batch, and adds what its series leaves out to E and F.

    Returns how many terms the series has, and which components are too narrow for it.
    """
    dims, zero = of.num_dims, tv.splat(0.0)
    at, rate_at = vector * (2 * dims + 1) * WIDTH, vector * dims * WIDTH
    rate = tv.load(of.rates, rate_at)
    rho = tv.multiply(rate, tv.splat(cell.half / UNIT))
    rho_2 = tv.multiply(rho, rho)
    if dims == 2:
        other = tv.multiply(tv.load(of.rates, rate_at + WIDTH), tv.splat(cell.half_2 / UNIT))
        rho_2 = tv.multiply_add(other, other, rho_2)
    squared_reach = tv.splat(rule.reach * rule.reach)
    narrow = tv.less(squared_reach, rho_2)
    score = tv.load(of.log_weights, vector * WIDTH)
    score = tv.where_less(squared_reach, rho_2, tv.splat(-np.inf), score)
    squares, kept_rho_2 = zero, zero
    for d in range(dims):
        centre, half = (cell.centre, cell.half) if d == 0 else (cell.centre_2, cell.half_2)
        rate = tv.load(of.rates, rate_at + d * WIDTH)
        rate = tv.where_less(squared_reach, rho_2, zero, rate)
        location = tv.widen(tv.load(of.leaf_data, at + (1 + 2 * d) * WIDTH))
        x = tv.multiply(tv.subtract(location, tv.splat(centre)), rate)
        rho = tv.multiply(rate, tv.splat(half / UNIT))
        square = tv.multiply(rho, rho)
        squares = tv.multiply_add(x, x, squares)
        kept_rho_2 = tv.add(kept_rho_2, square)
        to = (k * 6 + 2 + 2 * d) * WIDTH
        tv.store(of.batch, to, tv.multiply(tv.multiply(x, tv.splat(1.0 / UNIT)), rho))
        tv.store(of.batch, to + WIDTH, square)
    score = tv.subtract(tv.subtract(score, squares), tv.splat(cell.level))
    weight = tv.exp2(score)
    # What has no place beside q at the centre makes E infinite.
    exponent = tv.multiply_add(squares, tv.splat(0.5), score)
    broad = tv.where_less(tv.splat(_HIGHEST), exponent, tv.splat(np.inf), tv.exp2(exponent))
    nats = tv.multiply(tv.maximum(score, tv.splat(tv.LOWEST)), tv.splat(_NAT))
    nats = tv.subtract(nats, tv.splat(cell.mean))
    tv.store(of.batch, k * 6 * WIDTH, weight)
    tv.store(of.batch, (k * 6 + 1) * WIDTH, nats)

    step = math.ceil(of.steps * tv.largest(kept_rho_2) / (rule.reach * rule.reach))
    table = min(np.int64(step), of.steps) * (of.most + 1)
    terms = _FEWEST_TERMS
    allowed = rule.excess * (tv.total(weight) + rule.least) / (_CRAMER * tv.total(broad) + 1e-300)
    while terms < of.most and tv.element(of.tails, table + terms) > allowed:
        terms += 2
    tail, tail_1, tail_2 = (
        _CRAMER * tv.element(of.tails, table + terms),
        _CRAMER * tv.element(of.tails, table + terms - 1),
        _CRAMER * tv.element(of.tails, table + terms - 2),
    )
    # |u| rho <= (u^2 + rho^2) / 2, where u^2 / 2 is `squares` in nats.
    half_rho_2 = tv.multiply(kept_rho_2, tv.splat(0.5))
    cross = tv.multiply_add(squares, tv.splat(_NAT), half_rho_2)
    moment = tv.multiply(tv.maximum(nats, tv.subtract(zero, nats)), tv.splat(tail))
    moment = tv.multiply_add(cross, tv.splat(tail_1), moment)
    moment = tv.multiply_add(half_rho_2, tv.splat(tail_2), moment)
    tv.store(of.lost, 0, tv.multiply_add(broad, tv.splat(tail), tv.load(of.lost, 0)))
    tv.store(of.lost, WIDTH, tv.multiply_add(broad, moment, tv.load(of.lost, WIDTH)))
    return terms, narrow


@inlined
def _coefficients(vector: int, terms: int, work: Any) -> None:
    """Stores the coefficients a_k and b_k of a vector of the batch, of both dimensions."""
    batch, series = tv.pointer(work.batch), tv.pointer(work.series)
    plane, zero = _BATCH * terms * WIDTH, tv.splat(0.0)
    at, to = vector * 6 * WIDTH, vector * terms * WIDTH
    weight, nats = tv.load(batch, at), tv.load(batch, at + WIDTH)
    for second in range(2):
        linear = tv.load(batch, at + (2 + 2 * second) * WIDTH)
        square = tv.load(batch, at + (3 + 2 * second) * WIDTH)
        half = tv.multiply(square, tv.splat(0.5))
        now, before, before_that = tv.splat(1.0), zero, zero
        if not second:
            now = weight
        for k in range(terms):
            b = tv.subtract(tv.multiply(linear, before), tv.multiply(half, before_that))
            if not second:
                b = tv.multiply_add(now, nats, b)
            tv.store(series, 2 * second * plane + to + k * WIDTH, now)
            tv.store(series, (2 * second + 1) * plane + to + k * WIDTH, b)
            following = tv.subtract(tv.multiply(linear, now), tv.multiply(square, before))
            before_that, before = before, now
            now = tv.multiply(following, tv.splat(1.0 / (k + 1)))


@compiled
def _add_batch(count: int, terms: int, num_dims: int, work: Any) -> None:
    """Adds the series of the vectors of a batch to those of the cell, an even number of terms."""
    series, lanes = tv.pointer(work.series), tv.pointer(work.lanes)
    most = work.sums.shape[0]
    plane, square = _BATCH * terms * WIDTH, most * most * WIDTH
    for vector in range(count):
        _coefficients(vector, terms, work)
    for i in range(terms):
        # In pairs: the last of a row may be one too many, which is not used.
        for j in range(0, terms - i if num_dims == 2 else 1, 2):
            at = (i * most + j) * WIDTH
            sums, moments = tv.load(lanes, at), tv.load(lanes, square + at)
            sums_2 = tv.load(lanes, at + WIDTH)
            moments_2 = tv.load(lanes, square + at + WIDTH)
            for vector in range(count):
                first = (vector * terms + i) * WIDTH
                second = 2 * plane + (vector * terms + j) * WIDTH
                a, b = tv.load(series, first), tv.load(series, plane + first)
                c, d = tv.load(series, second), tv.load(series, plane + second)
                sums = tv.multiply_add(a, c, sums)
                moments = tv.multiply_add(b, c, tv.multiply_add(a, d, moments))
                c = tv.load(series, second + WIDTH)
                d = tv.load(series, plane + second + WIDTH)
                sums_2 = tv.multiply_add(a, c, sums_2)
                moments_2 = tv.multiply_add(b, c, tv.multiply_add(a, d, moments_2))
            tv.store(lanes, at, sums)
            tv.store(lanes, square + at, moments)
            tv.store(lanes, at + WIDTH, sums_2)
            tv.store(lanes, square + at + WIDTH, moments_2)


@inlined
def _set_aside(vector: int, narrow: int, count: int, tree: Any, work: Any) -> int:
    """Copies the narrow components of a vector behind the `count` that are there."""
    dims = tree.num_dims
    while narrow:
        lane = tv.lowest_bit(narrow)
        narrow &= narrow - 1
        for d in range(dims):
            at = (vector * (2 * dims + 1) + 1 + 2 * d) * WIDTH + lane
            work.narrow[2 * d, count] = tree.leaf_data[at]
            work.narrow[2 * d + 1, count] = tree.exact_rates[(vector * dims + d) * WIDTH + lane]
        work.narrow[4, count] = tree.exact_log_weights[vector * WIDTH + lane]
        count += 1
    return count


@inlined
def _add_narrow(z: Any, cell: Any, count: int, num_dims: int, work: Any) -> Any:
    """The sum and the moment over the components set aside, at one query."""
    narrow, length = tv.pointer(work.narrow), work.narrow.shape[1]
    sums, moments = tv.splat(0.0), tv.splat(0.0)
    for at in range(0, count, WIDTH):
        score = tv.subtract(tv.load(narrow, 4 * length + at), tv.splat(cell.level))
        for d in range(num_dims):
            x = tv.subtract(tv.splat(z[d]), tv.load(narrow, 2 * d * length + at))
            x = tv.multiply(x, tv.load(narrow, (2 * d + 1) * length + at))
            score = tv.subtract(score, tv.multiply(x, x))
        part = tv.where_less(tv.splat(_HIGHEST), score, tv.splat(np.inf), tv.exp2(score))
        sums = tv.add(sums, part)
        nats = tv.multiply(tv.maximum(score, tv.splat(tv.LOWEST)), tv.splat(_NAT))
        nats = tv.subtract(nats, tv.splat(cell.mean))
        moments = tv.multiply_add(part, nats, moments)
    return tv.total(sums), tv.total(moments)


@inlined
def _series_at(first: float, second: float, terms: int, of: Any) -> float:
    """sum_(j + k < terms) of[j, k] first^j second^k."""
    value = 0.0
    for j in range(terms - 1, -1, -1):
        row = 0.0
        for k in range(terms - 1 - j, -1, -1):
            row = row * second + of[j, k]
        value = value * first + row
    return value


@compiled
def expand(
    queries: Any,
    dims: Any,
    rows: Any,
    cells: Any,
    levels: Any,
    entropies: Any,
    tree: Any,
    bottom: int,
    rule: Any,
    log_prob: Any,
    entropy: Any,
    visited: Any,
    answered: Any,
    start: int,
    stop: int,
) -> None:
    """Evaluates the queries of cells start..stop where that is certain, and marks these.

    Args:
      queries: `[M, D]`.
      dims: `[D]`, the tree's order of dimensions.
      rows: of all cells; see `divide`.
      cells: see `divide`.
      levels: `[cells]`, about log q at the centres, in nats.
      entropies: `[cells]`, about H[q(n|z)] there.
      tree: the `Tree`.
      bottom: the first node whose children are leaves.
      rule: the `Rule`.
      log_prob: `[M]` float64, in nats.
      entropy: `[M]` float64, in nats.
      visited: `[M]`, int64.
      answered: `[M]`, bool.
      start: the first cell.
      stop: one past the last.
    """
    most = rule.tails.shape[1] - 1
    num_vectors = tree.sizes.size
    work = _Work(
        np.empty(num_vectors, np.int64),
        np.empty(tree.num_children.size, np.int64),
        np.zeros(_BATCH * 6 * WIDTH),
        np.empty(4 * _BATCH * most * WIDTH),
        np.empty(2 * most * most * WIDTH),
        np.empty(2 * WIDTH),
        np.empty((most, most)),
        np.empty((most, most)),
        np.zeros((5, (num_vectors + 1) * WIDTH)),
    )
    data = _Data(
        tv.pointer(tree.leaf_data),
        tv.pointer(tree.exact_rates),
        tv.pointer(tree.exact_log_weights),
        tv.pointer(rule.tails),
        tv.pointer(work.batch),
        tv.pointer(work.lost),
        tree.num_dims,
        most,
        rule.tails.shape[0] - 1,
    )
    z = np.empty(2)
    for c in range(start, stop):
        level = levels[c] * BITS
        if not level > -np.inf:
            continue
        cell = _Cell(cells[c, 2], cells[c, 3], cells[c, 4], cells[c, 5], level, -entropies[c])
        count, omitted = _find_vectors(cells[c], level, rule, tree, bottom, work)
        work.lanes[:] = 0.0
        work.lost[:] = 0.0
        terms, num_narrow, num_components = 0, 0, 0
        for first in range(0, count, _BATCH):
            size, most_terms = min(_BATCH, count - first), 0
            for k in range(size):
                vector = work.vectors[first + k]
                num, narrow = _weigh(vector, k, cell, rule, data)
                most_terms = max(most_terms, num)
                num_narrow = _set_aside(vector, narrow, num_narrow, tree, work)
                num_components += tree.sizes[vector]
            _add_batch(size, most_terms, tree.num_dims, work)
            terms = max(terms, most_terms)
        _add_lanes(terms, work)
        lost, lost_moment = work.lost[:WIDTH].sum(), work.lost[WIDTH:].sum()
        work.narrow[4, num_narrow : num_narrow + WIDTH] = -np.inf
        for position in range(int(cells[c, 0]), int(cells[c, 1])):
            row = rows[position]
            t, t_2 = 0.0, 0.0
            z[0] = queries[row, dims[0]]
            if cell.half > 0.0:
                t = (z[0] - cell.centre) / cell.half
            if dims.size == 2:
                z[1] = queries[row, dims[1]]
                if cell.half_2 > 0.0:
                    t_2 = (z[1] - cell.centre_2) / cell.half_2
            mass, moment = _add_narrow(z, cell, num_narrow, dims.size, work)
            mass += _series_at(t, t_2, terms, work.sums)
            moment += _series_at(t, t_2, terms, work.moments)
            certain = mass - lost
            if not omitted <= rule.share * certain:
                continue
            mean = moment / mass
            if (lost + lost_moment + abs(mean) * lost) / certain <= rule.tolerance:
                log_prob[row] = levels[c] + np.log(mass)
                entropy[row] = max(0.0, np.log(mass) - mean - cell.mean)
                visited[row] = num_components
                answered[row] = True


@compiled
def _add_lanes(terms: int, work: Any) -> None:
    """Adds up the lanes of a cell's sums and moments."""
    most = work.sums.shape[0]
    for i in range(terms):
        for j in range(terms - i):
            at = (i * most + j) * WIDTH
            work.sums[i, j] = work.lanes[at : at + WIDTH].sum()
            at += most * most * WIDTH
            work.moments[i, j] = work.lanes[at : at + WIDTH].sum()
