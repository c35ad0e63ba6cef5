"""PriorLooks: how good a prior is as it is fitted, and the weights it had when it was best."""

from __future__ import annotations

import math

import keras

from tfp_surgery.training.likelihood_ascent import FixedCodes, restore, snapshot
from tfp_surgery.training.prior_fit import PriorFitProgress


class PriorLooks:
    """The looks at a fit: their history, and the weights of the best one.

    Attributes:
      history: `PriorFitProgress` of each look.
      best_step: The step of the best look; of the first among equals.
      since_best: The number of looks after the best one.
    """

    def __init__(
        self,
        prior: keras.layers.Layer,
        codes: FixedCodes | None,
        are_held_out: bool,
        num_steps: int,
        verbose: bool,
    ) -> None:
        """Keeps the weights there are, until a look finds better ones.

        Args:
          prior: The layer that is fitted.
          codes: What looks are compared on; None where there will be only one.
          are_held_out: Whether the codes are those of the validation set.
          num_steps: Most steps that the fit takes.
          verbose: Whether to print a line at each look.
        """
        self.history: list[PriorFitProgress] = []
        self.best_step = self.since_best = 0
        self._prior = prior
        self._codes = codes
        self._are_held_out = are_held_out
        self._num_steps = num_steps
        self._verbose = verbose
        self._best_value = -math.inf
        self._best_weights = snapshot(prior)

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
            self._best_value, self._best_weights = value, snapshot(self._prior)
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
        restore(self._prior, self._best_weights)
