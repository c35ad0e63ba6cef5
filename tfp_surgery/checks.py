"""Checks of what a caller hands in: observations, networks, priors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import point_mass
from tfp_surgery.arrays import checked_numbers

tfd = tfp.distributions

MAX_SEED = 2**31 - 1  # of the int32 pairs that TFP takes


def plain_class(kind: Any) -> Any:
    """The class that instances have whose parts are no `CompositeTensor`s, a base of `kind`."""
    return kind.__mro__[1]


WRAPPERS = tuple(plain_class(kind) for kind in (tfd.Independent, tfd.Sample, tfd.BatchBroadcast))
MIXTURES = plain_class(tfd.MixtureSameFamily)
# Rows of x that one call of check_support looks at together.
_SUPPORT_BLOCK = 8192


def check_observations(x: Any, name: str = "x") -> np.ndarray:
    """Checks that `x` can be a data set: one array of numbers, whole, not empty, finite.

    Args:
      x: array-like of shape `[N, *event_shape]` (NumPy array, eager Tensor, nested lists).
      name: what it is called, for the message.

    Returns:
      `x` as a NumPy array, not copied where it already is one.

    Raises:
      TypeError: if `x` is no array of numbers; see `arrays.checked_numbers`.
      ValueError: if `x` is a scalar, has no elements, has masked or missing values, or holds NaN
        or infinity.
    """
    array = checked_numbers(name, x)
    if array.ndim == 0:
        raise ValueError(
            f"{name} must have shape [N, ...] with one row an observation, got a scalar."
        )
    if array.size == 0:
        raise ValueError(f"{name} holds no observations: its shape is {list(array.shape)}.")
    # The extremes carry NaN and infinity, and cost no mask of the size of x.
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        finite = np.isfinite(array)
        bad = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))  # [N, size of event]
        raise ValueError(
            f"{name} must be finite, but {np.sum(~finite)} of its values are NaN or infinite, in "
            f"{bad.size} of {len(array)} observations (the first at index {bad[0]})."
        )
    return array


def checked_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Checks that a number of things, or a seed, is an integer within its bounds.

    Args:
      name: what the number is, for the message.
      value: the number.
      minimum: the least that is allowed.
      maximum: the most that is allowed, if there is such a bound.

    Returns:
      The number as a Python int.

    Raises:
      TypeError: if `value` is no integer.
      ValueError: if it is out of bounds.
    """
    try:
        integer = operator.index(value)
    except TypeError:
        integer = None
    if integer is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if integer < minimum or (maximum is not None and integer > maximum):
        bound = f"at least {minimum}" + ("" if maximum is None else f" and at most {maximum}")
        raise ValueError(f"{name} must be {bound}, got {integer}.")
    return integer


def unwrap(distribution: Any) -> tfd.Distribution:
    """The plain distribution inside a coercible one that a layer of `tfp.layers` returned.

    Args:
      distribution: a `tfd.Distribution`, coercible to a Tensor or not.

    Returns:
      `distribution.tensor_distribution` where there is one, `distribution` otherwise.

    Raises:
      TypeError: if `distribution` is no `tfd.Distribution`.
    """
    if not isinstance(distribution, tfd.Distribution):
        kind = type(distribution).__name__
        raise TypeError(f"expected a tfp.distributions.Distribution, got {kind}.")
    while hasattr(distribution, "tensor_distribution"):
        distribution = distribution.tensor_distribution
    return distribution


def build_prior(
    prior: tfd.Distribution | Callable[[], tfd.Distribution], training: bool = False
) -> tfd.Distribution:
    """The prior p(z) as a distribution, built anew if `prior` is a layer or function.

    Args:
      prior: a `tfd.Distribution`, or a callable without arguments that returns one.
      training: whether it is for a training step, which a Keras layer is told.

    Returns:
      The distribution, unwrapped.

    Raises:
      TypeError: if `prior` is neither.
    """
    if isinstance(prior, tfd.Distribution):
        return unwrap(prior)
    if not callable(prior):
        raise TypeError(
            "prior must be a tfp.distributions.Distribution or a callable that returns one, got "
            f"{type(prior).__name__}."
        )
    try:
        if training and isinstance(prior, keras.layers.Layer):
            return unwrap(prior(training=True))
        return unwrap(prior())
    except TypeError as error:
        raise TypeError(f"prior() did not give a distribution: {error}") from error


