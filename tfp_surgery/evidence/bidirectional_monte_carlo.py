"""Lower and upper bounds on the log evidence of simulated data by annealed importance sampling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.networks import unwrap_output
from tfp_surgery.checks.tried import tried
from tfp_surgery.estimate import Estimate
from tfp_surgery.evidence.annealed_chains import (
    AnnealedChains,
    Annealing,
    check_densities,
    checked_prior,
)
from tfp_surgery.evidence.log_evidence import LogEvidence, RunningWeights
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.result import Result
from tfp_surgery.observations import read_observations

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True, eq=False)
class BidirectionalMonteCarlo(Result):
    r"""Lower and upper bounds on the average log evidence of simulated data, in nats.

    The standard errors are over the N simulated pairs (x_n, z_n), which are independent. Those of
    `lower` and `upper` include the spread between observations; that of `gap` is over the paired
    differences, in which this spread cancels. 95% intervals refer to the expectations of the bounds
    over pairs and draws, not to E_p(x)[log p(x)]. With 40 pairs of a Gaussian model, they cover
    these in 92 to 95 of 100 cases.

    Attributes:
      lower: Average of the lower bounds, in expectation at most E_p(x)[log p(x)].
      upper: Average of the upper bounds, in expectation at least E_p(x)[log p(x)].
      gap: `upper` - `lower`, in expectation at least the bias of either bound.
      forward: The lower bound of each log p(x_n).
      reverse: The upper bound of each log p(x_n). Its standard errors and intervals are conditional
        on z_n, where all chains of an observation start, and are too small for the expectation over
        z_n. Use `upper` for averages over observations.
      x: The simulated observations, shape `[N, *event_shape]`.
      z: The codes of the simulated observations, shape `[N, *code_shape]`.
    """

    lower: Estimate
    upper: Estimate
    gap: Estimate
    forward: LogEvidence
    reverse: LogEvidence
    x: np.ndarray
    z: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values, without the simulated data."""
        return {name: value for name, value in super().to_dict().items() if name not in ("x", "z")}

    def _title(self) -> list[str]:
        return [
            f"Bidirectional Monte Carlo on {self.forward.data}",
            f"nats per observation; {self.forward.method}, seed {self.forward.seed}",
        ]

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            ("lower bound", self.lower),
            ("upper bound", self.upper),
            ("difference", self.gap),
        ]


