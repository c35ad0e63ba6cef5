"""importance_weighted_elbo: the bounds between the ELBO and the log evidence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.components import components as components_lib
from tfp_surgery.evidence.importance_weights import log_weight_chunks, looked_at
from tfp_surgery.evidence.log_evidence import LogEvidence, RunningWeights
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.prepared_model import prepared_model

tfd = tfp.distributions


def importance_weighted_elbo(
    x: Any,
    encoder: Callable[[Any], tfd.Distribution] | tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    num_importance_samples: int,
    num_samples: int = 2,
    seed: Any = 0,
    batch_size: int = 2000,
) -> LogEvidence:
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
      encoder: Callable from `[B, *event_shape]` to a `tfd.Distribution` over codes, batch `[B]`. Or
        what it gave for x: an `AggregatePosterior` or a `tfd.Distribution` with batch `[N]`.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations,
        batch `[B]`, event `event_shape`.
      prior: `tfd.Distribution` over codes with batch `[]`, or a callable that returns one.
      num_importance_samples: m, draws of z inside the logarithm, at least 1.
      num_samples: k, independent repetitions, at least 1. With k = m = 1 the standard errors are
        NaN.
      seed: Integer in [0, 2**31), or a pair of int32. The same seed, m, k and `batch_size` give the
        same draws; another m or k gives draws of its own.
      batch_size: Number of observations encoded, and of codes decoded and scored, at a time.

    Returns:
      `LogEvidence`, a stochastic lower bound; its `estimate` is MC_k-IW_m.

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
    seed = seeds.checked_seed(seed)
    batch_size = checked_integer("batch_size", batch_size, 1)
    model = prepared_model(x, encoder, decoder, prior, seed, batch_size)
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
    for chunk in log_weight_chunks(
        model, model.posteriors, num_importance_samples * num_samples, key, batch_size
    ):
        weights.add(*chunk)
    consistency.warn(sentences, stacklevel=3)
    return weights.log_evidence(
        "lower",
        method=f"MC_{num_samples}-IW_{num_importance_samples}",
        data=model.data,
        seed=seed,
        warnings=sentences,
    )
