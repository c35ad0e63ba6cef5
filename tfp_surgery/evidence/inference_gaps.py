"""What is lost between the log evidence and the ELBO: by the family, and by the encoder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks import arrays
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.evidence.importance_weights import log_weight_chunks
from tfp_surgery.evidence.log_evidence import LogEvidence
from tfp_surgery.evidence.refined_posteriors import Refinement, independent_gaussians
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.prepared_model import PreparedModel, prepared_model
from tfp_surgery.measurement.result import Result
from tfp_surgery.seeds import Seed

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True)
class InferenceGaps(Result):
    r"""The gap between log evidence and ELBO in its two parts, in nats per observation.

        log p(x) - ELBO = approximation gap + amortization gap

    All expectations are averages over the same N observations; standard errors are those of the
    draws given the data, and of the log evidence as given. 95% intervals are around the ELBO of q
    and of the q* that the optimiser found; that of the approximation gap around the expectation of
    the log evidence's bound less the latter.

    Attributes:
      log_evidence: 1/N sum_n log p(x_n), as given.
      elbo: Of the encoder's q(z|x).
      optimal_elbo: Of the refined q*_n, one for each observation.
      approximation_gap: log evidence - optimal ELBO, what the family cannot express.
      amortization_gap: Optimal ELBO - ELBO, what the encoder does not find.
      num_observations: N.
      num_steps: Of the refinement.
      data: What data set this is.
      seed: The seed of the draws.
    """

    log_evidence: Estimate
    elbo: Estimate
    optimal_elbo: Estimate
    approximation_gap: Estimate
    amortization_gap: Estimate
    num_observations: int
    num_steps: int
    data: str
    seed: Seed

    def _title(self) -> list[str]:
        steps = f"q refined by {self.num_steps} steps"
        return [
            f"Inference gaps on {self.data}",
            f"nats per observation; {steps}, seed {self.seed}",
        ]

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            ("log evidence", self.log_evidence),
            ("ELBO, q refined", self.optimal_elbo),
            ("ELBO", self.elbo),
            ("approximation gap", self.approximation_gap),
            ("amortization gap", self.amortization_gap),
        ]


def inference_gaps(
    x: Any,
    encoder: Callable[[Any], tfd.Distribution] | tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    log_evidence: LogEvidence | np.ndarray,
    num_samples: int = 200,
    num_steps: int = 500,
    learning_rate: float = 0.05,
    seed: Any = 0,
    batch_size: int = 2000,
) -> InferenceGaps:
    r"""Splits log p(x) - ELBO into approximation and amortization gap (Cremer et al. 2018).

        log p(x) - ELBO[q] = (log p(x) - ELBO[q*]) + (ELBO[q*] - ELBO[q])

    q* is the best member of the encoder's family for each observation, as `refined_posteriors`
    finds it. Both ELBOs are then measured by fresh draws, common to both.

    What the optimiser does not find of q* makes the approximation gap too large and the
    amortization gap too small; a log evidence that is a lower bound makes the approximation gap
    too small by what it lacks.

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
      log_evidence: log p(x_n) of the same observations in the same order: a `LogEvidence`, or an
        array `[N]` of exact values.
      num_samples: Draws an observation to measure both ELBOs with, at least 2.
      num_steps: Of Adam, at least 1.
      learning_rate: Of Adam at first.
      seed: Integer in [0, 2**31), or a pair of int32. The same seed and `batch_size` give the
        same result.
      batch_size: Number of observations encoded, and of codes decoded, at a time.

    Returns:
      `InferenceGaps`.

    Raises:
      TypeError: If encoder, decoder or prior do not give distributions, or the encoder gives
        others than those named; or if decoder or prior have no gradients that XLA compiles.
      ValueError: If x is empty, not finite or outside the likelihood's support; if shapes do not
        fit; if a number is out of range; or if the model gives NaN.

    #### References

    Chris Cremer, Xuechen Li, David Duvenaud. Inference suboptimality in variational autoencoders.
    ICML 2018.
    """
    num_samples = checked_integer("num_samples", num_samples, 2)
    seed = seeds.checked_seed(seed)
    refinement = Refinement(num_steps, learning_rate, seed, batch_size)
    model = prepared_model(x, encoder, decoder, prior, seed, refinement.batch_size)
    num_observations = model.num_observations
    evidence = _average_log_evidence(log_evidence, num_observations)
    refined = refinement.run(model)
    # One key: the same noise for both.
    key = seeds.key(seed, "inference_gaps/codes")
    samples = {
        name: _elbo_draws(model, posteriors, num_samples, key, refinement.batch_size)
        for name, posteriors in (
            ("elbo", independent_gaussians(model.posteriors)),
            ("optimal_elbo", refined),
        )
    }

    def estimate(*terms: np.ndarray) -> Estimate:
        return stratified_estimate(terms, num_observations)

    optimal = estimate(samples["optimal_elbo"])
    gaps = InferenceGaps(
        log_evidence=evidence,
        elbo=estimate(samples["elbo"]),
        optimal_elbo=optimal,
        approximation_gap=Estimate(
            evidence.value - optimal.value,
            math.hypot(evidence.standard_error, optimal.standard_error),
            optimal.num_draws,
            min(evidence.degrees_of_freedom, optimal.degrees_of_freedom),
        ),
        amortization_gap=estimate(samples["optimal_elbo"], -samples["elbo"]),
        num_observations=num_observations,
        num_steps=refinement.num_steps,
        data=model.data,
        seed=seed,
    )
    sentences = _negative_gaps(gaps)
    consistency.warn(sentences, stacklevel=3)
    return dataclasses.replace(gaps, warnings=sentences)


def _negative_gaps(gaps: InferenceGaps) -> tuple[str, ...]:
    below = consistency.negative("The approximation gap", gaps.approximation_gap)
    if below:
        below.append(
            "The log evidence as given lies below an ELBO: it is not that of these observations "
            "under this model, or a lower bound that is too loose (more samples or temperatures)."
        )
    lost = consistency.negative("The amortization gap", gaps.amortization_gap)
    if lost:
        lost.append(
            "The refinement ended below where it began: a smaller learning_rate or more num_steps "
            "may help."
        )
    return (*below, *lost)


def _elbo_draws(
    model: PreparedModel,
    posteriors: tfd.Distribution,
    num_samples: int,
    key: tf.Tensor,
    batch_size: int,
) -> np.ndarray:
    """Draws of log p(x_n, z) - log q(z), `[S, N]` in the dtype of the densities."""
    draws = np.empty([num_samples, model.num_observations], posteriors.dtype.as_numpy_dtype)
    for samples, rows, log_weights in log_weight_chunks(
        model, posteriors, num_samples, key, batch_size
    ):
        draws[samples, rows] = log_weights
    return checked_draws(
        "log p(x, z) - log q(z)",
        draws,
        cause=lambda _: "the model gives no density there, or refinement diverged.",
    )


def _average_log_evidence(
    log_evidence: LogEvidence | np.ndarray, num_observations: int
) -> Estimate:
    if isinstance(log_evidence, LogEvidence):
        values, estimate = log_evidence.per_observation, log_evidence.estimate
    else:
        values = arrays.checked_numbers("log_evidence", log_evidence, "[N]").astype(np.float64)
        estimate = Estimate(float(values.mean()) if values.size else math.nan, 0.0, 0)
    if values.shape != (num_observations,) or not np.isfinite(values).all():
        raise ValueError(
            f"log_evidence must hold one finite value for each of the {num_observations} "
            f"observations, got {values.size} of shape {list(values.shape)}."
        )
    return estimate
