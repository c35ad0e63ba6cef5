"""Rate, distortion and the interval that they leave for the mutual information."""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

import numpy as np

from tfp_surgery.checks.arguments import check_observations
from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.bound import Bound
from tfp_surgery.measurement.result import Result

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
      data_entropy: H, or None where it is unknown.
      lower_bound: H - D, the bound of Barber and Agakov (2003); None without H. Where it is
        negative it says nothing.
      upper_bound: R.
      elbo_gap: D + R - H >= 0, the negative ELBO less the entropy of the data: how far the two
        bounds lie apart; None without H.
    """

    rate: Estimate
    distortion: Estimate
    data_entropy: Estimate | None
    lower_bound: Bound | None
    upper_bound: Bound
    elbo_gap: Estimate | None

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Returns an interval that holds I(X; Z) with at least this confidence.

        Its ends are the outer ends of the two bounds' normal intervals of the same level: each
        fails in (1 - level) / 2 of all cases at most.

        Args:
          level: Nominal coverage, in (0, 1).

        Returns:
          The lower end, never below 0, and the upper end; NaN where a standard error is.

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
    r"""Bounds I(X; Z) by what a surgery knows: H - D <= I(X; Z) <= R.

    With rate R = E KL(q(z|x) || p(z)) and distortion D = -E_q(x,z)[log p(x|z)] (Alemi et al. 2018,
    section 2),

        H - D <= I(X; Z) <= R,        D + R - H = -ELBO - H >= 0,

    for any decoder p(x|z) and any prior p(z). The gap of the lower bound is
    E_q(z) KL(q(x|z) || p(x|z)), that of the upper one the marginal KL. The lower bound is the one
    of Barber and Agakov (2003), `tfp.vi.lower_bound_barber_agakov`.

    X has the distribution whose entropy H is. Over the data set itself that is the empirical one:
    H = `empirical_entropy(x)`, which is log N for N distinct observations, and I(X; Z) is the
    index-code mutual information. This holds only where the likelihood is a probability mass
    function (a Bernoulli, a discretized logistic); beside a density, log N means nothing. For
    continuous data H is the differential entropy of the population, seldom known, and I(X; Z) is
    the population's; the standard errors then leave out that the data are a sample. An upper bound
    of H in place of H makes the lower bound invalid; a lower bound of H keeps it valid.

    Args:
      elbo: The ELBO, as in `ElboSurgery.elbo` (from per-draw values: `stratified_estimate`).
      average_reconstruction: -D, as in `ElboSurgery.average_reconstruction`.
      average_kl: R, analytic or Monte Carlo.
      data_entropy: H in nats: a number, or an `Estimate` that is independent of the draws; None
        where it is unknown.
      discrete: Whether the likelihood is a probability mass function. Then H is the ceiling of the
        lower bound.

    Returns:
      `RateDistortionBounds`.

    Raises:
      TypeError: If an argument is no `Estimate` (no number, for `data_entropy`).
      ValueError: If a value is not finite; if `discrete` and H is negative, or the average
        reconstruction is positive, as no probability's logarithm is.

    Warns:
      UserWarning: If D + R - H is negative beyond its error: then H is too large, is not that of
        these data, or is that of a discrete variable beside a density.

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
    """The entropy of the empirical distribution of a data set, in nats.

    It is log N where all observations are distinct; copies count as one value of X with the
    probability of them all. The distribution is discrete: the entropy goes with likelihoods that
    are probability mass functions.

    Args:
      x: The observations, array-like of shape `[N, *event_shape]`.

    Returns:
      H[x] in nats, in [0, log N].

    Raises:
      TypeError: If x is no array of numbers.
      ValueError: If x is empty or not finite.
    """
    x = check_observations(x)
    # 0 is added so that -0.0 and 0.0 have the same bytes.
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
    """The sum of independent estimates."""
    return Estimate(
        first.value + second.value,
        math.hypot(first.standard_error, second.standard_error),
        max(first.num_draws, second.num_draws),
        min(first.degrees_of_freedom, second.degrees_of_freedom),
    )
