"""reduced_terms: the terms of the average KL as draws from which control variates are taken."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfp_surgery.estimate import rounding
from tfp_surgery.measurement.control_variates import ControlVariates, ReducedDraws
from tfp_surgery.surgery.scored_draws import ScoredDraws
from tfp_surgery.surgery.unseen_variance import unseen_of_prior


class ReducedTerms(NamedTuple):
    """Draws whose means are terms of `ElboSurgery`, so that parts of them can be subtracted.

    Attributes:
      average_kl: Of the average KL: its closed form over all N where there is one.
      information: Of the index-code mutual information.
      third: Of the third term, their difference.
    """

    average_kl: ReducedDraws
    information: ReducedDraws
    third: ReducedDraws


def reduced_terms(draws: ScoredDraws, controls: ControlVariates) -> ReducedTerms:
    """Subtracts control variates from the terms of the average KL.

    Args:
      draws: The scored draws.
      controls: The control variates of these draws.

    Returns:
      `ReducedTerms`.
    """
    log_posterior, log_prior = draws.log_posterior, draws.log_prior
    information = controls.reduced(
        log_posterior, -draws.log_aggregate, truncation=draws.tolerance or 0.0, unseen=1.0
    )
    kl = finite(draws.closed_form_kl)
    if kl is None:
        average_kl = controls.reduced(log_posterior, -log_prior, unseen=unseen_of_prior(draws))
    else:
        least_error = rounding(log_posterior, log_prior)
        average_kl = ReducedDraws.known(kl, draws.index, len(log_posterior), least_error)
    return ReducedTerms(average_kl, information, average_kl - information)


def finite(values: np.ndarray | None) -> np.ndarray | None:
    """Returns closed forms if all of them are finite, otherwise None."""
    return None if values is None or not np.isfinite(values).all() else values
