"""The settings of `experiments.learned_priors`, from the command line."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from absl import flags

from experiments.common.config import Config
from experiments.priors.families import FAMILIES, JOINT, MODES, PriorName

STANDARD = PriorName("standard", None)
_DIGITS_EPOCHS, _TFDS_EPOCHS = 100, 12

_INTEGERS = {
    "batch_size": (128, "observations a step of training"),
    "num_samples": (2, "draws of the code an observation in the surgery"),
    "num_images": (200, "test images whose log evidence is estimated, drawn at random"),
    "num_importance_samples": (5000, "of the log evidence of an image"),
    "seed": (0, "of data, weights, noise, choices and measurements"),
}
_MINIMA = {"num_samples": 2, "num_images": 2, "seed": 0}


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags, some of which have the names of those of other experiments."""
    define_string = functools.partial(flags.DEFINE_string, flag_values=flag_values)
    define_list = functools.partial(flags.DEFINE_list, flag_values=flag_values)
    define_integer = functools.partial(flags.DEFINE_integer, flag_values=flag_values)
    define_string("workdir", None, "folder of this run", required=True)
    define_string("dataset", "digits", "digits (bundled), or a data set of TFDS: mnist, ...")
    flags.DEFINE_enum(
        "binarization",
        "fixed",
        ["fixed", "threshold"],
        "how intensities become 0 and 1",
        flag_values=flag_values,
    )
    define_list("latent_sizes", ["10", "40"], "sizes of the code")
    define_list(
        "priors",
        ["standard", "mog", "mog_full", "vamp", "exemplar", "aggregate", "realnvp"],
        f"family or family:K of {', '.join(FAMILIES)}",
    )
    define_list("mode", list(MODES), "joint, posthoc or both")
    define_list("hidden_sizes", ["500", "500"], "units of the encoder's hidden layers")
    define_integer(
        "epochs", None, f"of every VAE; {_DIGITS_EPOCHS} for digits, else {_TFDS_EPOCHS}"
    )
    define_integer(
        "fit_steps", None, "at most so many steps of each fit; what its family needs if none"
    )
    flags.DEFINE_float(
        "learning_rate",
        1e-3,
        "of Adam for the VAEs; falls along a cosine to 1% of it",
        flag_values=flag_values,
    )
    for name, (default, text) in _INTEGERS.items():
        define_integer(name, default, text)
    define_string("data_dir", None, "folder of prepared TFDS data; TFDS's own if none")
    define_string(
        "manual_dir", None, "folder with the data's original files, for machines without network"
    )


@dataclasses.dataclass(frozen=True)
class PriorsConfig:
    """All that the numbers of a run depend on.

    Raises:
      ValueError: if a setting is out of range.
    """

    dataset: str
    binarization: str
    latent_sizes: tuple[int, ...]
    priors: tuple[str, ...]
    mode: tuple[str, ...]
    hidden_sizes: tuple[int, ...]
    epochs: int
    fit_steps: int | None
    learning_rate: float
    batch_size: int
    num_samples: int
    num_images: int
    num_importance_samples: int
    seed: int

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.binarization not in ("fixed", "threshold"):
            raise ValueError(f"--binarization must be fixed or threshold, got {self.binarization}.")
        if (
            not self.mode
            or not set(self.mode) <= set(MODES)
            or len(set(self.mode)) < len(self.mode)
        ):
            raise ValueError(f"--mode must be joint, posthoc or both, got {','.join(self.mode)}.")
        names = [PriorName.parse(text) for text in self.priors]
        if not names:
            raise ValueError("--priors must name at least one.")
        if len(set(names)) < len(names):
            raise ValueError(f"--priors names one twice: {','.join(self.priors)}.")
        idle = [
            str(name) for name in names if not set(FAMILIES[name.family].modes) & set(self.mode)
        ]
        idle = [name for name in idle if name != str(STANDARD)]
        if idle:
            raise ValueError(f"--priors names {','.join(idle)}, which --mode leaves nothing to do.")
        if self.fit_steps is not None and self.fit_steps < 1:
            raise ValueError(f"--fit_steps must be at least 1, got {self.fit_steps}.")
        for name in _INTEGERS:
            if getattr(self, name) < _MINIMA.get(name, 1):
                raise ValueError(
                    f"--{name} must be at least {_MINIMA.get(name, 1)}, got {getattr(self, name)}."
                )
        self.training  # noqa: B018 - checks the rest
        for prior in names:
            minimum = FAMILIES[prior.family].min_latent_size
            if min(self.latent_sizes) < minimum:
                raise ValueError(
                    f"--priors={prior} needs codes of size {minimum} or more, and --latent_sizes "
                    f"has {min(self.latent_sizes)}: give it a run of its own."
                )

    @property
    def training(self) -> Config:
        """The settings of each VAE's training."""
        return Config(
            dataset=self.dataset,
            latent_sizes=self.latent_sizes,
            binarization=self.binarization,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            hidden_sizes=self.hidden_sizes,
            num_samples=self.num_samples,
            seed=self.seed,
        )

    @property
    def plan(self) -> list[tuple[str, PriorName]]:
        """Modes and priors to measure: first N(0, I), with which all others are compared."""
        names = [PriorName.parse(text) for text in self.priors]
        return [(JOINT, STANDARD)] + [
            (mode, name)
            for mode in MODES
            if mode in self.mode
            for name in names
            if mode in FAMILIES[name.family].modes and name != STANDARD
        ]

    def to_dict(self) -> dict[str, Any]:
        """The settings in types that JSON knows."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


def config_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> PriorsConfig:
    """The settings that the parsed flags state.

    Raises:
      ValueError: if one is not of its type, or out of range.
    """
    given = flag_values.flag_values_dict()
    epochs = given["epochs"]
    if epochs is None:
        epochs = _DIGITS_EPOCHS if given["dataset"] == "digits" else _TFDS_EPOCHS
    settings: dict[str, Any] = {
        field.name: given[field.name] for field in dataclasses.fields(PriorsConfig)
    }
    for name in ("latent_sizes", "hidden_sizes"):
        try:
            settings[name] = tuple(int(value) for value in given[name])
        except ValueError:
            raise ValueError(
                f"--{name} takes integers with commas between them, got {','.join(given[name])}."
            ) from None
    lists = {name: tuple(given[name]) for name in ("priors", "mode")}
    return PriorsConfig(**{**settings, **lists, "epochs": epochs})
