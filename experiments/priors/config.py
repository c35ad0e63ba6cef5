"""The settings of `experiments.learned_priors`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from experiments.common.config import Config, epochs_setting
from experiments.common.settings import setting
from experiments.priors.families import FAMILIES, JOINT, MODES, PriorName

STANDARD = PriorName("standard", None)


@dataclasses.dataclass(frozen=True)
class PriorsConfig(Config):
    """Of the VAEs, the priors and what is measured."""

    TFDS_EPOCHS: ClassVar[int] = 12

    latent_sizes: tuple[int, ...] = setting((10, 40), "sizes of the code", distinct=True)
    binarization: str = setting(
        "fixed", "how intensities become 0 and 1", choices=("fixed", "threshold")
    )
    epochs: int = epochs_setting(TFDS_EPOCHS)
    num_samples: int = setting(2, "draws of the code an observation in the surgery", minimum=2)
    priors: tuple[str, ...] = setting(
        ("standard", "mog", "mog_full", "vamp", "exemplar", "aggregate", "realnvp"),
        f"family or family:K of {', '.join(FAMILIES)}",
    )
    mode: tuple[str, ...] = setting(
        MODES, "how priors are trained; several with a comma between", choices=MODES, distinct=True
    )
    fit_steps: int | None = setting(
        None, "at most so many steps of each fit; what its family needs if none"
    )
    num_images: int = setting(
        200, "test images whose log evidence is estimated, drawn at random", minimum=2
    )
    num_importance_samples: int = setting(5000, "of the log evidence of an image")

    def __post_init__(self) -> None:
        """Checks the settings."""
        super().__post_init__()
        names = [PriorName.parse(text) for text in self.priors]
        if not names:
            raise ValueError("--priors must name at least one.")
        if len(set(names)) < len(names):
            raise ValueError(f"--priors names one twice: {','.join(self.priors)}.")
        for name in names:
            family = FAMILIES[name.family]
            if name != STANDARD and not set(family.modes) & set(self.mode):
                raise ValueError(f"--priors names {name}, which --mode leaves nothing to do.")
            if min(self.latent_sizes) < family.min_latent_size:
                raise ValueError(
                    f"--priors={name} needs codes of size {family.min_latent_size} or more, and "
                    f"--latent_sizes has {min(self.latent_sizes)}: give it a run of its own."
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
