r"""Two upper bounds of the scores of diagonal Gaussians, for a block of queries.

The score of component n is b_n - 1/2 sum_d ((z_d - mu_nd) / s_nd)^2, where b_n is its log weight
plus log normaliser. The bounds use the dimensions A in which the components differ most; all other
dimensions can only lower a score.

**The box bound** uses the box around the queries of the block and costs |A| a component:

    b_n - 1/2 sum_A (dist(mu_nd, [min z_d, max z_d]) / s_nd)^2.

All terms of the sum are positive. Their relative error is below (|A| + 8) 2^-24; the code lowers
them by 0.2%, which is more, and raises b_n by eight units of rounding.

**The product bound** is one matrix product for all queries and the components that the box bound
leaves. With mu' and z' relative to the mean of all locations, the score exceeds a threshold t by at
most

    c_n + a_n . f(z) - t,  f = (z'^2, z')_A,  a_n = (-1/(2 s_n^2), mu'_n / s_n^2)_A,
    c_n = b_n - sum_A mu'_n^2 / (2 s_n^2).

Each of the K = 2 |A| + 2 terms of the product has a relative error of at most
g = (K + |A| + 8) 2^-24 (Higham 2002, section 3.1; the terms of c_n have the largest). Let

    e_n = 2 g (sum_k |a_nk| max |f_k| + |b_n| + sum_A mu'_n^2 / (2 s_n^2)),

where the factor 2 covers the rounding of e_n as well. A component whose computed excess is at most
-e_n for all queries is below t for all of them. To see this, suppose that its score is above t, and
let M be the sum of the magnitudes of all terms but t. If |t| <= M, the computed excess is above
-g (M + |t|) >= -2 g M. If |t| > M >= |score|, then t is negative, the excess is at least |t| - M,
and the computed excess is above |t| - M - g (M + |t|) > -2 g M.

The product cancels if s is small against |z - mu|, and its error may then be many nats. It skips
fewer components in that case, but never enters a result. Components and queries whose terms are not
finite in float32 are never skipped.

#### References

Nicholas J. Higham. Accuracy and Stability of Numerical Algorithms. SIAM, second edition, 2002.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

_SCREENED_DIMENSIONS = 12
_SAMPLE = 4096  # components that determine A
_TILE = 2048  # components whose bounds are computed together
BATCH = 64  # components that are scored together
_LEADER_STEP = 64
_COUNT_WIDTH = 64


class Components(NamedTuple):
    """The components `[N, ...]` with the quantities that their bounds need."""

    loc: tf.Tensor  # [N, D]
    scale: tf.Tensor  # [N, D], of any sign
    constant: tf.Tensor  # [N]: b_n
    screened: tf.Tensor  # [|A|]: the dimensions A
    center: tf.Tensor  # [|A|]
    box_loc: tf.Tensor  # [|A|, N]
    box_inverse_scale: tf.Tensor  # [|A|, N]
    product: tf.Tensor  # [N, K]: (a_n, c_n, 1), float32
    magnitude: tf.Tensor  # [N]: |b_n| + sum_A mu'_n^2 / (2 s_n^2), float32


def prepare(loc: tf.Tensor, scale: tf.Tensor, constant: tf.Tensor) -> tuple[Components, tf.Tensor]:
    """Prepares the bounds of components.

    Args:
      loc: Floating `Tensor`, shape `[N, D]`.
      scale: Likewise; its sign does not matter.
      constant: Floating `Tensor`, shape `[N]`: b_n.

    Returns:
      The components, and the mean of their inverse scales in A, `[|A|]`.
    """
    step = max(1, loc.shape[0] // _SAMPLE)
    spread = tf.math.reduce_std(loc[::step], axis=0)
    spread *= tf.reduce_mean(tf.abs(1.0 / scale[::step]), axis=0)
    screened = tf.argsort(spread, direction="DESCENDING", stable=True)[:_SCREENED_DIMENSIONS]
    box_loc, box_scale = (tf.transpose(tf.gather(part, screened, axis=1)) for part in (loc, scale))
    box_inverse_scale = tf.abs(1.0 / box_scale)
    center = tf.reduce_mean(box_loc, axis=1)
    centred = box_loc - center[:, tf.newaxis]
    precision = box_inverse_scale**2
    square = 0.5 * tf.reduce_sum(centred**2 * precision, axis=0)  # [N]
    # A component of weight 0 scores -inf; a low finite number stands for it in the product.
    lowest = tf.constant(-(2.0**100), constant.dtype)
    finite = tf.where(tf.equal(constant, -math.inf), lowest, constant)
    product = tf.concat(
        [
            -0.5 * precision,
            centred * precision,
            (finite - square)[tf.newaxis],
            tf.ones_like(constant)[tf.newaxis],
        ],
        axis=0,
    )
    product = tf.cast(tf.transpose(product), tf.float32)
    magnitude = tf.cast(tf.abs(finite) + square, tf.float32)
    usable = tf.reduce_all(tf.math.is_finite(product), axis=1) & tf.math.is_finite(magnitude)
    components = Components(
        loc,
        scale,
        constant,
        screened,
        center,
        box_loc,
        box_inverse_scale,
        tf.where(usable[:, tf.newaxis], product, tf.zeros_like(product)),
        tf.where(usable, magnitude, tf.constant(math.inf, tf.float32)),
    )
    return components, tf.reduce_mean(box_inverse_scale, axis=1)


class Features(NamedTuple):
    """The quantities of a chunk of queries that the bounds need, in blocks of m."""

    low: tf.Tensor  # [blocks, |A|]: smallest coordinates, NaN if one is
    high: tf.Tensor  # [blocks, |A|]
    product: tf.Tensor  # [blocks, K - 1, m]: (f, 1), float32
    usable: tf.Tensor  # [blocks, m]: where f is finite
    largest: tf.Tensor  # [blocks, K - 2]: max |f|


def features(components: Components, queries: tf.Tensor) -> Features:
    """Prepares queries `[blocks, m, D]`."""
    # [blocks, m, D] -> [blocks, |A|, m]
    z = tf.transpose(tf.gather(queries, components.screened, axis=2), [0, 2, 1])
    # A minimum may ignore NaN, which is therefore added to it.
    no_number = tf.where(tf.math.is_nan(z), z, tf.zeros_like(z))
    missing = tf.reduce_sum(no_number, axis=2)  # 0 or NaN
    centred = z - components.center[:, tf.newaxis]
    product = tf.concat([centred**2, centred, tf.ones_like(centred[:, :1])], axis=1)
    product = tf.cast(product, tf.float32)  # [blocks, K - 1, m]
    usable = tf.reduce_all(tf.math.is_finite(product), axis=1)  # [blocks, m]
    product = tf.where(usable[:, tf.newaxis], product, tf.zeros_like(product))
    return Features(
        tf.reduce_min(z, axis=2) + missing,
        tf.reduce_max(z, axis=2) + missing,
        product,
        usable,
        tf.reduce_max(tf.abs(product[:, :-1]), axis=2),
    )


class Screen:
    """The bounds for a chunk of queries, in blocks."""

    def __init__(self, components: Components, queries: Features) -> None:
        """Takes components and the features of queries that were made for them."""
        self._components = components
        self._queries = queries
        num_terms, num_screened = components.product.shape[1], components.box_loc.shape[0]
        self._unit = 2 * (num_terms + num_screened + 8) * 2.0**-24  # 2 g

    def box_bounds(self, i: tf.Tensor) -> tf.Tensor:
        """Returns upper bounds of the scores of all queries of block i, `[N]`."""
        loc, inverse_scale = self._components.box_loc, self._components.box_inverse_scale
        low, high = self._queries.low[i], self._queries.high[i]
        total = tf.zeros_like(self._components.constant)
        # XLA vectorises this loop over the components, but not a sum over the first axis.
        for d in range(loc.shape[0]):
            distance = tf.maximum(low[d] - loc[d], loc[d] - high[d])
            total += (tf.maximum(distance, 0.0) * inverse_scale[d]) ** 2
        constant = self._components.constant
        eps = float(np.finfo(constant.dtype.as_numpy_dtype).eps)
        return constant + 4 * eps * tf.abs(constant) - 0.499 * total

    def products(self, i: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """Returns the rounded scores in A of components `[R]` for queries of block i, `[R, m]`."""
        product = tf.gather(self._components.product, index)  # [R, K]
        return tf.matmul(product[:, :-1], self._queries.product[i])

    def below(self, i: tf.Tensor, threshold: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a function that tells which components are certain to be below a threshold.

        A component is below it if its score is at most the threshold of each query.

        Args:
          i: The block.
          threshold: `[m]`; may be infinite, and NaN counts as -inf.

        Returns:
          A function from components `[R]` to booleans `[R]`.
        """
        threshold = tf.cast(threshold, tf.float32)
        lowest = tf.constant(-math.inf, tf.float32)
        is_known = self._queries.usable[i] & ~tf.math.is_nan(threshold)
        is_known |= tf.equal(threshold, math.inf)
        threshold = tf.where(is_known, threshold, lowest)
        # The product subtracts the threshold too, in half the time of a separate comparison.
        features = tf.concat([self._queries.product[i], -threshold[tf.newaxis]], axis=0)  # [K, m]

        def is_below(index: tf.Tensor) -> tf.Tensor:
            product = tf.gather(self._components.product, index)  # [R, K]
            excess = tf.reduce_max(tf.matmul(product, features), axis=1)
            sizes = tf.linalg.matvec(tf.abs(product[:, :-2]), self._queries.largest[i])
            return excess <= -self._unit * (sizes + tf.gather(self._components.magnitude, index))

        return is_below


