"""refined_posteriors: the best q(z) of the encoder's family for each observation by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import point_mass
from tfp_surgery.checks.arguments import MAX_SEED, checked_integer
from tfp_surgery.checks.gradients import check_gradient, check_graph, compiled
from tfp_surgery.checks.networks import build_prior, unwrap
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.encoding import encode
from tfp_surgery.log_density.gaussian_scores import diagonal_parameters
from tfp_surgery.measurement.model import check_model, observations_of, reconstruction_log_prob

tfd = tfp.distributions

_REFINEMENT = 8  # stream of the seed, after those of annealed importance sampling
# Draws an observation for each gradient.
_GRADIENT_SAMPLES = 4


def refined_posteriors(
    x: Any,
    encoder: Callable[[Any], tfd.Distribution],
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    num_steps: int = 500,
    learning_rate: float = 0.05,
    seed: int = 0,
    batch_size: int = 2000,
) -> tfd.Distribution:
    r"""Optimises the ELBO over q(z) of each observation, within the encoder's family.

        q*_n = argmax_q E_q[log p(x_n, z) - log q(z)] = argmin_q KL(q || p(z|x_n))

    Location and scale start at those of the encoder and are moved by Adam on the reparameterized
    ELBO, with a learning rate that falls to 0 along a cosine, in units of the encoder's standard
    deviations. The gradient leaves out the score of q, whose mean is zero (Roeder et al. 2017), so
    that its noise vanishes where the family contains the posterior.

    These are better proposals for `log_evidence_by_importance_sampling` than the encoder's, on
    held-out data above all. The draws of the refinement have a stream of the seed to themselves:
    whoever draws from q* next, with the same seed or another, draws independently of them, and a
    lower bound from those draws is one. KL(q || p(z|x)) makes q* narrower than the posterior where
    its dimensions are correlated; the weights may then have heavy tails, which shows in the
    effective sample size.

    Args:
      x: The data set: array-like or `Tensor` of shape `[N, *event_shape]`, or a
        `tfp_surgery.datasets.Dataset`. A stochastic binarization is observed in the one draw that
        `seed` names.
      encoder: Callable from `[B, *event_shape]` to Gaussians with independent dimensions, batch
        `[B]`: `tfd.MultivariateNormalDiag`, or `tfd.Independent` of `tfd.Normal`, or `tfd.Normal`
        for scalar codes.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations,
        batch `[B]`, event `event_shape`; differentiable, of operations that XLA compiles.
      prior: `tfd.Distribution` over codes with batch `[]`, or a callable that returns one.
      num_steps: Of Adam, at least 1.
      learning_rate: Of Adam at first.
      seed: Integer in [0, 2**31). The same seed and `batch_size` give the same result.
      batch_size: Number of observations encoded, and of codes decoded, at a time.

    Returns:
      q*_n as a distribution with batch `[N]`: `tfd.MultivariateNormalDiag`, or `tfd.Normal` for
      scalar codes.

    Raises:
      TypeError: If encoder, decoder or prior do not give distributions, or the encoder gives
        others than those named; or if decoder or prior have no gradients that XLA compiles.
      ValueError: If x is empty, not finite or outside the likelihood's support; if shapes do not
        fit; if a number is out of range; or if a refined posterior is not finite.

    #### References

    Geoffrey Roeder, Yuhuai Wu, David Duvenaud. Sticking the landing: simple, lower-variance
    gradient estimators for variational inference. NeurIPS 2017.
    """
    num_steps = checked_integer("num_steps", num_steps, 1)
    batch_size = checked_integer("batch_size", batch_size, 1)
    seed = checked_integer("seed", seed, 0, MAX_SEED)
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate must be positive, got {learning_rate}.")
    x, _ = observations_of(x, seed)
    check_model(x, encoder, decoder, build_prior(prior))
    first = tf.convert_to_tensor(x[:2])
    _check_gradients(first, independent_gaussians(encoder(first)), decoder, prior)
    posteriors = independent_gaussians(encode(encoder, x, batch_size))
    point_mass.check_not_singular(posteriors, "posterior")
    return _refined(x, posteriors, decoder, prior, num_steps, learning_rate, seed, batch_size)


def _check_gradients(
    x: tf.Tensor,
    posteriors: tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: Any,
) -> None:
    """Raises where the ELBO of these observations is not a graph with gradients to the codes."""
    z = posteriors.sample(_GRADIENT_SAMPLES, seed=tf.constant([0, 0], tf.int32))  # [S, B, *code]
    for what, log_prob in (
        ("the decoder", lambda z: reconstruction_log_prob(decoder, z, x)),
        ("the prior", lambda z: build_prior(prior).log_prob(z)),
    ):
        check_graph(_needs(what), log_prob, z)
        check_gradient(_needs(what), log_prob, z)


def _needs(what: str) -> str:
    return (
        f"refinement moves posteriors by gradients of {what}, which must be made of TensorFlow "
        "operations; importance sampling (log_evidence_by_importance_sampling) takes it as it is, "
        "with the encoder's own posteriors"
    )


def independent_gaussians(posteriors: Any) -> tfd.Distribution:
    """Gaussians with independent dimensions, in the one form that draws alike from one seed.

    Args:
      posteriors: What an encoder returned.

    Returns:
      The same as `tfd.MultivariateNormalDiag`, or `tfd.Normal` for scalars.

    Raises:
      TypeError: If they are something else.
    """
    posteriors = components_lib.prepare(unwrap(posteriors), "The encoder's posterior")
    parameters = diagonal_parameters(components_lib.broadcast(posteriors))
    if parameters is None:
        raise TypeError(
            "the encoder must return Gaussians with independent dimensions "
            "(tfd.MultivariateNormalDiag, tfd.Independent of tfd.Normal, tfd.Normal): the "
            f"refinement knows how to move these alone; got {posteriors.name}."
        )
    return _family(components_lib.event_rank(posteriors) == 0)(*parameters)


def _family(is_scalar: bool) -> Callable[[tf.Tensor, tf.Tensor], tfd.Distribution]:
    """Makes distributions from locations and scales `[..., D]`, D = 1 for scalars."""

    def family(loc: tf.Tensor, scale: tf.Tensor) -> tfd.Distribution:
        if is_scalar:
            return tfd.Normal(loc[..., 0], scale[..., 0])
        return tfd.MultivariateNormalDiag(loc, scale)

    return family


def _refined(
    x: np.ndarray,
    posteriors: tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: Any,
    num_steps: int,
    learning_rate: float,
    seed: int,
    batch_size: int,
) -> tfd.Distribution:
    """The members of the family, batch `[N]`, that maximise the ELBO of each observation."""
    parameters = diagonal_parameters(posteriors)
    if parameters is None:
        raise TypeError("posteriors must be what independent_gaussians returns.")
    loc, scale = parameters
    family = _family(components_lib.event_rank(posteriors) == 0)
    num_observations = len(x)
    size = min(num_observations, max(1, batch_size // _GRADIENT_SAMPLES))
    # In units of the encoder's scale: q* = N(loc + scale * shift, (scale * exp(log_factor))^2).
    shift, log_factor = (
        keras.Variable(tf.zeros([size, loc.shape[-1]], loc.dtype), dtype=loc.dtype.name)
        for _ in range(2)
    )
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)
    )
    optimizer.build([shift, log_factor])

    @tf.function(jit_compile=True, autograph=False)
    def step(
        observations: tf.Tensor, loc: tf.Tensor, scale: tf.Tensor, step_seed: tf.Tensor
    ) -> None:
        values = [shift.value, log_factor.value]
        with tf.GradientTape() as tape:
            parameters = (loc + scale * values[0], scale * tf.exp(values[1]))
            z = family(*parameters).sample(_GRADIENT_SAMPLES, seed=step_seed)  # [S, B, *code]
            fixed = family(*map(tf.stop_gradient, parameters))
            log_weights = (
                tf.cast(reconstruction_log_prob(decoder, z, observations), z.dtype)
                + build_prior(prior).log_prob(z)
                - fixed.log_prob(z)
            )
            # The terms of the observations share no parameter: the sum maximises each.
            loss = -tf.reduce_sum(tf.reduce_mean(log_weights, axis=0))
        # A density that is NaN can have a gradient that is none (tfd.Gamma below zero).
        is_lost = tf.reduce_any(tf.math.is_nan(log_weights), axis=0)[:, tf.newaxis]
        nan = tf.constant(math.nan, loss.dtype)
        gradients = [tf.where(is_lost, nan, part) for part in tape.gradient(loss, values)]
        optimizer.apply(gradients, [shift, log_factor])

    fold_in = tf.random.experimental.stateless_fold_in
    base_seed = tf.constant([seed, _REFINEMENT], tf.int32)
    locs, scales = [], []
    for number, start in enumerate(range(0, num_observations, size)):
        # The last batch repeats earlier observations to keep one shape: kernels compile once.
        shown = min(start, num_observations - size)
        rows = slice(shown, shown + size)
        for variable in (shift, log_factor, *optimizer.variables):
            variable.assign(tf.zeros_like(variable.value))
        batch_seed = fold_in(base_seed, number)
        for index in range(num_steps):
            step_seed = fold_in(batch_seed, index)
            with compiled(_needs("the model (decoder and prior)")):
                step(tf.convert_to_tensor(x[rows]), loc[rows], scale[rows], step_seed)
        new = slice(start - shown, None)
        locs.append((loc[rows] + scale[rows] * shift.value)[new])
        scales.append((scale[rows] * tf.exp(log_factor.value))[new])
    refined = tf.concat(locs, axis=0), tf.concat(scales, axis=0)
    _check_finite(*(part.numpy() for part in refined))
    return family(*refined)


def _check_finite(loc: np.ndarray, scale: np.ndarray) -> None:
    """Raises where a gradient was NaN: Adam has kept it."""
    bad = np.flatnonzero(~(np.isfinite(loc) & np.isfinite(scale)).all(axis=1))
    if bad.size:
        raise ValueError(
            f"the refined posteriors of {bad.size} of {len(loc)} observations (the first at index "
            f"{bad[0]}) are not finite: log p(x, z) or its gradient was NaN where they drew codes. "
            "A prior whose support is not all real numbers does not go with Gaussian posteriors; "
            "where the optimiser diverged, a smaller learning_rate helps."
        )
