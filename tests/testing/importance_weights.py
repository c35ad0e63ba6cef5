"""IW_m of a one-dimensional linear-Gaussian model by quadrature, in NumPy and float64 alone.

For a weight w >= 0 and phi(t) = E exp(-t w),

    E log 1/m sum_i w_i = integral over t > 0 of (exp(-t) - phi(t / m)^m) / t,

and for any h of the draw that made w, and p = 1 or 2,

    E sum_i h_i w_i^p / (sum_j w_j)^p
        = m integral over t > 0 of t^(p-1) E[w^p h exp(-t w)] phi(t)^(m-1).

Draws are noise on a grid, and t = exp(s) with s on another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import special, stats

_NOISE, _NOISE_STEP = np.linspace(-10.0, 10.0, 1201, retstep=True)
_LOG_MASS = stats.norm.logpdf(_NOISE) + np.log(_NOISE_STEP)
_LOG_T, _LOG_T_STEP = np.linspace(-45.0, 455.0, 1501, retstep=True)


@dataclasses.dataclass(frozen=True)
class ScalarModel:
    """z ~ N(0, 1), x given z ~ N(slope z, noise^2), proposal q = N(loc, scale^2) for one x."""

    x: float
    loc: float
    log_scale: float
    slope: float = 1.5
    noise: float = 0.6

    @property
    def posterior(self) -> tuple[float, float]:
        """Mean and standard deviation of p(z|x)."""
        precision = 1.0 + self.slope**2 / self.noise**2
        return self.slope * self.x / self.noise**2 / precision, precision**-0.5

    @property
    def log_evidence(self) -> float:
        return float(stats.norm.logpdf(self.x, 0.0, np.hypot(self.slope, self.noise)))

    def elbo(self) -> float:
        """log p(x) - KL(q || p(z|x)), in closed form."""
        mean, deviation = self.posterior
        ratio = np.exp(self.log_scale) / deviation
        offset = (self.loc - mean) / deviation
        return float(self.log_evidence - 0.5 * (ratio**2 + offset**2 - 1.0) + np.log(ratio))

    def log_weights(self) -> np.ndarray:
        scale = np.exp(self.log_scale)
        z = self.loc + scale * _NOISE
        log_joint = stats.norm.logpdf(z) + stats.norm.logpdf(self.x, self.slope * z, self.noise)
        log_weights: np.ndarray = log_joint - (stats.norm.logpdf(_NOISE) - self.log_scale)
        return log_weights

    def bound(self, m: int) -> float:
        """IW_m."""
        log_mean, moments = self._moments()
        difference = np.exp(-np.exp(_LOG_T)) - moments(_LOG_T - np.log(m)) ** m
        return float(log_mean + difference.sum() * _LOG_T_STEP)

    def gradient(self, m: int, step: float = 1e-3) -> np.ndarray:
        """d IW_m / d (loc, log_scale), by central differences of fourth order."""
        return np.array(
            [
                sum(
                    weight * self._shifted(name, multiple * step).bound(m)
                    for multiple, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1))
                )
                / (12.0 * step)
                for name in ("loc", "log_scale")
            ]
        )

    def weighted_path(self, m: int, power: int) -> np.ndarray:
        """E sum_i v_i^power (d log w_i / d z_i) (d z_i / d (loc, log_scale)), v_i normalized."""
        scale = np.exp(self.log_scale)
        z = self.loc + scale * _NOISE
        to_code = -z + self.slope * (self.x - self.slope * z) / self.noise**2 + _NOISE / scale
        _, moments = self._moments()
        paths = (to_code, to_code * scale * _NOISE)
        return np.array(
            [
                m * _LOG_T_STEP * np.sum(
                    moments(_LOG_T, power, path) * moments(_LOG_T) ** (m - 1)
                )
                for path in paths
            ]
        )  # fmt: skip

    def _shifted(self, name: str, step: float) -> ScalarModel:
        return dataclasses.replace(self, **{name: getattr(self, name) + step})

    def _moments(self) -> tuple[float, Callable[..., np.ndarray]]:
        """log E w, and (log t, p, h) -> E[(t w)^p h exp(-t w)] with weights scaled to mean 1."""
        log_weights = self.log_weights()
        log_mean = float(special.logsumexp(log_weights + _LOG_MASS))
        log_weights = log_weights - log_mean

        def moments(log_t: np.ndarray, power: int = 0, h: np.ndarray | float = 1.0) -> np.ndarray:
            scores = log_t[:, None] + log_weights
            found: np.ndarray = np.exp(power * scores - np.exp(scores)) @ (h * np.exp(_LOG_MASS))
            return found

        return log_mean, moments


def case(name: str, x: float) -> ScalarModel:
    """Proposals for the posterior of x that have lost it, share its mass, and lie beside it."""
    mean, deviation = ScalarModel(x, 0.0, 0.0).posterior
    loc, scale = {
        "collapsed": (0.0, 1.0),
        "overlapping": (mean + 0.5 * deviation, 1.2 * deviation),
        "separated": (mean + 3.0 * deviation, 0.8 * deviation),
    }[name]
    return ScalarModel(x, loc, float(np.log(scale)))
