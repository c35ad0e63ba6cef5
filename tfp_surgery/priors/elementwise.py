"""Invertible maps of scalars, from the outputs of a network: what a flow's layers are made of."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

tfb = tfp.bijectors

# An affine layer's scale lies between exp(-3) and exp(3), so that no early step overflows.
_LOG_SCALE_BOUND = 3.0
# Least width and height of a bin, as a part of the interval, and least slope at a knot.
_MIN_BIN_SIZE = 1e-3
_MIN_SLOPE = 1e-3


def affine(params: tf.Tensor) -> tfb.Bijector:
    """Scale and shift.

    Args:
      params: Floating Tensor `[..., 2]`; zeros give the identity.

    Returns:
      A bijector of scalars with batch shape `[...]`.
    """
    shift, raw = tf.unstack(params, num=2, axis=-1)
    log_scale = _LOG_SCALE_BOUND * tf.tanh(raw / _LOG_SCALE_BOUND)
    return tfb.Chain([tfb.Shift(shift), tfb.Scale(log_scale=log_scale)])


def spline(params: tf.Tensor, tail_bound: float) -> tfb.Bijector:
    """A monotone rational-quadratic spline on `[-tail_bound, tail_bound]`, the identity outside.

    Durkan et al. 2019, "Neural spline flows", section 3.1.

    Args:
      params: Floating Tensor `[..., 3 K - 1]` for K bins: widths, heights and slopes at the inner
        knots, unconstrained; zeros give the identity.
      tail_bound: Where the tails begin.

    Returns:
      A bijector of scalars with batch shape `[...]`.
    """
    num_bins = (params.shape[-1] + 1) // 3
    widths, heights, slopes = tf.split(params, [num_bins, num_bins, num_bins - 1], axis=-1)

    def sizes(raw: tf.Tensor) -> tf.Tensor:
        parts = _MIN_BIN_SIZE + (1.0 - num_bins * _MIN_BIN_SIZE) * tf.nn.softmax(raw)
        return 2.0 * tail_bound * parts

    slope_of_one = np.log(np.expm1(1.0 - _MIN_SLOPE))
    return tfb.RationalQuadraticSpline(
        sizes(widths),
        sizes(heights),
        tf.nn.softplus(slopes + slope_of_one) + _MIN_SLOPE,
        range_min=-tail_bound,
    )
