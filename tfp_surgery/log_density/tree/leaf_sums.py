"""Compiled sums of 2^score over the components of leaves, for one query at a time.

`search` inlines these functions; its words and units are used here. Each query i keeps lane by lane
the sums of 2^(score - reference) and of the same times (score - reference).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tfp_surgery.log_density.tree import vectors as tv
from tfp_surgery.log_density.tree.build import BITS, HEAD
from tfp_surgery.log_density.tree.terms import component_terms, exact_terms, inlined
from tfp_surgery.log_density.tree.vectors import WIDTH

CHUNK = 8  # dimensions compared between two tests against the threshold, after the head
REACH = 100.0  # bits; sums are never rescaled if no score can exceed the reference by more
_HEADROOM = 14.0  # bits by which a score may exceed the reference before the sums are rescaled


class Leaves(NamedTuple):
    """Addresses of the arrays of a `Tree` and a `Work` that the sums use, and numbers."""

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
    num_components: Any
    num_dims: Any
    head: Any
    near: Any
    minor: Any


@inlined
def score_near(first_leaf: int, i: int, mask: int, k: int, of: Any) -> int:
    """Adds the leaves of a mask to the sums of query i, with scores in the dtype.

    Scores that may count, and that the dtype would round too much, are computed in float64.

    Args:
      first_leaf: The leaf of bit 0 of the mask.
      i: The query.
      mask: Has a bit for each leaf.
      k: The query's place among the survivors of `reach`.
      of: The `Leaves`.

    Returns:
      The number of components added.
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
        limit, terms, alive = _terms(leaf, tv.element(of.rests, k * WIDTH + lane), floor, i, of)
        if not alive:
            continue
        count += _size(leaf, of)
        scores = tv.subtract(limit, terms)
        if is_rough and tv.less(minor, scores) & tv.less(scores, near):
            wide = _exact_scores(leaf, i, of)
            wide = tv.subtract(wide, tv.splat(tv.element(of.reference, i)))
            scores = tv.narrow(wide, of.z)
        else:
            scores = tv.add(scores, shift)
        if slot // WIDTH == leaf:
            scores = tv.without_lane(scores, slot % WIDTH)
            count -= 1
        sums, products = _weigh(scores, lowest, sums, products)
    if count:
        _add(i, sums, products, of)
    return count


@inlined
def score_far(first_leaf: int, i: int, mask: int, k: int, of: Any) -> int:
    """Does the same as `score_near` with scores in float64 and a reference that may rise."""
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
        _, _, alive = _terms(leaf, tv.element(of.rests, k * WIDTH + lane), floor, i, of)
        if not alive:
            continue
        wide = _exact_scores(leaf, i, of)
        count += _size(leaf, of)
        if slot // WIDTH == leaf:
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


@inlined
def _size(leaf: int, of: Any) -> int:
    """Returns the number of components in a leaf."""
    size: int = min(WIDTH, of.num_components - WIDTH * leaf)
    return size


@inlined
def _terms(leaf: int, rest: Any, floor: Any, i: int, of: Any) -> Any:
    """Compares the components of a leaf with the threshold of query i.

    Args:
      leaf: The leaf.
      rest: A lower bound, for each component, of the squares beyond the head.
      floor: The threshold.
      i: The query.
      of: The `Leaves`.

    Returns:
      The sums of squares that would leave each component at the threshold, its sums of squares, and
      whether some component is above it. If none is, the sums may lack dimensions.
    """
    dims, head = of.num_dims, of.head
    at = leaf * (2 * dims + 1) * WIDTH
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
def _exact_scores(leaf: int, i: int, of: Any) -> Any:
    """Returns the scores of a leaf's components for query i, in float64."""
    dims = of.num_dims
    squares = exact_terms(of.leaf_data, of.exact_rates, leaf, of.z, i * dims, dims)
    return tv.subtract(tv.load(of.exact_log_weights, leaf * WIDTH), squares)


@inlined
def _weigh(scores: Any, lowest: Any, sums: Any, products: Any) -> Any:
    """Adds 2^scores to the sums, and 2^scores times the scores to the products."""
    parts = tv.exp2(scores)
    # If a part is zero the score may be -inf.
    return tv.add(sums, parts), tv.multiply_add(parts, tv.maximum(scores, lowest), products)


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
