"""Checks of the distributions returned by encoders, decoders and priors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import point_mass, raw_outputs

tfd = tfp.distributions


def plain_class(kind: Any) -> Any:
    """Returns the base class of `kind` whose parts need not be `CompositeTensor`s."""
    return kind.__mro__[1]


WRAPPERS = tuple(plain_class(kind) for kind in (tfd.Independent, tfd.Sample, tfd.BatchBroadcast))
MIXTURES = plain_class(tfd.MixtureSameFamily)
DEFERRED = tfp.experimental.util.DeferredModule  # of a distribution with variables
PINNED = tfp.experimental.distributions.JointDistributionPinned
_BATCH_CHANGED = tuple(plain_class(kind) for kind in (tfd.BatchBroadcast, tfd.BatchReshape))


def unwrap(distribution: Any) -> tfd.Distribution:
    """Returns the plain distribution inside a coercible one, as returned by `tfp.layers`.

    Args:
      distribution: A `tfd.Distribution`, coercible to a Tensor or not; or one that TFP defers.

    Returns:
      The innermost `tensor_distribution` if there is one, otherwise `distribution`. A deferred
      distribution has the values that its variables have now.

    Raises:
      TypeError: If `distribution` is not a `tfd.Distribution`.
    """
    if isinstance(distribution, DEFERRED):
        distribution = distribution.copy()
    if isinstance(distribution, PINNED):
        raise TypeError(
            f"the pinned joint distribution {distribution.name} is not normalised over its "
            "unpinned parts, so that no KL to or from it can be measured: hand in the joint "
            "distribution of these parts, with the pinned values in its model."
        )
    if not isinstance(distribution, tfd.Distribution):
        raise TypeError(
            f"expected a tfp.distributions.Distribution, got {raw_outputs.described(distribution)}."
        )
    while hasattr(distribution, "tensor_distribution"):
        distribution = distribution.tensor_distribution
    return distribution


def unwrap_output(output: Any, network: str) -> tfd.Distribution:
    """Returns the plain distribution that an encoder or decoder returned.

    Args:
      output: What it returned.
      network: "encoder" or "decoder", for the error.

    Raises:
      TypeError: If `output` is not a `tfd.Distribution`; with what to do, where it is Tensors.
    """
    try:
        return unwrap(output)
    except TypeError as error:
        raise TypeError(
            f"the {network} must return a distribution: {error}"
            f"{raw_outputs.wrapper_hint(network, output)}"
        ) from None


def build_prior(
    prior: tfd.Distribution | Callable[[], tfd.Distribution], training: bool = False
) -> tfd.Distribution:
    """Returns the prior p(z) as a distribution, calling `prior` if it is a layer or function.

    A batch of one distribution, `[1]`, is that distribution.

    Args:
      prior: A `tfd.Distribution`, or a callable without arguments that returns one.
      training: Whether to call a Keras layer with `training=True`.

    Returns:
      The unwrapped distribution.

    Raises:
      TypeError: If `prior` is neither, or does not return a distribution.
    """
    if isinstance(prior, tfd.Distribution | DEFERRED | PINNED):
        return _single(unwrap(prior))
    if not callable(prior):
        raise TypeError(
            "prior must be a tfp.distributions.Distribution or a callable that returns one, got "
            f"{type(prior).__name__}."
        )
    try:
        if training and isinstance(prior, keras.layers.Layer):
            built = unwrap(prior(training=True))
        else:
            built = unwrap(prior())
    except TypeError as error:
        raise TypeError(f"prior() did not give a distribution: {error}") from error
    return _single(built)


def _single(prior: tfd.Distribution) -> tfd.Distribution:
    """Returns the distribution in a batch of one; others, and those TFP cannot slice, as is."""
    if tf.nest.is_nested(prior.dtype) or not prior.batch_shape.is_fully_defined():
        return prior
    if prior.batch_shape != [1]:
        return prior
    if isinstance(prior, _BATCH_CHANGED):
        inner = _single(prior.distribution)
        return inner if inner.batch_shape == [] else prior
    try:
        return prior[0]
    except (NotImplementedError, TypeError):  # of a class that does not declare its parameters
        return prior


def check_encoder_output(posterior: Any, batch_size: int) -> tfd.Distribution:
    """Checks that an encoder returned one posterior per observation.

    Args:
      posterior: Value of `encoder(x)` for `x` of shape `[B, *event_shape]`.
      batch_size: B.

    Returns:
      The unwrapped posterior q(z|x), with batch shape `[B]`.

    Raises:
      TypeError: If `posterior` is not a `tfd.Distribution`.
      ValueError: If its batch shape is not `[B]`.
    """
    posterior = unwrap_output(posterior, "encoder")
    _check_batch_shape(posterior, batch_size, "encoder", "observations")
    return posterior


def check_decoder_output(likelihood: Any, batch_size: int, event_shape: Any) -> tfd.Distribution:
    """Checks that a decoder returned one distribution over observations per code.

    Args:
      likelihood: Value of `decoder(z)` for `z` of shape `[B, *code_shape]`.
      batch_size: B.
      event_shape: Shape of one observation; or a structure of `tf.TensorShape`s.

    Returns:
      The unwrapped likelihood p(x|z), with batch shape `[B]` and event shape `event_shape`.

    Raises:
      TypeError: If `likelihood` is not a `tfd.Distribution`.
      ValueError: If its batch shape is not `[B]` or its event shape is not `event_shape`.
    """
    likelihood = unwrap_output(likelihood, "decoder")
    if tf.nest.is_nested(likelihood.dtype) or _is_structure(event_shape):
        _check_structured_event(likelihood, event_shape)
    else:
        found = likelihood.event_shape
        if tf.TensorShape(event_shape).is_fully_defined():  # not of ragged rows
            found = _static_shape(found, likelihood.event_shape_tensor)
        if not tf.TensorShape(event_shape).is_compatible_with(found):
            raise ValueError(
                f"decoder(z) must return a distribution over observations of shape "
                f"{list(event_shape)}, but the event shape of {likelihood.name} is {_list(found)} "
                f"(batch shape {_list(likelihood.batch_shape)}){_of_event(event_shape, found)}"
            )
    _check_batch_shape(likelihood, batch_size, "decoder", "codes")
    return likelihood


def _of_event(expected: Any, found: Any) -> str:
    """Returns the way out for an event shape that is not that of x."""
    sizes = [tf.TensorShape(shape).num_elements() for shape in (expected, found)]
    if None not in sizes and sizes[0] == sizes[1]:
        return (
            f": as many values in another shape. Reshape x to {['N', *found]}, or what the network "
            "gives to the shape of x."
        )
    return "; tfd.Independent moves batch dimensions into the event."


def _is_structure(event_shape: Any) -> bool:
    return tf.nest.is_nested(event_shape) and isinstance(
        next(iter(tf.nest.flatten(event_shape)), None), tf.TensorShape
    )


def _check_structured_event(likelihood: tfd.Distribution, event_shape: Any) -> None:
    """Raises a ValueError unless a likelihood is over observations of this structure."""
    found = likelihood.event_shape
    if tf.nest.is_nested(likelihood.dtype) and _is_structure(event_shape):
        shapes = [_flat_by_name(structure) for structure in (found, event_shape)]
        if shapes[0].keys() == shapes[1].keys() and all(
            shape.is_compatible_with(shapes[1][place]) for place, shape in shapes[0].items()
        ):
            return
    raise ValueError(
        f"x is {_words(event_shape)}, and the decoder gives {likelihood.name}, a distribution over "
        f"{_words(found)}: the likelihood must be of all of x, in its structure (of a dict a "
        "tfd.JointDistributionNamed). What encoder or decoder depend on but the likelihood does "
        "not model goes into condition=, not into x."
    )


def _flat_by_name(shapes: Any, place: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """Returns shapes by their place: names of dicts and named tuples, numbers of sequences."""
    if isinstance(shapes, tf.TensorShape):
        return {place: shapes}
    if hasattr(shapes, "_asdict"):
        shapes = shapes._asdict()
    items = shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes)
    flat: dict[tuple[Any, ...], Any] = {}
    for name, part in items:
        flat |= _flat_by_name(part, (*place, name))
    return flat


def _words(event_shape: Any) -> str:
    if not _is_structure(event_shape):
        return f"one array of shape {_list(event_shape)} an observation"
    parts = _flat_by_name(event_shape).items()
    inner = ", ".join(f"{'.'.join(map(str, place))} {_list(shape)}" for place, shape in parts)
    return f"a structure of {inner}"


def check_prior(
    prior: tfd.Distribution, posterior: tfd.Distribution, conditional: bool = False
) -> tfd.Distribution:
    """Checks that prior and posterior are distributions over the same codes.

    Args:
      prior: p(z), from `build_prior`.
      posterior: q(z|x), from `check_encoder_output`.
      conditional: Whether the prior is p(z|c), one for each posterior.

    Returns:
      `prior`.

    Raises:
      ValueError: If the prior has a batch shape, if event shapes or dtypes differ, or if one is
        discrete and the other has a density.
    """
    if tf.nest.is_nested(prior.dtype) != tf.nest.is_nested(posterior.dtype):
        whose = ("prior", prior) if tf.nest.is_nested(prior.dtype) else ("posterior", posterior)
        raise ValueError(
            f"codes must have one structure, but the {whose[0]} {whose[1].name} is over "
            f"{_words(whose[1].event_shape)} and the other over single tensors."
        )
    if tf.nest.is_nested(prior.dtype):
        raise ValueError(
            f"codes must be single tensors here, but those of {posterior.name} are "
            f"{_words(posterior.event_shape)}: tfs.elbo_surgery takes joint codes, tfs.VAE and "
            "its objectives train codes of one tensor."
        )
    batch_shape = _static_shape(prior.batch_shape, prior.batch_shape_tensor)
    prior_event = _static_shape(prior.event_shape, prior.event_shape_tensor)
    posterior_event = _static_shape(posterior.event_shape, posterior.event_shape_tensor)
    expected = tuple(posterior.batch_shape) if conditional else ()
    if conditional and (batch_shape != expected or prior_event != posterior_event):
        raise ValueError(
            f"prior(condition=...) of {list(expected)} conditions must give one distribution for "
            f"each, with batch shape {list(expected)} over codes of shape {_list(posterior_event)},"
            f" but {prior.name} has batch shape {_list(batch_shape)} and event shape "
            f"{_list(prior_event)}."
        )
    if batch_shape != expected or prior_event != posterior_event:
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
    dtypes = [prior.dtype, posterior.dtype]
    if not any(map(tf.nest.is_nested, dtypes)):
        dtypes = [*map(tf.as_dtype, dtypes)]  # TFP keeps "float32" as given
    if dtypes[0] != dtypes[1]:
        way_out = ""
        if {*dtypes} & {tf.float16, tf.bfloat16}:
            way_out = (
                " Densities are measured in float32 or wider: give the distributions of encoder "
                "and prior alike float32 parameters, tf.cast(..., tf.float32), whatever the "
                "networks compute in."
            )
        elif dtypes[1] == tf.float64:
            way_out = (
                " Observations in float64 may have made it so, then x.astype('float32') is the way "
                "out; or give the prior float64 parameters."
            )
        raise ValueError(
            f"prior and posterior must have one dtype, but {prior.name} has {dtypes[0].name} and "
            f"the encoder's {posterior.name} has {dtypes[1].name}.{way_out}"
        )
    point_mass.check_same_measure(prior, posterior)
    return prior


def _check_batch_shape(
    distribution: tfd.Distribution, batch_size: int, network: str, inputs: str
) -> None:
    if tf.nest.is_nested(distribution.dtype) and tf.nest.is_nested(distribution.batch_shape):
        batch_shapes = {tuple(shape) for shape in tf.nest.flatten(distribution.batch_shape)}
        found = batch_shapes.pop() if len(batch_shapes) == 1 else distribution.batch_shape
    else:
        found = _static_shape(distribution.batch_shape, distribution.batch_shape_tensor)
    if found != (batch_size,):
        raise ValueError(
            f"the {network} must return one distribution for each of its {inputs}, with batch "
            f"shape [{batch_size}] for {batch_size} {inputs}, but the batch shape of "
            f"{distribution.name} is {_list(found)} (event shape "
            f"{_list(distribution.event_shape)}).{_of_batch(found)}"
        )


def _of_batch(found: Any) -> str:
    """Returns the way out for a batch shape that is not `[B]`."""
    if found == ():
        return (
            " Where all of them lie in one event, as in a surrogate of shape [N, D], write one "
            "distribution with batch shape [N]; of an auto-batched joint distribution, batch_ndims "
            "is 1."
        )
    if isinstance(found, tuple) and len(found) > 1:
        return " tfd.Independent moves batch dimensions into the event."
    return ""


def _static_shape(shape: Any, shape_tensor: Callable[[], tf.Tensor]) -> Any:
    """Returns a shape as a tuple of ints; leaves the structure of a joint distribution as it is."""
    if not isinstance(shape, tf.TensorShape):
        return shape
    if shape.is_fully_defined():
        return tuple(shape.as_list())
    return tuple(int(size) for size in tf.get_static_value(shape_tensor()))


def _list(shape: Any) -> Any:
    return list(shape) if isinstance(shape, (tuple, tf.TensorShape)) else shape