def check_encoder_output(posterior: Any, batch_size: int) -> tfd.Distribution:
    """Checks that an encoder gave one posterior an observation.

    Args:
      posterior: what `encoder(x)` returned for `x` of shape `[B, *event_shape]`.
      batch_size: B.

    Returns:
      The posterior q(z|x), unwrapped, with batch shape `[B]`.

    Raises:
      TypeError: if `posterior` is no `tfd.Distribution`.
      ValueError: if its batch shape is not `[B]`.
    """
    posterior = _unwrap_output(posterior, "encoder")
    _check_batch_shape(posterior, batch_size, "encoder", "observations")
    return posterior


def check_decoder_output(
    likelihood: Any, batch_size: int, event_shape: tuple[int, ...]
) -> tfd.Distribution:
    """Checks that a decoder gave one distribution over observations a code.

    Args:
      likelihood: what `decoder(z)` returned for `z` of shape `[B, *code_shape]`.
      batch_size: B.
      event_shape: the shape of one observation.

    Returns:
      The likelihood p(x|z), unwrapped, with batch shape `[B]` and the given event shape.

    Raises:
      TypeError: if `likelihood` is no `tfd.Distribution`.
      ValueError: if its batch shape is not `[B]` or its event shape is another.
    """
    likelihood = _unwrap_output(likelihood, "decoder")
    found = _static_shape(likelihood.event_shape, likelihood.event_shape_tensor)
    if found != tuple(event_shape):
        raise ValueError(
            f"decoder(z) must return a distribution over observations of shape "
            f"{list(event_shape)}, but the event shape of {likelihood.name} is {_list(found)} "
            f"(batch shape {_list(likelihood.batch_shape)}); tfd.Independent moves batch "
            "dimensions into the event."
        )
    _check_batch_shape(likelihood, batch_size, "decoder", "codes")
    return likelihood


def check_prior(prior: tfd.Distribution, posterior: tfd.Distribution) -> tfd.Distribution:
    """Checks that prior and posterior are distributions over the same codes.

    Args:
      prior: p(z), from `build_prior`.
      posterior: q(z|x), from `check_encoder_output`.

    Returns:
      `prior`.

    Raises:
      ValueError: if the prior has a batch shape, or another event shape or dtype than the
        posterior, or if one puts probability on points and the other has a density.
    """
    batch_shape = _static_shape(prior.batch_shape, prior.batch_shape_tensor)
    prior_event = _static_shape(prior.event_shape, prior.event_shape_tensor)
    posterior_event = _static_shape(posterior.event_shape, posterior.event_shape_tensor)
    if batch_shape != () or prior_event != posterior_event:
        raise ValueError(
            f"the prior must be one distribution over codes of shape {_list(posterior_event)}, as "
            f"the encoder's are, but {prior.name} has batch shape {_list(batch_shape)} and event "
            f"shape {_list(prior_event)}."
        )
    if prior.dtype != posterior.dtype:
        way_out = ""
        if {prior.dtype, posterior.dtype} & {tf.float16, tf.bfloat16}:
            way_out = (
                " Densities are measured in float32 or wider: give the distributions of encoder "
                "and prior alike float32 parameters, tf.cast(..., tf.float32), whatever the "
                "networks compute in."
            )
        elif posterior.dtype == tf.float64:
            way_out = (
                " Observations in float64 may have made it so, then x.astype('float32') is the way "
                "out; or give the prior float64 parameters."
            )
        raise ValueError(
            f"prior and posterior must have one dtype, but {prior.name} has {prior.dtype.name} and "
            f"the encoder's {posterior.name} has {posterior.dtype.name}.{way_out}"
        )
    point_mass.check_same_measure(prior, posterior)
    return prior


