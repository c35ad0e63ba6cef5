"""Estimate: a value, its Monte Carlo standard error and the number of draws behind it."""

from __future__ import annotations

import dataclasses
import math
import statistics

import numpy as np

from tfp_surgery import arrays


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate of an expectation.

    Attributes:
      value: The estimate, in nats unless its owner says otherwise.
      standard_error: Its standard error; 0 where the value has no Monte Carlo error, NaN where the
        error cannot be known (a single draw an observation).
      num_samples: Number of draws averaged over; 0 for a closed form.
    """

    value: float
    standard_error: float
    num_samples: int

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
        if self.standard_error == 0.0:
            return f"{self.value:.4f} ± 0"
        if self.standard_error < 1e-6:
            return f"{self.value:.6f} ± {self.standard_error:.0e}"
        decimals = max(0, 1 - math.floor(math.log10(self.standard_error)))
        return f"{self.value:.{decimals}f} ± {self.standard_error:.{decimals}f}"


def stratified_estimate(values: np.ndarray, population_size: int) -> Estimate:
    r"""Estimates a population mean from draws within strata (observations).

    Stratum q of the Q that were looked at holds S independent draws `f_sq`. The estimate is their
    overall mean. Its standard error is that of two-stage sampling without replacement among the N
    strata (Cochran 1977, section 10.3):

        Var = (1 - Q/N) s_b^2 / Q + (Q/N) mean_q(s_q^2) / (Q S),

    with s_b^2 the sample variance of the stratum means and s_q^2 that within stratum q. At Q = N
    the first part vanishes and what remains is the stratified (within-observation) error.

    Args:
      values: Floating array, shape `[S, Q]`.
      population_size: N, at least Q.

    Returns:
      The `Estimate`; its standard error is NaN where S = 1, since the spread within an observation
      cannot be seen from one draw, and where Q = 1 < N.

    #### References

    William G. Cochran. Sampling Techniques, third edition. Wiley, 1977.
    """
    arrays.reject_missing("values", values)
    values = np.asarray(values, np.float64)
    num_samples, num_strata = values.shape
    fraction = num_strata / population_size
    within = values.var(axis=0, ddof=1).mean() if num_samples > 1 else math.nan
    variance = fraction * within / (num_strata * num_samples)
    if num_strata < population_size:
        between = values.mean(axis=0).var(ddof=1) if num_strata > 1 else math.nan
        variance += (1.0 - fraction) * between / num_strata
    return Estimate(float(values.mean()), math.sqrt(variance), values.size)


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
