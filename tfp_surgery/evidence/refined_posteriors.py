"""refined_posteriors: the best posterior of the encoder's family for each observation."""

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
from tfp_surgery.components.batch_size import (
    GRADIENT_PASSES,
    checked_batch_size,
    equal_steps,
)
from tfp_surgery.components.flat_joint import FlatJoint, describe
from tfp_surgery.log_density.gaussian_scores import diagonal_parameters
from tfp_surgery.measurement.log_likelihood import log_likelihood
from tfp_surgery.measurement.prepared_model import PreparedModel, prepared_model
from tfp_surgery.measurement.steps import steps
from tfp_surgery.seeds import Seed

tfd = tfp.distributions

# Draws per observation for each gradient.
_GRADIENT_SAMPLES = 4


def refined_posteriors(
    x: Any,
    encoder: Callable[..., tfd.Distribution] | tfd.Distribution,
    decoder: Callable[..., tfd.Distribution],
    prior: tfd.Distribution | Callable[..., tfd.Distribution],
    *,
    num_steps: int = 500,
    learning_rate: float = 0.05,
    seed: Any = 0,
    batch_size: int | None = None,
    condition: Any = None,
) -> tfd.Distribution:
    r"""Maximises the ELBO over q(z) of each observation, within the encoder's family.

        q*_n = argmax_q E_q[log p(x_n, z) - log q(z)] = argmin_q KL(q || p(z|x_n))

    Adam maximises the reparameterized ELBO over location and scale, in units of the encoder's
    standard deviations, starting from the encoder's posterior. The learning rate decays to 0 along
    a cosine. The gradient omits the score of q, whose mean is zero (Roeder et al. 2017), so that
    its noise vanishes if the family contains the posterior.

    The refined posteriors are better proposals for `log_evidence_by_importance_sampling` than the
    encoder's, especially on held-out data. The refinement has its own random stream, so that later
    draws from q*, with the same seed or another, are independent of it and give a valid lower
    bound. Minimising KL(q || p(z|x)) makes q* narrower than a posterior with correlated dimensions.
    The weights may then have heavy tails, which lower the effective sample size.

    Args:
      x: The data set: array-like of shape `[N, *event_shape]`, a structure of these, or a
        `tfp_surgery.datasets.Dataset`; see `read_observations`. A stochastic binarization is drawn
        once, from `seed`.
      encoder: Callable from observations `[B, *event_shape]` to Gaussians with independent
        dimensions and batch shape `[B]`: `tfd.MultivariateNormalDiag`, `tfd.Independent` of
        `tfd.Normal`, or `tfd.Normal` for scalar codes. Or the posteriors of x, which are then not
        encoded again: an `AggregatePosterior`, or a distribution of these families with batch shape
        `[N]`.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations with
        batch shape `[B]` and event shape `event_shape`, made of differentiable operations that XLA
        compiles.
      prior: `tfd.Distribution` over codes with batch shape `[]`, or a callable that returns one. A
        callable that takes the condition returns one distribution for each, batch shape `[B]`.
      num_steps: Number of steps of Adam, at least 1.
      learning_rate: Initial learning rate of Adam.
      seed: Integer in [0, 2**31), or a pair of int32. The same seed and `batch_size` give the
        same result.
      batch_size: Number of observations encoded, and of codes decoded, at a time; None for as many
        as fit in 32 MiB by their shapes (a quarter of that where gradients are taken), whatever
        the machine is.
      condition: What encoder, decoder and prior may depend on beside x and z: array-like of shape
        `[N, ...]`, or a structure of these. Those of them that have a keyword argument `condition`
        get the conditions of their batch, repeated in step with the codes.

    Returns:
      The q*_n as a distribution with batch shape `[N]`: `tfd.MultivariateNormalDiag`, or
      `tfd.Normal` for scalar codes.

    Raises:
      TypeError: If encoder, decoder or prior do not return distributions, if none of them takes the
        condition, if the posteriors are of another family, or if decoder or prior have no gradients
        that XLA compiles.
      ValueError: If x is empty, not finite or outside the support of the likelihood, if shapes do
        not fit, if a number is out of range, or if a refined posterior is not finite.

    #### References

    Geoffrey Roeder, Yuhuai Wu, David Duvenaud. Sticking the landing: simple, lower-variance
    gradient estimators for variational inference. NeurIPS 2017.
    """
    refinement = Refinement(num_steps, learning_rate, seeds.checked_seed(seed), batch_size)
    model = prepared_model(
        x,
        encoder,
        decoder,
        prior,
        refinement.seed,
        refinement.batch_size,
        condition=condition,
    )
    return refinement.run(model)


