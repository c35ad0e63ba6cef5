"""Checks of what an encoder, a decoder and a prior give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import point_mass

tfd = tfp.distributions


def plain_class(kind: Any) -> Any:
    """The class that instances have whose parts are no `CompositeTensor`s, a base of `kind`."""
    return kind.__mro__[1]


WRAPPERS = tuple(plain_class(kind) for kind in (tfd.Independent, tfd.Sample, tfd.BatchBroadcast))
MIXTURES = plain_class(tfd.MixtureSameFamily)


def unwrap(distribution: Any) -> tfd.Distribution:
    """The plain distribution inside a coercible one that a layer of `tfp.layers` returned.

    Args:
      distribution: A `tfd.Distribution`, coercible to a Tensor or not.

    Returns:
      `distribution.tensor_distribution` where there is one, `distribution` otherwise.

    Raises:
      TypeError: If `distribution` is no `tfd.Distribution`.
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
      prior: A `tfd.Distribution`, or a callable without arguments that returns one.
      training: Whether it is for a training step, which a Keras layer is told.

    Returns:
      The distribution, unwrapped.

    Raises:
      TypeError: If `prior` is neither.
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
      posterior: What `encoder(x)` returned for `x` of shape `[B, *event_shape]`.
      batch_size: B.

    Returns:
      The posterior q(z|x), unwrapped, with batch shape `[B]`.

    Raises:
      TypeError: If `posterior` is no `tfd.Distribution`.
      ValueError: If its batch shape is not `[B]`.
    """
    posterior = _unwrap_output(posterior, "encoder")
    _check_batch_shape(posterior, batch_size, "encoder", "observations")
    return posterior


def check_decoder_output(
    likelihood: Any, batch_size: int, event_shape: tuple[int, ...]
) -> tfd.Distribution:
    """Checks that a decoder gave one distribution over observations a code.

    Args:
      likelihood: What `decoder(z)` returned for `z` of shape `[B, *code_shape]`.
      batch_size: B.
      event_shape: The shape of one observation.

    Returns:
      The likelihood p(x|z), unwrapped, with batch shape `[B]` and the given event shape.

    Raises:
      TypeError: If `likelihood` is no `tfd.Distribution`.
      ValueError: If its batch shape is not `[B]` or its event shape is another.
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
      ValueError: If the prior has a batch shape, or another event shape or dtype than the
        posterior, or if one puts probability on points and the other has a density.
    """
    batch_shape = _static_shape(prior.batch_shape, prior.batch_shape_tensor)
    prior_event = _static_shape(prior.event_shape, prior.event_shape_tensor)
    posterior_event = _static_shape(posterior.event_shape, posterior.event_shape_tensor)
    if batch_shape != () or prior_event != posterior_event:
        hint = ""
        if posterior_event == (getattr(prior, "num_components", None),):
            hint = (
                f" It has {prior.num_components} components: event_size comes before "
                "num_components in the arguments of a prior."
            )
        raise ValueError(
            f"the prior must be one distribution over codes of shape {_list(posterior_event)}, as "
            f"the encoder's are, but {prior.name} has batch shape {_list(batch_shape)} and event "
            f"shape {_list(prior_event)}.{hint}"
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
