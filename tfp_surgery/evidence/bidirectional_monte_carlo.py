"""Annealed importance sampling checked from both sides, on data that the model simulates."""

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
from tfp_surgery.checks.networks import unwrap
from tfp_surgery.estimate import Estimate
from tfp_surgery.evidence.annealed_chains import (
    AnnealedChains,
    Annealing,
    check_densities,
    checked_prior,
)
from tfp_surgery.evidence.log_evidence import LogEvidence, RunningWeights
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.model_checks import tried
from tfp_surgery.measurement.result import Result

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True, eq=False)
class BidirectionalMonteCarlo(Result):
    r"""Bounds on the average log evidence of data that a model simulates, from both sides.

    The standard errors are those over the N simulated pairs (x_n, z_n), which are independent:
    that of `lower` and `upper` contains the spread between observations beside the Monte Carlo
    error, that of `gap` is of the differences, from which the former has gone. Their 95% intervals
    are around the expectations of the bounds over pairs and draws, not around E_p(x)[log p(x)];
    with 40 pairs of a Gaussian model they cover in 92 to 95 of 100 cases.

    Attributes:
      lower: Average of the lower bounds; in expectation below E_p(x)[log p(x)].
      upper: Average of the upper bounds; in expectation above it.
      gap: `upper` - `lower`, in expectation at least 0 and at least the error of either.
      forward: The lower bound of each log p(x_n).
      reverse: The upper bound of each. The standard errors in it are those given z_n, where all
        chains of an observation start: its intervals are around the expectation given z_n and cover
        that over z_n too seldom. Averages over observations are for `upper`.
      x: The simulated observations, `[N, *event_shape]`.
      z: The codes that they were simulated from, `[N, *code_shape]`.
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

    Where x was simulated, z ~ p(z), x ~ p(x|z), the code z is an exact draw from p(z|x). Chains
    that start there and take the annealing backwards have E[1/w] = 1 / p(x), so that
    -log 1/C sum_c 1/w_c is, in expectation, an upper bound of log p(x), as the forward chains
    give a lower one (Grosse, Ghahramani and Adams 2015; Grosse, Ancha and Roy 2016). How far the
    two are apart says whether the settings suffice for this model. Of real data only the lower
    bound can be had: what is found here carries over to them as far as the model resembles them.

    Args:
      decoder: See `log_evidence_by_annealed_importance_sampling`, as for all that is not said
        here.
      prior: Likewise.
      num_observations: N, the number of pairs (x, z) to simulate, at least 2.
      num_temperatures: Likewise.
      num_chains: Likewise; in each direction.
      num_leapfrog_steps: Likewise.
      seed: Likewise; of the simulation too.
      batch_size: Likewise.

    Returns:
      `BidirectionalMonteCarlo`.

    Raises:
      TypeError: As `log_evidence_by_annealed_importance_sampling` does.
      ValueError: If shapes do not fit, a number is out of range, or the model gives NaN.

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
    check_densities(x, decoder, prior_now)
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
    """The average over independent simulated pairs, with its standard error.

    Args:
      values: One a pair, `[N]`.
      num_chains: Behind each.
    """
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(float(values.mean()), error, len(values) * num_chains, len(values) - 1.0)


def _simulate(
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution,
    num_observations: int,
    settings: Annealing,
) -> tuple[np.ndarray, np.ndarray]:
    """Observations `[N, *event_shape]` and the codes `[N, *code_shape]` behind them."""
    key = seeds.key(settings.seed, "annealing/simulation")
    z = prior.sample(num_observations, seed=seeds.fold_in(key, 0))
    parts = []
    for number, start in enumerate(range(0, num_observations, settings.batch_size), start=1):
        codes = z[start : start + settings.batch_size]
        likelihood = unwrap(tried("decoder", decoder, codes))
        parts.append(likelihood.sample(seed=seeds.fold_in(key, number)).numpy())
    return np.concatenate(parts), z.numpy()
