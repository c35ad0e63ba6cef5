"""The estimate with control variates as least-squares regressions, in float64 numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tfp_surgery import seeds


def folds(num_query: int) -> np.ndarray:
    """The part of each observation, shape `[Q]`, of the five that coefficients are fitted to."""
    return seeds.generator(0, "control_variates/folds").permutation(num_query) % 5


def controlled_mean(
    values: np.ndarray,
    controls: Sequence[np.ndarray],
    num_observations: int,
    *,
    unseen_variance: float = 0.0,
    unseen: float = 0.0,
    loadings: Sequence[float] | None = None,
    own_means: Sequence[np.ndarray | None] | None = None,
) -> tuple[float, float]:
    """Returns mean and standard error of values less their regression on control variates.

    The rows of a regression are the deviations whose sum of squares is the variance of the mean:
    within observations, between them if they are a subset, and what was too rare to be drawn. The
    observations of each fold have the coefficients of the others.

    Args:
      values: Draws, shape `[S, Q]`.
      controls: Quantities of mean 0, each `[S, Q]`; none leaves the plain mean.
      num_observations: N.
      unseen_variance: Variance of the mean of log q(n|z) that is not among the draws.
      unseen: Its factor in the values.
      loadings: Its factor in each control; None for 0.
      own_means: The expectation of each control for each observation, `[Q]`, or None where it is
        not known; None for 0.

    Returns:
      mean: The mean.
      error: Its standard error.
    """
    num_samples, num_query = values.shape
    is_subset = num_query < num_observations
    fraction = num_query / num_observations
    factors = [0.0] * len(controls) if loadings is None else list(loadings)

    def rows(part: np.ndarray, factor: float) -> np.ndarray:
        """Deviations whose squares add up to the variance of the mean of `[S, Q]`."""
        means, size = part.mean(axis=0), part.shape[1]
        within = (part - means).ravel()
        found = [within * math.sqrt(fraction / ((num_samples - 1) * num_samples * size))]
        if is_subset:
            found.append((means - means.mean()) * math.sqrt((1.0 - fraction) / (size - 1)))
        # The unseen variance is that of the mean over all Q.
        found.append(np.array([factor * math.sqrt(unseen_variance * num_query)]))
        return np.concatenate(found)

    known = [np.zeros(num_query)] * len(controls) if own_means is None else own_means
    # What has mean 0 for each observation has the coefficients of its fold, what is left has one.
    own = [
        np.zeros_like(control) if means is None else control - means
        for control, means in zip(controls, known, strict=True)
    ]
    used = [
        part if not is_subset and means is not None else control
        for part, control, means in zip(own, controls, known, strict=True)
    ]
    coefficients = np.zeros([len(controls), num_query])
    for fold in range(5) if controls else ():
        inside = folds(num_query) == fold
        design = np.stack(
            [rows(part[:, ~inside], factor) for part, factor in zip(used, factors, strict=True)],
            axis=1,
        )
        scale = np.sqrt(np.square(design).sum(axis=0))
        target = rows(values[:, ~inside], unseen)
        fitted = np.linalg.lstsq(design / scale, target, rcond=None)[0] / scale
        coefficients[:, inside] = fitted[:, np.newaxis]
    residual = values.astype(np.float64).copy()
    left = unseen
    for number, factor in enumerate(factors):
        average = coefficients[number].mean()
        residual -= coefficients[number] * own[number] + average * (used[number] - own[number])
        left -= average * factor
    variance = np.square(rows(residual, 0.0)).sum() / num_query
    return float(residual.mean()), math.sqrt(variance + left**2 * unseen_variance)
