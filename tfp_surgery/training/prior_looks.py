"""PriorLooks: how good a prior is as it is fitted, and the weights it had when it was best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import build_prior
from tfp_surgery.measurement.steps import steps
from tfp_surgery.training.fitted_variables import Variable
from tfp_surgery.training.likelihood_ascent import restore, snapshot
from tfp_surgery.training.prior_fit import PriorFitProgress
from tfp_surgery.training.xla_or_graph import XlaOrGraph

tfd = tfp.distributions


class PriorLooks:
    """The looks at a fit: their history, and the weights of the best one.

    Attributes:
      history: `PriorFitProgress` of each look.
      best_step: The step of the best look; of the first among equals.
      since_best: The number of looks after the best one.
    """

    def __init__(
        self,
        prior: tfd.Distribution | Callable[[], tfd.Distribution],
        state: Sequence[Variable],
        codes: tf.Tensor | None,
        batch_size: int,
        are_held_out: bool,
        num_steps: int,
        verbose: bool,
    ) -> None:
        """Keeps the weights there are, until a look finds better ones.

        Args:
          prior: The prior that is fitted, or what returns it.
          state: The variables that a fit may change; from `state_of`.
          codes: What looks are compared on, `[M, D]`; None where there will be only one.
          batch_size: Codes scored at a time.
          are_held_out: Whether the codes are those of the validation set.
          num_steps: Most steps that the fit takes.
          verbose: Whether to print a line at each look.
        """
        self.history: list[PriorFitProgress] = []
        self.best_step = self.since_best = 0
        self._state = list(state)
        self._codes = None if codes is None else FixedCodes(codes, prior, batch_size)
        self._are_held_out = are_held_out
        self._num_steps = num_steps
        self._verbose = verbose
        self._best_value = -math.inf
        self._best_weights = snapshot(self._state)

    def look(self, step: int, training: float | None) -> None:
        """Scores the prior on the codes after `step` steps.

        Args:
          step: Number of steps taken.
          training: The mean of log p(z) in training since the last look, if there was any.
        """
        value = None if self._codes is None else self._codes.mean_log_prob()
        fixed, held_out = (None, value) if self._are_held_out else (value, None)
        self.history.append(PriorFitProgress(step, training, fixed, held_out))
        self.since_best += 1
        if value is not None and value > self._best_value:
            self.best_step, self.since_best = step, 0
            self._best_value, self._best_weights = value, snapshot(self._state)
        if self._verbose:
            parts = [f"fit_prior: step {step} of {self._num_steps}"]
            if training is not None:
                parts.append(f"E[log p(z)] {training:.4f} nats in training")
            if value is not None:
                where = "held out" if self._are_held_out else "on fixed codes"
                parts.append(
                    f"{value:.4f} nats {where} (best {self._best_value:.4f} at step "
                    f"{self.best_step})"
                )
            print(", ".join(parts), flush=True)

    def restore_best(self) -> None:
        """Gives the prior the weights of the best look."""
        restore(self._state, self._best_weights)


class FixedCodes:
    """Codes on which a prior is scored again and again."""

    def __init__(
        self,
        codes: tf.Tensor,
        prior: tfd.Distribution | Callable[[], tfd.Distribution],
        batch_size: int,
    ) -> None:
        """Prepares the scoring.

        Args:
          codes: `[M, D]`.
          prior: p(z), or what returns it.
          batch_size: Codes scored at a time.
        """
        self._steps = [*steps(len(codes), batch_size)]
        self._blocks = tf.stack([codes[step.shown] for step in self._steps])  # [L, size, D]

        def log_prob(blocks: tf.Tensor) -> tf.Tensor:
            prior_now = build_prior(prior)  # once: some priors are dear to build
            return tf.map_fn(prior_now.log_prob, blocks, parallel_iterations=1)

        self._log_prob = XlaOrGraph(log_prob, tf.TensorSpec(self._blocks.shape, self._blocks.dtype))

    def mean_log_prob(self) -> float:
        """The mean of log p(z) over the codes, under the prior as it is now."""
        values = self._log_prob(self._blocks).numpy()  # [L, size]
        new = [block[step.new] for block, step in zip(values, self._steps, strict=True)]
        return float(np.concatenate(new).mean(dtype=np.float64))
