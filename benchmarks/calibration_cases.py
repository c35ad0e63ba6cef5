"""The three regimes of the calibration: linear-Gaussian models with Gaussian posteriors, float64.

Everything is a NumPy array here, without TensorFlow, so that the references are independent of it.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

EVENT_SIZE, LATENT_SIZE = 5, 3
GROUPS = ((0, 1), (2,))
PARTS = ("first", "second")  # names of the groups as parts of a code
NUM_CONDITIONS = 3


@dataclasses.dataclass(frozen=True)
class _Setting:
    noise: float  # standard deviation of x given z
    shift: float  # of the means of q(z|x) from those of p(z|x), in standard deviations of p(z_j|x)
    factors: tuple[float, float]  # range of the standard deviations of q(z_j|x), in the same unit


_SETTINGS = {
    "collapsed": _Setting(15.0, 0.05, (0.97, 1.0)),
    "overlapping": _Setting(1.0, 0.3, (0.6, 1.0)),
    "separated": _Setting(0.004, 0.3, (0.6, 1.0)),
}
REGIMES = tuple(_SETTINGS)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A data set, its model p(z) = N(0, I), p(x|z) = N(W z, noise^2 I), and q(z|x_n).

    Attributes:
      weights: W, shape `[E, D]`.
      noise: Standard deviation of x given z.
      x: The observations, shape `[N, E]`.
      loc: Means of q(z|x_n), shape `[N, D]`.
      scale: Standard deviations of q(z|x_n), shape `[N, D]`.
      condition: Number of the condition of each observation, float, shape `[N]`.
      encoder_weights: A such that loc = x A + shift, shape `[E, D]`.
      shift: Shape `[D]`.
    """

    weights: np.ndarray
    noise: float
    x: np.ndarray
    loc: np.ndarray
    scale: np.ndarray
    condition: np.ndarray
    encoder_weights: np.ndarray
    shift: np.ndarray

    @property
    def posterior_covariance(self) -> np.ndarray:
        """Covariance of every p(z|x), shape `[D, D]`."""
        return _posterior_covariance(self.weights, self.noise)

    @property
    def posterior_mean(self) -> np.ndarray:
        """Means of p(z|x_n), shape `[N, D]`."""
        mean: np.ndarray = self.x @ self.encoder_weights
        return mean

    @functools.cached_property
    def log_evidence(self) -> np.ndarray:
        """log p(x_n), shape `[N]`."""
        covariance = self.weights @ self.weights.T + self.noise**2 * np.eye(EVENT_SIZE)
        _, log_determinant = np.linalg.slogdet(covariance)
        squares = (self.x * np.linalg.solve(covariance, self.x.T).T).sum(axis=1)
        constant = EVENT_SIZE * math.log(2.0 * math.pi) + log_determinant
        values: np.ndarray = -0.5 * (constant + squares)
        return values

    @functools.cached_property
    def entropy(self) -> float:
        """H[X] of the population of x, the differential entropy of p(x)."""
        covariance = self.weights @ self.weights.T + self.noise**2 * np.eye(EVENT_SIZE)
        _, log_determinant = np.linalg.slogdet(covariance)
        return 0.5 * float(EVENT_SIZE * (math.log(2.0 * math.pi) + 1.0) + log_determinant)


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of Gaussians with independent dimensions, of equal weights.

    Attributes:
      loc: Shape `[K, D]`.
      scale: Shape `[K, D]`.
    """

    loc: np.ndarray
    scale: np.ndarray


# A prior whose dimensions depend on each other.
MIXTURE_PRIOR = Mixture(
    np.array([[-0.6, -0.5, 0.3], [0.7, 0.6, -0.2]]), np.array([[0.9, 0.8, 1.1], [1.0, 1.2, 0.9]])
)
# Another data set's aggregate posterior, for the cross term.
TRAINING = Mixture(np.random.default_rng(17).normal(size=[40, LATENT_SIZE]), np.full([40, 3], 0.5))
# Means of the prior given the condition, all of standard deviation 1.
CONDITIONAL_MEANS = 0.3 * (np.arange(NUM_CONDITIONS)[:, np.newaxis] - 1.0) * np.ones(LATENT_SIZE)


def case(regime: str, num_observations: int, data_seed: int = 0) -> Case:
    """Makes a regime's data set, with diagonal posteriors that are off the exact ones.

    Args:
      regime: One of `REGIMES`.
      num_observations: N.
      data_seed: Seed of the observations and of the widths of their posteriors. The model and the
        encoder's means are the same for all.

    Returns:
      The `Case`.
    """
    setting = _SETTINGS[regime]
    weights = np.random.default_rng(3).normal(size=[EVENT_SIZE, LATENT_SIZE])
    covariance = _posterior_covariance(weights, setting.noise)
    stddev = np.sqrt(np.diag(covariance))
    rng = np.random.default_rng([data_seed, 7])
    z = rng.normal(size=[num_observations, LATENT_SIZE])
    x = z @ weights.T + setting.noise * rng.normal(size=[num_observations, EVENT_SIZE])
    encoder_weights = weights @ covariance / setting.noise**2
    shift = setting.shift * stddev
    return Case(
        weights=weights,
        noise=setting.noise,
        x=x,
        loc=x @ encoder_weights + shift,
        scale=stddev * rng.uniform(*setting.factors, size=z.shape),
        condition=(np.arange(num_observations) % NUM_CONDITIONS).astype(np.float64),
        encoder_weights=encoder_weights,
        shift=shift,
    )


def population_expectations(regime: str) -> tuple[float, float]:
    """Expectations over the population that the data sets of a regime are drawn from.

    Args:
      regime: One of `REGIMES`.

    Returns:
      E log p(x|z) under p(x) q(z|x), and E KL(q(z|x) || N(0, I)), in closed form.
    """
    setting, of = _SETTINGS[regime], case(regime, 2)
    low, high = setting.factors
    squared = (low**2 + low * high + high**2) / 3.0  # E u^2 and E log u of a uniform u
    logarithm = (high * math.log(high) - low * math.log(low)) / (high - low) - 1.0
    variance = np.diag(of.posterior_covariance)
    covariance = of.weights @ of.weights.T + of.noise**2 * np.eye(EVENT_SIZE)
    squared_means = np.diag(of.encoder_weights.T @ covariance @ of.encoder_weights) + of.shift**2
    terms = variance * squared + squared_means - 1.0 - np.log(variance) - 2.0 * logarithm
    left = np.eye(EVENT_SIZE) - of.weights @ of.encoder_weights.T  # x - W loc = left x - W shift
    squares = np.trace(left @ covariance @ left.T) + np.sum((of.weights @ of.shift) ** 2)
    squares += (of.weights**2).sum(axis=0) @ (variance * squared)
    normaliser = EVENT_SIZE * (math.log(2.0 * math.pi) + 2.0 * math.log(of.noise))
    return float(-0.5 * (normaliser + squares / of.noise**2)), 0.5 * float(terms.sum())


def _posterior_covariance(weights: np.ndarray, noise: float) -> np.ndarray:
    precision = np.eye(LATENT_SIZE) + weights.T @ weights / noise**2
    covariance: np.ndarray = np.linalg.inv(precision)
    return covariance
