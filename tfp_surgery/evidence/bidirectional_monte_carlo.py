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
from tfp_surgery.checks.takes_condition import call
from tfp_surgery.checks.tried import tried
from tfp_surgery.estimate import Estimate
from tfp_surgery.evidence.annealed_chains import AnnealedChains, Annealing
from tfp_surgery.evidence.annealed_model import AnnealedModel, annealed_model, check_densities
from tfp_surgery.evidence.log_evidence import LogEvidence, RunningWeights
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.result import Result
from tfp_surgery.observations import Observations, read_observations

tfd = tfp.distributions

_NUM_OBSERVATIONS = 100  # of simulated pairs, where no number is given


@dataclasses.dataclass(frozen=True, eq=False)
class BidirectionalMonteCarlo(Result):
    r"""Lower and upper bounds on the average log evidence of simulated data, in nats.

    The standard errors are over the N simulated pairs (x_n, z_n), which are independent. Those of
    `lower` and `upper` include the spread between observations; that of `gap` is over the paired
    differences, in which this spread cancels. 95% intervals refer to the expectations of the bounds
    over pairs and draws, not to E_p(x)[log p(x)]; with conditions, they include the spread between
    these. With 40 pairs of a Gaussian model, they cover
    these in 92 to 95 of 100 cases.

    Attributes:
      lower: Average of the lower bounds, in expectation at most E_p(x)[log p(x)].
      upper: Average of the upper bounds, in expectation at least E_p(x)[log p(x)].
      gap: `upper` - `lower`, in expectation at least the bias of either bound.
      forward: The lower bound of each log p(x_n).
      reverse: The upper bound of each log p(x_n). Its standard errors and intervals are conditional
        on z_n, where all chains of an observation start, and are too small for the expectation over
        z_n. Use `upper` for averages over observations.
      x: The simulated observations, shape `[N, *event_shape]`, or a structure of these.
      z: The codes of the simulated observations, shape `[N, *code_shape]`; vectors `[N, D]` of
        concatenated parts if codes are structures.
    """

    lower: Estimate
    upper: Estimate
    gap: Estimate
    forward: LogEvidence
    reverse: LogEvidence
    x: Any
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
    decoder: Callable[..., tfd.Distribution],
    prior: tfd.Distribution | Callable[..., tfd.Distribution],
    *,
    num_observations: int | None = None,
    num_temperatures: int = 500,
    num_chains: int = 16,
    num_leapfrog_steps: int = 10,
    seed: Any = 0,
    batch_size: int | None = None,
    condition: Any = None,
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
      num_observations: Number N of simulated pairs (x, z), at least 2; None for 100, or for one of
        each condition.
      num_temperatures: See `log_evidence_by_annealed_importance_sampling`.
      num_chains: Number of chains in each direction, at least 1.
      num_leapfrog_steps: See `log_evidence_by_annealed_importance_sampling`.
      seed: Seed of the simulation and the chains: integer in [0, 2**31), or a pair of int32.
      batch_size: See `log_evidence_by_annealed_importance_sampling`.
      condition: See `log_evidence_by_annealed_importance_sampling`. One pair is simulated from
        p(z|c_n) and p(x|z, c_n) for each condition.

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
    settings = Annealing(num_temperatures, num_chains, num_leapfrog_steps, seed, batch_size)
    num_observations, conditions = _number_and_conditions(num_observations, condition)
    model = annealed_model(decoder, prior, conditions)
    one, _ = _simulate(model, 1, settings)
    settings = settings.for_codes(check_densities(one, model, settings.num_chains))
    observations, z = _simulate(model, num_observations, settings)
    chains = AnnealedChains(model, settings)
    weights = {
        name: RunningWeights(num_observations, settings.num_chains, 1, tf.as_dtype(z.dtype))
        for name in ("lower", "upper")
    }
    rates = {name: np.empty([settings.num_temperatures, num_observations]) for name in weights}
    for step, batch in chains.batches(observations):
        step_sizes = chains.adapted_step_sizes(batch)
        forward = chains.run_forward(batch, step_sizes)
        reverse = chains.run_reverse(batch, step_sizes, tf.constant(z[step.shown]))
        for name, weighed, sign in (("lower", forward, 1.0), ("upper", reverse, -1.0)):
            log_weights = sign * weighed.log_weights[:, step.new]
            weights[name].add(slice(0, settings.num_chains), step.rows, log_weights)
            rates[name][:, step.rows] = weighed.acceptance_rates[:, step.new]
    lower, upper = (
        weights[name].log_evidence(
            name,
            method=f"{prefix}{settings.describe()}",
            data=f"{num_observations} observations simulated from the model{model.taking}",
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
        x=observations.parts,
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


def _number_and_conditions(
    num_observations: int | None, condition: Any
) -> tuple[int, Observations | None]:
    """Returns the number of pairs, and their conditions or None."""
    if num_observations is not None:
        num_observations = checked_integer("num_observations", num_observations, 2)
    if condition is None:
        return num_observations or _NUM_OBSERVATIONS, None
    conditions = read_observations(condition, name="condition")
    if len(conditions) < 2:
        raise ValueError("condition must have at least 2 rows, one for each simulated pair; got 1.")
    if num_observations not in (None, len(conditions)):
        raise ValueError(
            f"one pair is simulated for each row of condition, which has {len(conditions)}, but "
            f"num_observations is {num_observations}: leave it out, or hand in as many conditions."
        )
    return len(conditions), conditions


def _simulate(
    model: AnnealedModel, num_observations: int, settings: Annealing
) -> tuple[Observations, np.ndarray]:
    """Simulates pairs; returns N observations, and their codes `[N, *code_shape]`."""
    key = seeds.key(settings.seed, "annealing/simulation")
    every = model.condition(slice(0, num_observations))
    z = model.sample_codes([num_observations], every, seeds.fold_in(key, 0))
    parts = []
    size = settings.batch_size or num_observations
    for number, start in enumerate(range(0, num_observations, size), start=1):
        rows = slice(start, min(start + size, num_observations))
        condition = model.condition(rows)

        def decode(codes: tf.Tensor, condition: Any = condition) -> Any:
            return call(model.decoder, codes, condition=condition)

        likelihood = unwrap_output(tried("decoder", decode, z[rows]), "decoder")
        parts.append(likelihood.sample(seed=seeds.fold_in(key, number)))
    x = tf.nest.map_structure(lambda *leaves: np.concatenate(leaves), *parts)
    return read_observations(_with_tuples(x)), z.numpy()


def _with_tuples(x: Any) -> Any:
    """Returns a structure with tuples for lists, since a list of arrays is one array."""
    if isinstance(x, dict):
        return {name: _with_tuples(part) for name, part in x.items()}
    return tuple(map(_with_tuples, x)) if isinstance(x, list) else x
