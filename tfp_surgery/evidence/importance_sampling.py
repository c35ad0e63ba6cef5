"""Estimates the log evidence of every observation by importance sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.batch_size import checked_batch_size
from tfp_surgery.evidence.importance_weights import log_weight_chunks, looked_at
from tfp_surgery.evidence.log_evidence import LogEvidence, RunningWeights, warn_of_few_samples
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.prepared_model import prepared_model

tfd = tfp.distributions


def log_evidence_by_importance_sampling(
    x: Any,
    encoder: Callable[..., tfd.Distribution] | tfd.Distribution,
    decoder: Callable[..., tfd.Distribution],
    prior: tfd.Distribution | Callable[..., tfd.Distribution],
    *,
    num_importance_samples: int = 5000,
    seed: Any = 0,
    batch_size: int | None = None,
    condition: Any = None,
    reencode: bool = False,
) -> LogEvidence:
    r"""Estimates log p(x_n) of every observation by importance sampling from q(z|x_n).

        log p(x_n) >= E[log 1/m sum_s p(x_n, z_s) / q(z_s|x_n)],   z_s ~ q(z|x_n)

    (Burda et al. 2016, equation 8), with equality as m grows. The mean weight is unbiased for
    p(x_n). Its logarithm is, in expectation, a lower bound on log p(x_n), which tightens as m
    grows. Memory does not grow with m.

    Args:
      x: The data set: array-like of shape `[N, *event_shape]`, a structure of these, or a
        `tfp_surgery.datasets.Dataset`; see `read_observations`. A stochastic binarization is drawn
        once, from `seed`.
      encoder: Callable from observations `[B, *event_shape]` to a `tfd.Distribution` over codes
        with batch shape `[B]`. Or the proposals: an `AggregatePosterior`, or a `tfd.Distribution`
        with batch shape `[N]`, for instance from `refined_posteriors`. They must be independent of
        the draws made here.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations with
        batch shape `[B]` and event shape `event_shape`.
      prior: `tfd.Distribution` over codes with batch shape `[]`, or a callable that returns one. A
        callable that takes the condition returns one distribution for each, batch shape `[B]`.
      num_importance_samples: m, at least 1.
      seed: Integer in [0, 2**31), or a pair of int32. The same seed and `batch_size` give the same
        draws.
      batch_size: Number of observations encoded, and of codes decoded, at a time; None for as
        many as fit in 32 MiB by their shapes, whatever the machine is.
      condition: What encoder, decoder and prior may depend on beside x and z: array-like of shape
        `[N, ...]`, or a structure of these. Those of them that have a keyword argument `condition`
        get the conditions of their batch, repeated in step with the codes. The evidence is then
        p(x_n|c_n).
      reencode: Whether the encoder is called again, in blocks of observations, for each batch of
        draws, for posteriors whose parameters cannot be joined: context in closures, linear
        operators, joint distributions of dependent parts.

    Returns:
      `LogEvidence`, a stochastic lower bound.

    Raises:
      TypeError: If encoder, decoder or prior do not return distributions, if none of them takes the
        condition, or if posteriors cannot be joined by their parameters and `reencode` is
        False.
      ValueError: If x is empty, not finite or outside the support of the likelihood, if shapes do
        not fit, if a number is out of range, or if a log density is NaN.

    Warns:
      UserWarning: If the effective sample size of an observation is below 10 and below m / 2, where
        its standard error is about 0.3 nats or more and not reliable, or if rounding has moved
        draws of the posteriors.

    #### References

    Yuri Burda, Roger Grosse, Ruslan Salakhutdinov. Importance weighted autoencoders. ICLR 2016.

    Sebastian Nowozin. Debiasing evidence approximations. ICLR 2018.
    """
    num_importance_samples = checked_integer("num_importance_samples", num_importance_samples, 1)
    batch_size = checked_batch_size(batch_size)
    seed = seeds.checked_seed(seed)
    model = prepared_model(
        x, encoder, decoder, prior, seed, batch_size, condition=condition, reencode=reencode
    )
    sentences = looked_at(model.posteriors, model.prior)
    weights = RunningWeights(
        model.num_observations,
        num_importance_samples,
        1,
        components_lib.dtype_of(model.posteriors),
    )
    key = seeds.key(seed, "importance_sampling/codes")
    chunks = log_weight_chunks(model, model.posteriors, num_importance_samples, key)
    for chunk in chunks:
        weights.add(*chunk)
    result = weights.log_evidence(
        "lower",
        method=f"importance sampling, m = {num_importance_samples}",
        data=model.data,
        seed=seed,
        decoding=chunks.decoding,
        warnings=sentences,
    )
    consistency.warn(sentences, stacklevel=3)
    warn_of_few_samples(result, stacklevel=3)
    return result
