"""Hamiltonian Monte Carlo chains along a path of distributions from prior to posterior."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.gradients import compiled
from tfp_surgery.components.batch_size import (
    GRADIENT_PASSES,
    checked_batch_size,
    equal_steps,
    rows_of_a_step,
)
from tfp_surgery.evidence.annealed_model import AnnealedModel, needs
from tfp_surgery.measurement.event_space import event_space_bijector
from tfp_surgery.measurement.log_likelihood import log_likelihood
from tfp_surgery.measurement.steps import Step, steps
from tfp_surgery.observations import Observations
from tfp_surgery.seeds import Seed

TARGET_ACCEPTANCE_RATE = 0.65
# Change of the log step size per unit of deviation from the target acceptance rate.
_ADAPTATION_RATE = 1.0
# Step sizes are adapted at every fourth temperature and interpolated. With fewer temperatures they
# lag behind, and the bound is looser.
_ADAPTATION_STRIDE = 4
_MIN_ADAPTATION_TEMPERATURES = 20
_WARM_UP_STEPS = 30
_FIRST_STEP_SIZE = 0.1


@dataclasses.dataclass(frozen=True)
class Annealing:
    """The settings of the chains.

    Attributes:
      num_temperatures: T, at least 1.
      num_chains: C, at least 1.
      num_leapfrog_steps: Number of leapfrog steps per HMC step, at least 1.
      seed: Integer in [0, 2**31), or a pair of int32.
      batch_size: Number of codes, over chains and observations, moved at a time; None until
        `for_codes` chooses it.

    Raises:
      TypeError: If a setting is not an integer.
      ValueError: If a setting is out of range.
    """

    num_temperatures: int
    num_chains: int
    num_leapfrog_steps: int
    seed: Seed
    batch_size: int | None

    def __post_init__(self) -> None:
        """Checks the settings."""
        object.__setattr__(self, "seed", seeds.checked_seed(self.seed))
        for name in ("num_temperatures", "num_chains", "num_leapfrog_steps"):
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), 1))
        object.__setattr__(self, "batch_size", checked_batch_size(self.batch_size))

    def for_codes(self, num_bytes: float) -> Annealing:
        """Returns the settings with a batch size: their own, or one by what a code costs.

        Args:
          num_bytes: See `check_densities`.

        Returns:
          The settings.
        """
        chosen = self.batch_size or rows_of_a_step(num_bytes, passes=GRADIENT_PASSES)
        return dataclasses.replace(self, batch_size=chosen)

    def describe(self) -> str:
        """Returns the method and its settings in words."""
        return (
            f"annealed importance sampling, {self.num_temperatures} temperatures, "
            f"{self.num_chains} chains, {self.num_leapfrog_steps} leapfrog steps"
        )


class Batch(NamedTuple):
    """The observations whose chains run together.

    Attributes:
      number: Number of the batch, from 0.
      size: Number B of observations.
      x: Their values, shape `[B, *event_shape]`, or a structure of these.
      condition: Their conditions, leading dimension `[B]`; None if there are none.
    """

    number: int
    size: int
    x: Any
    condition: Any


class WeighedChains(NamedTuple):
    """The result of a run of the chains.

    Attributes:
      log_weights: Log weights of the chains, float64, shape `[C, B]`.
      acceptance_rates: Means over chains at each temperature, float64, shape `[T, B]`.
    """

    log_weights: np.ndarray
    acceptance_rates: np.ndarray


def inverse_temperatures(num_temperatures: int) -> np.ndarray:
    """Returns beta_0 = 0, ..., beta_T = 1 along a sigmoid from -4 to 4, dense at both ends.

    The schedule is that of Grosse, Ghahramani and Adams (2015, section 5).

    Args:
      num_temperatures: T.

    Returns:
      Inverse temperatures, float64, shape `[T + 1]`.
    """
    sigmoid = 1.0 / (1.0 + np.exp(-np.linspace(-4.0, 4.0, num_temperatures + 1)))
    betas: np.ndarray = (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])
    return betas


class AnnealedChains:
    """C annealed chains for each observation of a batch.

    The chains move in the unconstrained space of the prior's default bijector, through the
    distributions pi_t(z) proportional to p(z) p(x|z)^beta_t.
    """

    def __init__(self, model: AnnealedModel, settings: Annealing) -> None:
        """Defines the chains without running them.

        Args:
          model: Decoder and prior.
          settings: Settings of the chains.
        """
        self._model = model
        self._settings = settings
        self._betas = inverse_temperatures(settings.num_temperatures)
        self._hmc_step = _compiled_hmc_step(model, settings.num_leapfrog_steps)

    def batches(self, observations: Observations) -> Iterator[tuple[Step, Batch]]:
        """Splits the observations into batches of one size; see `steps`."""
        settings = self._settings
        if settings.batch_size is None:
            raise ValueError("these settings have no batch size yet; see Annealing.for_codes.")
        limit = settings.batch_size // settings.num_chains or 1
        for step in steps(len(observations), equal_steps(len(observations), limit)):
            yield (
                step,
                Batch(
                    step.number,
                    step.shown.stop - step.shown.start,
                    observations.rows(step.shown),
                    self._model.condition(step.shown),
                ),
            )

    def adapted_step_sizes(self, batch: Batch) -> np.ndarray:
        """Adapts step sizes to the target acceptance rate in a separate forward run.

        Args:
          batch: The observations.

        Returns:
          Step sizes of each temperature and observation, float64, shape `[T + 1, B]`.
        """
        seed = seeds.key(self._settings.seed, "annealing/adaptation", batch.number)
        u = self._starts(batch, seed)
        num_temperatures = len(self._betas) - 1
        num_adapted = max(num_temperatures // _ADAPTATION_STRIDE, _MIN_ADAPTATION_TEMPERATURES)
        betas = inverse_temperatures(num_adapted)
        log_step_size = np.full(batch.size, math.log(_FIRST_STEP_SIZE))
        found = []
        for step, beta in enumerate([*[0.0] * _WARM_UP_STEPS, *betas]):
            u, _, rate = self._hmc_step(u, batch, beta, np.exp(log_step_size), seed, step)
            log_step_size = log_step_size + _ADAPTATION_RATE * (rate - TARGET_ACCEPTANCE_RATE)
            found.append(log_step_size)
        adapted = np.stack(found[_WARM_UP_STEPS:], axis=1)  # [B, T' + 1]
        return np.exp([np.interp(self._betas, betas, row) for row in adapted]).T

    def run_forward(self, batch: Batch, step_sizes: np.ndarray) -> WeighedChains:
        """Runs from the prior to the posterior; the weights have the mean p(x).

        Args:
          batch: The observations.
          step_sizes: Step sizes, shape `[T + 1, B]`.

        Returns:
          `WeighedChains`.
        """
        seed = seeds.key(self._settings.seed, "annealing/forward", batch.number)
        steps = range(1, len(self._betas))
        return self._run(self._starts(batch, seed), batch, seed, steps, 0, step_sizes)

    def run_reverse(self, batch: Batch, step_sizes: np.ndarray, z: tf.Tensor) -> WeighedChains:
        """Runs from exact posterior samples to the prior; 1 / weight has the mean 1 / p(x).

        Args:
          batch: The observations.
          step_sizes: Step sizes, shape `[T + 1, B]`.
          z: A draw from each p(z|x), at which all its chains start, shape `[B, *code_shape]`.

        Returns:
          `WeighedChains`.
        """
        seed = seeds.key(self._settings.seed, "annealing/reverse", batch.number)
        code = self._bijector(batch).inverse(z)
        u = tf.repeat(code[tf.newaxis], self._settings.num_chains, axis=0)  # [C, B, *code_shape]
        steps = range(len(self._betas) - 1, 0, -1)
        return self._run(u, batch, seed, steps, -1, step_sizes)

    def _run(
        self,
        u: tf.Tensor,
        batch: Batch,
        seed: tf.Tensor,
        steps: range,
        shift: int,
        step_sizes: np.ndarray,
    ) -> WeighedChains:
        """Runs the chains: each step first weights, then moves them at temperature `step + shift`.

        The last move, at beta = 1 or 0, does not affect the weights.
        """
        log_weights = np.zeros(u.shape[:2])
        rates = np.empty([len(steps), batch.size])
        for step in steps:
            move = step + shift
            u, scores, rates[step - 1] = self._hmc_step(
                u, batch, self._betas[move], step_sizes[move], seed, step
            )
            log_weights += (self._betas[step] - self._betas[step - 1]) * scores
        return WeighedChains(log_weights, rates)

    def _starts(self, batch: Batch, seed: tf.Tensor) -> tf.Tensor:
        """Draws unconstrained codes from the prior, shape `[C, B, *code_shape]`."""
        shape = [self._settings.num_chains, batch.size]
        return self._bijector(batch).inverse(self._model.sample_codes(shape, batch.condition, seed))

    def _bijector(self, batch: Batch) -> Any:
        return event_space_bijector(self._model.prior_at(batch.condition))


def _compiled_hmc_step(
    model: AnnealedModel, num_leapfrog_steps: int
) -> Callable[..., tuple[tf.Tensor, np.ndarray, np.ndarray]]:
    """Returns a function that moves chains `[C, B, *code_shape]` by one step of HMC.

    Its arguments are the chains, the observations, the inverse temperature, the step sizes `[B]`, a
    seed and the number of the step. It returns the moved chains, log p(x|z) `[C, B]` before the
    move, and the mean acceptance rate of the chains of each observation `[B]`.
    """

    @tf.function(jit_compile=True, autograph=False)
    def step(
        u: tf.Tensor,
        x: Any,
        condition: Any,
        beta: tf.Tensor,
        step_size: tf.Tensor,
        seed: tf.Tensor,
        number: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        beta = tf.cast(beta, u.dtype)
        # [B] -> [B, 1, ...]
        step_size = tf.reshape(tf.cast(step_size, u.dtype), [-1] + [1] * (len(u.shape) - 2))

        prior = model.prior_at(condition)
        bijector = event_space_bijector(prior)

        def scored(u: tf.Tensor) -> tf.Tensor:
            # Some bijectors of several parts lose the static shape.
            z = tf.ensure_shape(bijector.forward(u), [*u.shape[:2], *prior.event_shape])
            return tf.cast(log_likelihood(model.decoder, z, x, condition), u.dtype)

        def log_prob(u: tf.Tensor) -> tf.Tensor:
            # tfd.TransformedDistribution would use the density of the prior's base class.
            start = prior.log_prob(bijector.forward(u))
            start += bijector.forward_log_det_jacobian(u, event_ndims=len(u.shape) - 2)
            return start + beta * scored(u)

        kernel = tfp.mcmc.HamiltonianMonteCarlo(log_prob, step_size, num_leapfrog_steps)
        # Previous results hold the density at the previous temperature.
        results = kernel.bootstrap_results(u)
        step_seed = seeds.fold_in(seed, number)
        moved, results = kernel.one_step(u, results, seed=step_seed)
        ratio = results.log_accept_ratio
        # NaN if a chain is on the border of the support, where it stays.
        rate = tf.where(
            tf.math.is_nan(ratio), tf.zeros([], u.dtype), tf.exp(tf.minimum(ratio, 0.0))
        )
        return moved, scored(u), tf.reduce_mean(rate, axis=0)

    def hmc_step(
        u: tf.Tensor, batch: Batch, beta: float, step_size: np.ndarray, seed: tf.Tensor, number: int
    ) -> tuple[tf.Tensor, np.ndarray, np.ndarray]:
        with compiled(needs("the model (decoder and prior)")):
            moved, scores, rate = step(
                u,
                batch.x,
                batch.condition,
                tf.constant(beta, tf.float64),
                tf.constant(step_size, tf.float64),
                seed,
                tf.constant(number, tf.int32),
            )
        return moved, scores.numpy().astype(np.float64), rate.numpy().astype(np.float64)

    return hmc_step
