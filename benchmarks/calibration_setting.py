"""What a part of the calibration is computed for, and its models of TensorFlow Probability."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.calibration_cases import (
    CONDITIONAL_MEANS,
    EVENT_SIZE,
    GROUPS,
    LATENT_SIZE,
    PARTS,
    Case,
    Mixture,
    case,
)
from benchmarks.calibration_statistics import Truth, estimates_of
from tfp_surgery.estimate import Estimate


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a part is computed for.

    Attributes:
      regime: One of `calibration_cases.REGIMES`.
      num_observations: N.
      num_query: Observations in the expectations; None for all.
      num_seeds: How many estimates.
    """

    regime: str
    num_observations: int
    num_query: int | None
    num_seeds: int

    @property
    def case(self) -> Case:
        """The data set, its model and posteriors."""
        return case(self.regime, self.num_observations)


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """The estimates of all seeds by name, and what they refer to by the same names."""

    estimates: Mapping[str, list[Estimate]]
    truths: Mapping[str, Truth]


def over_seeds(setting: Setting, measure: Callable[[int], Any]) -> dict[str, list[Estimate]]:
    """Measures with each seed, and collects the estimates by name."""
    found: dict[str, list[Estimate]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(setting.num_seeds):
            for name, estimate in estimates_of(measure(seed)).items():
                found.setdefault(name, []).append(estimate)
    return found


class Model:
    """The distributions of a case, of TensorFlow Probability."""

    def __init__(self, of: Case) -> None:
        import tensorflow as tf
        import tensorflow_probability as tfp

        import tfp_surgery as tfs

        self.tfd = tfp.distributions
        self.x = of.x
        self.posteriors = self.tfd.MultivariateNormalDiag(
            tf.constant(of.loc), tf.constant(of.scale)
        )
        self.aggregate_posterior = tfs.AggregatePosterior(self.posteriors)
        zeros = tf.zeros([LATENT_SIZE], tf.float64)
        self.prior = self.tfd.MultivariateNormalDiag(zeros, tf.ones_like(zeros))
        self._weights = tf.constant(of.weights.T)
        self._scale = tf.fill([EVENT_SIZE], tf.constant(of.noise, tf.float64))

    def decoder(self, z: Any) -> Any:
        return self.tfd.MultivariateNormalDiag(z @ self._weights, self._scale)

    def prior_given(self, condition: Any) -> Any:
        import tensorflow as tf

        means = tf.gather(tf.constant(CONDITIONAL_MEANS), tf.cast(condition, tf.int32))
        return self.tfd.MultivariateNormalDiag(means, tf.ones_like(means))

    def mixture(self, of: Mixture) -> Any:
        return self.tfd.MixtureSameFamily(
            self.tfd.Categorical(probs=np.full(len(of.loc), 1.0 / len(of.loc))),
            self.tfd.MultivariateNormalDiag(of.loc, of.scale),
        )

    def parts(self, distribution: Any) -> Any:
        """A joint distribution of two parts of a code, of another's means and deviations."""
        import tensorflow as tf

        loc, scale = distribution.loc, distribution.stddev()
        return self.tfd.JointDistributionNamed(
            {
                name: self.tfd.MultivariateNormalDiag(
                    tf.gather(loc, group, axis=-1), tf.gather(scale, group, axis=-1)
                )
                for name, group in zip(PARTS, GROUPS, strict=True)
            }
        )
