"""PriorFit: what fitting a prior to a finished model did."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfp_surgery.measurement.result import Result
from tfp_surgery.seeds import Seed
from tfp_surgery.surgery.prior_change import PriorChange

_SHOWN = 5  # names of variables


@dataclasses.dataclass(frozen=True)
class PriorFitProgress:
    """How far a fit had come, in nats per observation.

    Attributes:
      step: Number of steps taken.
      training_log_prob: The mean of log p(z) over the fresh codes of the steps since the last
        look, each under the prior of its step; None at step 0.
      fixed_log_prob: E[log p(z)] on draws from the q(z) that is fitted, the same throughout, on
        which the looks are compared; None with a validation set, and if there are no steps.
      validation_log_prob: E[log p(z)] under the held-out q(z), on one draw of each of its
        observations, the same throughout; None without one.
    """

    step: int
    training_log_prob: float | None
    fixed_log_prob: float | None
    validation_log_prob: float | None


@dataclasses.dataclass(frozen=True)
class PriorFit(Result):
    """The result of `fit_prior`.

    Attributes:
      training: The change from the former to the fitted prior under the q(z) it was fitted to.
      validation: The same under the held-out q(z); None without one.
      former_prior: The name of the distribution that "before" stands for.
      num_steps: Steps taken.
      best_step: The step whose weights the prior now has; 0 for those it started with.
      stopped_early: Whether it stopped before the number of steps that was asked for.
      seconds: Duration of the fit, without the measurements before and after it.
      history: Progress, from step 0.
      batch_size: Codes a step.
      learning_rate: The highest.
      seed: The seed of the fit.
      trained: The names and shapes of the variables that were trained. Parameters of a distribution
        that are no variables stayed what they were.
    """

    training: PriorChange
    validation: PriorChange | None
    former_prior: str
    num_steps: int
    best_step: int
    stopped_early: bool
    seconds: float
    history: tuple[PriorFitProgress, ...]
    batch_size: int
    learning_rate: float
    seed: Seed
    trained: tuple[str, ...] = ()

    def _title(self) -> list[str]:
        early = ", stopped early" if self.stopped_early else ""
        steps = f"{self.num_steps} steps of {self.batch_size} codes in {self.seconds:.1f} s{early}"
        return [
            f"fit of a prior to q(z), in place of {self.former_prior}; nats per observation",
            f"{steps}; weights of step {self.best_step}; seed {self.seed}",
            f"trained: {self._trained()}",
        ]

    def _trained(self) -> str:
        shown = ", ".join(self.trained[:_SHOWN])
        more = len(self.trained) - _SHOWN
        return f"{shown} and {more} more variables" if more > 0 else shown or "nothing"

    def _rows(self) -> list[tuple[str, Any]]:
        return []

    def _remarks(self) -> list[str]:
        changes = {"fitted to": self.training, "held out": self.validation}
        return [f"q(z) {name}: {change}" for name, change in changes.items() if change is not None]
