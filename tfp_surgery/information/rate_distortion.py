"""Rate-distortion bounds on the mutual information."""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

import numpy as np

from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.bound import Bound
from tfp_surgery.measurement.result import Result
from tfp_surgery.observations import read_array

_QUANTITY = "I(X; Z) under q(x) q(z|x), q(x) the distribution whose entropy is given"
_NO_ENTROPY = (
    "the entropy of the data is unknown; give data_entropy (empirical_entropy(x) for a likelihood "
    "that is a probability mass function)"
)


@dataclasses.dataclass(frozen=True)
class RateDistortionBounds(Result):
    """H - D <= I(X; Z) <= R (Alemi et al. 2018, section 2), in nats per observation.

    Attributes:
      rate: R, the average KL from posterior to prior.
      distortion: D, the negative average reconstruction.
      data_entropy: H; None if unknown.
      lower_bound: H - D, the bound of Barber and Agakov (2003), vacuous if negative; None without
        H.
      upper_bound: R.
      elbo_gap: D + R - H >= 0, the negative ELBO minus the entropy of the data, which is the
        distance of the two bounds; None without H.
    """

    rate: Estimate
    distortion: Estimate
    data_entropy: Estimate | None
    lower_bound: Bound | None
    upper_bound: Bound
    elbo_gap: Estimate | None

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Returns an interval that contains I(X; Z) with at least the given confidence.

        Its ends are the outer ends of the normal intervals of the two bounds, each of which fails
        with probability at most (1 - level) / 2.

        Args:
          level: Nominal coverage, in (0, 1).

        Returns:
          The lower end, at least 0, and the upper end; NaN if a standard error is NaN.

        Raises:
          ValueError: If `level` is not in (0, 1).
        """
        high = self.upper_bound.estimate.interval(level)[1]
        if self.lower_bound is None:
            return 0.0, high
        low = self.lower_bound.estimate.interval(level)[0]
        return (low if math.isnan(low) else max(0.0, low)), high

    def _title(self) -> list[str]:
        return ["Rate-distortion bounds, nats per observation"]

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            ("rate R", self.rate),
            ("distortion D", self.distortion),
            ("data entropy H", self.data_entropy),
            ("H - D <= I(X; Z)", self.lower_bound),
            ("I(X; Z) <= R", self.upper_bound),
            ("D + R - H", self.elbo_gap),
        ]


def rate_distortion_bounds(
    elbo: Estimate,
    average_reconstruction: Estimate,
    average_kl: Estimate,
    *,
    data_entropy: float | Estimate | None = None,
    discrete: bool = False,
) -> RateDistortionBounds:
    r"""Bounds I(X; Z) by rate and distortion: H - D <= I(X; Z) <= R.

    With rate R = E KL(q(z|x) || p(z)) and distortion D = -E_q(x,z)[log p(x|z)] (Alemi et al. 2018,
    section 2),

        H - D <= I(X; Z) <= R,        D + R - H = -ELBO - H >= 0,

    for any decoder p(x|z) and any prior p(z). The gap of the lower bound is
    E_q(z) KL(q(x|z) || p(x|z)), and that of the upper bound is the marginal KL. The lower bound is
    that of Barber and Agakov (2003), `tfp.vi.lower_bound_barber_agakov`.

    H is the entropy of X. If X has the empirical distribution of the data set, H is
    `empirical_entropy(x)`, which is log N for N distinct observations, and I(X; Z) is the
    index-code mutual information. This requires a likelihood that is a probability mass function (a
    Bernoulli, a discretized logistic); log N is not comparable with a density. For continuous data,
    H is the differential entropy of the population, which is seldom known, and I(X; Z) is that of
    the population; the standard errors then ignore that the data are a sample. A lower bound on H
    keeps H - D a valid bound; an upper bound does not.

    Args:
      elbo: The ELBO, as in `ElboSurgery.elbo`; `stratified_estimate` computes it from draws.
      average_reconstruction: -D, as in `ElboSurgery.average_reconstruction`.
      average_kl: R, analytic or Monte Carlo.
      data_entropy: H in nats: a number, or an `Estimate` independent of the draws; None if unknown.
      discrete: Whether the likelihood is a probability mass function. If so, H is the ceiling of
        the lower bound.

    Returns:
      `RateDistortionBounds`.

    Raises:
      TypeError: If an argument is not an `Estimate`, or `data_entropy` is neither an `Estimate` nor
        a number.
      ValueError: If a value is not finite, or if `discrete` and H is negative or the average
        reconstruction is positive.

    Warns:
      UserWarning: If D + R - H is negative by many standard errors. Then H is too large, is the
        entropy of other data, or is a discrete entropy combined with a density.

    #### References

    Alexander A. Alemi, Ben Poole, Ian Fischer, Joshua V. Dillon, Rif A. Saurous and Kevin Murphy.
    Fixing a Broken ELBO. ICML, 2018.

    David Barber and Felix V. Agakov. The IM algorithm: a variational approach to information
    maximization. NIPS, 2003.
    """
    given = {
        "elbo": elbo,
        "average_reconstruction": average_reconstruction,
        "average_kl": average_kl,
    }
    for name, estimate in given.items():
        if not isinstance(estimate, Estimate):
            raise TypeError(f"{name} must be an Estimate, got {type(estimate).__name__}.")
    entropy = _entropy_estimate(data_entropy)
    for name, estimate in {
        **given,
        **({} if entropy is None else {"data_entropy": entropy}),
    }.items():
        if not math.isfinite(estimate.value):
            raise ValueError(f"{name} must be finite, got {estimate.value}.")
    if discrete:
        _check_discrete(average_reconstruction, entropy)

    upper_bound = Bound(average_kl, "upper", _QUANTITY, "the marginal KL(q(z) || p(z))")
    distortion = dataclasses.replace(average_reconstruction, value=-average_reconstruction.value)
    if entropy is None:
        absent = dict.fromkeys(("data_entropy", "lower_bound", "elbo_gap"), _NO_ENTROPY)
        return RateDistortionBounds(
            average_kl, distortion, None, None, upper_bound, None, absent=absent
        )
    lower_bound = Bound(
        _sum(entropy, average_reconstruction),
        "lower",
        _QUANTITY,
        "-E_q(z) KL(q(x|z) || p(x|z))",
        entropy.value if discrete else None,
    )
    gap = _sum(entropy, elbo)
    gap = dataclasses.replace(gap, value=-gap.value)
    sentences: tuple[str, ...] = ()
    if consistency.negative("D + R - H", gap):
        text = (
            f"D + R - H = {gap} is negative: H = {entropy.value:g} is not the entropy of what the "
            "likelihood describes, or the data are too few to stand for their population."
        )
        sentences = (text,)
    consistency.warn(sentences, stacklevel=3)
    return RateDistortionBounds(
        average_kl, distortion, entropy, lower_bound, upper_bound, gap, warnings=sentences
    )


def empirical_entropy(x: Any) -> float:
    """Returns the entropy of the empirical distribution of a data set, in nats.

    It is log N if all observations are distinct. Equal observations are one value of X. The
    distribution is discrete, so that the entropy is comparable only with likelihoods that are
    probability mass functions.

    Args:
      x: The observations, array-like of shape `[N, *event_shape]`.

    Returns:
      The entropy in nats, in [0, log N].

    Raises:
      TypeError: If x is not an array of numbers.
      ValueError: If x is empty or not finite.
    """
    x = read_array(x)
    # Adding 0 gives -0.0 and 0.0 the same bytes.
    rows = np.ascontiguousarray(x if x.dtype == np.bool_ else x + np.zeros([], x.dtype))
    counts = np.fromiter(collections.Counter(row.tobytes() for row in rows).values(), np.float64)
    return float(max(0.0, math.log(len(x)) - (counts * np.log(counts)).sum() / len(x)))


def _entropy_estimate(data_entropy: float | Estimate | None) -> Estimate | None:
    if data_entropy is None or isinstance(data_entropy, Estimate):
        return data_entropy
    number = isinstance(data_entropy, int | float | np.floating | np.integer)
    if not number or isinstance(data_entropy, bool):
        raise TypeError(
            f"data_entropy must be a number, an Estimate or None, got {data_entropy!r}."
        )
    return Estimate(float(data_entropy), 0.0, 0)


def _check_discrete(average_reconstruction: Estimate, entropy: Estimate | None) -> None:
    if average_reconstruction.value > 0.0:
        raise ValueError(
            f"the average reconstruction is {average_reconstruction.value:g}, but the logarithm of "
            "a probability is never positive: the likelihood is a density, and discrete=True does "
            "not apply."
        )
    if entropy is not None and entropy.value < 0.0:
        raise ValueError(
            f"data_entropy = {entropy.value:g}, but that of a discrete variable is never negative."
        )


def _sum(first: Estimate, second: Estimate) -> Estimate:
    """Returns the sum of two independent estimates."""
    return Estimate(
        first.value + second.value,
        math.hypot(first.standard_error, second.standard_error),
        max(first.num_draws, second.num_draws),
        min(first.degrees_of_freedom, second.degrees_of_freedom),
    )
