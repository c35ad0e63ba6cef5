"""ControlVariates: estimates from which quantities of known mean are subtracted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tfp_surgery import seeds
from tfp_surgery.estimate import Estimate, exact_strata_estimate, rounding, two_stage_estimate
from tfp_surgery.measurement import consistency

# Fewer degrees of freedom for each coefficient would make the fit, and its error, uncertain.
_FREEDOM_PER_COEFFICIENT = 20
_NUM_FOLDS = 5
_RANK_TOLERANCE = 1e-10  # of the eigenvalues of a correlation matrix


@dataclasses.dataclass(frozen=True, eq=False)
class ControlVariate:
    """A quantity of the draws whose expectation is known to be 0.

    Attributes:
      name: What is known, in words.
      values: The quantity, float64, shape `[S, Q]`.
      rounding: Error of its mean by rounding and truncation.
      own_means: Its expectation for each observation, shape `[Q]`, of mean 0 over all N; None if
        unknown.
      unseen: Factor of the unseen part of log q(n|z) in it; see `ControlVariates`.
    """

    name: str
    values: np.ndarray
    rounding: float
    own_means: np.ndarray | None = None
    unseen: float = 0.0

    @classmethod
    def of(
        cls,
        name: str,
        *terms: np.ndarray,
        truncation: float = 0.0,
        own_means: np.ndarray | None = None,
        unseen: float = 0.0,
    ) -> ControlVariate:
        """Makes a control variate of the sum of terms, each in the dtype it was computed in."""
        values = np.sum([np.asarray(term, np.float64) for term in terms], axis=0)
        return cls(name, values, rounding(*terms) + truncation, own_means, unseen)

    @classmethod
    def of_known(
        cls, name: str, known: np.ndarray, index: np.ndarray, *terms: np.ndarray
    ) -> ControlVariate:
        """Makes a control variate of a sum of terms whose expectation is known.

        Args:
          name: What is known, in words.
          known: The expectation of the sum for each of all N observations, shape `[N]`.
          index: Indices of the Q observations, shape `[Q]`.
          *terms: Draws, shape `[S, Q]`, each in the dtype in which it was computed.

        Returns:
          The sum less the mean of what is known.
        """
        mean = known.mean(dtype=np.float64)
        constant = np.full(terms[0].shape, -mean, known.dtype)
        return cls.of(name, *terms, constant, own_means=known[index] - mean)


@dataclasses.dataclass(frozen=True, eq=False)
class ReducedDraws:
    """Draws of a quantity less control variates, of the same mean; these add and subtract.

    Attributes:
      values: The draws, float64, shape `[S, Q]`.
      own_values: Likewise, but of the same mean for each observation.
      rounding: Error of the mean by rounding and truncation.
      unseen: Factor of the unseen part of log q(n|z) in it; see `ControlVariates`.
    """

    values: np.ndarray
    own_values: np.ndarray
    rounding: float
    unseen: float

    @classmethod
    def known(
        cls, values: np.ndarray, index: np.ndarray, num_samples: int, least_error: float
    ) -> ReducedDraws:
        """Makes draws that all equal the mean of closed forms of all N observations.

        Args:
          values: The closed forms, shape `[N]`.
          index: Indices of the Q observations, shape `[Q]`.
          num_samples: Number S of draws per observation.
          least_error: Rounding error of the mean, in which the terms that cancel count.

        Returns:
          `ReducedDraws`.
        """
        wide = np.asarray(values, np.float64)
        shape = num_samples, len(index)
        return cls(
            np.full(shape, wide.mean()), np.broadcast_to(wide[index], shape), least_error, 0.0
        )

    def __add__(self, other: ReducedDraws) -> ReducedDraws:
        """Returns the sum."""
        return self._plus(other, 1.0)

    def __sub__(self, other: ReducedDraws) -> ReducedDraws:
        """Returns the difference."""
        return self._plus(other, -1.0)

    def _plus(self, other: ReducedDraws, sign: float) -> ReducedDraws:
        return ReducedDraws(
            self.values + sign * other.values,
            self.own_values + sign * other.own_values,
            self.rounding + other.rounding,
            self.unseen + sign * other.unseen,
        )


class ControlVariates:
    r"""Estimates of means of f from draws of f and of quantities C of expectation 0.

    The estimate is the mean of f - sum_j b_j C_j. The coefficients b minimise its variance, as
    estimated by the formula of `stratified_estimate`: for all observations, from pooled deviations
    within observations. There is one coefficient for the data set; the expectation of C need not be
    0 for each observation. The observations are split into five random parts, and b is estimated
    for each part from the draws of the other four (cross-fitting, Chernozhukov et al. 2018). It is
    then independent of the draws it is applied to: with coefficients of the same draws, the
    estimate would be biased by the order of the standard error over the degrees of freedom (Owen
    2013, section 8.9), and the standard error too small. What has mean 0 over all observations only
    has another mean in each part, and there the average of the five coefficients: five of them
    would turn their own error into one of the estimate, which no deviation within observations
    shows. Since b is linear in f, the estimates of terms that add up add up.

    With fewer than 20 degrees of freedom for each coefficient, the last candidates are not used;
    with a single draw per observation, none is. A C_j that does not vary by more than rounding is
    left out, as is one whose mean contradicts 0: the draws and what is known of them then do not
    belong together.

    #### References

    Victor Chernozhukov et al. Double/debiased machine learning for treatment and structural
    parameters. The Econometrics Journal, 2018.

    Art B. Owen. Monte Carlo theory, methods and examples. 2013.
    """

    def __init__(
        self,
        candidates: Sequence[ControlVariate],
        num_observations: int,
        unseen_variance: float = 0.0,
    ) -> None:
        """Chooses from the candidates those that can be used.

        Args:
          candidates: The control variates.
          num_observations: N.
          unseen_variance: Variance of the mean of log q(n|z) from draws too rare to be among these.
        """
        self.candidates = tuple(candidates)
        self.num_observations = num_observations
        self.unseen_variance = unseen_variance
        self.is_cut = False  # whether there were too few degrees of freedom for all
        controls = [control for control in candidates if self._varies(control)]
        if controls:
            num_samples, num_query = controls[0].values.shape
            # That of the smallest set of draws that coefficients are estimated from.
            rows = num_query - -(-num_query // _NUM_FOLDS)
            freedom = rows * (num_samples - 1) if num_query == num_observations else rows - 1
            most = freedom // _FREEDOM_PER_COEFFICIENT
            self.is_cut = len(controls) > most
            controls = controls[:most]
        self.names = tuple(control.name for control in controls)
        self._roundings = np.array([control.rounding for control in controls])
        self._loadings = np.array([control.unseen for control in controls])
        if not controls:
            return
        order = seeds.generator(0, "control_variates/folds").permutation(num_query)
        self._fold = order % _NUM_FOLDS  # [Q]
        self._in_others = 1.0 - np.eye(_NUM_FOLDS)[self._fold]  # [Q, folds]
        own_deviations = [_own_deviation(control) for control in controls]
        self._own_deviations = np.stack(own_deviations, axis=-1)  # [S, Q, k]
        if num_query == num_observations:
            # The means of the observations add up to 0, but not in each fold.
            self._values = np.stack(
                [
                    control.values if control.own_means is None else deviation
                    for control, deviation in zip(controls, own_deviations, strict=True)
                ],
                axis=-1,
            )
        else:
            self._values = np.stack([control.values for control in controls], axis=-1)
        self._inverses = _pseudo_inverse(
            self._covariances(self._values)
            + num_query * unseen_variance * np.outer(self._loadings, self._loadings)
        )

    def _varies(self, control: ControlVariate) -> bool:
        if len(control.values) < 2:
            return False
        estimate = two_stage_estimate(control.values, self.num_observations, 0.0)
        error = math.hypot(
            estimate.standard_error, control.unseen * math.sqrt(self.unseen_variance)
        )
        if not error > control.rounding:
            return False
        mean = dataclasses.replace(
            estimate, value=abs(estimate.value), standard_error=error + control.rounding
        )
        return not consistency.standard_errors_above(mean, Estimate(0.0, 0.0, 0))

    def _covariances(self, b: np.ndarray) -> np.ndarray:
        """Returns covariances of the means of the controls and of b, times Q.

        Args:
          b: Draws, shape `[S, Q, m]`.

        Returns:
          For each fold, from the observations of the others, shape `[folds, k, m]`.
        """
        a = self._values
        num_samples, num_query = a.shape[:2]
        fraction = num_query / self.num_observations
        a_means, b_means = a.mean(axis=0), b.mean(axis=0)  # [Q, k], [Q, m]
        a, b = a - a_means, b - b_means
        products = np.einsum("sqk,sqm->qkm", a, b)
        within = np.einsum("qf,qkm->fkm", self._in_others, products)
        rows = self._in_others.sum(axis=0)[:, np.newaxis, np.newaxis]
        result = fraction * within / (num_samples * (num_samples - 1) * rows)
        if fraction < 1.0:
            for number, others in enumerate(self._in_others.T > 0.0):
                between = (a_means[others] - a_means[others].mean(axis=0)).T @ b_means[others]
                result[number] += (1.0 - fraction) * between / (others.sum() - 1)
        return np.asarray(result)

    def _coefficients(self, values: np.ndarray, unseen: float) -> np.ndarray:
        """Returns the coefficients of each observation, shape `[Q, k]`."""
        covariances = self._covariances(values[..., np.newaxis])  # [folds, k, 1]
        num_query = values.shape[1]
        covariances += (num_query * self.unseen_variance * unseen * self._loadings)[:, np.newaxis]
        of_folds = (self._inverses @ covariances)[..., 0]  # [folds, k]
        return np.asarray(of_folds[self._fold])

    def estimate(
        self, *terms: np.ndarray, truncation: float = 0.0, unseen: float = 0.0
    ) -> Estimate:
        """Estimates the mean of a sum of terms.

        Args:
          *terms: Draws, shape `[S, Q]`, each in the dtype in which it was computed.
          truncation: Bound on the error of the sum in addition to rounding.
          unseen: Factor of the unseen part of log q(n|z) in the sum.

        Returns:
          The `Estimate`, with the population standard error of a functional whose influence
          function is the mean of the sum given the observation.
        """
        return self.estimate_of(self.reduced(*terms, truncation=truncation, unseen=unseen))

    def estimate_of(self, draws: ReducedDraws) -> Estimate:
        """Estimates the mean of draws, or of sums and differences of draws.

        Args:
          draws: What `reduced` returns, also of other control variates of the same observations.

        Returns:
          The `Estimate`, as of `estimate`.
        """
        result = two_stage_estimate(draws.values, self.num_observations, draws.rounding)
        error = math.hypot(result.standard_error, draws.unseen * math.sqrt(self.unseen_variance))
        return dataclasses.replace(
            result,
            standard_error=error,
            population_standard_error=_population_error(
                draws.own_values, self.num_observations, error
            ),
        )

    def reduced(
        self, *terms: np.ndarray, truncation: float = 0.0, unseen: float = 0.0
    ) -> ReducedDraws:
        """Subtracts the control variates from a sum of terms.

        Args:
          *terms: See `estimate`.
          truncation: See `estimate`.
          unseen: See `estimate`.

        Returns:
          `ReducedDraws`, linear in the sum.
        """
        values = np.sum([term.astype(np.float64) for term in terms], axis=0)  # [S, Q]
        least_error = rounding(*terms) + truncation
        own_values = values
        if self.names:
            own_values = self._with_less_noise(values)
            coefficients = self._coefficients(values, unseen)
            average = coefficients.mean(axis=0)
            values = values - np.einsum("sqk,qk->sq", self._own_deviations, coefficients)
            values -= (self._values - self._own_deviations) @ average
            unseen -= float(average @ self._loadings)
            least_error += float(np.abs(coefficients).mean(axis=0) @ self._roundings)
        return ReducedDraws(values, own_values, least_error, unseen)

    def _with_less_noise(self, values: np.ndarray) -> np.ndarray:
        """Subtracts from draws `[S, Q]` what explains them and has mean 0 for each observation.

        What makes the error of the mean least leaves much of the spread of single draws where the
        control variate that it takes has mean 0 over all observations only.
        """
        num_controls = self._own_deviations.shape[-1]
        deviations = self._own_deviations - self._own_deviations.mean(axis=0)
        of_values = values - values.mean(axis=0)
        coefficients = np.linalg.lstsq(
            deviations.reshape(-1, num_controls), of_values.reshape(-1), rcond=_RANK_TOLERANCE
        )[0]
        return np.asarray(values - self._own_deviations @ coefficients)

    def exact(self, values: np.ndarray, least_error: float) -> Estimate:
        """Estimates a mean from closed forms of all N observations.

        Args:
          values: Shape `[N]`.
          least_error: Rounding error of their mean, in which the terms that cancel count.

        Returns:
          The `Estimate`, with its population standard error.
        """
        influence = np.asarray(values, np.float64)[np.newaxis]  # [N] -> [1, N]
        return dataclasses.replace(
            exact_strata_estimate(values, self.num_observations),
            standard_error=least_error,
            population_standard_error=_population_error(influence, self.num_observations, 0.0),
        )


def _own_deviation(control: ControlVariate) -> np.ndarray:
    """Returns what has mean 0 for every observation, shape `[S, Q]`; zeros if that is unknown."""
    if control.own_means is None:
        return np.zeros_like(control.values)
    return np.asarray(control.values - control.own_means)


def _population_error(values: np.ndarray, num_observations: int, error: float) -> float:
    """Returns the standard error of a mean over observations that are draws of a population.

    Args:
      values: Draws of the influence of each observation, shape `[S, Q]`.
      num_observations: N.
      error: Standard error given the N observations.

    Returns:
      The root of error^2 + Var_n(E[influence | x_n]) / N; NaN for a single observation.
    """
    num_samples, num_query = values.shape
    if num_query == 1:
        return math.nan
    between = values.mean(axis=0).var(ddof=1)
    if num_samples == 1:  # the variance between observations has that of their draws in it
        return math.sqrt(between / num_query)
    noise = values.var(axis=0, ddof=1).mean() / num_samples
    return math.hypot(error, math.sqrt(max(0.0, between - noise) / num_observations))


def _pseudo_inverse(covariances: np.ndarray) -> np.ndarray:
    """Returns the inverses of covariances, without directions that are rounding in every scale."""
    scale = np.sqrt(np.diagonal(covariances, axis1=-2, axis2=-1))  # [folds, k]
    scales = scale[..., :, np.newaxis] * scale[..., np.newaxis, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.where(scales > 0.0, covariances / scales, 0.0)
        inverses = np.linalg.pinv(correlations, rcond=_RANK_TOLERANCE, hermitian=True)
        return np.where(scales > 0.0, inverses / scales, 0.0)