@dataclasses.dataclass(frozen=True)
class Refinement:
    """The optimisation of `refined_posteriors` and its settings.

    Attributes:
      num_steps: Number of steps of Adam, at least 1.
      learning_rate: Initial learning rate of Adam.
      seed: Seed of the draws.
      batch_size: Number of codes decoded at a time; None for a quarter of what the model decodes
        without gradients.

    Raises:
      TypeError: If `num_steps` or `batch_size` is not an integer.
      ValueError: If a setting is out of range.
    """

    num_steps: int
    learning_rate: float
    seed: Seed
    batch_size: int | None

    def __post_init__(self) -> None:
        """Checks the settings."""
        object.__setattr__(self, "num_steps", checked_integer("num_steps", self.num_steps, 1))
        object.__setattr__(self, "batch_size", checked_batch_size(self.batch_size))
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")

    def run(self, model: PreparedModel) -> tfd.Distribution:
        """Maximises the ELBO of each observation over the family of its posterior.

        Args:
          model: The model.

        Returns:
          The refined posteriors, batch shape `[N]`.

        Raises:
          TypeError: If the posteriors are not Gaussians with independent dimensions, or the
            densities have no gradients that XLA compiles.
          ValueError: If a refined posterior is not finite.
        """
        _check_gradients(model)
        family, loc, scale = _family_and_parameters(model.posteriors)
        num_codes = self.batch_size or model.code_batch_size // GRADIENT_PASSES
        limit = max(1, num_codes // _GRADIENT_SAMPLES)
        length = equal_steps(model.num_observations, limit)
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
            given = model.observations.rows(step.shown), model.condition(step.shown)
            start = loc[step.shown], scale[step.shown]
            for variable in (shift, log_factor, *optimizer.variables):
                variable.assign(tf.zeros_like(variable.value))
            step_key = seeds.fold_in(key, step.number)
            for number in range(self.num_steps):
                with compiled(_needs("the model (decoder and prior)")):
                    take_step(*given, *start, seeds.fold_in(step_key, number))
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
    """Returns an optimizer step of observations, conditions, initial loc and scale, and a seed."""
    decoder: Any = model.decoder

    def step(
        x: Any, condition: Any, loc: tf.Tensor, scale: tf.Tensor, step_seed: tf.Tensor
    ) -> None:
        values = [shift.value, log_factor.value]
        with tf.GradientTape() as tape:
            parameters = (loc + scale * values[0], scale * tf.exp(values[1]))
            z = family(*parameters).sample(_GRADIENT_SAMPLES, seed=step_seed)  # [S, B, *code]
            fixed = family(*map(tf.stop_gradient, parameters))
            log_weights = (
                tf.cast(log_likelihood(decoder, z, x, condition), z.dtype)
                + model.prior_given(condition).log_prob(z)
                - fixed.log_prob(z)
            )
            # Observations share no parameters, so that the sum optimises each of them.
            loss = -tf.reduce_sum(tf.reduce_mean(log_weights, axis=0))
        # A NaN density can have a finite gradient (tfd.Gamma below zero).
        is_lost = tf.reduce_any(tf.math.is_nan(log_weights), axis=0)[:, tf.newaxis]
        nan = tf.constant(math.nan, loss.dtype)
        gradients = [tf.where(is_lost, nan, part) for part in tape.gradient(loss, values)]
        optimizer.apply(gradients, [shift, log_factor])

    take_step: Callable[..., None] = tf.function(step, jit_compile=True, autograph=False)
    return take_step


def _check_gradients(model: PreparedModel) -> None:
    """Raises a TypeError unless the densities can be traced and differentiated by the codes."""
    first = independent_gaussians(model.first_posteriors)
    z = first.sample(_GRADIENT_SAMPLES, seed=tf.constant([0, 0], tf.int32))  # [S, 2, *code_shape]
    for what, log_prob in (
        ("the decoder", lambda z: model.log_likelihood(z, slice(z.shape[1]))),
        ("the prior", lambda z: model.prior_at(slice(z.shape[1])).log_prob(z)),
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
    """Converts Gaussians with independent dimensions to one family, for equal draws per seed.

    Args:
      posteriors: The posteriors.

    Returns:
      The same distributions as `tfd.MultivariateNormalDiag`, or `tfd.Normal` for scalars.

    Raises:
      TypeError: If the posteriors are not Gaussians with independent dimensions.
    """
    family, loc, scale = _family_and_parameters(posteriors)
    return family(loc, scale)


def _family_and_parameters(posteriors: Any) -> tuple[Any, tf.Tensor, tf.Tensor]:
    """Returns a constructor of the Gaussians, and their locations and scales `[..., D]`."""
    posteriors = components_lib.prepare(unwrap(posteriors), "The encoder's posterior")
    parameters = diagonal_parameters(components_lib.broadcast(posteriors))
    if parameters is None:
        got = posteriors.name
        if isinstance(posteriors, FlatJoint):
            got = f"a joint distribution of {describe(posteriors.layout)}"
        raise TypeError(
            "the encoder must return Gaussians with independent dimensions "
            "(tfd.MultivariateNormalDiag, tfd.Independent of tfd.Normal, tfd.Normal): the "
            f"refinement knows how to move these alone; got {got}."
        )
    return _family(components_lib.event_rank(posteriors) == 0), *parameters


def _family(is_scalar: bool) -> Callable[[tf.Tensor, tf.Tensor], tfd.Distribution]:
    """Returns a constructor from locations and scales `[..., D]`, D = 1 for scalars."""

    def family(loc: tf.Tensor, scale: tf.Tensor) -> tfd.Distribution:
        if is_scalar:
            return tfd.Normal(loc[..., 0], scale[..., 0])
        return tfd.MultivariateNormalDiag(loc, scale)

    return family


def _check_finite(loc: np.ndarray, scale: np.ndarray) -> None:
    """Raises a ValueError if parameters are not finite, which Adam preserves once it occurs."""
    bad = np.flatnonzero(~(np.isfinite(loc) & np.isfinite(scale)).all(axis=1))
    if bad.size:
        raise ValueError(
            f"the refined posteriors of {bad.size} of {len(loc)} observations (the first at index "
            f"{bad[0]}) are not finite: log p(x, z) or its gradient was NaN where they drew codes. "
            "A prior whose support is not all real numbers does not go with Gaussian posteriors; "
            "where the optimiser diverged, a smaller learning_rate helps."
        )