def bidirectional_monte_carlo(
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    num_observations: int = 100,
    num_temperatures: int = 500,
    num_chains: int = 16,
    num_leapfrog_steps: int = 10,
    seed: Any = 0,
    batch_size: int = 2000,
) -> BidirectionalMonteCarlo:
    r"""Bounds the log evidence of simulated data from both sides by annealed importance sampling.

    If x is simulated by z ~ p(z), x ~ p(x|z), the code z is an exact draw from p(z|x). Reverse
    chains that start at z have E[1/w] = 1 / p(x), so that -log 1/C sum_c 1/w_c is, in expectation,
    an upper bound on log p(x). The forward chains give a lower bound (Grosse, Ghahramani and Adams
    2015; Grosse, Ancha and Roy 2016). The distance of the bounds shows whether the settings suffice
    for the model. Real data have the lower bound only, and the distance applies to them as far as
    the model resembles them.

    The forward chains are those of `log_evidence_by_annealed_importance_sampling` with this seed on
    the simulated observations.

    Args:
      decoder: See `log_evidence_by_annealed_importance_sampling`.
      prior: See `log_evidence_by_annealed_importance_sampling`.
      num_observations: Number N of simulated pairs (x, z), at least 2.
      num_temperatures: See `log_evidence_by_annealed_importance_sampling`.
      num_chains: Number of chains in each direction, at least 1.
      num_leapfrog_steps: See `log_evidence_by_annealed_importance_sampling`.
      seed: Seed of the simulation and the chains: integer in [0, 2**31), or a pair of int32.
      batch_size: See `log_evidence_by_annealed_importance_sampling`.

    Returns:
      `BidirectionalMonteCarlo`.

    Raises:
      TypeError: See `log_evidence_by_annealed_importance_sampling`.
      ValueError: If shapes do not fit, a number is out of range, or a log density is NaN.

    Warns:
      UserWarning: If the upper bound is below the lower bound by many standard errors, or the dtype
        rounds more than 1% of the codes of the prior to the border of its support.

    #### References

    Roger B. Grosse, Zoubin Ghahramani, Ryan P. Adams. Sandwiching the marginal likelihood using
    bidirectional Monte Carlo. arXiv:1511.02543, 2015.

    Roger B. Grosse, Siddharth Ancha, Daniel M. Roy. Measuring the reliability of MCMC inference
    with bidirectional Monte Carlo. NeurIPS 2016.
    """
    num_observations = checked_integer("num_observations", num_observations, 2)
    settings = Annealing(num_temperatures, num_chains, num_leapfrog_steps, seed, batch_size)
    prior_now = checked_prior(decoder, prior)
    x, _ = _simulate(decoder, prior_now, 1, settings)
    check_densities(read_observations(x), decoder, prior_now)
    x, z = _simulate(decoder, prior_now, num_observations, settings)
    chains = AnnealedChains(decoder, prior_now, settings)
    weights = {
        name: RunningWeights(len(x), settings.num_chains, 1, tf.as_dtype(z.dtype))
        for name in ("lower", "upper")
    }
    rates = {name: np.empty([settings.num_temperatures, len(x)]) for name in weights}
    for step in chains.batches(len(x)):
        observations, codes = tf.convert_to_tensor(x[step.shown]), tf.constant(z[step.shown])
        step_sizes = chains.adapted_step_sizes(observations, step.number)
        forward = chains.run_forward(observations, step.number, step_sizes)
        reverse = chains.run_reverse(observations, step.number, step_sizes, codes)
        for name, weighed, sign in (("lower", forward, 1.0), ("upper", reverse, -1.0)):
            log_weights = sign * weighed.log_weights[:, step.new]
            weights[name].add(slice(0, settings.num_chains), step.rows, log_weights)
            rates[name][:, step.rows] = weighed.acceptance_rates[:, step.new]
    lower, upper = (
        weights[name].log_evidence(
            name,
            method=f"{prefix}{settings.describe()}",
            data=f"{num_observations} observations simulated from the model",
            seed=settings.seed,
            acceptance_rates=rates[name],
        )
        for name, prefix in (("lower", ""), ("upper", "reverse "))
    )
    gap = pair_average(upper.per_observation - lower.per_observation, num_chains)
    gap = dataclasses.replace(
        gap, standard_error=max(gap.standard_error, lower.rounding + upper.rounding)
    )
    sentences = consistency.explained(
        consistency.negative("The upper bound less the lower bound of the log evidence", gap)
    )
    consistency.warn(sentences, stacklevel=3)
    return BidirectionalMonteCarlo(
        lower=pair_average(lower.per_observation, num_chains),
        upper=pair_average(upper.per_observation, num_chains),
        gap=gap,
        forward=lower,
        reverse=upper,
        x=x,
        z=z,
        warnings=sentences,
    )


def pair_average(values: np.ndarray, num_chains: int) -> Estimate:
    """Estimates the mean over independent simulated pairs.

    Args:
      values: One value per pair, shape `[N]`.
      num_chains: Number of chains per value.

    Returns:
      The mean with its standard error.
    """
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(float(values.mean()), error, len(values) * num_chains, len(values) - 1.0)


def _simulate(
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution,
    num_observations: int,
    settings: Annealing,
) -> tuple[np.ndarray, np.ndarray]:
    """Simulates pairs; returns observations `[N, *event_shape]` and codes `[N, *code_shape]`."""
    key = seeds.key(settings.seed, "annealing/simulation")
    z = prior.sample(num_observations, seed=seeds.fold_in(key, 0))
    parts = []
    for number, start in enumerate(range(0, num_observations, settings.batch_size), start=1):
        codes = z[start : start + settings.batch_size]
        likelihood = unwrap_output(tried("decoder", decoder, codes), "decoder")
        parts.append(likelihood.sample(seed=seeds.fold_in(key, number)).numpy())
    return np.concatenate(parts), z.numpy()
