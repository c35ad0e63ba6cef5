"""Checks of a model: its decoder, the support of its prior and its posteriors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import point_mass
from tfp_surgery.checks.networks import check_decoder_output, plain_class
from tfp_surgery.checks.support import support_problem
from tfp_surgery.checks.takes_condition import call
from tfp_surgery.checks.tried import tried
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.flat_joint import FlatJoint
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement.event_space import default_bijector
from tfp_surgery.measurement.log_likelihood import as_value
from tfp_surgery.observations import Observations

tfb = tfp.bijectors
tfd = tfp.distributions

_SUPPORT_BLOCK = 8192  # rows of x that are checked at a time
_CONDITIONED_BLOCK = 1000  # rows of x that are decoded at a time
_PROBES = 100  # draws of the prior on which its bijector is tested
_TRANSFORMED = (tfd.TransformedDistribution, plain_class(tfd.TransformedDistribution))
_SPHERES = (tfd.SphericalUniform, tfd.VonMisesFisher, tfd.PowerSpherical)
_LENGTH_TOLERANCE = 1e-3


def check_decoder(
    decoder: Callable[..., tfd.Distribution],
    code: tf.Tensor,
    observations: Observations,
    conditions: Observations | None = None,
    validate_args: bool | None = None,
) -> tuple[tfd.Distribution, str]:
    """Checks the decoder on one code, before the actual work.

    Args:
      decoder: Callable from codes `[B, *code_shape]` to p(x|z) with batch shape `[B]`.
      code: A code, shape `[1, *code_shape]`.
      observations: The observations.
      conditions: Their conditions, or None. With them the decoder is called on all of these, in
        blocks, since the support may depend on them, as that of a `tfd.Multinomial` does.
      validate_args: Whether x outside of the support of the likelihood is refused; None if it is
        and callers cannot choose.

    Returns:
      likelihood: p(x|z) of the code, batch shape `[1]`.
      outside: What is outside of the support, in words; empty if nothing is.

    Raises:
      TypeError: If the decoder is not callable or does not return a distribution.
      ValueError: If the decoder fails, its shapes do not fit, or x lies outside the support of the
        likelihood.
    """
    if not callable(decoder):
        raise TypeError("decoder must be a callable that returns a tfd.Distribution.")

    def decoded(rows: slice) -> tfd.Distribution:
        size = rows.stop - rows.start
        condition = None if conditions is None else conditions.rows(rows)
        codes = tf.repeat(code, size, axis=0)
        output = tried("decoder", lambda z: call(decoder, z, condition=condition), codes)
        return check_decoder_output(output, size, observations.event_shape)

    likelihood = decoded(slice(0, 1))
    _check_scores(likelihood, observations.rows(slice(0, 1)))
    outside = ""
    if conditions is None:
        blocks = (observations.rows(rows) for rows in _slices(len(observations), _SUPPORT_BLOCK))
        outside = support_problem(likelihood, blocks)
    else:
        for rows in _slices(len(observations), _CONDITIONED_BLOCK):
            outside = outside or support_problem(decoded(rows), [observations.rows(rows)])
    if outside and validate_args is not False:
        way_out = (
            " Or score x as it is, with validate_args=False: the result is then not the ELBO of a "
            "normalised model, and says so."
        )
        raise ValueError(f"{outside}{way_out if validate_args else ''}")
    return likelihood, outside


def _check_scores(likelihood: tfd.Distribution, x: Any) -> None:
    """Raises a ValueError if a likelihood does not score one observation."""
    try:
        likelihood.log_prob(as_value(likelihood, x))
    except Exception as error:
        if getattr(likelihood, "validate_args", False):  # the support is checked next
            return
        hint = (
            " tfd.Masked needs a distribution in the dtype of x, as tfd.Bernoulli(logits=..., "
            "dtype=tf.float32), and a boolean mask."
            if "Masked" in repr(likelihood) or "SelectV2" in str(error)
            else ""
        )
        raise ValueError(
            f"the likelihood {likelihood.name} does not score x: {error}{hint}"
        ) from error


def _slices(num: int, size: int) -> Iterator[slice]:
    """Yields the slices of at most `size` rows that make up `num` rows."""
    return (slice(start, min(start + size, num)) for start in range(0, num, size))


def check_codes_in_support(prior: tfd.Distribution, codes: tf.Tensor) -> None:
    """Checks that the prior gives no finite density to codes outside its support.

    Some of TFP's formulas are finite outside of the support, such as `log_prob` of
    `tfd.Exponential` at -1. A code lies outside if it has no inverse under the prior's event space
    bijector, or, for a prior on the sphere, if its norm is not 1. The parts of a structured code
    are checked where their distribution under the prior does not depend on others.

    Args:
      prior: p(z), batch shape `[]`, or p(z|c), batch shape `[B]`.
      codes: Draws of posteriors, shape `[..., *code_shape]`, or `[..., B, *code_shape]`.

    Raises:
      ValueError: If such codes exist.
    """
    if isinstance(prior, FlatJoint):
        for number, values in enumerate(tf.nest.flatten(prior.layout.unpack(codes))):
            part = prior.part(number)
            if part is not None:
                check_codes_in_support(part, values)
        return
    # A transformed density goes through the inverse bijector and is NaN outside of the support.
    if not codes.dtype.is_floating or type(prior) in _TRANSFORMED:
        return
    codes = tf.constant(codes.numpy())  # a copy, since bijectors cache by identity
    try:
        bijector = default_bijector(prior)
        if bijector is None or isinstance(bijector, tfb.Identity):
            return
        own = tf.constant(prior.sample(_PROBES, seed=tf.constant([0, 0], tf.int32)).numpy())
        if np.isnan(bijector.inverse(own).numpy()).any():  # its range is not the support
            return
        unconstrained = bijector.inverse(codes).numpy()
    except Exception:  # of a user's bijector
        return
    log_prob = prior.log_prob(codes).numpy()
    missing = np.isnan(unconstrained).reshape(*log_prob.shape, -1).any(axis=-1)
    if isinstance(prior, _SPHERES):  # their bijector accepts any vector
        missing |= np.abs(np.linalg.norm(codes, axis=-1) - 1.0) > _LENGTH_TOLERANCE
    outside = int(np.sum(np.isfinite(log_prob) & missing))
    if outside:
        raise ValueError(
            f"{outside} of {log_prob.size} draws of the posteriors that were looked at lie "
            f"outside the support of the prior {prior.name}, whose log_prob is finite there all "
            "the same: KL(q(z|x) || p(z)) is infinite, whatever the formula gives. Take a prior "
            "and posteriors over the same codes."
        )


def check_aggregate_posterior(aggregate_posterior: Any, name: str = "aggregate_posterior") -> None:
    """Checks that the argument is one unbatched `AggregatePosterior` with equal weights.

    Args:
      aggregate_posterior: The argument.
      name: Name of the argument, for error messages.

    Raises:
      TypeError: If it is not an `AggregatePosterior`.
      ValueError: If it has a batch shape or weights.
    """
    if not isinstance(aggregate_posterior, AggregatePosterior):
        raise TypeError(
            f"{name} must be an AggregatePosterior, got {type(aggregate_posterior).__name__}: "
            "AggregatePosterior.from_encoder(encoder, x) makes one of an encoder, and "
            "AggregatePosterior(posteriors) of a batch of posteriors."
        )
    if aggregate_posterior.batch_shape.rank != 0:
        raise ValueError(
            f"{name} must be one distribution, got batch shape {aggregate_posterior.batch_shape}."
        )
    if aggregate_posterior.weights is not None:
        raise ValueError(f"{name} must weight its components equally (weights=None).")


def check_vector_codes(aggregate_posterior: Any, name: str = "aggregate_posterior") -> None:
    """Checks as `check_aggregate_posterior`, and that the codes are vectors.

    Args:
      aggregate_posterior: The argument.
      name: Name of the argument, for error messages.

    Raises:
      TypeError: If it is not an `AggregatePosterior`.
      ValueError: If it has a batch shape or weights, or its codes do not have shape `[D]`.
    """
    check_aggregate_posterior(aggregate_posterior, name)
    if aggregate_posterior.event_shape.rank != 1:
        raise ValueError(
            f"{name} must be over codes of shape [D], got event shape "
            f"{aggregate_posterior.event_shape}."
        )


def check_no_nan(aggregate: AggregatePosterior) -> None:
    """Raises a ValueError if posteriors have NaN parameters, or densities with a scale of 0."""
    point_mass.check_not_singular(aggregate.components_distribution, "posterior")
    for leaf in components_lib.leaves(aggregate.components_distribution):
        values = leaf.numpy()
        if leaf.dtype.is_floating and np.isnan(values).any():
            bad = np.isnan(values).reshape(len(values), -1).any(axis=1).sum()
            raise ValueError(
                f"The encoder gives NaN parameters for {bad} of {len(values)} observations; has "
                "training diverged?"
            )
