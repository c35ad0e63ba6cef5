"""Invertible affine maps between codes and whitened codes, fixed and learned."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import scipy.linalg
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.priors.standardization import moments

tfb = tfp.bijectors

# Of a correlation's eigenvalues, against the largest: codes that lie in a plane stay invertible.
_EIGENVALUE_FLOOR = 1e-6


class InvertibleLinear(keras.layers.Layer):
    """Weights of the bijector z = loc + W^-1 u, with W = P L U and a learned factorization.

    A density takes a product, u = W (z - loc); sampling solves a linear system. The factorization
    is that of Glow (Kingma and Dhariwal 2018, section 3.2): L has ones on its diagonal and the
    permutation P is fixed, so that log|det W| is the sum of log|U_ii|.
    """

    def __init__(self, event_size: int, dtype: tf.DType, *, learned: bool = True, **kwargs: Any):
        """Makes the layer, with W a random rotation and loc zero.

        Args:
          event_size: D.
          dtype: Of weights and computations.
          learned: Whether loc and W are trained; fixed, they stay so whatever `trainable` says.
          **kwargs: Of `keras.layers.Layer`.
        """
        super().__init__(dtype=dtype.name, **kwargs)
        vector, shape = (event_size,), (event_size, event_size)
        # Without autocast: the layer around this one may compute in half precision.
        self.loc = self.add_weight(vector, "zeros", trainable=learned, autocast=False, name="loc")
        self.lower_upper = self.add_weight(
            shape, trainable=learned, autocast=False, name="lower_upper"
        )
        self.permutation = self.add_weight(
            vector, "zeros", dtype="int32", trainable=False, autocast=False, name="permutation"
        )
        self.built = True
        rotation = keras.initializers.Orthogonal()(shape, "float32")
        self.assign(np.zeros(event_size), np.asarray(rotation))

    def assign(self, loc: np.ndarray, matrix: np.ndarray) -> None:
        """Sets loc `[D]` and W `[D, D]`."""
        permutation, lower, upper = scipy.linalg.lu(np.asarray(matrix, np.float64))
        self.loc.assign(loc)
        self.lower_upper.assign(np.tril(lower, -1) + upper)
        self.permutation.assign(np.argmax(permutation, axis=0))

    def whiten(self, codes: np.ndarray) -> np.ndarray:
        """Sets loc and W to give codes mean zero, covariance I and principal axes.

        The axes are those of the standardised codes, so that they do not depend on the unit of any
        dimension.

        Args:
          codes: Floating `[M, D]`.

        Returns:
          The whitened codes `[M, D]` in float64, by falling variance of what they were.
        """
        codes = np.asarray(codes, np.float64)
        loc, scale = moments(codes)
        correlation = np.atleast_2d(np.cov((codes - loc) / scale, rowvar=False))
        variances, axes = np.linalg.eigh(correlation)
        variances = np.maximum(variances, _EIGENVALUE_FLOOR * max(variances[-1], 1.0))[::-1]
        matrix = axes[:, ::-1].T / np.sqrt(variances)[:, np.newaxis] / scale
        self.assign(loc, matrix)
        whitened: np.ndarray = (codes - loc) @ matrix.T
        return whitened

    def bijector(self) -> tfb.Bijector:
        """The map from u to z, from the current values of the weights."""
        linear = tfb.ScaleMatvecLU(
            tf.convert_to_tensor(self.lower_upper), tf.convert_to_tensor(self.permutation)
        )
        return tfb.Chain([tfb.Shift(tf.convert_to_tensor(self.loc)), tfb.Invert(linear)])


class WhitenedLinear(InvertibleLinear):
    """A learned affine map that starts as the identity, after a fixed one that whitens the codes.

    The learned map acts on whitened codes: a step of an optimizer does the same whatever the units
    and correlations of the codes are.
    """

    def __init__(self, event_size: int, dtype: tf.DType, **kwargs: Any):
        """Makes the layer, both maps the identity.

        Args:
          event_size: D.
          dtype: Of weights and computations.
          **kwargs: Of `keras.layers.Layer`.
        """
        super().__init__(event_size, dtype, **kwargs)
        self.whitening = InvertibleLinear(event_size, dtype, learned=False)
        for linear in (self, self.whitening):
            linear.assign(np.zeros(event_size), np.eye(event_size))

    def whiten(self, codes: np.ndarray) -> np.ndarray:
        """Sets the fixed map to whiten the codes, and the learned one to the identity.

        Args:
          codes: Floating `[M, D]`.

        Returns:
          As `InvertibleLinear.whiten`.
        """
        whitened = self.whitening.whiten(codes)
        event_size = whitened.shape[1]
        self.assign(np.zeros(event_size), np.eye(event_size))
        return whitened

    def bijector(self) -> tfb.Bijector:
        """The map from u to z, from the current values of the weights."""
        return tfb.Chain([self.whitening.bijector(), super().bijector()])
