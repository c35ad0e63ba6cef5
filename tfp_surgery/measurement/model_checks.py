"""Checks of a whole model: its decoder, the support of its prior, its posteriors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import point_mass
from tfp_surgery.checks.network_dtypes import dtype_hint
from tfp_surgery.checks.networks import check_decoder_output, plain_class
from tfp_surgery.checks.support import check_support
from tfp_surgery.components import components as components_lib
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement.event_space import default_bijector

tfb = tfp.bijectors
tfd = tfp.distributions

_PROBES = 100  # draws of the prior that tell what its support is
_TRANSFORMED = (tfd.TransformedDistribution, plain_class(tfd.TransformedDistribution))
_SPHERES = (tfd.SphericalUniform, tfd.VonMisesFisher, tfd.PowerSpherical)
_LENGTH_TOLERANCE = 1e-3


def tried(name: str, network: Callable[[Any], Any], inputs: tf.Tensor) -> Any:
    """Returns what a network gives on some inputs; its failure names it and them."""
    try:
        return network(inputs)
    except Exception as error:
        hint = dtype_hint(name, network, inputs)
        raise ValueError(
            f"the {name} failed on inputs of shape {inputs.shape} and dtype {inputs.dtype.name}"
            f"{f' ({hint})' if hint else ''}: {error}"
        ) from error


def check_decoder(
    decoder: Callable[[Any], tfd.Distribution], code: tf.Tensor, x: np.ndarray
) -> tfd.Distribution:
    """Runs the decoder on one code, so that what does not fit is said before the work.

    Args:
      decoder: Callable from codes `[B, *code_shape]` to p(x|z), batch `[B]`.
      code: `[1, *code_shape]`.
      x: The observations `[N, *event_shape]`.

    Returns:
      p(x|z) of this code, batch `[1]`.

    Raises:
      TypeError: If the decoder is no callable, or gives no distribution.
      ValueError: If it fails, its shapes do not fit, or x lies outside the likelihood's support.
    """
    if not callable(decoder):
        raise TypeError("decoder must be a callable that returns a tfd.Distribution.")
    likelihood = check_decoder_output(tried("decoder", decoder, code), 1, x.shape[1:])
    check_support(likelihood, x)
    return likelihood


def check_codes_in_support(prior: tfd.Distribution, codes: tf.Tensor) -> None:
    """Checks that no code outside the support of the prior has a finite density.

    TFP's densities are formulas that may be finite outside of the support, as log_prob of
    `tfd.Exponential` is at -1. A code lies outside where the bijector from real numbers to the
    support has no inverse, and, for a prior on a sphere, where its length is not 1.

    Args:
      prior: p(z), batch `[]`.
      codes: Draws of posteriors, `[..., *code_shape]`.

    Raises:
      ValueError: If there are such codes.
    """
    # The density of what is transformed comes through the inverse map, which is NaN outside.
    if not codes.dtype.is_floating or type(prior) in _TRANSFORMED:
        return
    codes = tf.constant(codes.numpy())  # a bijector remembers what it has made
    try:
        bijector = default_bijector(prior)
        if bijector is None or isinstance(bijector, tfb.Identity):
            return
        own = tf.constant(prior.sample(_PROBES, seed=tf.constant([0, 0], tf.int32)).numpy())
        if np.isnan(bijector.inverse(own).numpy()).any():  # it does not reach the support
            return
        unconstrained = bijector.inverse(codes).numpy()
    except Exception:  # that of a joint distribution takes other things
        return
    log_prob = prior.log_prob(codes).numpy()
    missing = np.isnan(unconstrained).reshape(*log_prob.shape, -1).any(axis=-1)
    if isinstance(prior, _SPHERES):  # whose map takes any vector
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
    """Raises unless it is one aggregate posterior of equal weights."""
    if not isinstance(aggregate_posterior, AggregatePosterior):
        raise TypeError(
            f"{name} must be an AggregatePosterior, got {type(aggregate_posterior).__name__}."
        )
    if aggregate_posterior.batch_shape.rank != 0:
        raise ValueError(
            f"{name} must be one distribution, got batch shape {aggregate_posterior.batch_shape}."
        )
    if aggregate_posterior.weights is not None:
        raise ValueError(f"{name} must weight its components equally (weights=None).")


def check_vector_codes(aggregate_posterior: Any, name: str = "aggregate_posterior") -> None:
    """Raises unless it is one aggregate posterior over vectors, of equal weights."""
    check_aggregate_posterior(aggregate_posterior, name)
    if aggregate_posterior.event_shape.rank != 1:
        raise ValueError(
            f"{name} must be over codes of shape [D], got event shape "
            f"{aggregate_posterior.event_shape}."
        )


def check_no_nan(aggregate: AggregatePosterior) -> None:
    """Raises where posteriors have NaN parameters, or are densities with a scale of 0."""
    point_mass.check_not_singular(aggregate.components_distribution, "posterior")
    for leaf in components_lib.leaves(aggregate.components_distribution):
        values = leaf.numpy()
        if leaf.dtype.is_floating and np.isnan(values).any():
            bad = np.isnan(values).reshape(len(values), -1).any(axis=1).sum()
            raise ValueError(
                f"The encoder gives NaN parameters for {bad} of {len(values)} observations; has "
                "training diverged?"
            )
