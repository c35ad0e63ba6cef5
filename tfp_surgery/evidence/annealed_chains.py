"""Hamiltonian Monte Carlo chains along a path of distributions from prior to posterior."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.gradients import check_graph, compiled
from tfp_surgery.checks.networks import build_prior, check_prior
from tfp_surgery.evidence.code_space import check_code_space
from tfp_surgery.measurement.event_space import event_space_bijector
from tfp_surgery.measurement.log_likelihood import log_likelihood
from tfp_surgery.measurement.model_checks import check_decoder
from tfp_surgery.measurement.steps import Step, steps
from tfp_surgery.observations import Observations
from tfp_surgery.seeds import Seed

tfd = tfp.distributions

Network: TypeAlias = Callable[[Any], tfd.Distribution]
Prior: TypeAlias = tfd.Distribution | Callable[[], tfd.Distribution]

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
      batch_size: Number of codes, over chains and observations, moved at a time.

    Raises:
      TypeError: If a setting is not an integer.
      ValueError: If a setting is out of range.
    """

    num_temperatures: int
    num_chains: int
    num_leapfrog_steps: int
    seed: Seed
    batch_size: int

    def __post_init__(self) -> None:
        """Checks the settings."""
        object.__setattr__(self, "seed", seeds.checked_seed(self.seed))
        for name in ("num_temperatures", "num_chains", "num_leapfrog_steps", "batch_size"):
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), 1))

    def describe(self) -> str:
        """Returns the method and its settings in words."""
        return (
            f"annealed importance sampling, {self.num_temperatures} temperatures, "
            f"{self.num_chains} chains, {self.num_leapfrog_steps} leapfrog steps"
        )


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

    def __init__(self, decoder: Network, prior: tfd.Distribution, settings: Annealing) -> None:
        """Defines the chains without running them.

        Args:
          decoder: See `log_evidence_by_annealed_importance_sampling`.
          prior: p(z) from `checked_prior`.
          settings: Settings of the chains.
        """
        self._prior = prior
        self._bijector = event_space_bijector(prior)
        self._settings = settings
        self._betas = inverse_temperatures(settings.num_temperatures)
        self._hmc_step = _compiled_hmc_step(decoder, prior, settings.num_leapfrog_steps)

    def batches(self, num_observations: int) -> Iterator[Step]:
        """Splits the observations into batches of one size; see `steps`."""
        settings = self._settings
        return steps(num_observations, settings.batch_size // settings.num_chains or 1)

    def adapted_step_sizes(self, x: tf.Tensor, number: int) -> np.ndarray:
        """Adapts step sizes to the target acceptance rate in a separate forward run.

        Args:
          x: Observations, shape `[B, *event_shape]`.
          number: Number of the batch.

        Returns:
          Step sizes of each temperature and observation, float64, shape `[T + 1, B]`.
        """
        seed = seeds.key(self._settings.seed, "annealing/adaptation", number)
        u = self._starts(len(x), seed)
        num_temperatures = len(self._betas) - 1
        num_adapted = max(num_temperatures // _ADAPTATION_STRIDE, _MIN_ADAPTATION_TEMPERATURES)
        betas = inverse_temperatures(num_adapted)
        log_step_size = np.full(len(x), math.log(_FIRST_STEP_SIZE))
        found = []
        for step, beta in enumerate([*[0.0] * _WARM_UP_STEPS, *betas]):
            u, _, rate = self._hmc_step(u, x, beta, np.exp(log_step_size), seed, step)
            log_step_size = log_step_size + _ADAPTATION_RATE * (rate - TARGET_ACCEPTANCE_RATE)
            found.append(log_step_size)
        adapted = np.stack(found[_WARM_UP_STEPS:], axis=1)  # [B, T' + 1]
        return np.exp([np.interp(self._betas, betas, row) for row in adapted]).T

    def run_forward(self, x: tf.Tensor, number: int, step_sizes: np.ndarray) -> WeighedChains:
        """Runs from the prior to the posterior; the weights have the mean p(x).

        Args:
          x: Observations, shape `[B, *event_shape]`.
          number: Number of the batch.
          step_sizes: Step sizes, shape `[T + 1, B]`.

        Returns:
          `WeighedChains`.
        """
        seed = seeds.key(self._settings.seed, "annealing/forward", number)
        steps = range(1, len(self._betas))
        return self._run(self._starts(len(x), seed), x, seed, steps, 0, step_sizes)

    def run_reverse(
        self, x: tf.Tensor, number: int, step_sizes: np.ndarray, z: tf.Tensor
    ) -> WeighedChains:
        """Runs from exact posterior samples to the prior; 1 / weight has the mean 1 / p(x).

        Args:
          x: Observations, shape `[B, *event_shape]`.
          number: Number of the batch.
          step_sizes: Step sizes, shape `[T + 1, B]`.
          z: A draw from each p(z|x), at which all its chains start, shape `[B, *code_shape]`.

        Returns:
          `WeighedChains`.
        """
        seed = seeds.key(self._settings.seed, "annealing/reverse", number)
        code = self._bijector.inverse(z)
        u = tf.repeat(code[tf.newaxis], self._settings.num_chains, axis=0)  # [C, B, *code_shape]
        steps = range(len(self._betas) - 1, 0, -1)
        return self._run(u, x, seed, steps, -1, step_sizes)

    def _run(
        self,
        u: tf.Tensor,
        x: tf.Tensor,
        seed: tf.Tensor,
        steps: range,
        shift: int,
        step_sizes: np.ndarray,
    ) -> WeighedChains:
        """Runs the chains: each step first weights, then moves them at temperature `step + shift`.

        The last move, at beta = 1 or 0, does not affect the weights.
        """
        log_weights = np.zeros(u.shape[:2])
        rates = np.empty([len(steps), len(x)])
        for step in steps:
            move = step + shift
            u, scores, rates[step - 1] = self._hmc_step(
                u, x, self._betas[move], step_sizes[move], seed, step
            )
            log_weights += (self._betas[step] - self._betas[step - 1]) * scores
        return WeighedChains(log_weights, rates)

    def _starts(self, num_observations: int, seed: tf.Tensor) -> tf.Tensor:
        """Draws unconstrained codes from the prior, shape `[C, B, *code_shape]`."""
        z = self._prior.sample((self._settings.num_chains, num_observations), seed=seed)
        return self._bijector.inverse(z)


def checked_prior(decoder: Network, prior: Prior) -> tfd.Distribution:
    """Builds the prior and checks that HMC can move its codes.

    Args:
      decoder: See `log_evidence_by_annealed_importance_sampling`.
      prior: See `log_evidence_by_annealed_importance_sampling`.

    Returns:
      The prior as a distribution.

    Raises:
      TypeError: If the decoder is not callable, the prior does not give a distribution, or HMC
        cannot move the codes.
      ValueError: If the prior has a batch shape.
    """
    if not callable(decoder):
        raise TypeError("decoder must be a callable that returns a tfd.Distribution.")
    prior_now = build_prior(prior)
    event_space_bijector(prior_now)
    check_prior(prior_now, prior_now)  # checks the batch shape
    check_code_space(prior_now)
    return prior_now


def check_densities(observations: Observations, decoder: Network, prior: tfd.Distribution) -> None:
    """Checks decoder and prior on one code, before the actual work.

    Args:
      observations: The observations.
      decoder: See `log_evidence_by_annealed_importance_sampling`.
      prior: p(z) from `checked_prior`.

    Raises:
      TypeError: If the decoder does not return a distribution, or a density does not consist of
        TensorFlow operations.
      ValueError: If shapes do not fit, or x lies outside the support of the likelihood.
    """
    code = prior.sample(1, seed=tf.constant([0, 0], tf.int32))
    check_decoder(decoder, code, observations)
    first = observations.rows(slice(0, 1))
    check_graph(
        _needs("the decoder"),
        lambda z: log_likelihood(decoder, z[tf.newaxis], first),
        code,
    )
    check_graph(_needs("the prior"), prior.log_prob, code)


def _needs(what: str) -> str:
    return (
        f"annealed importance sampling moves codes by gradients of {what}, which must be made of "
        "TensorFlow operations; importance sampling (log_evidence_by_importance_sampling) takes it "
        "as it is"
    )


def _compiled_hmc_step(
    decoder: Network, prior: tfd.Distribution, num_leapfrog_steps: int
) -> Callable[..., tuple[tf.Tensor, np.ndarray, np.ndarray]]:
    """Returns a function that moves chains `[C, B, *code_shape]` by one step of HMC.

    Its arguments are the chains, the observations, the inverse temperature, the step sizes `[B]`, a
    seed and the number of the step. It returns the moved chains, log p(x|z) `[C, B]` before the
    move, and the mean acceptance rate of the chains of each observation `[B]`.
    """
    bijector = event_space_bijector(prior)

    @tf.function(jit_compile=True, autograph=False)
    def step(
        u: tf.Tensor,
        x: tf.Tensor,
        beta: tf.Tensor,
        step_size: tf.Tensor,
        seed: tf.Tensor,
        number: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        beta = tf.cast(beta, u.dtype)
        # [B] -> [B, 1, ...]
        step_size = tf.reshape(tf.cast(step_size, u.dtype), [-1] + [1] * (len(u.shape) - 2))

        def scored(u: tf.Tensor) -> tf.Tensor:
            return tf.cast(log_likelihood(decoder, bijector.forward(u), x), u.dtype)

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
        u: tf.Tensor, x: tf.Tensor, beta: float, step_size: np.ndarray, seed: tf.Tensor, number: int
    ) -> tuple[tf.Tensor, np.ndarray, np.ndarray]:
        with compiled(_needs("the model (decoder and prior)")):
            moved, scores, rate = step(
                u,
                x,
                tf.constant(beta, tf.float64),
                tf.constant(step_size, tf.float64),
                seed,
                tf.constant(number, tf.int32),
            )
        return moved, scores.numpy().astype(np.float64), rate.numpy().astype(np.float64)

    return hmc_step
