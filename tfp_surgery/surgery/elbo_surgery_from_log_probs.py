"""elbo_surgery_from_log_probs: the terms of the ELBO from samples and log densities alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.arrays import checked_numbers
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.surgery.elbo_readings import readings_of
from tfp_surgery.surgery.elbo_surgery_result import (
    NO_CONDITION,
    NO_DECODER,
    NO_PARTS,
    ONLY_LOG_DENSITIES,
    PARTS,
    ElboSurgery,
)
from tfp_surgery.surgery.scored_draws import ScoredDraws
from tfp_surgery.surgery.terms import control_variates, disagreements, terms
from tfp_surgery.surgery.unseen_variance import unseen_of_prior

_AXES = (
    "The last two axes of log_posteriors may be swapped: log_posteriors[s, q, n] is the score of "
    "draw z[s, q] under posterior n, as of posteriors.log_prob(z[:, :, None])."
)
_OWN_TOLERANCE = 1e-3  # of log q(z|x_q) given twice, in nats, relative above one nat


def elbo_surgery_from_log_probs(
    *,
    log_posterior: Any,
    log_prior: Any,
    log_posteriors: Any = None,
    log_aggregate: Any = None,
    log_likelihood: Any = None,
    index: Any = None,
    num_observations: int | None = None,
    log_evidence: Any = None,
    data: str = "log densities",
) -> ElboSurgery:
    r"""Decomposes the ELBO, as `elbo_surgery` does, from log densities of another library.

    The draws are z_sq ~ q(z|x_q), S for each of Q observations of a data set of N. What must be
    known of them is log q(z_sq|x_q), log p(z_sq), log p(x_q|z_sq) for the reconstruction, and
    log q(z_sq) under all N posteriors: either as it is, or as the scores of all posteriors,

        log q(z_sq) = log 1/N sum_n exp(log_posteriors[s, q, n]),

    which also give the entropy of q(n|z_sq), and with it the second estimate of the index-code
    mutual information that checks the first.

    ```python
    # scores of PyTorch posteriors: z [S, N, D]; loc, scale [N, D]
    scores = torch.distributions.Normal(loc, scale).log_prob(z[:, :, None]).sum(-1)   # [S, N, N]
    tfs.elbo_surgery_from_log_probs(
        log_posterior=scores.diagonal(dim1=1, dim2=2), log_prior=log_prior, log_posteriors=scores,
        log_likelihood=log_likelihood,
    )
    ```

    Args:
      log_posterior: log q(z_sq|x_q), floats of shape `[S, Q]`, in nats.
      log_prior: log p(z_sq), likewise.
      log_posteriors: log q(z_sq|x_n) for all n, floats of shape `[S, Q, N]`; -inf is allowed.
      log_aggregate: log q(z_sq), shape `[S, Q]`, in place of `log_posteriors`.
      log_likelihood: log p(x_q|z_sq), shape `[S, Q]`; None leaves out the reconstruction and the
        ELBO.
      index: The numbers of the Q observations in [0, N), shape `[Q]`; None for all N in their
        order. A part of the observations must be a random one: standard errors then include the
        spread between observations.
      num_observations: N; needed with `log_aggregate` and `index`, where nothing else says it.
      log_evidence: log p(x_q), shape `[Q]`, for the readings of the ELBO; None if unknown.
      data: Name of the data set, for the table.

    Returns:
      `ElboSurgery`, in nats per observation. Closed forms and further parts are None.

    Raises:
      TypeError: If an argument is not an array of numbers.
      ValueError: If shapes do not fit, a value is not finite, an index is repeated or out of range,
        or `log_posteriors` contradicts `log_posterior` at an observation's own posterior.

    Warns:
      UserWarning: If numbers of the result contradict each other.
    """
    if (log_posteriors is None) == (log_aggregate is None):
        raise ValueError(
            "give either log_posteriors, the scores of all N posteriors [S, Q, N], or "
            "log_aggregate, log q(z) [S, Q]."
        )
    own = checked_draws("log_posterior", log_posterior)
    if own.ndim != 2 or own.size == 0:
        raise ValueError(
            f"log_posterior must have shape [S, Q] with at least one draw; got {list(own.shape)}."
        )
    shape = own.shape
    scores = None
    if log_posteriors is not None:
        scores = checked_numbers("log_posteriors", log_posteriors, "[S, Q, N]")
        if scores.ndim != 3 or scores.shape[:2] != shape:
            raise ValueError(
                f"log_posteriors must have shape [S, Q, N] = [{shape[0]}, {shape[1]}, N]; got "
                f"{list(scores.shape)}."
            )
        if num_observations not in (None, scores.shape[2]):
            raise ValueError(
                f"log_posteriors holds {scores.shape[2]} posteriors, and num_observations is "
                f"{num_observations}."
            )
        num_observations = scores.shape[2]
    rows, num_observations = _rows(index, num_observations, shape[1])
    if scores is not None:
        aggregate, entropy = _aggregate(scores, own, rows)
    else:
        aggregate, entropy = checked_draws("log_aggregate", log_aggregate, shape), None
        _check_bound(aggregate, own, num_observations)
    reconstruction = None
    if log_likelihood is not None:
        reconstruction = checked_draws("log_likelihood", log_likelihood, shape)
    draws = ScoredDraws(
        z=None,
        index=rows,
        reconstruction=reconstruction,
        log_posterior=own,
        log_prior=checked_draws("log_prior", log_prior, shape),
        log_aggregate=aggregate,
        index_entropy=entropy,
        closed_form_kl=None,
        closed_form_entropy=None,
        num_observations=num_observations,
        seed=None,
        data=f"{data}, N = {num_observations}",
        tolerance=None,
        evaluation="as given" if scores is None else "exact",
    )
    surgery = terms(draws)
    absent = {**surgery.absent, "condition_split": NO_CONDITION, "per_part": NO_PARTS}
    parts: dict[str, Any] = {}
    if log_evidence is not None:
        if reconstruction is None:
            raise ValueError("log_evidence is for the readings of the ELBO: give log_likelihood.")
        evidence = checked_draws("log_evidence", log_evidence, shape[1:])
        parts["readings"] = readings_of(
            control_variates(draws),
            reconstruction,
            own,
            draws.log_prior,
            aggregate,
            evidence,
            unseen_of_prior(draws),
        )
    else:
        absent["readings"] = "log_evidence is not given"
    absent["index_code_mutual_information_by_subtraction"] = ONLY_LOG_DENSITIES
    known = absent.keys() | parts.keys()
    absent |= {name: ONLY_LOG_DENSITIES for name in PARTS if name not in known}
    if reconstruction is None:
        reason = "log_likelihood is not given"
        absent |= {name: reason for name, why in absent.items() if why == NO_DECODER}
    sentences = disagreements(surgery, draws)
    found = consistency.explained(sentences, None if scores is None or not sentences else _AXES)
    for part in parts.values():
        found += part.warnings
    consistency.warn(found, stacklevel=3)
    return dataclasses.replace(surgery, **parts, absent=absent, warnings=found)


def _check_bound(aggregate: np.ndarray, own: np.ndarray, num_observations: int) -> None:
    """Raises a ValueError where log q(z) lies below log q(z|x_n) - log N, which it never does."""
    least = own.astype(np.float64) - math.log(num_observations)
    below = least - aggregate > _OWN_TOLERANCE * np.maximum(1.0, np.abs(own))
    if below.any():
        raise ValueError(
            f"log_aggregate lies below log_posterior - log N in {below.sum()} of {below.size} "
            "draws, but q(z) = 1/N sum_n q(z|x_n) is at least q(z|x_n) / N: it must be of the same "
            f"draws, over all {num_observations} posteriors, with 1/N taken once."
        )


def _rows(index: Any, num_observations: int | None, num_query: int) -> tuple[np.ndarray, int]:
    """Returns the numbers of the observations, shape `[Q]`, and N."""
    if num_observations is None:
        if index is not None:
            raise ValueError("index needs num_observations, the size N of the whole data set.")
        num_observations = num_query
    num_observations = checked_integer("num_observations", num_observations, 1)
    if index is None:
        if num_observations != num_query:
            raise ValueError(
                f"there are draws of {num_query} observations of {num_observations}: index must "
                "say which."
            )
        return np.arange(num_query), num_observations
    rows = checked_numbers("index", index, "[Q]")
    if not np.issubdtype(rows.dtype, np.integer) and np.array_equal(rows, np.round(rows)):
        rows = rows.astype(np.int64)  # a list of integers
    is_index = rows.shape == (num_query,) and np.issubdtype(rows.dtype, np.integer)
    if not is_index or len(np.unique(rows)) < num_query:
        raise ValueError(
            f"index must hold {num_query} different integers, the observations of the draws; got "
            f"{rows.dtype} of shape {list(rows.shape)}."
        )
    if rows.min() < 0 or rows.max() >= num_observations:
        raise ValueError(f"index must lie in [0, {num_observations}).")
    return rows, num_observations


def _aggregate(
    scores: np.ndarray, own: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns log q(z) and H[q(n|z)], shape `[S, Q]`, in the dtype of the scores."""
    wide = scores.astype(np.float64)
    if np.isnan(wide).any() or np.isposinf(wide).any():
        raise ValueError("log_posteriors must be finite or -inf, and some are NaN or infinite.")
    of_own = np.take_along_axis(wide, rows[np.newaxis, :, np.newaxis], axis=2)[..., 0]  # [S, Q]
    gap = np.abs(of_own - own)
    if not (gap <= _OWN_TOLERANCE * np.maximum(1.0, np.abs(own))).all():
        raise ValueError(
            "log_posteriors[s, q, index[q]] is the score of a draw under its own posterior and "
            f"must equal log_posterior[s, q], but they differ by up to {np.nanmax(gap):.3g} nats: "
            "the last axis must be that of the posteriors, in the order of the observations."
        )
    top = wide.max(axis=2, keepdims=True)
    ratio = np.exp(wide - top)
    mass = ratio.sum(axis=2)
    log_sum = top[..., 0] + np.log(mass)
    posterior = ratio / mass[..., np.newaxis]  # q(n|z)
    terms_of = np.where(posterior > 0, posterior * (log_sum[..., np.newaxis] - wide), 0.0)
    dtype = scores.dtype if np.issubdtype(scores.dtype, np.floating) else np.float64
    return (log_sum - math.log(scores.shape[2])).astype(dtype), terms_of.sum(axis=2).astype(dtype)
