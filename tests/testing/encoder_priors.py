"""What the tests of priors made by an encoder are made of."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import tfp_surgery as tfs

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
