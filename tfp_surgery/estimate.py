"""Estimate: a value with its Monte Carlo standard error and number of draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.stats

from tfp_surgery.checks import arrays

_LARGE = 1e9  # numbers from this size on are printed with an exponent


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate of an expectation.

    Attributes:
      value: The estimate, in nats unless stated otherwise.
      standard_error: The standard error, at least the rounding error of the averaged values. 0 if
        the value has no Monte Carlo error (a closed form), NaN if the error is unknown (a single
        draw per observation).
      num_draws: Number of draws averaged over; 0 for a closed form.
      degrees_of_freedom: Degrees of freedom of the approximate chi-squared distribution of the
        squared standard error (Welch 1947); infinite for a closed form.
      population_standard_error: The standard error of the value as an estimate of the same quantity
        of the population that the observations are independent draws of, Monte Carlo error
        included; see `ElboSurgery`. None where it is not known.
    """

    value: float
    standard_error: float
    num_draws: int
    degrees_of_freedom: float = math.inf
    population_standard_error: float | None = None

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Returns the symmetric confidence interval of Student's t distribution.

        Its quantile has the estimate's degrees of freedom (Welch 1947), and is that of the normal
        distribution for many draws.

        Args:
          level: Nominal coverage, in (0, 1).

        Returns:
          The lower and the upper end, NaN if the standard error is NaN.

        Raises:
          ValueError: If `level` is not in (0, 1).
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must lie in (0, 1); got {level}.")
        quantile = float(scipy.stats.t.ppf(0.5 + level / 2.0, self.degrees_of_freedom))
        half_width = quantile * self.standard_error
        return self.value - half_width, self.value + half_width

    def to_dict(self) -> dict[str, float | None]:
        """Returns `{"value", "standard_error"}`; NaN and infinity become None (JSON null).

        A known `population_standard_error` is a third entry.
        """
        numbers = {"value": self.value, "standard_error": self.standard_error}
        if self.population_standard_error is not None:
            numbers["population_standard_error"] = self.population_standard_error
        return {
            name: float(number) if math.isfinite(number) else None
            for name, number in numbers.items()
        }

    def __str__(self) -> str:
        """Returns value ± standard error, rounded to two digits of the standard error."""
        error = self.standard_error
        if math.isnan(error):
            return f"{_fixed(self.value, 4)} ± unknown"
        if not max(abs(self.value), error) < _LARGE:
            return f"{self.value:.4g} ± {error:.2g}"
        if error == 0.0:
            return f"{_fixed(self.value, 4)} ± 0"
        if error < 1e-6:
            return f"{_fixed(self.value, 6)} ± {error:.0e}"
        decimals = max(0, 1 - math.floor(math.log10(error)))
        return f"{_fixed(self.value, decimals)} ± {error:.{decimals}f}"


def _fixed(value: float, decimals: int) -> str:
    """Formats a number without a sign in front of zero."""
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def rounding(*terms: np.ndarray) -> float:
    """Returns the rounding error of the mean of a sum, in nats: sum_i eps_i mean|t_i|.

    eps_i is the machine epsilon of the dtype of term i. A log density in float32 has an error of
    about one unit in the last place. Errors of normalisers are common to all draws, so that
    averaging does not reduce them.

    Args:
      *terms: The terms t_i of the sum, each in the dtype in which it was computed.

    Returns:
      The bound on the rounding error.
    """
    return sum(
        float(np.finfo(term.dtype).eps) * float(np.abs(term).mean(dtype=np.float64))
        for term in map(np.asarray, terms)
    )


def stratified_estimate(
    terms: np.ndarray | Sequence[np.ndarray], population_size: int, truncation: float = 0.0
) -> Estimate:
    r"""Estimates a population mean from draws within strata (observations).

    Each of Q sampled strata has S independent draws f_sq. The estimate is their overall mean. Its
    variance is that of two-stage sampling without replacement among the N strata (Cochran 1977,
    section 10.3):

        Var = (1 - Q/N) s_b^2 / Q + (Q/N) mean_q(s_q^2) / (Q S),

    with s_b^2 the sample variance of the stratum means and s_q^2 that within stratum q. At Q = N,
    the first term vanishes and the stratified (within-observation) variance remains. The standard
    error is at least the sum of `rounding` and `truncation`.

    Args:
      terms: Draws f, floating array, shape `[S, Q]`. Or a sequence of arrays whose sum is f, each
        in the dtype in which it was computed, which determines its `rounding`.
      population_size: N, at least Q.
      truncation: Bound on the error of f in addition to the rounding of its terms.

    Returns:
      The `Estimate`. Its standard error is NaN if S = 1, since one draw does not show the variance
      within a stratum, and if Q = 1 < N.

    #### References

    William G. Cochran. Sampling Techniques, third edition. Wiley, 1977.
    """
    given = [terms] if isinstance(terms, np.ndarray) else terms
    for part in given:
        arrays.reject_missing("terms", part)
    parts = [np.asarray(part) for part in given]
    values = np.sum([part.astype(np.float64) for part in parts], axis=0)
    return two_stage_estimate(values, population_size, rounding(*parts) + truncation)


def two_stage_estimate(values: np.ndarray, population_size: int, least_error: float) -> Estimate:
    """Estimates a population mean by the formula of `stratified_estimate`.

    Args:
      values: Draws f, float64, shape `[S, Q]`.
      population_size: N, at least Q.
      least_error: The smallest standard error.

    Returns:
      The `Estimate`.
    """
    num_samples, num_strata = values.shape
    fraction = num_strata / population_size
    spread = values.var(axis=0, ddof=1) if num_samples > 1 else np.full(num_strata, math.nan)
    within = fraction * spread / (num_strata**2 * num_samples)  # [Q]
    variance = within.sum()
    fourth_moment = np.square(within).sum() / (num_samples + 1)
    if num_strata < population_size:
        between = values.mean(axis=0).var(ddof=1) if num_strata > 1 else math.nan
        between *= (1.0 - fraction) / num_strata
        variance += between
        fourth_moment += between**2 / (num_strata + 1)
    # Welch's formula: E[s^4] = sigma^4 (k + 2) / k for a normal variance of k degrees of freedom.
    degrees = variance**2 / fourth_moment - 2.0 if fourth_moment > 0 else math.inf
    error = math.nan if math.isnan(variance) else max(math.sqrt(variance), least_error)
    return Estimate(float(values.mean()), error, values.size, float(max(degrees, 1.0)))


def exact_strata_estimate(values: np.ndarray, population_size: int) -> Estimate:
    """Estimates a population mean from exact values of Q of the N strata.

    Args:
      values: Value of each stratum without Monte Carlo error, shape `[Q]`, in the floating dtype in
        which it was computed.
      population_size: N, at least Q.

    Returns:
      The `Estimate`. Its standard error is that of sampling strata, and at least `rounding`.
    """
    arrays.reject_missing("values", values)
    least_error = rounding(values)
    values = np.asarray(values, np.float64)
    num_strata = values.size
    between = values.var(ddof=1) if num_strata > 1 else math.nan
    variance = 0.0
    if num_strata < population_size:
        variance = (1.0 - num_strata / population_size) * between / num_strata
    error = math.nan if math.isnan(variance) else max(math.sqrt(variance), least_error)
    return Estimate(float(values.mean()), error, 0)
