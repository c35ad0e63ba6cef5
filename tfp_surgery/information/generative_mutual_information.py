"""Mutual information of code and observation under the generative model p(z) p(x|z)."""

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
from tfp_surgery.checks.networks import build_prior, check_decoder_output, unwrap
from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.bound import Bound, batch_estimate
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.result import Result
from tfp_surgery.seeds import Seed

tfd = tfp.distributions

_QUANTITY = "I_dec(X; Z) under p(z) p(x|z)"
# Groups of observations that share their fresh codes; the standard error is between groups.
_NUM_GROUPS = 50
# Codes decoded at a time to draw observations.
_DRAWN_TOGETHER = 1000
# Elements scored at a time: observations times codes times the size of an observation.
_BLOCK_SIZE = 2**22


@dataclasses.dataclass(frozen=True)
class GenerativeMutualInformation(Result):
    """Lower and upper bounds on I_dec(X; Z) from common draws, in nats.

    Attributes:
      lower: The bound that includes the observation's own code; ceiling log(m + 1).
      upper: The bound over fresh codes alone; None if it is infinite.
      num_observations: Number of draws from p(z) p(x|z), after rounding.
      num_importance_samples: Number m of fresh codes that estimate log p(x).
      seed: Seed of the draws.
    """

    lower: Bound
    upper: Bound | None
    num_observations: int
    num_importance_samples: int
    seed: Seed

    def _title(self) -> list[str]:
        draws = f"{self.num_observations} observations, {self.num_importance_samples} inner codes"
        return [f"I_dec(X; Z) under p(z) p(x|z), nats; {draws}, seed {self.seed}"]

    def _rows(self) -> list[tuple[str, Any]]:
        return [("I_dec(X; Z)", self.lower), ("I_dec(X; Z)", self.upper)]


def generative_mutual_information(
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    num_observations: int = 1000,
    num_importance_samples: int = 1000,
    seed: Any = 0,
) -> GenerativeMutualInformation:
    r"""Bounds the mutual information of code and observation under the generative model.

        I_dec(X; Z) = E_p(z)p(x|z)[log p(x|z) - log p(x)]

    (Zheng's equation 3) depends on decoder and prior alone, not on data or encoder. log p(x) is
    estimated from m codes z'_1..z'_m of the prior that are independent of x ~ p(x|z):

        upper = E[log p(x|z) - log 1/m sum_j p(x|z'_j)]
        lower = E[log p(x|z) - log 1/(m+1) (p(x|z) + sum_j p(x|z'_j))]

    By Jensen's inequality, the upper bound is at least I_dec. The lower bound is InfoNCE with the
    decoder as critic (Poole et al. 2019, equation 12). It is at most I_dec and at most log(m + 1),
    which it reaches if every x identifies its code among m others. For large m, the bias is near
    -c/(2m) for the lower and c/(2m) for the upper bound, with
    c = E_p(x) Var_p(z)[p(x|z) / p(x)]. Since c grows as exp(I_dec), so must m.

    The observations of a group share m fresh codes. There are 50 groups (fewer for fewer
    observations), and standard errors are computed between groups. They refer to the expectations
    of the two bounds, not to I_dec.

    Args:
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations with
        batch shape `[B]`, discrete or continuous.
      prior: `tfd.Distribution` over codes with batch shape `[]`, or a callable that returns one.
      num_observations: Number of draws (z, x), at least 2. Above 50, it is rounded up to a multiple
        of 50.
      num_importance_samples: m, at least 1. Memory does not grow with it.
      seed: Integer in [0, 2**31), or a pair of int32.

    Returns:
      `GenerativeMutualInformation`, both bounds from common draws.

    Raises:
      TypeError: If decoder or prior do not return distributions over single tensors.
      ValueError: If the prior has a batch shape, the batch shape of the decoder's output is not
        `[B]`, a number is out of range, or a log density of the model is not finite at its own
        draws.

    Warns:
      UserWarning: If the lower bound exceeds the upper bound by many standard errors.

    #### References

    Ben Poole, Sherjil Ozair, Aaron van den Oord, Alexander A. Alemi and George Tucker. On
    Variational Bounds of Mutual Information. ICML, 2019.
    """
    num_observations = checked_integer("num_observations", num_observations, 2)
    num_importance_samples = checked_integer("num_importance_samples", num_importance_samples, 1)
    seed = seeds.checked_seed(seed)
    if not callable(decoder):
        raise TypeError(f"decoder must be callable, got {type(decoder).__name__}.")
    prior_now = build_prior(prior)
    if tf.nest.is_nested(prior_now.dtype):
        raise TypeError(
            f"the prior must be a distribution over single tensors, got {type(prior_now).__name__}."
        )
    if prior_now.batch_shape.rank != 0:
        raise ValueError(
            f"the prior must be one distribution, got batch shape {prior_now.batch_shape}."
        )

    num_groups = min(_NUM_GROUPS, num_observations)
    group_size = math.ceil(num_observations / num_groups)
    key = seeds.key(seed, "generative_mutual_information/codes")
    x, own = _draw(decoder, prior_now, num_groups * group_size, key)
    own = checked_draws(
        "log p(x|z)", own, cause=lambda _: "the decoder gives none at its own draws of p(z) p(x|z)."
    )
    own = own.reshape(num_groups, group_size)
    x = tf.reshape(x, [num_groups, group_size, *x.shape[1:]])  # [G B, ...] -> [G, B, ...]
    key = seeds.key(seed, "generative_mutual_information/inner_codes")
    log_sums = _log_sums(decoder, prior_now, x, num_importance_samples, key)

    def estimate(values: np.ndarray) -> Estimate:
        return batch_estimate(values.mean(axis=1), group_size)

    lower = Bound(
        estimate(own - np.logaddexp(log_sums, own) + math.log(num_importance_samples + 1)),
        "lower",
        _QUANTITY,
        "near -E_p(x) Var_p(z)[p(x|z) / p(x)] / (2 m) for large m",
        math.log(num_importance_samples + 1),
    )
    upper = None
    absent: dict[str, str] = {}
    if np.isfinite(log_sums).all():
        upper = Bound(
            estimate(own - log_sums + math.log(num_importance_samples)),
            "upper",
            _QUANTITY,
            "near E_p(x) Var_p(z)[p(x|z) / p(x)] / (2 m) for large m",
        )
    else:
        absent["upper"] = "infinite: no fresh code can have given one of the observations"
    sentences: tuple[str, ...] = ()
    if upper is not None:
        sentences = consistency.explained(
            consistency.above("The lower bound", lower.estimate, "the upper one", upper.estimate)
        )
        consistency.warn(sentences, stacklevel=3)
    return GenerativeMutualInformation(
        lower,
        upper,
        own.size,
        num_importance_samples,
        seed,
        absent=absent,
        warnings=sentences,
    )


