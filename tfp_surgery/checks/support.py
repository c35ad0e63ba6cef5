"""Checks that a data set lies in the support of its likelihood."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import MIXTURES, WRAPPERS, plain_class, unwrap
from tfp_surgery.checks.point_mass import measures

tfd = tfp.distributions

_INFLATED = plain_class(tfd.Inflated)
# Rows of x checked at a time.
_SUPPORT_BLOCK = 8192


def check_support(likelihood: tfd.Distribution, x: Any) -> None:
    """Checks that every value of `x` lies in the support of the likelihood.

    Args:
      likelihood: p(x|z) with batch shape `[1]` or `[N]`.
      x: Finite array-like of shape `[N, *event_shape]`.

    Raises:
      ValueError: If `x` leaves the support, or if TFP rejects the parameters of the likelihood.
    """
    x = np.asarray(x)
    block = _SUPPORT_BLOCK if likelihood.batch_shape.as_list() in ([], [1]) else x.shape[0]
    blocks = (x[start : start + block] for start in range(0, x.shape[0], block))
    problem = support_problem(likelihood, blocks)
    if problem:
        raise ValueError(problem)


def support_problem(likelihood: tfd.Distribution, blocks: Iterable[Any]) -> str:
    """Describes values outside of the support of a likelihood.

    Runs TFP's own assertions under `validate_args=True`, on the distribution inside
    `tfd.Independent`, `tfd.Sample` and `tfd.BatchBroadcast`, and on inflated counts. Does not check
    mixtures other than of Bernoullis, joint distributions, ragged rows, nor families without
    assertions in TFP (transformed distributions, classes without the argument `validate_args`).

    Args:
      likelihood: p(x|z) with batch shape `[1]`, or that of the one block.
      blocks: Finite arrays of shape `[B, *event_shape]`, the data set in parts.

    Returns:
      What was found and expected, in words; an empty string if x is in the support.

    Raises:
      ValueError: If TFP rejects the parameters of the likelihood.
    """
    base = unwrap(likelihood)
    in_mixture = False
    while not isinstance(base, tfd.Bernoulli):
        if isinstance(base, WRAPPERS):
            base = unwrap(base.distribution)
        elif isinstance(base, MIXTURES):
            base, in_mixture = unwrap(base.components_distribution), True
        elif isinstance(base, _INFLATED) and "mass" in measures(base.distribution):
            base = unwrap(base.distribution)
        elif in_mixture:  # the batch of components does not align with the rows of x
            return ""
        else:
            break
    if tf.nest.is_nested(base.dtype):
        return ""
    for block in blocks:
        if isinstance(block, tf.RaggedTensor):  # of which TFP has no likelihoods
            return ""
        x = np.asarray(block)
        if x.dtype == np.bool_:
            x = x.astype(np.float32)
        problem = _support_problem(base, tf.convert_to_tensor(x))
        if problem:
            return (
                f"x lies outside the support of the likelihood {base.name}: it has values from "
                f"{x.min():g} to {x.max():g}, expected {problem}"
            )
    return ""


def _support_problem(base: tfd.Distribution, x: tf.Tensor) -> str:
    """Describes the values that `base` expects; empty if `x` is in its support."""
    if isinstance(base, tfd.Bernoulli):
        if bool(tf.reduce_all((x == 0) | (x == 1))):
            return ""
        return (
            "0 or 1. Binarize the data (stochastic, fixed or threshold), or decode to a likelihood "
            "for real-valued pixels (Gaussian, discretized logistic)."
        )
    if isinstance(base, tfd.Categorical):  # TFP's check accepts x = num_categories
        num_categories = base.logits_parameter().shape[-1]
        if bool(tf.reduce_all((x == tf.round(x)) & (x >= 0) & (x < num_categories))):
            return ""
        return f"whole numbers from 0 to {num_categories - 1}."
    if isinstance(base, tfd.FiniteDiscrete):  # TFP has no check
        outcomes = np.sort(base.outcomes.numpy())
        values = np.unique(x.numpy())
        # The smallest outcome of at least the value minus the tolerance.
        above = np.searchsorted(outcomes, values - 1e-6)
        nearest = outcomes[np.minimum(above, outcomes.size - 1)]
        if np.allclose(values, nearest, rtol=0.0, atol=1e-6):
            return ""
        return f"one of {outcomes.size} levels from {outcomes.min():g} to {outcomes.max():g}."
    if isinstance(base, tfd.OneHotCategorical):
        if bool(tf.reduce_all((x == 0) | (x == 1)) & tf.reduce_all(tf.reduce_sum(x, -1) == 1)):
            return ""
        return "a single 1 among 0s along the last axis."
    if tf.as_dtype(base.dtype).is_floating:
        x = tf.cast(x, base.dtype)
    if "validate_args" not in base.parameters:  # a user's class
        return ""
    try:
        checking = base.copy(validate_args=True)
    except (tf.errors.InvalidArgumentError, ValueError) as error:
        raise ValueError(
            f"the decoder gave {base.name} parameters that TFP refuses: {_first_line(error)}"
        ) from error
    try:
        checking._sample_control_dependencies(x)
    except (tf.errors.InvalidArgumentError, ValueError) as error:
        if "fractional components" in str(error):
            return "whole numbers of at least 0."
        return f"values that TFP accepts ({_first_line(error)})"
    return ""


def _first_line(error: Exception) -> str:
    return str(getattr(error, "message", error)).strip().splitlines()[0][:200]
