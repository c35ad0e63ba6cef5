"""PriorFit: what fitting a prior to a finished model did."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfp_surgery import seeds
from tfp_surgery.measurement.consistency import warning_lines
from tfp_surgery.measurement.presentation import aligned_rows, count_draws, record
from tfp_surgery.surgery.prior_change import PriorChange


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
class PriorFit:
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
    seed: seeds.Seed

    def to_dict(self) -> dict[str, Any]:
        """Returns plain, JSON-ready values: every estimate as `{"value", "standard_error"}`."""
        return record(self)

    def __str__(self) -> str:
        """A table: marginal KL before and after, and the change in ELBO, with standard errors."""
        early = ", stopped early" if self.stopped_early else ""
        steps = f"{self.num_steps} steps of {self.batch_size} codes in {self.seconds:.1f} s{early}"
        lines = [
            f"fit of a prior to q(z), in place of {self.former_prior}; nats per observation",
            f"{steps}; weights of step {self.best_step}; seed {self.seed}",
        ]
        for name, change in (("fitted to", self.training), ("held out", self.validation)):
            if change is None:
                continue
            draws = count_draws(
                change.num_observations, change.num_observations, change.num_samples
            )
            lines.append(
                f"q(z) {name}: N = {change.num_observations}, {draws}; log q(z) {change.evaluation}"
            )
            lines += aligned_rows(
                [
                    ("marginal KL(q(z) || p(z)) before", change.marginal_kl_before),
                    ("marginal KL(q(z) || p(z)) after", change.marginal_kl_after),
                    ("change in ELBO", change.elbo_change),
                ]
            )
            lines += warning_lines(change.warnings)
        return "\n".join(lines)
