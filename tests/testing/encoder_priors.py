"""What the tests of priors made by an encoder are made of."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs

tfd = tfp.distributions

EVENT_SHAPE = (3, 2)


def binary_data(num: int = 64, seed: int = 0) -> np.ndarray:
    """Random observations of 0 and 1, float32 `[num, 3, 2]`."""
    return np.random.default_rng(seed).integers(0, 2, (num, *EVENT_SHAPE)).astype(np.float32)


def make_encoder(**kwargs: Any) -> tfs.networks.MLPEncoder:
    """An encoder of event size 2 whose posteriors lie apart, with scales from 0.3 to 2."""
    keras.utils.set_random_seed(0)
    encoder = tfs.networks.MLPEncoder(2, (8,), "tanh", **kwargs)
    encoder.build((None, *EVENT_SHAPE))
    kernel = encoder.output_layer.kernel
    kernel.assign(kernel.numpy() * np.array([2.0, 2.0, 0.5, 0.5]))
    return encoder


def make_vae(encoder: Any, prior: Any, **kwargs: Any) -> tfs.VAE:
    """A model of `EVENT_SHAPE` observations whose decoder has its own fixed first weights."""
    keras.utils.set_random_seed(1)
    return tfs.VAE(encoder, tfs.networks.MLPDecoder(EVENT_SHAPE, (8,)), prior, **kwargs)


@keras.saving.register_keras_serializable(package="tfp_surgery_test")
class IdentityEncoder(keras.layers.Layer):
    """q(z|x) = N(x, scale^2 I), without weights: observations are the places of their codes."""

    def __init__(self, scale: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x: tf.Tensor) -> tfd.MultivariateNormalDiag:
        return tfd.MultivariateNormalDiag(x, tf.fill(tf.shape(x), tf.cast(self.scale, x.dtype)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale}
