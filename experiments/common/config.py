"""The settings of the main job."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from tfp_surgery.datasets import BINARIZATIONS


@dataclasses.dataclass(frozen=True)
class Config:
    """All that the numbers of a run depend on.

    Raises:
      ValueError: if a setting is out of range.
    """

    dataset: str
    latent_sizes: tuple[int, ...]
    binarization: str
    epochs: int
    batch_size: int
    learning_rate: float
    hidden_sizes: tuple[int, ...]
    num_samples: int
    seed: int

    def __post_init__(self) -> None:
        """Checks the settings."""
        if not self.dataset:
            raise ValueError("--dataset must name a data set.")
        if not self.latent_sizes or min(self.latent_sizes) < 1:
            raise ValueError(
                f"--latent_sizes must be at least 1 each, got {_list(self.latent_sizes)}."
            )
        if len(set(self.latent_sizes)) != len(self.latent_sizes):
            raise ValueError(f"--latent_sizes names one twice: {_list(self.latent_sizes)}.")
        if self.hidden_sizes and min(self.hidden_sizes) < 1:
            raise ValueError(
                f"--hidden_sizes must be at least 1 each, got {_list(self.hidden_sizes)}."
            )
        if self.binarization not in BINARIZATIONS:
            raise ValueError(
                f"--binarization must be one of {', '.join(BINARIZATIONS)}, "
                f"got {self.binarization}."
            )
        if self.binarization == "none":
            raise ValueError(
                "--binarization=none gives intensities between 0 and 1, and the decoder of this "
                "job is Bernoulli, over 0 and 1: choose fixed, stochastic or threshold."
            )
        for name, minimum in (("epochs", 1), ("batch_size", 1), ("num_samples", 2), ("seed", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"--{name} must be at least {minimum}, got {getattr(self, name)}.")
        if self.seed >= 2**31:
            raise ValueError(f"--seed must be below 2**31, got {self.seed}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"--learning_rate must be positive, got {self.learning_rate}.")

    def to_dict(self) -> dict[str, Any]:
        """The settings in types that JSON knows."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


def _list(values: Sequence[Any]) -> str:
    return ",".join(str(value) for value in values) or "none"
