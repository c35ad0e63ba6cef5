"""Active units: the code dimensions whose posterior mean varies with the observation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement.model_checks import check_aggregate_posterior
from tfp_surgery.measurement.result import Result

_THRESHOLD = 0.01


@dataclasses.dataclass(frozen=True)
class ActiveUnits(Result):
    """The active and collapsed dimensions of a code (Burda et al. 2016).

    The dimensions of a code that is no vector are its numbers in row-major order.

    Attributes:
      variances: A_j = Var_n(E_q(z|x_n)[z_j]) for each of the D dimensions, in units of z_j squared.
      threshold: The variance above which a dimension is active.
      num_observations: N.
    """

    _derived: ClassVar[tuple[str, ...]] = ("num_active", "active", "collapsed")

    variances: tuple[float, ...]
    threshold: float
    num_observations: int

    @property
    def active(self) -> tuple[int, ...]:
        """The indices of the active dimensions, from 0."""
        return tuple(j for j, value in enumerate(self.variances) if value > self.threshold)

    @property
    def collapsed(self) -> tuple[int, ...]:
        """The indices of the dimensions that are not active, from 0."""
        return tuple(j for j, value in enumerate(self.variances) if value <= self.threshold)

    @property
    def num_active(self) -> int:
        """The number of active dimensions."""
        return len(self.active)

    def _title(self) -> list[str]:
        collapsed = ", ".join(map(str, self.collapsed)) or "none"
        rule = f"Var_n E[z_j|x_n] > {self.threshold:g}, N = {self.num_observations}"
        active = f"{self.num_active} of {len(self.variances)} units are active ({rule})"
        return [f"{active}; collapsed: {collapsed}"]

    def _rows(self) -> list[tuple[str, Any]]:
        return [(f"{j:>4}", f"{value:.3g}") for j, value in enumerate(self.variances)]


def active_units(
    aggregate_posterior: AggregatePosterior, threshold: float = _THRESHOLD
) -> ActiveUnits:
    r"""Counts the active units of a model, after Burda, Grosse and Salakhutdinov (2016).

    Dimension j is active if its posterior mean varies with the observation:

        A_j = Var_n(E_q(z|x_n)[z_j]) > 0.01.

    The variance is over this finite data set, with denominator N, and has no Monte Carlo error.
    The criterion ignores posterior variances and is not invariant to scale: a dimension whose
    posterior variance alone depends on x counts as collapsed, and scaling a code by 1/100 collapses
    every dimension with A_j <= 100. The index-code mutual information of each dimension
    (`marginal_kl_split`) has neither limitation.

    Args:
      aggregate_posterior: The posteriors q(z|x_n) of N >= 2 observations, batch shape `[]`, equal
        weights.
      threshold: Non-negative bound on A_j. The paper uses 0.01.

    Returns:
      `ActiveUnits`.

    Raises:
      TypeError: If `aggregate_posterior` is not an `AggregatePosterior` or `threshold` is not a
        number.
      ValueError: If N < 2, if shapes or weights are not as stated, if the threshold is negative or
        not finite, or if a mean is not finite.
      NotImplementedError: If TFP implements no mean of the components.

    #### References

    Yuri Burda, Roger Grosse and Ruslan Salakhutdinov. Importance weighted autoencoders. ICLR 2016.
    """
    check_aggregate_posterior(aggregate_posterior)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise TypeError(f"threshold must be a number; got {threshold!r}.")
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be finite and not negative; got {threshold!r}.")
    means: np.ndarray = np.asarray(
        aggregate_posterior.components_distribution.mean(), np.float64
    )  # [N, *code_shape]
    num_observations = int(aggregate_posterior.num_components)
    if num_observations < 2:
        raise ValueError("active units need N >= 2 observations: one mean has no variance.")
    # A mean shared by all components may lack the batch dimension.
    means = np.broadcast_to(means, (num_observations, *aggregate_posterior.event_shape))
    means = means.reshape(num_observations, -1)  # [N, D]
    bad = ~np.isfinite(means).all(axis=1)
    if bad.any():
        raise ValueError(
            f"the posterior mean is not finite for {bad.sum()} of {num_observations} observations; "
            "has training diverged?"
        )
    return ActiveUnits(tuple(means.var(axis=0).tolist()), float(threshold), num_observations)
