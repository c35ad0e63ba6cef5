"""Decomposes the gap between log evidence and ELBO into approximation and amortization gap."""

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
    r"""The gap between log evidence and ELBO, in nats per observation.

        log p(x) - ELBO = approximation gap + amortization gap

    All expectations are averages over the same N observations. Standard errors are conditional on
    the data, and include that of the log evidence. 95% intervals refer to the ELBO of q and to that
    of the q* found by the optimiser. The interval of the approximation gap refers to the
    expectation of the given log evidence (which may be a bound) minus the latter.

    Attributes:
      log_evidence: 1/N sum_n log p(x_n), as given.
      elbo: ELBO of the encoder's q(z|x).
      optimal_elbo: ELBO of the refined q*_n, one per observation.
      approximation_gap: Log evidence - optimal ELBO, due to the family of q.
      amortization_gap: Optimal ELBO - ELBO, due to the encoder.
      num_observations: N.
      num_steps: Number of steps of the refinement.
      data: Description of the data set: its name, N and binarization.
      seed: Seed of the draws.
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
    encoder: Callable[..., tfd.Distribution] | tfd.Distribution,
    decoder: Callable[..., tfd.Distribution],
    prior: tfd.Distribution | Callable[..., tfd.Distribution],
    *,
    log_evidence: LogEvidence | np.ndarray,
    num_samples: int = 200,
    num_steps: int = 500,
    learning_rate: float = 0.05,
    seed: Any = 0,
    batch_size: int | None = None,
    condition: Any = None,
) -> InferenceGaps:
    r"""Decomposes log p(x) - ELBO into approximation and amortization gap (Cremer et al. 2018).

        log p(x) - ELBO[q] = (log p(x) - ELBO[q*]) + (ELBO[q*] - ELBO[q])

    q* is the best member of the encoder's family for each observation, found by
    `refined_posteriors`. Both ELBOs are measured with common draws that are independent of the
    optimisation.

    If the optimiser does not reach q*, the approximation gap is too large and the amortization gap
    too small by the same amount. If the log evidence is a lower bound, the approximation gap is too
    small by the gap of the bound.

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
      log_evidence: log p(x_n) of the same observations in the same order, in nats: a `LogEvidence`,
        or an array of exact values, shape `[N]`.
      num_samples: Number of draws per observation from which both ELBOs are measured, at least 2.
      num_steps: Number of steps of Adam, at least 1.
      learning_rate: Initial learning rate of Adam.
      seed: Integer in [0, 2**31), or a pair of int32. The same seed and `batch_size` give the
        same result.
      batch_size: Number of observations encoded, and of codes decoded, at a time; None for as many
        as fit in 32 MiB by their shapes (a quarter of that where gradients are taken), whatever
        the machine is.
      condition: What encoder, decoder and prior may depend on beside x and z: array-like of shape
        `[N, ...]`, or a structure of these. Those of them that have a keyword argument `condition`
        get the conditions of their batch, repeated in step with the codes. The evidence is then
        p(x_n|c_n).

    Returns:
      `InferenceGaps`.

    Raises:
      TypeError: If encoder, decoder or prior do not return distributions, if none of them takes the
        condition, if the posteriors are of another family, or if decoder or prior have no gradients
        that XLA compiles.
      ValueError: If x is empty, not finite or outside the support of the likelihood, if shapes do
        not fit, if a number is out of range, or if a log density is not finite.

    Warns:
      UserWarning: If a gap is negative by many standard errors.

    #### References

    Chris Cremer, Xuechen Li, David Duvenaud. Inference suboptimality in variational autoencoders.
    ICML 2018.
    """
    num_samples = checked_integer("num_samples", num_samples, 2)
    seed = seeds.checked_seed(seed)
    arrays.reject_missing("log_evidence", log_evidence)
    refinement = Refinement(num_steps, learning_rate, seed, batch_size)
    model = prepared_model(
        x, encoder, decoder, prior, seed, refinement.batch_size, condition=condition
    )
    num_observations = model.num_observations
    evidence = _average_log_evidence(log_evidence, num_observations)
    refined = refinement.run(model)
    # One key, so that both ELBOs share their noise.
    key = seeds.key(seed, "inference_gaps/codes")
    samples = {
        name: _elbo_draws(model, posteriors, num_samples, key)
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
) -> np.ndarray:
    """Returns draws of log p(x_n, z) - log q(z), shape `[S, N]`, in the dtype of the posteriors."""
    draws = np.empty([num_samples, model.num_observations], posteriors.dtype.as_numpy_dtype)
    for samples, rows, log_weights in log_weight_chunks(model, posteriors, num_samples, key):
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
