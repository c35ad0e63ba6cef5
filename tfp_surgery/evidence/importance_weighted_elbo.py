"""importance_weighted_elbo: the bounds between the ELBO and the log evidence, streamed."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.arguments import MAX_SEED, checked_integer
from tfp_surgery.checks.networks import build_prior
from tfp_surgery.components import components as components_lib
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate, rounding, stratified_estimate
from tfp_surgery.evidence.importance_weights import log_weight_chunks, looked_at
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model import check_model, check_no_nan, observations_of

tfd = tfp.distributions

# The surgery draws from stream 1 of a seed, training and its evaluation from 0 and 4.
_STREAM = 5


@dataclasses.dataclass(frozen=True, eq=False)
class ImportanceWeightedElbo:
    """MC_k-IW_m-ELBO of a data set, in nats per observation; see `importance_weighted_elbo`.

    Attributes:
      estimate: The average over draws and observations, with the standard error of the draws given
        the data; NaN where k = 1.
      values: float64 `[k, N]`: log of the mean of m importance weights, one for each of the k
        independent repetitions and each observation.
      effective_sample_size: float64 `[k, N]`, in [1, m]: 1 / sum_i v_i^2 of the normalized weights
        v_i behind each value. Near 1 a single draw carries the value, and its log evidence is
        likely to be missed by much.
      num_importance_samples: m.
      num_samples: k.
      num_observations: N.
      seed: The seed of the draws.
      data: What data set this is: its name, N and binarization.
      warnings: Sentences on draws that rounding moved. Empty where nothing was found.
    """

    estimate: Estimate
    values: np.ndarray
    effective_sample_size: np.ndarray
    num_importance_samples: int
    num_samples: int
    num_observations: int
    seed: int
    data: str
    warnings: tuple[str, ...] = ()

    @property
    def observation_values(self) -> np.ndarray:
        """The bound of each observation, the mean over the k repetitions: float64 `[N]`."""
        means: np.ndarray = self.values.mean(axis=0)
        return means

    @property
    def observation_standard_errors(self) -> np.ndarray:
        """Standard errors of `observation_values`, float64 `[N]`; NaN where k = 1."""
        if self.num_samples == 1:
            return np.full(self.num_observations, np.nan)
        errors: np.ndarray = self.values.std(axis=0, ddof=1) / np.sqrt(self.num_samples)
        return errors

    def to_dict(self) -> dict[str, Any]:
        """Returns plain, JSON-ready values: the estimate, sizes, mean and least ESS."""
        return {
            "num_importance_samples": self.num_importance_samples,
            "num_samples": self.num_samples,
            "importance_weighted_elbo": self.estimate.to_dict(),
            "mean_effective_sample_size": float(self.effective_sample_size.mean()),
            "least_effective_sample_size": float(self.effective_sample_size.min()),
            "num_observations": self.num_observations,
            "seed": self.seed,
            "data": self.data,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        """Two lines, of what and the bound with its standard error, and what to doubt."""
        draws, samples = self.num_samples, self.num_importance_samples
        ess = self.effective_sample_size
        text = (
            f"Importance-weighted ELBO of {self.data}\n"
            f"  MC_{draws}-IW_{samples} = {self.estimate} nats per observation; effective sample "
            f"size {ess.mean():.1f} of {samples} on average, {ess.min():.1f} at least"
        )
        return "\n".join([text, *consistency.warning_lines(self.warnings)])


def importance_weighted_elbo(
    x: Any,
    encoder: Callable[[Any], tfd.Distribution],
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    num_importance_samples: int,
    num_samples: int = 2,
    seed: int = 0,
    batch_size: int = 2000,
) -> ImportanceWeightedElbo:
    r"""The importance-weighted bound on the log evidence, MC_k-IW_m-ELBO, of a data set.

    With k repetitions of m draws z_sin from q(z|x_n) (Burda et al. 2016, section 3; for both
    numbers Rainforth et al. 2018, who train with it as MIWAE):

        MC_k-IW_m = 1/N sum_n 1/k sum_s log 1/m sum_i w_sin,
        w_sin = p(x_n|z_sin) p(z_sin) / q(z_sin|x_n)

    (k, 1) is the Monte Carlo estimate of the ELBO from k draws, (1, m) one draw of the IWAE's
    bound. For every k the expectation is IW_m, and

        ELBO = IW_1 <= IW_m <= IW_m+1 <= log p(x),

    and for bounded weights IW_m tends to log p(x) (Burda et al. 2016, theorem 1). The estimate is
    unbiased for IW_m, and its interval covers IW_m. As an estimate of log p(x) it is biased
    downwards, to first order by Var(w) / (2 m p(x)^2) (Nowozin 2018), and neither standard error
    nor interval know of that bias: compare two values of m, and look at the effective sample
    size.

    The sum over i is streamed: a step holds `batch_size` codes at most, however large m is.

    Args:
      x: The data set: array-like or `Tensor` of shape `[N, *event_shape]`, or a
        `tfp_surgery.datasets.Dataset`. A stochastic binarization is observed in the one draw that
        `seed` names.
      encoder: Callable from `[B, *event_shape]` to a `tfd.Distribution` over codes, batch `[B]`.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations,
        batch `[B]`, event `event_shape`.
      prior: `tfd.Distribution` over codes with batch `[]`, or a callable that returns one.
      num_importance_samples: m, draws of z inside the logarithm, at least 1.
      num_samples: k, independent repetitions, at least 1. With 1 the standard errors are NaN.
      seed: Integer in [0, 2**31). The same seed, m, k and `batch_size` give the same draws;
        another m or k gives draws of its own.
      batch_size: Number of observations encoded, and of codes decoded and scored, at a time.

    Returns:
      `ImportanceWeightedElbo`, everything in nats.

    Raises:
      TypeError: If encoder, decoder or prior do not give distributions, or a number is no integer.
      ValueError: If x is empty, not finite or outside the likelihood's support; if shapes do not
        fit; if a number is out of range; or if the model gives NaN, or all m weights are zero.

    #### References

    Yuri Burda, Roger Grosse, Ruslan Salakhutdinov. Importance weighted autoencoders. ICLR, 2016.

    Sebastian Nowozin. Debiasing evidence approximations: on importance-weighted autoencoders and
    jackknife variational inference. ICLR, 2018.

    Tom Rainforth et al. Tighter variational bounds are not necessarily better. ICML, 2018.
    """
    num_importance_samples = checked_integer("num_importance_samples", num_importance_samples, 1)
    num_samples = checked_integer("num_samples", num_samples, 1)
    seed = checked_integer("seed", seed, 0, MAX_SEED)
    batch_size = checked_integer("batch_size", batch_size, 1)
    prior_now = build_prior(prior)
    x, data = observations_of(x, seed)
    check_model(x, encoder, decoder, prior_now, None)
    if num_samples == 1:
        warnings.warn("with num_samples=1 the standard errors are unknown (NaN).", stacklevel=2)
    aggregate = AggregatePosterior.from_encoder(encoder, x, batch_size=batch_size)
    check_no_nan(aggregate)
    posteriors = aggregate.components_distribution
    sentences = looked_at(posteriors, prior_now)
    log_sum, log_sum_of_squares = _log_sums(
        x,
        posteriors,
        decoder,
        prior_now,
        num_importance_samples,
        num_samples,
        seed,
        batch_size,
    )
    values = checked_draws("log mean importance weight", log_sum - np.log(num_importance_samples))
    consistency.warn(sentences, stacklevel=3)
    return ImportanceWeightedElbo(
        estimate=stratified_estimate(
            values,
            len(x),
            rounding(values.astype(components_lib.dtype_of(posteriors).as_numpy_dtype)),
        ),
        values=values,
        effective_sample_size=np.exp(2.0 * log_sum - log_sum_of_squares),
        num_importance_samples=num_importance_samples,
        num_samples=num_samples,
        num_observations=len(x),
        seed=seed,
        data=data,
        warnings=sentences,
    )


def _log_sums(
    x: np.ndarray,
    posteriors: tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution,
    num_importance_samples: int,
    num_samples: int,
    seed: int,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """log sum_i w_i and log sum_i w_i^2, each float64 `[k, N]`, over m draws in a row."""
    base_seed = tf.constant([seed, _STREAM], tf.int32)
    for number in (num_importance_samples, num_samples):
        base_seed = tf.random.experimental.stateless_fold_in(base_seed, number)
    log_sums = np.full([2, num_samples, len(x)], -np.inf)
    num_draws = num_importance_samples * num_samples
    for draws, rows, log_weights in log_weight_chunks(
        x, posteriors, decoder, prior, num_draws, base_seed, batch_size
    ):
        first, last = (
            draws.start // num_importance_samples,
            -(-draws.stop // num_importance_samples),
        )
        starts = np.arange(first, last) * num_importance_samples - draws.start
        starts[0] = 0
        with np.errstate(invalid="ignore"):  # NaN is found at the end
            for power, total in zip((1.0, 2.0), log_sums, strict=True):
                chunk_sums = np.logaddexp.reduceat(power * log_weights, starts, axis=0)
                total[first:last, rows] = np.logaddexp(total[first:last, rows], chunk_sums)
    return log_sums[0], log_sums[1]
