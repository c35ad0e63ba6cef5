"""What numba compiles for leaves of a `component_tree` that are groups of close components.

Hyperplanes cut through tight groups again and again: where data has groups of about as many
components as a leaf, each leaf of a k-d tree holds fragments of several, and its box is that of all
of them. Here such groups are found by range searches in the k-d tree made first.

A component is as far from a point, which has scales too, as the larger of their squared distances
over the K dimensions with boxes, in units of the scales of one and of the other: less than K is
close.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tfp_surgery.log_density.tree import vectors as tv
from tfp_surgery.log_density.tree.build import BITS, HEAD, aligned, compiled
from tfp_surgery.log_density.tree.terms import box_terms, component_terms
from tfp_surgery.log_density.tree.vectors import WIDTH

_MOST = 4 * WIDTH - 1  # close components that are looked for
_CENTERED = 0.7  # of the distance that is close to a component: close to the mean of a group
_LOOKS = 256  # leaves that are searched for what is close to a point
_INNER = 0.75  # of the distance that is close: in a group most are within it,
_INNER_SHARE = 2 / 3  # but of what is spread evenly over many dimensions few are
_GAIN = 0.2  # of the places in leaves, that close components could have but have not


class Mates(NamedTuple):
    """The components found close to a point, and room for the search."""

    z: Any  # [K]: the point
    rates: Any  # [K]: its inverse scales
    slots: Any  # [63]: 16 times the vector plus the lane
    distances: Any  # [63]: ascending
    terms: Any  # [16]
    nodes: Any  # [height]
    masks: Any  # [height]


class Free(NamedTuple):
    """Which components are in no group yet; a bit for each lane."""

    lanes: Any  # [leaves]
    children: Any  # [nodes]: those with any such component below them
    parents: Any  # [nodes + leaves]: the node above, -1 for the root


def room(tree: Any) -> Mates:
    """Room for a search in a `Tree`."""
    dtype = tree.leaf_data.dtype
    return Mates(
        z=aligned((tree.num_boxed,), dtype),
        rates=np.empty(tree.num_boxed, dtype),
        slots=np.empty(_MOST, np.int64),
        distances=np.empty(_MOST, dtype),
        terms=aligned((WIDTH,), dtype),
        nodes=np.empty(tree.height, np.int64),
        masks=np.empty(tree.height, np.int64),
    )


def all_free(tree: Any) -> Free:
    """All components of a `Tree` whose leaves are vectors."""
    nodes = np.arange(tree.num_children.size)
    return Free(
        lanes=(1 << tree.sizes) - 1,
        children=(1 << tree.num_children) - 1,
        parents=np.append(-1, np.repeat(nodes, tree.num_children)),
    )


@compiled
def _start(slot: int, tree: Any, mates: Any) -> None:
    """Makes a component the point."""
    at = slot // WIDTH * (2 * tree.num_dims + 1) * WIDTH + slot % WIDTH
    for d in range(tree.num_boxed):
        mates.z[d] = tree.leaf_data[at + (2 * d + 1) * WIDTH]
        mates.rates[d] = tree.leaf_data[at + (2 * d + 2) * WIDTH]


@compiled
def _center(count: int, tree: Any, mates: Any) -> None:
    """Moves the point to the mean of itself and the components found."""
    for d in range(tree.num_boxed):
        total = np.float64(mates.z[d])
        for slot in mates.slots[:count]:
            at = slot // WIDTH * (2 * tree.num_dims + 1) * WIDTH + slot % WIDTH
            total += tree.leaf_data[at + (2 * d + 1) * WIDTH]
        mates.z[d] = total / (count + 1)


@compiled
def _look(leaf: int, among: int, limit: float, count: int, tree: Any, mates: Any) -> int:
    """Adds the components of a leaf that are in a mask and close; returns how many there are."""
    at = leaf * (2 * tree.num_dims + 1) * WIDTH
    z = tv.pointer(mates.z)
    terms = component_terms(tv.pointer(tree.leaf_data), at + WIDTH, z, 0, tree.num_boxed)
    tv.store(tv.pointer(mates.terms), 0, terms)
    among &= tv.less(terms, tv.splat(mates.z.dtype.type(limit)))
    while among:
        lane = tv.lowest_bit(among)
        among &= among - 1
        square = mates.z.dtype.type(0)
        for d in range(tree.num_boxed):
            part = (tree.leaf_data[at + (2 * d + 1) * WIDTH + lane] - mates.z[d]) * mates.rates[d]
            square += part * part
        distance = max(square, mates.terms[lane])
        if distance >= limit or (count == _MOST and distance >= mates.distances[count - 1]):
            continue
        place = min(count, _MOST - 1)
        while place and mates.distances[place - 1] > distance:
            mates.distances[place] = mates.distances[place - 1]
            mates.slots[place] = mates.slots[place - 1]
            place -= 1
        mates.distances[place] = distance
        mates.slots[place] = leaf * WIDTH + lane
        count = min(count + 1, _MOST)
    return count


@compiled
def _reach(node: int, limit: float, tree: Any, mates: Any) -> int:
    """The children of a node in which there may be close components."""
    boxes, z = tv.pointer(tree.boxes), tv.pointer(mates.z)
    least = tv.splat(mates.z.dtype.type(limit))
    at = node * (3 * tree.num_boxed + 2) * WIDTH
    head = min(HEAD, tree.num_boxed)
    terms = box_terms(boxes, at + 2 * WIDTH, z, 0, head)
    if tv.any_less(terms, least) and head < tree.num_boxed:
        rest_at = at + (2 + 3 * head) * WIDTH
        rest = box_terms(boxes, rest_at, z, head, tree.num_boxed - head)
        terms = tv.add(terms, rest)
    mask: int = tv.less(terms, least)
    return mask


@compiled
def _find(own: int, radius: float, free: Any, tree: Any, mates: Any) -> tuple[int, int]:
    """Finds the free components closer to the point than a radius (squared, K = 1).

    Returns how many there are in the leaf `own`, which is searched first, and in all.
    """
    limit = radius * tree.num_boxed * BITS / 2
    near = _look(own, free.lanes[own], limit, 0, tree, mates)
    count, looks, level = near, 0, 0
    mates.nodes[0], mates.masks[0] = 0, free.children[0] & _reach(0, limit, tree, mates)
    while level >= 0 and looks < _LOOKS:
        mask = mates.masks[level]
        if not mask:
            level -= 1
            continue
        mates.masks[level] = mask & (mask - 1)
        child = tree.first_child[mates.nodes[level]] + tv.lowest_bit(mask)
        if level < tree.height - 1:
            level += 1
            mates.nodes[level] = child
            mates.masks[level] = free.children[child] & _reach(child, limit, tree, mates)
        elif child != own:
            looks += 1
            count = _look(child, free.lanes[child], limit, count, tree, mates)
    return near, count


@compiled
def is_grouped(slots: Any, free: Any, tree: Any, mates: Any) -> bool:
    """Whether leaves should be made by `gather`.

    That is where many more components are close to one than share its leaf, few are only just
    close, and groups of all that are close would be at most twice as many as there are leaves.

    Args:
      slots: of some components.
      free: `all_free`.
      tree: The `Tree`, with boxes for any threshold.
      mates: `room`.
    """
    missed, num_groups = 0, 0.0
    limit = tree.num_boxed * BITS / 2
    for slot in slots:
        _start(slot, tree, mates)
        near, count = _find(slot // WIDTH, 1.0, free, tree, mates)
        num_groups += 1 / count
        inner = 0
        while inner < count and mates.distances[inner] < _INNER * limit:
            inner += 1
        if count < _MOST and inner >= _INNER_SHARE * count:
            missed += min(count, WIDTH) - near
    places = slots.size * (WIDTH - 1)
    return bool(missed > _GAIN * places and num_groups * WIDTH <= 2 * slots.size)


@compiled
def _take(slot: int, free: Any, tree: Any) -> None:
    """Marks a component as not free."""
    child = slot // WIDTH
    node = free.parents[free.children.size + child]
    free.lanes[child] &= ~(1 << slot % WIDTH)
    left = free.lanes[child]
    while left == 0 and node >= 0:
        free.children[node] &= ~(1 << child - tree.first_child[node])
        left = free.children[node]
        child, node = node, free.parents[node]


@compiled
def gather(free: Any, tree: Any, mates: Any, taken: Any, sizes: Any) -> int:
    """Gathers all components in groups of up to 64.

    Leaf by leaf, the first component that is free leads a group: the free ones closest to the mean
    of those closest to it.

    Args:
      free: `all_free`, written to.
      tree: The `Tree`, with boxes for any threshold.
      mates: `room`.
      taken: `[N]`, written to: the slots of the first group, then those of the second and so on.
      sizes: `[N]`, written to: components of each group.

    Returns:
      The number of groups.
    """
    num_groups, end = 0, 0
    for leaf in range(free.lanes.size):
        while free.lanes[leaf]:
            leader = leaf * WIDTH + tv.lowest_bit(free.lanes[leaf])
            _take(leader, free, tree)
            _start(leader, tree, mates)
            _, count = _find(leaf, 1.0, free, tree, mates)
            if count:
                _center(count, tree, mates)
                _, count = _find(leaf, _CENTERED, free, tree, mates)
            taken[end] = leader
            taken[end + 1 : end + 1 + count] = mates.slots[:count]
            for slot in mates.slots[:count]:
                _take(slot, free, tree)
            end += count + 1
            sizes[num_groups] = count + 1
            num_groups += 1
    return num_groups


@compiled
def average(values: Any, members: Any, starts: Any, means: Any, start: int, stop: int) -> None:
    """Means of rows of values, of groups start..stop: members[starts[i] : starts[i + 1]]."""
    for i in range(start, stop):
        for d in range(values.shape[1]):
            total = 0.0
            for n in members[starts[i] : starts[i + 1]]:
                total += values[n, d]
            means[i, d] = total / (starts[i + 1] - starts[i])
