"""The settings of the main job, from the command line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from absl import flags

from tfp_surgery.datasets import BINARIZATIONS

# Enough for digits to show the three terms within a minute or two on two cores.
_DIGITS_EPOCHS = 100
_TFDS_EPOCHS = 80

_DATASET = flags.DEFINE_string(
    "dataset", "digits", "digits (bundled), or a data set of TFDS: mnist, fashion_mnist, ..."
)
_LATENT_SIZES = flags.DEFINE_list(
    "latent_sizes", ["2", "10", "20"], "sizes of the code, one VAE each"
)
_BINARIZATION = flags.DEFINE_enum(
    "binarization", "fixed", list(BINARIZATIONS), "how intensities become 0 and 1"
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", None, f"passes over the data; {_DIGITS_EPOCHS} for digits, else {_TFDS_EPOCHS}"
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "observations a step")
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 1e-3, "of Adam; falls along a cosine to 1% of it"
)
_HIDDEN_SIZES = flags.DEFINE_list(
    "hidden_sizes", ["500", "500"], "units of the encoder's hidden layers; the decoder mirrors them"
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 4, "draws of the code an observation in the final surgery"
)
_SEED = flags.DEFINE_integer("seed", 0, "of data, weights, noise and surgery")


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


def config_from_flags() -> Config:
    """The settings that the parsed flags state.

    Raises:
      ValueError: if one is not of its type, or out of range.
    """
    epochs = _EPOCHS.value
    if epochs is None:
        epochs = _DIGITS_EPOCHS if _DATASET.value == "digits" else _TFDS_EPOCHS
    return Config(
        dataset=_DATASET.value,
        latent_sizes=_integers("latent_sizes", _LATENT_SIZES.value),
        binarization=_BINARIZATION.value,
        epochs=epochs,
        batch_size=_BATCH_SIZE.value,
        learning_rate=_LEARNING_RATE.value,
        hidden_sizes=_integers("hidden_sizes", _HIDDEN_SIZES.value),
        num_samples=_NUM_SAMPLES.value,
        seed=_SEED.value,
    )


def _integers(name: str, values: Sequence[str]) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in values)
    except ValueError:
        raise ValueError(
            f"--{name} takes integers with commas between them, got {_list(values)}."
        ) from None


def _list(values: Sequence[Any]) -> str:
    return ",".join(str(value) for value in values) or "none"