def check_support(likelihood: tfd.Distribution, x: Any) -> None:
    """Checks that every value of `x` lies in the support of the likelihood.

    The base of `tfd.Independent`, `tfd.Sample` and `tfd.BatchBroadcast` is asked, by the assertions
    that TFP itself makes under `validate_args=True`. Of mixtures only those of Bernoullis are
    checked; families for which TFP has no assertions (transformed distributions) are not.

    Args:
      likelihood: p(x|z) with batch shape `[1]` or `[B]`, B the number of rows of `x`.
      x: array-like of shape `[N, *event_shape]`, finite.

    Raises:
      ValueError: naming the distribution, the range of `x` and what was expected; or if TFP
        refuses the parameters that the decoder gave.
    """
    base = unwrap(likelihood)
    in_mixture = False
    while not isinstance(base, tfd.Bernoulli):
        if isinstance(base, WRAPPERS):
            base = unwrap(base.distribution)
        elif isinstance(base, MIXTURES):
            base, in_mixture = unwrap(base.components_distribution), True
        elif in_mixture:  # its batch does not line up with that of x
            return
        else:
            break
    x = np.asarray(x)
    if x.dtype == np.bool_:
        x = x.astype(np.float32)
    block = _SUPPORT_BLOCK if likelihood.batch_shape.as_list() in ([], [1]) else x.shape[0]
    for start in range(0, x.shape[0], block):
        problem = _support_problem(base, tf.convert_to_tensor(x[start : start + block]))
        if problem:
            raise ValueError(
                f"x lies outside the support of the likelihood {base.name}: its values range from "
                f"{x.min():g} to {x.max():g}, expected {problem}"
            )


def _support_problem(base: tfd.Distribution, x: tf.Tensor) -> str:
    """What `base` expects instead of `x`, or an empty string where `x` is in its support."""
    if isinstance(base, tfd.Bernoulli):
        if bool(tf.reduce_all((x == 0) | (x == 1))):
            return ""
        return (
            "0 or 1. Binarize the data (stochastic, fixed or threshold), or decode to a likelihood "
            "for real-valued pixels (Gaussian, discretized logistic)."
        )
    if isinstance(base, tfd.Categorical):  # TFP's own check admits the number of categories
        num_categories = base.logits_parameter().shape[-1]
        if bool(tf.reduce_all((x == tf.round(x)) & (x >= 0) & (x < num_categories))):
            return ""
        return f"whole numbers from 0 to {num_categories - 1}."
    if isinstance(base, tfd.FiniteDiscrete):  # TFP has no check
        outcomes = np.sort(base.outcomes.numpy())
        values = np.unique(x.numpy())
        # The first outcome that is not below the value, less the tolerance.
        above = np.searchsorted(outcomes, values - 1e-6)
        nearest = outcomes[np.minimum(above, outcomes.size - 1)]
        if np.allclose(values, nearest, rtol=0.0, atol=1e-6):
            return ""
        return f"one of {outcomes.size} levels from {outcomes.min():g} to {outcomes.max():g}."
    if isinstance(base, tfd.OneHotCategorical):
        if bool(tf.reduce_all((x == 0) | (x == 1)) & tf.reduce_all(tf.reduce_sum(x, -1) == 1)):
            return ""
        return "a single 1 among 0s along the last axis."
    if base.dtype.is_floating:
        x = tf.cast(x, base.dtype)
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


def _unwrap_output(distribution: Any, network: str) -> tfd.Distribution:
    try:
        return unwrap(distribution)
    except TypeError as error:
        raise TypeError(f"the {network} must return a distribution: {error}") from None


def _check_batch_shape(
    distribution: tfd.Distribution, batch_size: int, network: str, inputs: str
) -> None:
    found = _static_shape(distribution.batch_shape, distribution.batch_shape_tensor)
    if found != (batch_size,):
        raise ValueError(
            f"the {network} must return one distribution for each of its {inputs}, with batch "
            f"shape [{batch_size}] for {batch_size} {inputs}, but the batch shape of "
            f"{distribution.name} is {_list(found)} (event shape "
            f"{_list(distribution.event_shape)}); tfd.Independent moves batch dimensions into the "
            "event."
        )


def _static_shape(shape: Any, shape_tensor: Callable[[], tf.Tensor]) -> Any:
    """The shape as a tuple of ints; as TFP gives it for a joint distribution's structure."""
    if not isinstance(shape, tf.TensorShape):
        return shape
    if shape.is_fully_defined():
        return tuple(shape.as_list())
    return tuple(int(size) for size in tf.get_static_value(shape_tensor()))


def _list(shape: Any) -> Any:
    return list(shape) if isinstance(shape, (tuple, tf.TensorShape)) else shape
