"""A small training loop, and the marginal KL of what it fitted, for tests of priors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.priors.base import Prior

tfd = tfp.distributions
P = TypeVar("P", bound=Prior)


def scattered_weights(make: Callable[[], P], stddev: float = 0.1) -> P:
    """A prior whose density is not one that training starts at: noise on all fitted variables.

    Args:
      make: makes the prior; the same one in each call, since it is called with Keras seeded.
      stddev: of the noise.

    Returns:
      The prior.
    """
    keras.utils.set_random_seed(1)
    layer = make()
    rng = np.random.default_rng(0)
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

    def step(i: tf.Tensor) -> tuple[tf.Tensor]:
        z = target.sample(batch_size, seed=tf.stack([13, i]))
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(layer().log_prob(z))
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return (i + 1,)

    @tf.function(jit_compile=True, autograph=False)
    def train() -> None:
        tf.while_loop(lambda i: i < steps, step, (tf.constant(0),))

    train()


def marginal_kl(
    target: tfd.Distribution, prior: tfd.Distribution, num_samples: int = 20000
) -> tuple[float, float]:
    """KL(target || prior) in nats from fresh draws, and its standard error."""
    z = target.sample(num_samples, seed=(21, 22))
    difference = (target.log_prob(z) - prior.log_prob(z)).numpy()
    return float(difference.mean()), float(difference.std(ddof=1) / num_samples**0.5)
