"""Importance weights of every observation, computed in chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.components.batch_size import equal_steps
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors, picked, scored
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.likelihood_steps import LikelihoodSteps
from tfp_surgery.measurement.model_checks import check_codes_in_support
from tfp_surgery.measurement.prepared_model import PreparedModel
from tfp_surgery.measurement.rounded_draws import draws_of, rounding_of_draws
from tfp_surgery.measurement.steps import steps
from tfp_surgery.measurement.traced import traced

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True)
class LogWeightChunks:
    """Log weights in chunks, which are computed when one iterates over them, once.

    Each chunk is a tuple of three. Every draw of every observation occurs once, and the draws of an
    observation are in order.

      draws: Slice of the draws in the chunk.
      rows: Slice of the observations in the chunk.
      log_weights: Log weights, float64, shape `[S, B]`, in nats.
    """

    _likelihood: LikelihoodSteps
    _chunks: Iterator[tuple[slice, slice, np.ndarray]]

    def __iter__(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yields draws, rows and log weights."""
        return self._chunks

    @property
    def decoding(self) -> str:
        """How codes were decoded, in words; see `LikelihoodSteps.evaluation`."""
        return self._likelihood.evaluation


def log_weight_chunks(
    model: PreparedModel,
    posteriors: tfd.Distribution,
    num_samples: int,
    key: tf.Tensor,
) -> LogWeightChunks:
    """Computes log weights log p(x_n, z) - log q(z|x_n), as many at a time as the model allows.

    Args:
      model: p(x, z) and the observations.
      posteriors: q(z|x_n), batch shape `[N]`, every parameter broadcast to it. May differ from the
        posteriors of the model.
      num_samples: Number of draws per observation over all chunks.
      key: int32 `Tensor`, shape `[2]`. With one `model.code_batch_size`, the same key gives the
        same draws.

    Returns:
      `LogWeightChunks`.
    """
    # All steps decode the same number of codes, so that kernels compile once. Nearly equal steps
    # waste the fewest codes.
    length = equal_steps(model.num_observations, model.code_batch_size)
    chunk_size = equal_steps(num_samples, model.code_batch_size // length)
    num_steps = -(-model.num_observations // length) * -(-num_samples // chunk_size)
    likelihood = LikelihoodSteps(model, num_steps)
    return LogWeightChunks(
        likelihood, _chunks(model, posteriors, num_samples, key, length, chunk_size, likelihood)
    )


def _chunks(
    model: PreparedModel,
    posteriors: tfd.Distribution,
    num_samples: int,
    key: tf.Tensor,
    length: int,
    chunk_size: int,
    likelihood: LikelihoodSteps,
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yields the chunks of `LogWeightChunks`, of `length` rows and `chunk_size` draws each."""
    # Networks that are called here, for posteriors or for p(z|c), may be no graphs.
    is_reencoded = isinstance(posteriors, ReencodedPosteriors)
    prior = model.prior

    def draw(indices: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
        posterior = picked(posteriors, indices)
        z = posterior.sample(chunk_size, seed)  # [S, B, *code_shape]
        log_posterior = posterior.log_prob(z)
        return [z, log_posterior] if prior is None else [z, log_posterior, prior.log_prob(z)]

    if not is_reencoded:
        draw = traced(draw, tf.TensorSpec([length], tf.int32), tf.TensorSpec([2], tf.int32))
    for step in steps(model.num_observations, length):
        indices = tf.range(step.shown.start, step.shown.stop, dtype=tf.int32)
        step_key = seeds.fold_in(key, step.number)
        for chunk, first in enumerate(range(0, num_samples, chunk_size)):
            z, log_posterior, *log_prior = draw(indices, seeds.fold_in(step_key, chunk))
            if not log_prior:
                log_prior = [scored(model.prior_at(step.shown), z)]
            log_weights = likelihood(z, step.shown).numpy().astype(np.float64)
            log_weights += log_prior[0].numpy()
            log_weights -= log_posterior.numpy()
            # The last chunk may draw more than is needed.
            draws = slice(first, min(first + chunk_size, num_samples))
            yield draws, step.rows, log_weights[: draws.stop - first, step.new]


def looked_at(posteriors: tfd.Distribution, prior: tfd.Distribution | None) -> tuple[str, ...]:
    """Checks some draws of the posteriors, before weights are computed.

    Args:
      posteriors: q(z|x_n), batch shape `[N]`, every parameter broadcast to it.
      prior: p(z); None if it depends on a condition.

    Returns:
      Warnings about draws moved by rounding.

    Raises:
      ValueError: If the log density of a draw under its own posterior is not finite, or a draw lies
        outside the support of the prior where the prior's `log_prob` is finite.
    """
    z = draws_of(posteriors)
    if prior is not None:
        check_codes_in_support(prior, z)
    return consistency.explained([], rounding_of_draws(z.numpy(), posteriors))