class Listed(NamedTuple):
    """A growing list of components."""

    index: tf.Tensor  # int32 [N + tile]: the components; arbitrary ones from `count` on
    count: tf.Tensor


def listed(mask: tf.Tensor) -> Listed:
    """Returns the list of the components of a mask `[N]`."""
    num = mask.shape[0]
    nothing = Listed(tf.zeros([num + _TILE], tf.int32), tf.constant(0))
    return append(nothing, tf.range(num), mask)[0]


def append(to: Listed, index: tf.Tensor, mask: tf.Tensor) -> tuple[Listed, tf.Tensor]:
    """Appends the components `index` `[R]` of a mask `[R]`; also returns their places, `[R]`."""
    ranks = tf.cast(_running_count(tf.cast(mask, tf.float32)), tf.int32)
    # Components that are not in the mask go to the last place, which is never read.
    places = tf.where(mask, to.count + ranks - 1, to.index.shape[0] - 1)
    longer = tf.tensor_scatter_nd_update(to.index, places[:, tf.newaxis], index)
    return Listed(longer, to.count + ranks[-1]), places


def without(components: Listed, fails: Callable[[tf.Tensor], tf.Tensor]) -> Listed:
    """Returns the components for which `fails(index)`, `[R] -> [R]`, is false."""

    def step(index: tf.Tensor, is_valid: tf.Tensor, passing: Listed) -> Listed:
        return append(passing, index, is_valid & ~fails(index))[0]

    nothing = Listed(tf.zeros_like(components.index), tf.constant(0))
    passing: Listed = in_parts(components, _TILE, step, nothing)
    return passing


