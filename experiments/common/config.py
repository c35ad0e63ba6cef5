"""The settings of the main job."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from experiments.common.settings import Settings, seed_setting, setting, training_seeds_setting
from tfp_surgery.datasets import BINARIZATIONS

# Enough for digits to show the three terms within a minute or two on two cores.
_DIGITS_EPOCHS = 100


def epochs_setting(of_others: int) -> Any:
    """The number of epochs, which goes with the data set if it is not given."""
    return setting(None, f"passes over the data; {_DIGITS_EPOCHS} for digits, else {of_others}")


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Of what data, model, training and surgery are."""

    TFDS_EPOCHS: ClassVar[int] = 80

    dataset: str = setting("digits", "digits (bundled), or a data set of TFDS: mnist, ...")
    latent_sizes: tuple[int, ...] = setting(
        (2, 10, 20), "sizes of the code, one VAE each", distinct=True
    )
    binarization: str = setting("fixed", "how intensities become 0 and 1", choices=BINARIZATIONS)
    epochs: int = epochs_setting(TFDS_EPOCHS)
    batch_size: int = setting(128, "observations a step")
    learning_rate: float = setting(1e-3, "of Adam; falls along a cosine to 1% of it")
    hidden_sizes: tuple[int, ...] = setting(
        (500, 500), "units of the encoder's hidden layers; the decoder mirrors them"
    )
    num_samples: int = setting(4, "draws of the code an observation in the surgery", minimum=2)
    seed: int = seed_setting("of data, surgery and the choice of images")
    training_seeds: tuple[int, ...] = training_seeds_setting(
        (0,), "of weights, order of batches and noise, a training run each: 0,1,2"
    )

    def __post_init__(self) -> None:
        """Completes and checks the settings."""
        if self.epochs is None:
            epochs = _DIGITS_EPOCHS if self.dataset == "digits" else self.TFDS_EPOCHS
            object.__setattr__(self, "epochs", epochs)
        super().__post_init__()
        if self.binarization == "none":
            raise ValueError(
                "--binarization=none gives intensities between 0 and 1, and the decoder is "
                "Bernoulli, over 0 and 1: choose fixed, stochastic or threshold."
            )
