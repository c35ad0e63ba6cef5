"""The flags of the main job, and its settings from them."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from experiments.common.config import Config
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
            f"--{name} takes integers with commas between them, got {','.join(values)}."
        ) from None