def _draw(
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution,
    num_observations: int,
    key: tf.Tensor,
) -> tuple[tf.Tensor, np.ndarray]:
    """Draws z ~ p(z), x ~ p(x|z); returns x `[N, *event_shape]`, log p(x|z) float64 `[N]`."""
    observations, log_probs = [], []
    for number, start in enumerate(range(0, num_observations, _DRAWN_TOGETHER)):
        code_seed, observation_seed = tf.unstack(
            tf.random.experimental.stateless_split(seeds.fold_in(key, number), 2)
        )
        count = min(_DRAWN_TOGETHER, num_observations - start)
        likelihood = _decode(decoder, prior.sample(count, seed=code_seed))
        x = likelihood.sample(seed=observation_seed)
        observations.append(x)
        log_probs.append(np.asarray(likelihood.log_prob(x), np.float64))
    return tf.concat(observations, axis=0), np.concatenate(log_probs)


def _log_sums(
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution,
    x: tf.Tensor,
    num_importance_samples: int,
    key: tf.Tensor,
) -> np.ndarray:
    """Returns log sum_j p(x|z'_j) over the fresh codes of each group, float64, shape `[G, B]`."""
    num_groups, group_size = x.shape[:2]
    x = tf.transpose(x, [1, 0, *range(2, x.shape.rank)])  # [B, G, ...]
    per_step = max(1, _BLOCK_SIZE * num_groups // int(tf.size(x)))
    log_sums = np.full([group_size, num_groups], -np.inf)
    # The codes of all groups form one sequence, so that small groups share a step.
    num_codes = num_groups * num_importance_samples
    for number, start in enumerate(range(0, num_codes, per_step)):
        groups = np.arange(start, min(start + per_step, num_codes)) // num_importance_samples  # [C]
        codes = prior.sample(len(groups), seed=seeds.fold_in(key, number))
        scores = _decode(decoder, codes).log_prob(tf.gather(x, groups, axis=1))  # [B, C]
        scores = np.asarray(scores, np.float64)
        if np.isnan(scores).any() or np.isposinf(scores).any():
            raise ValueError("log p(x|z) is NaN or infinite at a code of the prior.")
        shown, first = np.unique(groups, return_index=True)
        sums = np.logaddexp.reduceat(scores, first, axis=1)
        log_sums[:, shown] = np.logaddexp(log_sums[:, shown], sums)
    return log_sums.T


def _decode(decoder: Callable[[Any], tfd.Distribution], codes: tf.Tensor) -> tfd.Distribution:
    """Returns p(x|z) of codes `[B, *code_shape]` after checks."""
    likelihood = decoder(codes)
    if not isinstance(likelihood, tfd.Distribution) or tf.nest.is_nested(likelihood.dtype):
        raise TypeError(
            "the decoder must return a tfp.distributions.Distribution over single tensors, got "
            f"{type(likelihood).__name__}."
        )
    likelihood = unwrap(likelihood)
    event_shape = tuple(likelihood.event_shape.as_list())
    return check_decoder_output(likelihood, len(codes), event_shape)
