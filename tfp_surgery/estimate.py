"""Estimate: a value, its Monte Carlo standard error and the number of draws behind it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np

from tfp_surgery.checks import arrays

_LARGE = 1e9  # from which on a number is written with an exponent


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate of an expectation.

    Attributes:
      value: The estimate, in nats unless its owner says otherwise.
      standard_error: Its standard error, never below the rounding of what was averaged; 0 where the
        value has no Monte Carlo error (a closed form), NaN where the error cannot be known (a
        single draw an observation).
      num_draws: Number of draws averaged over; 0 for a closed form.
      degrees_of_freedom: How well the standard error is known: that of the chi-squared distribution
        its square is about distributed as (Welch 1947); infinite for a closed form.
    """

    value: float
    standard_error: float
    num_draws: int
    degrees_of_freedom: float = math.inf

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Returns the symmetric normal confidence interval.

        Args:
          level: Nominal coverage, in (0, 1).

        Returns:
          The lower and the upper end, NaN where the standard error is.

        Raises:
          ValueError: If `level` is not in (0, 1).
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must lie in (0, 1); got {level}.")
        half_width = statistics.NormalDist().inv_cdf(0.5 + level / 2.0) * self.standard_error
        return self.value - half_width, self.value + half_width

    def to_dict(self) -> dict[str, float | None]:
        """Returns `{"value", "standard_error"}` as plain floats; NaN becomes None (JSON null)."""
        return {
            "value": None if math.isnan(self.value) else float(self.value),
            "standard_error": (
                None if math.isnan(self.standard_error) else float(self.standard_error)
            ),
        }

    def __str__(self) -> str:
        """The value with as many digits as two digits of its error allow."""
        if math.isnan(self.standard_error):
            return f"{self.value:.4f} ± unknown"
        if not max(abs(self.value), self.standard_error) < _LARGE:
            return f"{self.value:.4g} ± {self.standard_error:.2g}"
        if self.standard_error == 0.0:
            return f"{self.value:.4f} ± 0"
        if self.standard_error < 1e-6:
            return f"{self.value:.6f} ± {self.standard_error:.0e}"
        decimals = max(0, 1 - math.floor(math.log10(self.standard_error)))
        return f"{self.value:.{decimals}f} ± {self.standard_error:.{decimals}f}"


def rounding(*terms: np.ndarray) -> float:
    """The rounding of the mean of a sum, in nats: sum_i eps_i mean|t_i|.

    A log density that was computed in float32 is off by about its last bit. Errors of normalisers
    are common to all draws, so that averaging does not lessen them.

    Args:
      *terms: The terms of the sum, each in the dtype that it was computed in.

    Returns:
      The bound, with eps_i the distance of 1 from the next number of the term's dtype.
    """
    return sum(
        float(np.finfo(term.dtype).eps) * float(np.abs(term).mean(dtype=np.float64))
        for term in map(np.asarray, terms)
    )


def stratified_estimate(
    terms: np.ndarray | Sequence[np.ndarray], population_size: int, truncation: float = 0.0
) -> Estimate:
    r"""Estimates a population mean from draws within strata (observations).

    Stratum q of the Q that were looked at holds S independent draws `f_sq`. The estimate is their
    overall mean. Its standard error is that of two-stage sampling without replacement among the N
    strata (Cochran 1977, section 10.3):

        Var = (1 - Q/N) s_b^2 / Q + (Q/N) mean_q(s_q^2) / (Q S),

    with s_b^2 the sample variance of the stratum means and s_q^2 that within stratum q. At Q = N
    the first part vanishes and what remains is the stratified (within-observation) error. Where
    rounding and truncation are larger than that, the standard error is they.

    Args:
      terms: Floating array, shape `[S, Q]`: f; or a sequence of arrays of which f is the sum, each
        in the dtype it was computed in, which tells its `rounding`.
      population_size: N, at least Q.
      truncation: What f may be off by beside the rounding of its terms.

    Returns:
      The `Estimate`; its standard error is NaN where S = 1, since the spread within an observation
      cannot be seen from one draw, and where Q = 1 < N.

    #### References

    William G. Cochran. Sampling Techniques, third edition. Wiley, 1977.
    """
    given = [terms] if isinstance(terms, np.ndarray) else terms
    for part in given:
        arrays.reject_missing("terms", part)
    parts = [np.asarray(part) for part in given]
    values = np.sum([part.astype(np.float64) for part in parts], axis=0)
    num_samples, num_strata = values.shape
    fraction = num_strata / population_size
    spread = values.var(axis=0, ddof=1) if num_samples > 1 else np.full(num_strata, math.nan)
    within = fraction * spread / (num_strata**2 * num_samples)  # [Q]: of each stratum
    variance = within.sum()
    fourth_moment = np.square(within).sum() / (num_samples + 1)
    if num_strata < population_size:
        between = values.mean(axis=0).var(ddof=1) if num_strata > 1 else math.nan
        between *= (1.0 - fraction) / num_strata
        variance += between
        fourth_moment += between**2 / (num_strata + 1)
    # Welch's formula: E[s^4] = sigma^4 (k + 2) / k for a normal variance of k degrees of freedom.
    degrees = variance**2 / fourth_moment - 2.0 if fourth_moment > 0 else math.inf
    floor = rounding(*parts) + truncation
    error = math.nan if math.isnan(variance) else max(math.sqrt(variance), floor)
    return Estimate(float(values.mean()), error, values.size, float(max(degrees, 1.0)))


def exact_strata_estimate(values: np.ndarray, population_size: int) -> Estimate:
    """Estimates a population mean from exact stratum values: only a subset has an error.

    Args:
      values: Floating array, shape `[Q]`: the value of each stratum, without Monte Carlo error.
      population_size: N, at least Q.

    Returns:
      The `Estimate`, with standard error 0 where Q = N.
    """
    arrays.reject_missing("values", values)
    values = np.asarray(values, np.float64)
    num_strata = values.size
    variance = 0.0
    if num_strata < population_size:
        between = values.var(ddof=1) if num_strata > 1 else math.nan
        variance = (1.0 - num_strata / population_size) * between / num_strata
    return Estimate(float(values.mean()), math.sqrt(variance), 0)
