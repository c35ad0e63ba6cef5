"""The parts of a model as the measurements of this package take them: data, encoder, decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import point_mass
from tfp_surgery.checks.arguments import check_observations
from tfp_surgery.checks.network_dtypes import dtype_hint
from tfp_surgery.checks.networks import (
    build_prior,
    check_decoder_output,
    check_encoder_output,
    check_prior,
    plain_class,
)
from tfp_surgery.checks.support import check_support
from tfp_surgery.components import components as components_lib
from tfp_surgery.datasets import Dataset
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement.event_space import default_bijector

tfb = tfp.bijectors
tfd = tfp.distributions

_PROBES = 100  # codes of each of the first observations that are looked at
_TRANSFORMED = (tfd.TransformedDistribution, plain_class(tfd.TransformedDistribution))
_SPHERES = (tfd.SphericalUniform, tfd.VonMisesFisher, tfd.PowerSpherical)
_LENGTH_TOLERANCE = 1e-3


def observations_of(x: Any, seed: int) -> tuple[np.ndarray, str]:
    """The observations of x, and what they are in words; a stochastic binarization is drawn."""
    if isinstance(x, Dataset):
        stochastic = x.binarization == "stochastic"
        draw_seed = seed if stochastic else None
        return x.observations(draw_seed=draw_seed), x.describe(draw_seed=draw_seed)
    x = check_observations(x)
    levels = ""
    if np.issubdtype(x.dtype, np.integer):
        levels = f", {x.dtype} from {x.min()} to {x.max()} taken as they are"
    return x, f"an array, N = {len(x)}{levels}, binarization not stated"


def check_model(
    x: np.ndarray,
    encoder: Callable[[Any], tfd.Distribution],
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution,
    training_aggregate_posterior: AggregatePosterior | None = None,
) -> None:
    """Runs the model on two observations, so that what does not fit is said before the work."""
    if not callable(encoder) or not callable(decoder):
        raise TypeError("encoder and decoder must be callables that return a tfd.Distribution.")
    first = tf.convert_to_tensor(x[:2])
    posterior = check_encoder_output(tried("encoder", encoder, first), len(first))
    posterior = components_lib.prepare(posterior, "The encoder's posterior")
    check_prior(prior, posterior)
    if training_aggregate_posterior is not None:
        if not isinstance(training_aggregate_posterior, AggregatePosterior):
            raise TypeError(
                "training_aggregate_posterior must be an AggregatePosterior, got "
                f"{type(training_aggregate_posterior).__name__}."
            )
        _check_same_codes(training_aggregate_posterior, posterior)
    codes = posterior.sample(_PROBES, seed=tf.constant([0, 0], tf.int32))  # [S, 2, *code_shape]
    check_codes_in_support(prior, codes)
    code = codes[0, :1]
    likelihood = check_decoder_output(tried("decoder", decoder, code), 1, x.shape[1:])
    check_support(likelihood, x)


def check_codes_in_support(prior: tfd.Distribution, codes: tf.Tensor) -> None:
    """Checks that no code outside the support of the prior has a finite density.

    TFP's densities are formulas that may hold elsewhere too: log_prob of `tfd.Exponential` at -1 is
    the rate. Outside is where the map of the support to real numbers gives none, and what has
    another length than one on a sphere.

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


def check_vector_codes(aggregate_posterior: Any, name: str = "aggregate_posterior") -> None:
    """Raises unless it is one aggregate posterior over vectors, of equal weights."""
    if not isinstance(aggregate_posterior, AggregatePosterior):
        raise TypeError(
            f"{name} must be an AggregatePosterior, got {type(aggregate_posterior).__name__}."
        )
    if aggregate_posterior.batch_shape.rank != 0 or aggregate_posterior.event_shape.rank != 1:
        raise ValueError(
            f"{name} must be one distribution over codes of shape [D]; got batch shape "
            f"{aggregate_posterior.batch_shape} and event shape {aggregate_posterior.event_shape}."
        )
    if aggregate_posterior.weights is not None:
        raise ValueError(f"{name} must weight its components equally (weights=None).")


