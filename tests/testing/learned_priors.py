"""Priors with weights, for the tests of what fits and measures priors."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.priors.base import Prior

tfd = tfp.distributions


class GaussianPrior(Prior):
    """N(loc, L L^T), which starts at N(0, I).

    Attributes:
      loc: `[D]`.
      raw_scale: `[D, D]`, the lower triangle of L with the logarithm of its diagonal.
    """

    def __init__(self, event_size: int, **kwargs: Any) -> None:
        super().__init__(event_size, **kwargs)
        dtype = self.density_dtype.name
        self.loc = self.add_weight(
            shape=[event_size], initializer="zeros", dtype=dtype, autocast=False
        )
        self.raw_scale = self.add_weight(
            shape=[event_size] * 2, initializer="zeros", dtype=dtype, autocast=False
        )

    def call(self, condition: Any = None) -> tfd.Distribution:
        raw = tf.linalg.band_part(tf.convert_to_tensor(self.raw_scale), -1, 0)
        scale_tril = tf.linalg.set_diag(raw, tf.exp(tf.linalg.diag_part(raw)))
        return tfd.MultivariateNormalTriL(tf.convert_to_tensor(self.loc), scale_tril)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance, float64."""
        raw = np.tril(self.raw_scale.numpy().astype(np.float64))
        np.fill_diagonal(raw, np.exp(np.diag(raw)))
        return self.loc.numpy().astype(np.float64), raw @ raw.T


class DiagonalMixturePrior(Prior):
    """Mixture of diagonal Gaussians; `initialize` puts the components on the first codes."""

    def __init__(self, event_size: int, num_components: int, **kwargs: Any) -> None:
        super().__init__(event_size, **kwargs)
        self.num_components = num_components
        shape = [num_components, event_size]
        spread = keras.initializers.RandomNormal(seed=1)
        self.logits = self.add_weight(shape=shape[:1], initializer="zeros", autocast=False)
        self.loc = self.add_weight(shape=shape, initializer=spread, autocast=False)
        self.log_scale = self.add_weight(shape=shape, initializer="zeros", autocast=False)

    def call(self, condition: Any = None) -> tfd.Distribution:
        return tfd.MixtureSameFamily(
            tfd.Categorical(logits=tf.convert_to_tensor(self.logits)),
            tfd.MultivariateNormalDiag(
                tf.convert_to_tensor(self.loc), tf.exp(tf.convert_to_tensor(self.log_scale))
            ),
        )

    def initialize(self, codes: np.ndarray, seed: int = 0) -> None:
        self.loc.assign(codes[: self.num_components])
