"""Trains the VAE of one seed and latent size, from its last checkpoint if there is one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from experiments.common.config import Config
from experiments.common.trained_model import model_label
from tfp_surgery.datasets import Dataset
from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.decoders import MLPDecoder
from tfp_surgery.networks.encoders import MLPEncoder
from tfp_surgery.priors.base import Prior, StandardNormalPrior
from tfp_surgery.training.callbacks import ElboSurgeryCallback
from tfp_surgery.training.checkpoint import Checkpoint, CheckpointCallback, load_checkpoint

# Saving takes a part of a second, and so does an epoch of a small data set.
SECONDS_BETWEEN_CHECKPOINTS = 3.0
_PROGRESS_LINES = 20
_SURGERIES = 5


def build_vae(
    config: Config,
    training_seed: int,
    latent_size: int,
    event_shape: tuple[int, ...],
    make_prior: Callable[[MLPEncoder], Prior] | None = None,
) -> VAE:
    """The VAE of the main job, without its weights.

    Args:
      config: settings of the run.
      training_seed: of the noise.
      latent_size: D.
      event_shape: of one observation.
      make_prior: from the encoder to the prior; None for N(0, I).

    Returns:
      MLP encoder, mirrored MLP decoder to Bernoulli pixels, the prior.
    """
    encoder = MLPEncoder(latent_size, config.hidden_sizes)
    return VAE(
        encoder,
        MLPDecoder(event_shape, config.hidden_sizes[::-1]),
        StandardNormalPrior(latent_size) if make_prior is None else make_prior(encoder),
        seed=training_seed,
    )


def train(
    config: Config,
    training_seed: int,
    latent_size: int,
    dataset: Dataset,
    folder: Path,
    make_prior: Callable[[MLPEncoder], Prior] | None = None,
) -> Checkpoint:
    """Trains a VAE to the end, going on from the checkpoint in `folder`.

    Args:
      config: settings of the run.
      training_seed: of weights, order of batches and noise.
      latent_size: D.
      dataset: the training set.
      folder: existing folder for `checkpoint.keras` and the TensorBoard events.
      make_prior: see `build_vae`.

    Returns:
      The trained VAE with the number of its epochs and the seconds spent.

    Raises:
      OSError: if the checkpoint is damaged.
      ValueError: if it is not one of this run.
    """
    path, label = folder / "checkpoint.keras", model_label(training_seed, latent_size)
    if path.exists():
        start = load_checkpoint(path)
        _check_checkpoint(path, start, training_seed, latent_size, dataset)
        if start.num_epochs < config.epochs:
            print(f"{label}: goes on after epoch {start.num_epochs}.", flush=True)
    else:
        # Keras initializes weights from its global seed; noise and data have seeds of their own.
        keras.utils.set_random_seed(training_seed)
        vae = build_vae(config, training_seed, latent_size, dataset.event_shape, make_prior)
        num_steps = config.epochs * dataset.num_batches(config.batch_size)
        learning_rate = keras.optimizers.schedules.CosineDecay(
            config.learning_rate, num_steps, alpha=0.01
        )
        vae.compile(optimizer=keras.optimizers.Adam(learning_rate), jit_compile=True)
        start = Checkpoint(vae, 0, 0.0)
    if start.num_epochs == config.epochs:
        return start

    vae = start.model
    began = time.monotonic()
    vae.fit(
        dataset.batches(
            config.batch_size,
            seed=training_seed,
            initial_epoch=start.num_epochs,
            indexed=getattr(vae.prior, "leaves_one_out", False),
        ),
        epochs=config.epochs,
        initial_epoch=start.num_epochs,
        verbose=0,
        callbacks=[
            TermsInTraining(
                dataset, every=-(-config.epochs // _SURGERIES), num_query=1000, seed=config.seed
            ),
            Progress(label, -(-config.epochs // _PROGRESS_LINES), start.seconds),
            keras.callbacks.TensorBoard(folder / "events", write_graph=False),
            CheckpointCallback(
                path,
                every_seconds=SECONDS_BETWEEN_CHECKPOINTS,
                seconds_before=start.seconds,
            ),
        ],
    )
    return Checkpoint(vae, config.epochs, start.seconds + time.monotonic() - began)


class TermsInTraining(ElboSurgeryCallback):
    """The terms on a subset; the surgery of all data is a later step, which can be resumed."""

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves the full surgery to the caller."""


class Progress(keras.callbacks.Callback):
    """Prints a line every few epochs."""

    def __init__(self, label: str, every: int, seconds_before: float) -> None:
        """Makes the callback.

        Args:
          label: what is trained.
          every: epochs from one line to the next; the first and the last have one as well.
          seconds_before: time spent before this process.
        """
        super().__init__()
        self._label = label
        self._every = every
        self._seconds_before = seconds_before

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock."""
        self._start = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Prints the objective of the epoch, and the terms on a subset where they were taken."""
        number, total = epoch + 1, self.params["epochs"]
        if logs is None or (number % self._every and number not in (1, total)):
            return
        line = (
            f"{self._label}: epoch {number:{len(str(total))}}/{total}, ELBO {-logs['loss']:8.2f} = "
            f"reconstruction {logs['average_reconstruction']:8.2f} - KL {logs['average_kl']:6.2f}"
        )
        if not math.isnan(logs["surgery_marginal_kl"]):  # as it is between two surgeries
            line += (
                f" (index-code MI {logs['surgery_index_code_mutual_information']:.2f}, "
                f"marginal KL {logs['surgery_marginal_kl']:.2f})"
            )
        seconds = self._seconds_before + time.monotonic() - self._start
        print(f"{line}, {seconds:.0f} s", flush=True)


def _check_checkpoint(
    path: Path, checkpoint: Checkpoint, training_seed: int, latent_size: int, dataset: Dataset
) -> None:
    model = checkpoint.model
    if (
        not isinstance(model, VAE)
        or model.event_shape != dataset.event_shape
        or model.prior.event_size != latent_size
    ):
        raise ValueError(
            f"{path} holds another model than the VAE of latent size {latent_size} for "
            f"{dataset.name}: delete it to train that one anew."
        )
    if model.seed != training_seed:
        raise ValueError(
            f"{path} holds a VAE of training seed {model.seed} in the place of that of "
            f"{training_seed}: delete it to train that one anew."
        )