def tried(name: str, network: Callable[[Any], Any], inputs: tf.Tensor) -> Any:
    """What a network gives on some inputs; its failure names it and them."""
    try:
        return network(inputs)
    except Exception as error:
        hint = dtype_hint(name, network, inputs)
        raise ValueError(
            f"the {name} failed on inputs of shape {inputs.shape} and dtype {inputs.dtype.name}"
            f"{f' ({hint})' if hint else ''}: {error}"
        ) from error


def _check_same_codes(aggregate: AggregatePosterior, posterior: tfd.Distribution) -> None:
    if aggregate.batch_shape.rank != 0 or aggregate.event_shape != posterior.event_shape:
        raise ValueError(
            "training_aggregate_posterior must be one distribution over codes of shape "
            f"{posterior.event_shape}, got batch shape {aggregate.batch_shape} and event shape "
            f"{aggregate.event_shape}."
        )


def check_no_nan(aggregate: AggregatePosterior) -> None:
    """Raises where the encoder gave NaN parameters, or a density with a scale of 0."""
    point_mass.check_not_singular(aggregate.components_distribution, "posterior")
    for leaf in components_lib.leaves(aggregate.components_distribution):
        values = leaf.numpy()
        if leaf.dtype.is_floating and np.isnan(values).any():
            bad = np.isnan(values).reshape(len(values), -1).any(axis=1).sum()
            raise ValueError(
                f"The encoder gives NaN parameters for {bad} of {len(values)} observations; has "
                "training diverged?"
            )


def traced(function: Callable[..., Any], *arguments: tf.TensorSpec) -> Callable[..., Any]:
    """A function of this call's own model as one graph.

    TFP takes longer to assemble its ops than they take to run. TensorFlow would warn of retracing
    where a `tf.function` of the same name is made anew for every model.
    """
    graph: Callable[..., Any] = tf.function(function, autograph=False).get_concrete_function(
        *arguments
    )
    return graph


def code_sampler(
    posteriors: tfd.Distribution,
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    num_samples: int,
    num_observations: int,
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """A function of the indices of B observations and a seed that draws codes and scores them.

    Args:
      posteriors: q(z|x_n), batch `[N]`, every parameter broadcast to it.
      prior: p(z), or a callable that returns it.
      num_samples: S, draws an observation.
      num_observations: B.

    Returns:
      The function. It returns z `[S, B, *code_shape]`, log p(z) and log q(z|x), each `[S, B]`.
    """
    prior_now = build_prior(prior)  # once: some priors are dear to build

    def draw(indices: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        posterior = components_lib.gather(posteriors, indices)
        z = posterior.sample(num_samples, seed=seed)
        return z, prior_now.log_prob(z), posterior.log_prob(z)

    return traced(draw, tf.TensorSpec([num_observations], tf.int32), tf.TensorSpec([2], tf.int32))


def reconstruction_log_prob(
    decoder: Callable[[Any], tfd.Distribution], z: tf.Tensor, observations: tf.Tensor
) -> tf.Tensor:
    """log p(x_n|z_sn) of draws `[S, B, ...]` and observations `[B, ...]`, shape `[S, B]`."""
    num_samples, num_queries = z.shape[:2]
    codes = tf.reshape(z, [num_samples * num_queries, *z.shape[2:]])  # [S, B, ...] -> [S B, ...]
    event_shape = tuple(observations.shape[1:])
    repeated = tf.tile(observations, [num_samples, *[1] * len(event_shape)])  # [S B, *event]
    likelihood = check_decoder_output(decoder(codes), num_samples * num_queries, event_shape)
    if likelihood.dtype.is_floating:
        repeated = tf.cast(repeated, likelihood.dtype)
    return tf.reshape(likelihood.log_prob(repeated), [num_samples, num_queries])  # [S B] -> [S, B]
