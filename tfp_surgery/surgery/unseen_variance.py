"""unseen_variance: what confusions of components too rare to be drawn add to a variance."""

from __future__ import annotations

import math

import numpy as np

from tfp_surgery.surgery.scored_draws import ScoredDraws

RARE_ENTROPY = 0.5  # of q(n|z), below which one component has more than 80% of it
_ENOUGH_RARE = 20.0  # rare draws from which their part of a variance can be estimated


def unseen_variance(draws: ScoredDraws) -> float:
    """Returns the variance of the mean of log q(n|z) that is missing from the sample variance.

    Given a code z whose component has probability 1 - d and entropy H = H[q(n|z)], the other
    components have log q(n|z) near 1 - H / d, so that the variance of log q(n|z) is near
    (H - d)^2 / d. All of it is missing if the draws hold hardly any from the other components; none
    of it is if they hold enough.

    Args:
      draws: The scored draws.

    Returns:
      The variance.
    """
    rare = _rare(draws)
    if rare is None:
        return 0.0
    entropy, other = rare
    return float((np.square(entropy - other) / other).sum()) / draws.log_posterior.size**2


def unseen_of_prior(draws: ScoredDraws) -> float:
    """Returns the factor of the unseen part of log q(n|z) in -log p(z).

    The unseen part is in -log q(z) as it is in log q(n|z). If the prior is the aggregate posterior,
    it is in -log p(z) too, and log q(z) - log p(z) has none. In general, a code that falls among
    those of another component has the log q(z) - log p(z) of these, which were drawn: what is
    missing of its variance is at most the probability of such codes times the variance over all
    draws.

    Args:
      draws: The scored draws.

    Returns:
      The factor, from 0 to 1; 0 if KL(q(z|x_n) || p(z)) is known, and nothing of it is unseen.
    """
    kl, rare = draws.closed_form_kl, _rare(draws)
    if rare is None or (kl is not None and np.isfinite(kl).all()):
        return 0.0
    entropy, other = rare
    in_index = (np.square(entropy - other) / other).sum()
    spread = np.var(np.subtract(draws.log_aggregate, draws.log_prior, dtype=np.float64))
    return 1.0 - math.sqrt(min(1.0, other.sum() * spread / in_index)) if in_index else 0.0


def _rare(draws: ScoredDraws) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns H[q(n|z)] and 1 - q(n|z) of draws with few others; None if the others were drawn."""
    if draws.index_entropy is None:
        return None
    entropy = np.asarray(draws.index_entropy, np.float64)
    log_own = draws.log_posterior.astype(np.float64) - draws.log_aggregate
    other = -np.expm1(np.minimum(log_own - math.log(draws.num_observations), 0.0))  # d
    size = 1.0 + np.abs(draws.log_posterior) + np.abs(draws.log_aggregate)
    is_rounding = other <= 4.0 * np.finfo(draws.log_posterior.dtype).eps * size
    rare = (entropy < RARE_ENTROPY) & ~is_rounding
    if other[rare].sum() >= _ENOUGH_RARE:
        return None
    known = rare & (other < 0.5)
    return entropy[known], other[known]
