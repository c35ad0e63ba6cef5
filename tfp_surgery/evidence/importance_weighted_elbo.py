"""importance_weighted_elbo: bounds between the ELBO and the log evidence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.batch_size import checked_batch_size
from tfp_surgery.evidence.importance_weights import log_weight_chunks, looked_at
from tfp_surgery.evidence.log_evidence import LogEvidence, RunningWeights
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.prepared_model import prepared_model

tfd = tfp.distributions


def importance_weighted_elbo(
    x: Any,
    encoder: Callable[..., tfd.Distribution] | tfd.Distribution,
    decoder: Callable[..., tfd.Distribution],
    prior: tfd.Distribution | Callable[..., tfd.Distribution],
    *,
    num_importance_samples: int,
    num_samples: int = 2,
    seed: Any = 0,
    batch_size: int | None = None,
    condition: Any = None,
    reencode: bool = False,
) -> LogEvidence:
    r"""Estimates the importance-weighted bound IW_m on the log evidence of a data set.

    With k repetitions of m draws z_sin from q(z|x_n) (Burda et al. 2016, section 3, for k = 1;
    Rainforth et al. 2018, who train with it as MIWAE, for any k):

        MC_k-IW_m = 1/N sum_n 1/k sum_s log 1/m sum_i w_sin,
        w_sin = p(x_n|z_sin) p(z_sin) / q(z_sin|x_n)

    With m = 1, it is the Monte Carlo estimate of the ELBO from k draws; with k = 1, one draw of the
    IWAE's bound. Its expectation is IW_m for every k, with

        ELBO = IW_1 <= IW_m <= IW_m+1 <= log p(x),

    and IW_m tends to log p(x) for bounded weights (Burda et al. 2016, theorem 1). The standard
    error and interval refer to IW_m. As an estimate of log p(x), it is biased downwards, to first
    order by Var(w) / (2 m p(x)^2) (Nowozin 2018). To assess this bias, compare two values of m and
    look at the effective sample size.

    A step holds at most `batch_size` codes, however large m is. From the fifth step on they are
    decoded by a graph, where the decoder can be traced as one that gives the same values.

    Args:
      x: The data set: array-like of shape `[N, *event_shape]`, a structure of these, or a
        `tfp_surgery.datasets.Dataset`; see `read_observations`. A stochastic binarization is drawn
        once, from `seed`.
      encoder: Callable from observations `[B, *event_shape]` to a `tfd.Distribution` over codes
        with batch shape `[B]`. Or the posteriors of x, which are then not encoded again: an
        `AggregatePosterior`, or a `tfd.Distribution` with batch shape `[N]`.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations with
        batch shape `[B]` and event shape `event_shape`.
      prior: `tfd.Distribution` over codes with batch shape `[]`, or a callable that returns one. A
        callable that takes the condition returns one distribution for each, batch shape `[B]`.
      num_importance_samples: Number m of draws of z inside the logarithm, at least 1.
      num_samples: Number k of independent repetitions, at least 1. With k = m = 1, the standard
        errors are NaN.
      seed: Integer in [0, 2**31), or a pair of int32. The same seed, m, k and `batch_size` give the
        same draws; other values of m or k give independent draws.
      batch_size: Number of observations encoded, and of codes decoded and scored, at a time; None
        for as many as fit in 32 MiB by their shapes, whatever the machine is.
      condition: What encoder, decoder and prior may depend on beside x and z: array-like of shape
        `[N, ...]`, or a structure of these. Those of them that have a keyword argument `condition`
        get the conditions of their batch, repeated in step with the codes. The evidence is then
        p(x_n|c_n).
      reencode: Whether the encoder is called again, in blocks of observations, for each batch of
        draws, for posteriors whose parameters cannot be joined: context in closures, linear
        operators, joint distributions of dependent parts.

    Returns:
      `LogEvidence`, a stochastic lower bound. Its `estimate` is MC_k-IW_m.

    Raises:
      TypeError: If encoder, decoder or prior do not return distributions, if none of them takes the
        condition, if posteriors cannot be joined by their parameters and `reencode` is False, or a
        number is not an integer.
      ValueError: If x is empty, not finite or outside the support of the likelihood, if shapes do
        not fit, if a number is out of range, if a log density is NaN, or if all m weights of an
        observation are zero.

    Warns:
      UserWarning: If the standard errors are unknown, or if rounding has moved draws of the
        posteriors.

    #### References

    Yuri Burda, Roger Grosse, Ruslan Salakhutdinov. Importance weighted autoencoders. ICLR, 2016.

    Sebastian Nowozin. Debiasing evidence approximations: on importance-weighted autoencoders and
    jackknife variational inference. ICLR, 2018.

    Tom Rainforth et al. Tighter variational bounds are not necessarily better. ICML, 2018.
    """
    num_importance_samples = checked_integer("num_importance_samples", num_importance_samples, 1)
    num_samples = checked_integer("num_samples", num_samples, 1)
    seed = seeds.checked_seed(seed)
    batch_size = checked_batch_size(batch_size)
    model = prepared_model(
        x, encoder, decoder, prior, seed, batch_size, condition=condition, reencode=reencode
    )
    if num_samples == num_importance_samples == 1:
        warnings.warn(
            "with num_samples = num_importance_samples = 1 the standard errors are unknown (NaN).",
            stacklevel=2,
        )
    sentences = looked_at(model.posteriors, model.prior)
    weights = RunningWeights(
        model.num_observations,
        num_importance_samples,
        num_samples,
        components_lib.dtype_of(model.posteriors),
    )
    key = seeds.key(seed, "importance_weighted_elbo/codes", num_importance_samples, num_samples)
    chunks = log_weight_chunks(model, model.posteriors, num_importance_samples * num_samples, key)
    for chunk in chunks:
        weights.add(*chunk)
    consistency.warn(sentences, stacklevel=3)
    return weights.log_evidence(
        "lower",
        method=f"MC_{num_samples}-IW_{num_importance_samples}",
        data=model.data,
        seed=seed,
        decoding=chunks.decoding,
        warnings=sentences,
    )
