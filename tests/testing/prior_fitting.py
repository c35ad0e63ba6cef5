"""A small training loop, and the marginal KL of what it fitted, for tests of priors."""

from __future__ import annotations

from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.networks.priors import Prior

tfd = tfp.distributions
P = TypeVar("P", bound=Prior)


def scattered_weights(layer: P, seed: int, stddev: float = 0.25) -> P:
    """Adds noise to all fitted variables, so that the density is not one that training starts at.

    Args:
      layer: a prior.
      seed: of the noise.
      stddev: of the noise.

    Returns:
      `layer`.
    """
    rng = np.random.default_rng(seed)
    for variable in layer.fitted_variables:
        variable.assign_add(stddev * rng.normal(size=variable.shape))
    return layer


def fit_by_adam(
    layer: Prior,
    target: tfd.Distribution,
    steps: int,
    learning_rate: float = 1e-2,
    batch_size: int = 256,
) -> None:
    """Maximum likelihood on fresh draws of `target`, by Adam with a rate that falls to zero."""
    layer.initialize(target.sample(2000, seed=(11, 12)).numpy())
    variables = layer.fitted_variables
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(learning_rate, steps), clipnorm=5.0
    )
    optimizer.build(variables)

    @tf.function(jit_compile=True)
    def train() -> None:
        for step in tf.range(steps):
            z = target.sample(batch_size, seed=tf.stack([13, step]))
            with tf.GradientTape() as tape:
                loss = -tf.reduce_mean(layer().log_prob(z))
            gradients = tape.gradient(loss, [variable.value for variable in variables])
            optimizer.apply_gradients(zip(gradients, variables, strict=True))

    train()


def marginal_kl(
    target: tfd.Distribution, prior: tfd.Distribution, num_samples: int = 20000
) -> tuple[float, float]:
    """KL(target || prior) in nats from fresh draws, and its standard error."""
    z = target.sample(num_samples, seed=(21, 22))
    difference = (target.log_prob(z) - prior.log_prob(z)).numpy()
    return float(difference.mean()), float(difference.std(ddof=1) / num_samples**0.5)