def in_parts(
    components: Listed, size: int, call: Callable[..., Any], state: Any, lag: int = 0
) -> Any:
    """Folds a function over the components, `size` at a time.

    Args:
      components: The list.
      size: At most the size of a tile.
      call: Takes components `[size]`, booleans `[size]` that tell which of them are valid, and the
        state; returns the next state.
      state: The first state.
      lag: The number of calls without valid components that follow.

    Returns:
      The last state.
    """
    end = components.count + lag * size

    def step(start: tf.Tensor, state: Any) -> Any:
        index = tf.slice(components.index, [start], [size])
        is_valid = start + tf.range(size) < components.count
        return start + size, call(index, is_valid, state)

    return tf.while_loop(lambda start, _: start < end, step, (0, state))[1]


def first_tile(components: Listed) -> tf.Tensor:
    """Returns the first components, `[tile]`, and arbitrary ones if there are fewer."""
    return components.index[:_TILE]


def _running_count(x: tf.Tensor) -> tf.Tensor:
    """Returns the cumulative sum of zeros and ones `[n]`, exact in float32 for n < 2^24.

    In XLA products with a triangular matrix take less time and memory than tf.cumsum.
    """
    num, width = x.shape[0], min(x.shape[0], _COUNT_WIDTH)
    triangle = tf.linalg.band_part(tf.ones([width, width]), 0, -1)
    rows = tf.reshape(tf.pad(x, [[0, -num % width]]), [-1, width])  # [num] -> [rows, width]
    within = tf.matmul(rows, triangle)
    if num > width:
        before = _running_count(within[:, -1]) - within[:, -1]  # [rows]
        within += before[:, tf.newaxis]
    return tf.reshape(within, [-1])[:num]


def cut_near(bounds: tf.Tensor) -> tf.Tensor:
    """Returns a value that about a tile of the bounds `[N]` reach, estimated on a sample.

    A bad estimate costs time but does not change the result.
    """
    sample = bounds[:: max(1, bounds.shape[0] // 8192)]
    wanted = max(1, _TILE * sample.shape[0] // bounds.shape[0])
    top = tf.reduce_max(tf.where(tf.math.is_finite(sample), sample, sample.dtype.min))

    def step(i: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> Any:
        middle = 0.5 * (low + high)
        inside = tf.reduce_sum(tf.cast(sample >= top - tf.exp(middle), tf.int32)) <= wanted
        return i + 1, tf.where(inside, middle, low), tf.where(inside, high, middle)

    limits = (tf.constant(-10.0, bounds.dtype), tf.constant(80.0, bounds.dtype))
    _, low, _ = tf.while_loop(lambda i, *_: i < 12, step, (0, *limits))
    return top - tf.exp(low)


def leaders(bounds: tf.Tensor) -> tf.Tensor:
    """Returns the place of the largest of the bounds `[R, m]` of each query, `[m]`."""
    num, num_queries = bounds.shape
    # Two steps, because XLA does not vectorise an argmax.
    blocks = tf.reshape(bounds, [-1, _LEADER_STEP, num_queries])  # [R / step, step, m]
    block = tf.argmax(tf.reduce_max(blocks, axis=1), axis=0, output_type=tf.int32)  # [m]
    rows = block * _LEADER_STEP + tf.range(_LEADER_STEP)[:, tf.newaxis]  # [step, m]
    of_block = tf.gather(
        tf.reshape(bounds, [num * num_queries]), rows * num_queries + tf.range(num_queries)
    )
    return block * _LEADER_STEP + tf.argmax(of_block, axis=0, output_type=tf.int32)


def cutoff(num_components: int, dtype: tf.DType) -> float:
    """Returns C = log N - log eps: all components C nats below some score hold less than eps."""
    rounding_unit = 0.5 * float(np.finfo(dtype.as_numpy_dtype).eps)
    return math.log(num_components) - math.log(rounding_unit)
