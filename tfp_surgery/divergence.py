"""Kullback-Leibler divergences in closed form."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


def closed_form_kl(posterior: tfd.Distribution, prior: tfd.Distribution) -> tf.Tensor | None:
    """KL(q || p) in nats, shape `[B]`, or None where TFP registers no formula for the pair."""
    try:
        return tfd.kl_divergence(posterior, prior)
    except NotImplementedError:
        return None
