"""LikelihoodAscent: maximum likelihood of a prior on fresh codes, many steps in one XLA call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.networks import build_prior
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.training.fitted_variables import Variable, state_of
from tfp_surgery.training.variables import parts_of
from tfp_surgery.training.xla_or_graph import XlaOrGraph

tfd = tfp.distributions

# Steps of one call: enough that calling costs nothing, and few enough to be interrupted.
_STEPS_TOGETHER = 50
_WARMUP = 0.05  # share of the steps


class LikelihoodAscent:
    """Steps of Adam that raise E_q(z)[log p(z)], the codes of each drawn anew from q(z).

    The learning rate rises over the first twentieth of the steps and then falls to zero along a
    cosine. Only the variables given are trained, and codes are constants to the gradient.
    """

    def __init__(
        self,
        aggregate_posterior: AggregatePosterior,
        prior: keras.layers.Layer | tfd.Distribution | Callable[[], tfd.Distribution],
        variables: Sequence[Variable],
        *,
        num_steps: int,
        batch_size: int,
        learning_rate: float,
        seed: seeds.Seed,
    ) -> None:
        """Prepares the steps; the first call of `run` compiles them.

        Args:
          aggregate_posterior: q(z), batch `[]`.
          prior: p(z), or what returns it.
          variables: What is trained, at least one variable; from `fitted_variables`.
          num_steps: Steps until the learning rate is zero.
          batch_size: Codes a step.
          learning_rate: The highest.
          seed: From `checked_seed`.
        """
        self._aggregate_posterior = aggregate_posterior
        self._prior = prior
        self._variables = list(variables)
        self._batch_size = batch_size
        self._seed = seed
        self._optimizer = keras.optimizers.Adam(_schedule(learning_rate, num_steps))
        self._optimizer.build(self._variables)
        self._state = state_of(prior, variables) + self._optimizer.variables
        scalar = tf.TensorSpec([], tf.int32)
        self._steps = XlaOrGraph(self._run_steps, scalar, scalar)

    def run(self, first: int, last: int) -> float:
        """Takes the steps first, ..., last - 1.

        Args:
          first: Number of the first step, from 0.
          last: Number after that of the last one.

        Returns:
          The mean of log p(z) over the codes of these steps, each under the prior of its step.

        Raises:
          FloatingPointError: If a log density or a gradient is not finite. Prior and optimizer are
            then as they were before the first such step.
        """
        total = 0.0
        for start in range(first, last, _STEPS_TOGETHER):
            end = min(start + _STEPS_TOGETHER, last)
            kept = snapshot(self._state)
            part, failed = (value.numpy() for value in self._steps(start, end))
            if failed >= 0:
                restore(self._state, kept)
                self._steps(start, failed)  # those before it again
                raise FloatingPointError(
                    f"step {failed} of the fit gave a log density or gradient that is not finite. "
                    f"The prior has the weights it had before it, after {failed} steps; a smaller "
                    "learning_rate may help."
                )
            total += float(part)
        return total / (last - first)

    def _run_steps(self, first: tf.Tensor, last: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum of the mean log densities, and the first step that was not finite or -1."""

        def body(
            step: tf.Tensor, total: tf.Tensor, failed: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            log_prob, is_finite = self._step(step)
            failed = tf.where((failed < 0) & ~is_finite, step, failed)
            return step + 1, total + log_prob, failed

        start = (first, tf.zeros([], self._aggregate_posterior.dtype), tf.constant(-1))
        _, total, failed = tf.while_loop(
            lambda step, *_: step < last, body, start, parallel_iterations=1
        )
        return total, failed

    def _step(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        seed = seeds.key(self._seed, "fit_prior/codes", step)
        z = tf.stop_gradient(self._aggregate_posterior.sample(self._batch_size, seed=seed))
        sources = [parts_of(variable)[0] for variable in self._variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            log_prob = tf.reduce_mean(build_prior(self._prior, training=True).log_prob(z))
            loss = -log_prob
        gradients = tape.gradient(loss, sources)
        # Keras warns of variables without a gradient, and refuses where none has one.
        self._optimizer.apply(gradients, self._variables)
        finite = [
            tf.reduce_all(tf.math.is_finite(value))
            for value in (log_prob, *gradients)
            if value is not None
        ]
        return log_prob, tf.reduce_all(tf.stack(finite))


def snapshot(variables: Sequence[Variable]) -> list[tf.Tensor]:
    """The values of variables."""
    return [tf.identity(parts_of(variable)[0]) for variable in variables]


def restore(variables: Sequence[Variable], values: Sequence[tf.Tensor]) -> None:
    """Sets variables to what `snapshot` gave."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _schedule(learning_rate: float, num_steps: int) -> Any:
    warmup = int(_WARMUP * num_steps)
    if warmup == 0:
        return keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, num_steps - warmup, warmup_target=learning_rate, warmup_steps=warmup
    )
