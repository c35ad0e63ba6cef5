"""refined_posteriors: the best q(z) of the encoder's family for each observation by itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.gradients import check_gradient, check_graph, compiled
from tfp_surgery.checks.networks import unwrap
from tfp_surgery.components import components as components_lib
from tfp_surgery.log_density.gaussian_scores import diagonal_parameters
from tfp_surgery.measurement.prepared_model import PreparedModel, prepared_model
from tfp_surgery.measurement.reconstruction import reconstruction_log_prob
from tfp_surgery.measurement.steps import steps
from tfp_surgery.seeds import Seed

tfd = tfp.distributions

# Draws an observation for each gradient.
_GRADIENT_SAMPLES = 4


def refined_posteriors(
    x: Any,
    encoder: Callable[[Any], tfd.Distribution] | tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    num_steps: int = 500,
    learning_rate: float = 0.05,
    seed: Any = 0,
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
        for scalar codes. Or what it gave for x: an `AggregatePosterior` or a distribution of these
        families with batch `[N]`.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations,
        batch `[B]`, event `event_shape`; differentiable, of operations that XLA compiles.
      prior: `tfd.Distribution` over codes with batch `[]`, or a callable that returns one.
      num_steps: Of Adam, at least 1.
      learning_rate: Of Adam at first.
      seed: Integer in [0, 2**31), or a pair of int32. The same seed and `batch_size` give the
        same result.
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
    refinement = Refinement(num_steps, learning_rate, seeds.checked_seed(seed), batch_size)
    return refinement.run(
        prepared_model(x, encoder, decoder, prior, refinement.seed, refinement.batch_size)
    )


@dataclasses.dataclass(frozen=True)
class Refinement:
    """The optimisation of `refined_posteriors`, with its settings.

    Attributes:
      num_steps: Of Adam, at least 1.
      learning_rate: Of Adam at first.
      seed: Of the draws.
      batch_size: Number of codes decoded at a time.

    Raises:
      TypeError: If a number of things is no integer.
      ValueError: If a setting is out of range.
    """

    num_steps: int
    learning_rate: float
    seed: Seed
    batch_size: int

    def __post_init__(self) -> None:
        """Checks the settings."""
        for name in ("num_steps", "batch_size"):
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), 1))
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")

    def run(self, model: PreparedModel) -> tfd.Distribution:
        """Maximises the ELBO of each observation over the family of its posterior.

        Args:
          model: The model.

        Returns:
          The best members of the family, batch `[N]`.

        Raises:
          TypeError: If the posteriors are no Gaussians with independent dimensions, or the
            densities have no gradients that XLA compiles.
          ValueError: If a refined posterior is not finite.
        """
        _check_gradients(model)
        family, loc, scale = _family_and_parameters(model.posteriors)
        length = min(model.num_observations, max(1, self.batch_size // _GRADIENT_SAMPLES))
        # In units of the encoder's scale: q* = N(loc + scale * shift, (scale * exp(log_factor))^2).
        shift, log_factor = (
            keras.Variable(tf.zeros([length, loc.shape[-1]], loc.dtype), dtype=loc.dtype.name)
            for _ in range(2)
        )
        schedule = keras.optimizers.schedules.CosineDecay(self.learning_rate, self.num_steps)
        optimizer = keras.optimizers.Adam(schedule)
        optimizer.build([shift, log_factor])
        take_step = _compiled_step(model, family, shift, log_factor, optimizer)
        key = seeds.key(self.seed, "refined_posteriors/codes")
        locs, scales = [], []
        for step in steps(model.num_observations, length):
            observations = tf.convert_to_tensor(model.x[step.shown])
            start = loc[step.shown], scale[step.shown]
            for variable in (shift, log_factor, *optimizer.variables):
                variable.assign(tf.zeros_like(variable.value))
            step_key = seeds.fold_in(key, step.number)
            for number in range(self.num_steps):
                with compiled(_needs("the model (decoder and prior)")):
                    take_step(observations, *start, seeds.fold_in(step_key, number))
            locs.append((start[0] + start[1] * shift.value)[step.new])
            scales.append((start[1] * tf.exp(log_factor.value))[step.new])
        refined = tf.concat(locs, axis=0), tf.concat(scales, axis=0)
        _check_finite(*(part.numpy() for part in refined))
        return family(*refined)


def _compiled_step(
    model: PreparedModel,
    family: Callable[[tf.Tensor, tf.Tensor], tfd.Distribution],
    shift: keras.Variable,
    log_factor: keras.Variable,
    optimizer: keras.optimizers.Optimizer,
) -> Callable[..., None]:
    """A step of the optimizer, of observations, their locations and scales, and a seed."""

    def step(
        observations: tf.Tensor, loc: tf.Tensor, scale: tf.Tensor, step_seed: tf.Tensor
    ) -> None:
        values = [shift.value, log_factor.value]
        with tf.GradientTape() as tape:
            parameters = (loc + scale * values[0], scale * tf.exp(values[1]))
            z = family(*parameters).sample(_GRADIENT_SAMPLES, seed=step_seed)  # [S, B, *code]
            fixed = family(*map(tf.stop_gradient, parameters))
            log_weights = (
                tf.cast(reconstruction_log_prob(model.decoder, z, observations), z.dtype)
                + model.prior.log_prob(z)
                - fixed.log_prob(z)
            )
            # The terms of the observations share no parameter: the sum maximises each.
            loss = -tf.reduce_sum(tf.reduce_mean(log_weights, axis=0))
        # A density that is NaN can have a gradient that is none (tfd.Gamma below zero).
        is_lost = tf.reduce_any(tf.math.is_nan(log_weights), axis=0)[:, tf.newaxis]
        nan = tf.constant(math.nan, loss.dtype)
        gradients = [tf.where(is_lost, nan, part) for part in tape.gradient(loss, values)]
        optimizer.apply(gradients, [shift, log_factor])

    take_step: Callable[..., None] = tf.function(step, jit_compile=True, autograph=False)
    return take_step


def _check_gradients(model: PreparedModel) -> None:
    """Raises where the ELBO of two observations is no graph with gradients to the codes."""
    first = independent_gaussians(model.first_posteriors)
    z = first.sample(_GRADIENT_SAMPLES, seed=tf.constant([0, 0], tf.int32))  # [S, 2, *code_shape]
    for what, log_prob in (
        ("the decoder", lambda z: model.log_likelihood(z, slice(2))),
        ("the prior", model.prior.log_prob),
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
    family, loc, scale = _family_and_parameters(posteriors)
    return family(loc, scale)


def _family_and_parameters(posteriors: Any) -> tuple[Any, tf.Tensor, tf.Tensor]:
    """What makes such Gaussians of locations and scales, and these `[..., D]`."""
    posteriors = components_lib.prepare(unwrap(posteriors), "The encoder's posterior")
    parameters = diagonal_parameters(components_lib.broadcast(posteriors))
    if parameters is None:
        raise TypeError(
            "the encoder must return Gaussians with independent dimensions "
            "(tfd.MultivariateNormalDiag, tfd.Independent of tfd.Normal, tfd.Normal): the "
            f"refinement knows how to move these alone; got {posteriors.name}."
        )
    return _family(components_lib.event_rank(posteriors) == 0), *parameters


def _family(is_scalar: bool) -> Callable[[tf.Tensor, tf.Tensor], tfd.Distribution]:
    """Makes distributions from locations and scales `[..., D]`, D = 1 for scalars."""

    def family(loc: tf.Tensor, scale: tf.Tensor) -> tfd.Distribution:
        if is_scalar:
            return tfd.Normal(loc[..., 0], scale[..., 0])
        return tfd.MultivariateNormalDiag(loc, scale)

    return family


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
