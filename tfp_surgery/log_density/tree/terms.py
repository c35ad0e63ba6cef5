"""Sums of squares over dimensions, for 16 children of a node or components of a leaf at a time.

`search` and `leaf_sums` inline these functions. Arrays are addresses; see `build` for the layouts.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from tfp_surgery.log_density.tree import vectors as tv
from tfp_surgery.log_density.tree.vectors import WIDTH

inlined = numba.njit(nogil=True, error_model="numpy", forceinline=True)


@inlined
def _outside(boxes: Any, at: int, x: Any) -> Any:
    """Returns how far x is from 16 intervals, times their rates, up to the sign."""
    inside = tv.minimum(tv.maximum(x, tv.load(boxes, at)), tv.load(boxes, at + WIDTH))
    return tv.multiply(tv.subtract(x, inside), tv.load(boxes, at + 2 * WIDTH))


@inlined
def box_terms(boxes: Any, at: int, z: Any, first: int, count: int) -> Any:
    """Returns sum_d (max(low - z, z - high, 0) * rate)^2 over `count` dimensions of 16 boxes."""
    even = tv.zeros(z)
    odd = even
    for d in range(0, count - 1, 2):
        t = _outside(boxes, at, tv.splat(tv.element(z, first + d)))
        even = tv.multiply_add(t, t, even)
        t = _outside(boxes, at + 3 * WIDTH, tv.splat(tv.element(z, first + d + 1)))
        odd = tv.multiply_add(t, t, odd)
        at += 6 * WIDTH
    if count % 2:
        t = _outside(boxes, at, tv.splat(tv.element(z, first + count - 1)))
        even = tv.multiply_add(t, t, even)
    return tv.add(even, odd)


@inlined
def component_terms(data: Any, at: int, z: Any, first: int, count: int) -> Any:
    """Returns sum_d ((z - loc) * rate)^2 over `count` dimensions of 16 components."""
    even = tv.zeros(z)
    odd = even
    for d in range(0, count - 1, 2):
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
    if count % 2:
        t = tv.multiply(
            tv.subtract(tv.splat(tv.element(z, first + count - 1)), tv.load(data, at)),
            tv.load(data, at + WIDTH),
        )
        even = tv.multiply_add(t, t, even)
    return tv.add(even, odd)


@inlined
def ball_term(boxes: Any, at: int, distance: Any) -> Any:
    """Returns max(distance - radius, 0)^2 for 16 children."""
    gap = tv.subtract(tv.splat(distance), tv.load(boxes, at))
    gap = tv.maximum(gap, tv.zeros(boxes))
    return tv.multiply(gap, gap)


@inlined
def exact_terms(data: Any, rates: Any, leaf: int, z: Any, first: int, dims: int) -> Any:
    """Returns sum_d ((z - loc) * rate)^2 for the components of a leaf, in float64."""
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
