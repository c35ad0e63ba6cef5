"""Log evidence of every observation by importance sampling, and the result that carries it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import point_mass
from tfp_surgery.checks.arguments import MAX_SEED, checked_integer
from tfp_surgery.checks.networks import build_prior, check_encoder_output
from tfp_surgery.components import components as components_lib
from tfp_surgery.components import fidelity
from tfp_surgery.components.encoding import encode
from tfp_surgery.estimate import Estimate
from tfp_surgery.evidence.importance_weights import log_weight_chunks, looked_at
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.model import check_model, observations_of

tfd = tfp.distributions

_DRAWS = 2  # stream of the seed

# Of the jackknife.
_NUM_GROUPS = 100

# Below it, unless half of the draws count, the weights of an observation rest on too few of them.
MIN_EFFECTIVE_SAMPLE_SIZE = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class LogEvidence:
    r"""Stochastic bounds of log p(x_n), in nats, from the weights of independent draws.

    With m weights w_s of mean p(x_n) an observation, the lower bound is log 1/m sum_s w_s. Its
    expectation lies below log p(x_n) (Jensen; Burda et al. 2016) by half its variance to leading
    order (Nowozin 2018), and it exceeds log p(x_n) by b nats with probability at most exp(-b)
    (Markov). An upper bound is -log 1/m sum_s w_s from weights of mean 1 / p(x_n), with the
    inequalities turned round.

    Standard errors and 95% intervals are around the expectation of the bound, not around
    log p(x_n). The standard errors are jackknife ones, leaving out one weight at a time, or above
    100 weights one of 100 groups (Efron and Stein 1981). The delta method, sd(w) / (sqrt(m)
    mean(w)), is below 1 nat whatever happens, and too small by a fifth at m = 4 to 8 where an
    effective sample size is about half of m. They are NaN where m = 1 or no more than one group
    has weights above zero. They know no more than the draws: where those have missed a mode that
    matters, they are too small.

    Measured on one-dimensional Gaussian models, by importance sampling and annealed: the interval
    of the average over 20 observations covers in 94 to 97 of 100 cases from m = 4 on. That of one
    observation, a normal one for the skewed logarithm of few weights, covers in 84 to 87 cases at
    m = 4 or 5, in 90 to 94 at m = 16 or 20, and in 93 to 95 from m = 100 on.

    Attributes:
      per_observation: The bound of each log p(x_n), float64 `[N]`.
      standard_errors: Their standard errors, float64 `[N]`, around their expectations.
      effective_sample_sizes: (sum_s w_s)^2 / sum_s w_s^2, float64 `[N]`, from 1 to m.
      num_samples: m, the number of weights an observation.
      bound: "lower" or "upper".
      method: How the weights were drawn.
      data: What data set this is.
      seed: The seed of the draws.
      acceptance_rates: Of the Metropolis-Hastings steps at each temperature, averaged over the
        chains, float64 `[num_temperatures, N]`; None for a method without them.
      rounding: That of the mean of the bounds, in nats; no standard error is below it.
      warnings: Sentences on draws that rounding moved. Empty where nothing was found.

    #### References

    Bradley Efron, Charles Stein. The jackknife estimate of variance. Annals of Statistics 9, 1981.
    """

    per_observation: np.ndarray
    standard_errors: np.ndarray
    effective_sample_sizes: np.ndarray
    num_samples: int
    bound: str
    method: str
    data: str
    seed: int
    acceptance_rates: np.ndarray | None = None
    rounding: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def estimate(self) -> Estimate:
        """1/N sum_n of the bounds; the standard error is that of the draws given the data."""
        error = math.sqrt(float(np.sum(self.standard_errors**2))) / len(self.standard_errors)
        if not math.isnan(error):
            error = max(error, self.rounding)
        value = float(self.per_observation.mean())
        # Of a sum of jackknife variances, each of as many degrees as groups less one.
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = self.standard_errors**2 / np.sum(self.standard_errors**2)
        degrees = (min(self.num_samples, _NUM_GROUPS) - 1) / float(np.sum(shares**2))
        size = self.per_observation.size * self.num_samples
        return Estimate(value, error, size, degrees)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain, JSON-ready values; what is NaN (errors at m = 1) becomes None."""

        def plain(values: np.ndarray) -> list[float | None]:
            return [None if math.isnan(value) else float(value) for value in values]

        rates = self.acceptance_rates
        return {
            "log_evidence": self.estimate.to_dict(),
            "bound": self.bound,
            "method": self.method,
            "data": self.data,
            "num_observations": len(self.per_observation),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "acceptance_rate": None if rates is None else float(rates.mean()),
            "per_observation": plain(self.per_observation),
            "standard_errors": plain(self.standard_errors),
            "effective_sample_sizes": plain(self.effective_sample_sizes),
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        """The mean with its standard error, and how many draws it rests on."""
        least, median = np.min(self.effective_sample_sizes), np.median(self.effective_sample_sizes)
        lines = [
            f"log evidence of {self.data}",
            f"stochastic {self.bound} bound by {self.method}, seed {self.seed}",
            f"  {self.estimate} nats per observation",
            f"  effective sample size: median {median:.1f}, least {least:.1f}",
        ]
        if self.acceptance_rates is not None:
            lines.append(f"  acceptance rate {self.acceptance_rates.mean():.2f}")
        return "\n".join([*lines, *consistency.warning_lines(self.warnings)])


class RunningWeights:
    """The sums of weights and of their squares, an observation each, as float64 logarithms.

    The weights are dealt out to 100 groups in turn, for the jackknife.

    Attributes:
      num_samples: Number of weights an observation so far, `[N]`.
    """

    def __init__(self, num_observations: int, dtype: tf.DType) -> None:
        """Starts without weights.

        Args:
          num_observations: N.
          dtype: Of the log densities that the weights are made of: their rounding.
        """
        self._dtype = dtype.as_numpy_dtype
        self.num_samples = np.zeros(num_observations, np.int64)
        self._log_group_sums = np.full([_NUM_GROUPS, num_observations], -np.inf)
        self._log_sum_of_squares = np.full(num_observations, -np.inf)

    def add(self, rows: slice, log_weights: np.ndarray) -> None:
        """Adds weights.

        Args:
          rows: Which observations.
          log_weights: Their log weights `[S, B]`, -inf for weights of zero.

        Raises:
          ValueError: If a log weight is NaN or +inf.
        """
        log_weights = np.asarray(log_weights, np.float64)
        if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
            bad = np.isnan(log_weights) | np.isposinf(log_weights)
            raise ValueError(
                f"{bad.sum()} of {bad.size} log weights are NaN or +inf: the model gives no "
                "density there."
            )
        squares = np.logaddexp.reduce(2.0 * log_weights, axis=0)
        self._log_sum_of_squares[rows] = np.logaddexp(self._log_sum_of_squares[rows], squares)
        first = int(self.num_samples[rows.start])
        self.num_samples[rows] += len(log_weights)
        for start in range(0, len(log_weights), _NUM_GROUPS):
            part = log_weights[start : start + _NUM_GROUPS]
            groups = (first + start + np.arange(len(part))) % _NUM_GROUPS
            sums = self._log_group_sums[groups, rows]
            self._log_group_sums[groups, rows] = np.logaddexp(sums, part)

    def log_evidence(self, bound: str, **fields: Any) -> LogEvidence:
        """The bounds from the weights.

        Args:
          bound: "lower", or "upper" if the weights are of mean 1 / p(x_n).
          **fields: Of `LogEvidence`: method, data, seed, acceptance_rates, warnings.

        Returns:
          The `LogEvidence`.

        Raises:
          ValueError: If all weights of an observation are zero.
        """
        num_samples = int(self.num_samples[0])
        log_sum = np.logaddexp.reduce(self._log_group_sums, axis=0)
        if np.isneginf(log_sum).any():
            raise ValueError(
                f"all {num_samples} weights are zero for {np.isneginf(log_sum).sum()} of "
                f"{len(log_sum)} observations: no draw explains them."
            )
        effective = np.exp(2.0 * log_sum - self._log_sum_of_squares)
        log_mean = log_sum - math.log(num_samples)
        rounding_errors = np.finfo(self._dtype).eps * np.abs(log_mean)
        return LogEvidence(
            per_observation=log_mean if bound == "lower" else -log_mean,
            standard_errors=np.maximum(self._standard_errors(num_samples), rounding_errors),
            rounding=float(rounding_errors.mean()),
            effective_sample_sizes=np.clip(effective, 1.0, num_samples),  # rounding
            num_samples=num_samples,
            bound=bound,
            **fields,
        )

    def _standard_errors(self, num_samples: int) -> np.ndarray:
        """Of the log means, by leaving out one group at a time; NaN where nothing is left."""
        num_groups = min(num_samples, _NUM_GROUPS)
        sums = self._log_group_sums[:num_groups]  # [G, N]
        none = np.full_like(sums[:1], -np.inf)
        # The others are added up, not subtracted: nothing cancels where one group has nearly all.
        before = np.concatenate([none, np.logaddexp.accumulate(sums, axis=0)[:-1]])
        after = np.concatenate([none, np.logaddexp.accumulate(sums[::-1], axis=0)[:-1]])[::-1]
        sizes = num_samples // num_groups + (np.arange(num_groups) < num_samples % num_groups)
        with np.errstate(invalid="ignore", divide="ignore"):
            left = np.logaddexp(before, after) - np.log(num_samples - sizes)[:, np.newaxis]
            errors: np.ndarray = np.sqrt(num_groups - 1.0) * left.std(axis=0)
        return errors


def log_evidence_by_importance_sampling(
    x: Any,
    encoder: Callable[[Any], tfd.Distribution] | tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    num_importance_samples: int = 5000,
    seed: int = 0,
    batch_size: int = 2000,
) -> LogEvidence:
    r"""Estimates log p(x_n) of every observation with q(z|x_n) as importance distribution.

        log p(x_n) >= E[log 1/m sum_s p(x_n, z_s) / q(z_s|x_n)],   z_s ~ q(z|x_n)

    (Burda et al. 2016, equation 8), with equality as m grows. The weights are unbiased for p(x_n);
    their logarithm is, in expectation, a lower bound of log p(x_n), tighter with every m. The sum
    is streamed: memory does not grow with m.

    A warning is given where the effective sample size of an observation is below 10 and below
    m / 2: its standard error is then about 0.3 nats or more, and can itself not be trusted.

    Args:
      x: The data set: array-like or `Tensor` of shape `[N, *event_shape]`, or a
        `tfp_surgery.datasets.Dataset`. A stochastic binarization is observed in the one draw that
        `seed` names.
      encoder: Callable from `[B, *event_shape]` to a `tfd.Distribution` over codes, batch `[B]`.
        Or the proposals themselves, a `tfd.Distribution` with batch `[N]`, one for each
        observation: those of `refined_posteriors`, for one. They must not depend on
        the draws made here.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations,
        batch `[B]`, event `event_shape`.
      prior: `tfd.Distribution` over codes with batch `[]`, or a callable that returns one.
      num_importance_samples: m, at least 1.
      seed: Integer in [0, 2**31). The same seed and `batch_size` give the same draws.
      batch_size: Number of observations encoded, and of codes decoded, at a time.

    Returns:
      `LogEvidence`, a stochastic lower bound.

    Raises:
      TypeError: If encoder, decoder or prior do not give distributions.
      ValueError: If x is empty, not finite or outside the likelihood's support; if shapes do not
        fit; if a number is out of range; or if the model gives NaN.

    #### References

    Yuri Burda, Roger Grosse, Ruslan Salakhutdinov. Importance weighted autoencoders. ICLR 2016.
    Sebastian Nowozin. Debiasing evidence approximations. ICLR 2018.
    """
    num_importance_samples = checked_integer("num_importance_samples", num_importance_samples, 1)
    batch_size = checked_integer("batch_size", batch_size, 1)
    seed = checked_integer("seed", seed, 0, MAX_SEED)
    x, data = observations_of(x, seed)
    posteriors = _proposals(x, encoder, decoder, build_prior(prior), batch_size)
    sentences = looked_at(posteriors, build_prior(prior))
    weights = RunningWeights(len(x), components_lib.dtype_of(posteriors))
    base_seed = tf.constant([seed, _DRAWS], tf.int32)
    for _, rows, log_weights in log_weight_chunks(
        x, posteriors, decoder, prior, num_importance_samples, base_seed, batch_size
    ):
        weights.add(rows, log_weights)
    method = f"importance sampling, m = {num_importance_samples}"
    result = weights.log_evidence("lower", method=method, data=data, seed=seed, warnings=sentences)
    consistency.warn(sentences, stacklevel=3)
    warn_of_few_samples(result, stacklevel=3)
    return result


def _proposals(
    x: np.ndarray,
    encoder: Callable[[Any], tfd.Distribution] | tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution,
    batch_size: int,
) -> tfd.Distribution:
    """q(z|x_n) as one batch `[N]`, once the model is checked."""
    if not isinstance(encoder, tfd.Distribution):
        check_model(x, encoder, decoder, prior)
        posteriors = encode(encoder, x, batch_size)
        point_mass.check_not_singular(posteriors, "posterior")
        return posteriors
    proposals = check_encoder_output(encoder, len(x))
    proposals = components_lib.prepare(proposals, "The proposal")
    fidelity.check_components(proposals)
    proposals = components_lib.broadcast(proposals)
    check_model(x, lambda x: components_lib.gather(proposals, tf.range(len(x))), decoder, prior)
    point_mass.check_not_singular(proposals, "proposal")
    return proposals


def warn_of_few_samples(result: LogEvidence, stacklevel: int) -> None:
    """Warns where few weights carry an estimate.

    Args:
      result: What was estimated.
      stacklevel: Of `warnings.warn`, counted from this function.
    """
    limit = min(MIN_EFFECTIVE_SAMPLE_SIZE, result.num_samples / 2)
    few = int(np.sum(result.effective_sample_sizes < limit))
    if few:
        warnings.warn(
            f"the effective sample size of {result.method} is below {limit:g} for {few} of "
            f"{len(result.per_observation)} observations (least "
            f"{result.effective_sample_sizes.min():.1f} of {result.num_samples}): their bounds "
            "are loose and their standard errors rough.",
            stacklevel=stacklevel,
        )
