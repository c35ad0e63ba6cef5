r"""Which diagonal Gaussians can count for a block of queries: two upper bounds of their scores.

The score of component n is b_n - 1/2 sum_d ((z_d - mu_nd) / s_nd)^2 with b_n its log weight and log
normaliser. It is bounded in the dimensions A in which the components differ most; all others can
only lower it.

**By the box** around the queries of the block, at a cost of |A| for a component:

    b_n - 1/2 sum_A (dist(mu_nd, [min z_d, max z_d]) / s_nd)^2.

All terms of the sum are positive: their relative error is below (|A| + 8) 2^-24, less than the 0.2%
that the code takes off them; b_n is raised by eight units of rounding.

**By a matrix product**, for the components that the box leaves and for every query. With mu', z'
relative to the mean of all locations,

    c_n + a_n . f(z) + e_n,  f = (z'^2, z')_A,  a_n = (-1/(2 s_n^2), mu'_n / s_n^2)_A,
    c_n = b_n - sum_A mu'_n^2 / (2 s_n^2).

e_n bounds the rounding: every one of the K = 2 |A| + 1 terms of the product carries a relative
error of at most K + |A| + 8 units of rounding, those of c_n most, hence

    e_n = (2 K + 16) 2^-24 (sum_k |a_nk| max |f_k| + |b_n| + sum_A mu'_n^2 / (2 s_n^2)),

which pays for its own rounding and that of a threshold too (Higham 2002, section 3.1). The product
cancels where s is small against |z - mu|, so that its error may be many nats; it then screens less,
but it never enters a result.

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
_TILE = 2048  # components whose bounds are computed together
BATCH = 64  # components that are visited together
_LEADER_STEP = 64
_COUNT_WIDTH = 64


class Components(NamedTuple):
    """The components `[N, ...]`, and what their bounds are made of."""

    loc: tf.Tensor  # [N, D]
    inverse_scale: tf.Tensor  # [N, D]
    constant: tf.Tensor  # [N]: b_n
    screened: tf.Tensor  # [|A|]: the dimensions A
    center: tf.Tensor  # [|A|]
    box_loc: tf.Tensor  # [|A|, N]
    box_inverse_scale: tf.Tensor  # [|A|, N]
    product: tf.Tensor  # [N, K]: (a_n, c_n), float32
    magnitude: tf.Tensor  # [N]: |b_n| + sum_A mu'_n^2 / (2 s_n^2), float32


def prepare(
    loc: tf.Tensor, inverse_scale: tf.Tensor, constant: tf.Tensor
) -> tuple[Components, tf.Tensor]:
    """Prepares the bounds of components `[N, D]` with b_n `[N]`.

    Returns:
      The components, and the reciprocal of their mean scale in A, `[|A|]`.
    """
    spread = tf.math.reduce_std(loc, axis=0) * tf.reduce_mean(tf.abs(inverse_scale), axis=0)
    screened = tf.argsort(spread, direction="DESCENDING", stable=True)[:_SCREENED_DIMENSIONS]
    box_loc, box_inverse_scale = (
        tf.transpose(tf.gather(part, screened, axis=1)) for part in (loc, inverse_scale)
    )
    center = tf.reduce_mean(box_loc, axis=1)
    centred = box_loc - center[:, tf.newaxis]
    precision = box_inverse_scale**2
    square = 0.5 * tf.reduce_sum(centred**2 * precision, axis=0)  # [N]
    product = tf.concat(
        [-0.5 * precision, centred * precision, (constant - square)[tf.newaxis]], axis=0
    )
    finite = tf.where(tf.math.is_finite(constant), constant, tf.zeros_like(constant))
    components = Components(
        loc,
        inverse_scale,
        constant,
        screened,
        center,
        box_loc,
        box_inverse_scale,
        tf.cast(tf.transpose(product), tf.float32),
        tf.cast(tf.abs(finite) + square, tf.float32),
    )
    return components, tf.reduce_mean(tf.abs(box_inverse_scale), axis=1)


class Screen:
    """The bounds for a block of queries `[m, D]`."""

    def __init__(self, components: Components, z: tf.Tensor) -> None:
        """Prepares queries `[m, D]` for the components."""
        self._components = components
        z = tf.transpose(tf.gather(z, components.screened, axis=1))  # [|A|, m]
        # XLA's minimum may pass over what is no number.
        no_number = tf.where(tf.math.is_nan(z), z, tf.zeros_like(z))
        missing = tf.reduce_sum(no_number, axis=1)  # 0 or NaN
        self._low = tf.reduce_min(z, axis=1) + missing
        self._high = tf.reduce_max(z, axis=1) + missing
        centred = z - components.center[:, tf.newaxis]
        features = tf.concat([centred**2, centred, tf.ones_like(centred[:1])], axis=0)
        self._features = tf.cast(features, tf.float32)  # [K, m]
        self._largest = tf.reduce_max(tf.abs(self._features[:-1]), axis=1)  # [K - 1]

    def box_bounds(self) -> tf.Tensor:
        """Upper bounds of the scores of all queries of the block, `[N]`."""
        loc, inverse_scale = self._components.box_loc, self._components.box_inverse_scale
        total = tf.zeros_like(self._components.constant)
        # XLA vectorises this loop over the components, and no sum over the first axis.
        for d in range(loc.shape[0]):
            distance = tf.maximum(self._low[d] - loc[d], loc[d] - self._high[d])
            total += (tf.maximum(distance, 0.0) * inverse_scale[d]) ** 2
        constant = self._components.constant
        eps = float(np.finfo(constant.dtype.as_numpy_dtype).eps)
        return constant + 4 * eps * tf.abs(constant) - 0.499 * total

    def product_bounds(self, index: tf.Tensor) -> tf.Tensor:
        """Upper bounds of the scores of components `index`, `[R]`, for each query: `[R, m]`."""
        product = tf.gather(self._components.product, index)  # [R, K]
        size = product.shape[1]
        magnitude = tf.gather(self._components.magnitude, index)
        magnitude += tf.linalg.matvec(tf.abs(product[:, :-1]), self._largest)  # [R]
        rounding = (2 * size + 16) * 2.0**-24 * magnitude
        return tf.matmul(product, self._features) + rounding[:, tf.newaxis]


def visit(
    mask: tf.Tensor,
    fails: Callable[[tf.Tensor, Any], tuple[tf.Tensor, Any]],
    visit_batch: Callable[[tf.Tensor, tf.Tensor, Any], Any],
    state: Any,
) -> Any:
    """Visits the components of a mask `[N]` that do not fail.

    Args:
      mask: which components to look at.
      fails: `fails(index, state)` gets components `[R]`, filled up with component 0, and returns
        which of them fail, `[R]`, and the state.
      visit_batch: `visit_batch(index, is_valid, state)` gets components `[B]` and which of them
        are to be visited, whatever the others are, and returns the state.
      state: any structure of `Tensor`s.

    Returns:
      The state.
    """

    def visit_tile(index: tf.Tensor, is_valid: tf.Tensor, state: Any) -> Any:
        failing, state = fails(index, state)

        def visit_places(places: tf.Tensor, is_valid: tf.Tensor, state: Any) -> Any:
            return visit_batch(tf.gather(index, places), is_valid, state)

        return _in_parts(is_valid & ~failing, BATCH, visit_places, state)

    return _in_parts(mask, _TILE, visit_tile, state)


def _in_parts(mask: tf.Tensor, size: int, call: Callable[..., Any], state: Any) -> Any:
    """Calls `state = call(index, is_valid, state)` for `size` true places of a mask at a time."""
    num = mask.shape[0]
    ranks = tf.cast(_running_count(tf.cast(mask, tf.float32)), tf.int32) - 1
    # What is not in the mask goes to a place that is not read.
    places = tf.where(mask, ranks, num)[:, tf.newaxis]
    found = tf.tensor_scatter_nd_update(tf.zeros([num + 1], tf.int32), places, tf.range(num))
    count = tf.gather(ranks, num - 1) + 1

    def step(start: tf.Tensor, state: Any) -> Any:
        part = start + tf.range(size)
        is_valid = part < count
        index = tf.where(is_valid, tf.gather(found, tf.minimum(part, num - 1)), 0)
        return start + size, call(index, is_valid, state)

    return tf.while_loop(lambda start, _: start < count, step, (0, state))[1]


def _running_count(x: tf.Tensor) -> tf.Tensor:
    """The cumulative sum `[n]` of zeros and ones `[n]`, n < 2^24: float32 holds it exactly.

    XLA takes more time and memory for tf.cumsum than for products with a triangular matrix.
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
    """A value that some `_TILE` of the bounds `[N]` reach, found on a sample of them.

    It may be more of them, or none: a cut costs time where it is bad, and never the result.
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
    """The place of the largest of the bounds `[R, m]` of each query, `[m]`."""
    num, num_queries = bounds.shape
    # In two steps, because XLA does not vectorise an argmax.
    blocks = tf.reshape(bounds, [-1, _LEADER_STEP, num_queries])  # [R / step, step, m]
    block = tf.argmax(tf.reduce_max(blocks, axis=1), axis=0, output_type=tf.int32)  # [m]
    rows = block * _LEADER_STEP + tf.range(_LEADER_STEP)[:, tf.newaxis]  # [step, m]
    of_block = tf.gather(
        tf.reshape(bounds, [num * num_queries]), rows * num_queries + tf.range(num_queries)
    )
    return block * _LEADER_STEP + tf.argmax(of_block, axis=0, output_type=tf.int32)


def below(bounds: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Which components, of bounds `[R, m]`, are below the threshold `[m]` of every query: `[R]`."""
    # What is no number is not.
    return tf.reduce_all(bounds <= tf.cast(threshold, tf.float32), axis=1)


def cutoff(num_components: int, dtype: tf.DType) -> float:
    """C = log N - log eps: components that far below the largest score make up less than eps."""
    rounding_unit = 0.5 * float(np.finfo(dtype.as_numpy_dtype).eps)
    return math.log(num_components) - math.log(rounding_unit)
