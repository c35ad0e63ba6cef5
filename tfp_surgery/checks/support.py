"""Checks that a data set lies in the support of its likelihood."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import MIXTURES, WRAPPERS, plain_class, unwrap
from tfp_surgery.checks.parts_given import parts_given
from tfp_surgery.checks.point_mass import measures

tfd = tfp.distributions

_BLOCKWISE, _INFLATED, _LISTED_MIXTURE, _MASKED, _SAMPLE = map(
    plain_class, (tfd.Blockwise, tfd.Inflated, tfd.Mixture, tfd.Masked, tfd.Sample)
)
# Their support does not depend on their parameters, but for the number of categories, so that
# components of a mixture share it.
_FIXED_SUPPORT = (
    tfd.Bernoulli,
    tfd.Beta,
    tfd.Categorical,
    tfd.Exponential,
    tfd.Gamma,
    tfd.Geometric,
    tfd.InverseGamma,
    tfd.LogNormal,
    tfd.NegativeBinomial,
    tfd.OneHotCategorical,
    tfd.Poisson,
)
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
    `tfd.Independent`, `tfd.Sample` and `tfd.BatchBroadcast`, on inflated counts, on what
    `tfd.Masked` does not mask, and on each part of `tfd.Blockwise` and of a joint distribution,
    given the parts of x that it depends on. Checks mixtures of families whose support does not
    depend on their parameters; x lies outside if every component refuses it. Does not check other
    mixtures, ragged rows, nor families without assertions in TFP (transformed distributions,
    classes without the argument `validate_args`).

    Args:
      likelihood: p(x|z) with batch shape `[1]`, or that of the one block.
      blocks: Finite arrays of shape `[B, *event_shape]`, the data set in parts; of a likelihood
        over structures, in its structure.

    Returns:
      What was found and expected, in words, with the part of x (x['image']); an empty string if x
      is in the support.

    Raises:
      ValueError: If TFP rejects the parameters of the likelihood.
    """
    return next(filter(None, (_problem(likelihood, block, "x") for block in blocks)), "")


def _problem(distribution: Any, x: Any, place: str) -> str:
    """Describes what of one block is outside of the support.

    Args:
      distribution: A distribution, batch shape `[1, ...]` or `[B, ...]`.
      x: Values, shape `[B, ..., *event_shape]`, or a structure of these.
      place: The name of the values, such as x['image'].
    """
    base: Any = unwrap(distribution)
    if tf.nest.is_nested(base.dtype):
        problems = (
            _problem(part.distribution, part.value, place + part.place)
            for part in parts_given(base, x)
        )
        return " ".join(filter(None, problems))
    if isinstance(x, tf.RaggedTensor):  # of which TFP has no likelihoods
        return ""
    x = np.asarray(x)
    if x.dtype == np.bool_:
        x = x.astype(np.float32)
    if isinstance(base, _BLOCKWISE):
        return _problem_of_blocks(base, x, place)
    if isinstance(base, _MASKED):
        x = _without_masked(base, x)
        return "" if x is None else _problem(base.distribution, x, place)
    if isinstance(base, _SAMPLE):  # its dimensions lie between those of the batch and the event
        inner = base.distribution
        stop = x.ndim - inner.event_shape.rank
        own = range(stop - base.event_shape.rank + inner.event_shape.rank, stop)
        return _problem(inner, np.moveaxis(x, own, range(len(own))), place)
    if isinstance(base, WRAPPERS):
        return _problem(base.distribution, x, place)
    if isinstance(base, _INFLATED):
        if "mass" in measures(base.distribution):
            return _problem(base.distribution, x, place)
    elif isinstance(base, MIXTURES):
        components = base.components_distribution
        x = np.expand_dims(x, x.ndim - components.event_shape.rank)
        return _problem(components, x, place) if _has_fixed_support(components) else ""
    elif isinstance(base, _LISTED_MIXTURE):
        return _problem_of_components(base.components, x, place)
    expected = _support_problem(base, tf.convert_to_tensor(x))
    if not expected:
        return ""
    return (
        f"{place} lies outside the support of the likelihood {base.name}: it has values from "
        f"{x.min():g} to {x.max():g}, expected {expected}"
    )


def _problem_of_blocks(base: Any, x: np.ndarray, place: str) -> str:
    """Describes what is outside of the support of a `tfd.Blockwise`."""
    of_blocks = base.distributions
    is_joint = isinstance(of_blocks, tfd.Distribution)
    shapes = of_blocks.event_shape if is_joint else [each.event_shape for each in of_blocks]
    stop, blocks, places = 0, [], []
    for shape in tf.nest.flatten(shapes):
        start, stop = stop, stop + shape.num_elements()
        blocks.append(x[..., start:stop].reshape(*x.shape[:-1], *shape))
        places.append(f"{place}[..., {start}:{stop}]")
    if is_joint:
        return _problem(of_blocks, tf.nest.pack_sequence_as(of_blocks.dtype, blocks), place)
    return next(filter(None, map(_problem, of_blocks, blocks, places)), "")


def _without_masked(masked: Any, x: np.ndarray) -> np.ndarray | None:
    """Returns values with draws, which lie in the support, in the place of what is masked.

    None if the distribution cannot draw.
    """
    mask = np.asarray(masked.validity_mask, np.bool_)
    mask = mask.reshape(mask.shape + (1,) * masked.event_shape.rank)
    if mask.all():
        return x
    try:
        draws = masked.distribution.sample(seed=tf.constant([0, 0], tf.int32)).numpy()
    except NotImplementedError:  # of a user's class
        return None
    return np.where(mask, x, draws.astype(x.dtype))


def _problem_of_components(components: Any, x: np.ndarray, place: str) -> str:
    """Describes what is outside of the support of every component of a mixture."""
    if any(isinstance(each, tfd.Deterministic) for each in components):  # of inflated counts
        components = [each for each in components if not isinstance(each, tfd.Deterministic)]
        if any("mass" not in measures(each) for each in components):
            return ""
    if len({measures(each) for each in components}) != 1:
        return ""
    if not all(map(_has_fixed_support, components)):
        return ""
    problems = [_problem(each, x, place) for each in components]
    return problems[0] if all(problems) else ""


def _has_fixed_support(distribution: Any) -> bool:
    base: Any = unwrap(distribution)
    while isinstance(base, WRAPPERS):
        base = unwrap(base.distribution)
    return isinstance(base, _FIXED_SUPPORT)


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
        return f"values that TFP accepts ({_first_line(error)})."
    return ""


def _first_line(error: Exception) -> str:
    return str(getattr(error, "message", error)).strip().splitlines()[0][:200]
