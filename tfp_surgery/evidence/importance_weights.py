"""Importance weights of every observation, streamed: what the bounds on the log evidence sum."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.components import components as components_lib
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.model_checks import check_codes_in_support
from tfp_surgery.measurement.prepared_model import PreparedModel
from tfp_surgery.measurement.rounded_draws import draws_of, rounding_of_draws
from tfp_surgery.measurement.steps import steps
from tfp_surgery.measurement.traced import traced

tfd = tfp.distributions


def log_weight_chunks(
    model: PreparedModel,
    posteriors: tfd.Distribution,
    num_samples: int,
    key: tf.Tensor,
    batch_size: int,
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Draws log p(x_n, z) - log q(z|x_n), at most `batch_size` of them at a time.

    Args:
      model: p(x, z) and the observations.
      posteriors: q(z|x_n), batch `[N]`, every parameter broadcast to it: those of the model, or
        others.
      num_samples: Draws an observation over all chunks.
      key: `Tensor` of two int32.
      batch_size: Number of codes decoded at a time.

    Yields:
      Which draws, of which observations, and their log weights, float64 `[S, B]`. Every draw of
      every observation comes once; those of an observation come in order.
    """
    # Steps as equal as can be, since all decode the same number of codes: kernels compile once.
    length = _share(model.num_observations, batch_size)
    chunk_size = _share(num_samples, batch_size // length)

    def draw(indices: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        posterior = components_lib.gather(posteriors, indices)
        z = posterior.sample(chunk_size, seed=seed)  # [S, B, *code_shape]
        return z, model.prior.log_prob(z), posterior.log_prob(z)

    draw = traced(draw, tf.TensorSpec([length], tf.int32), tf.TensorSpec([2], tf.int32))
    for step in steps(model.num_observations, length):
        indices = tf.range(step.shown.start, step.shown.stop, dtype=tf.int32)
        step_key = seeds.fold_in(key, step.number)
        for chunk, first in enumerate(range(0, num_samples, chunk_size)):
            z, log_prior, log_posterior = draw(indices, seeds.fold_in(step_key, chunk))
            log_weights = model.log_likelihood(z, step.shown).numpy().astype(np.float64)
            log_weights += log_prior.numpy()
            log_weights -= log_posterior.numpy()
            # The last chunk draws more than it needs.
            draws = slice(first, min(first + chunk_size, num_samples))
            yield draws, step.rows, log_weights[: draws.stop - first, step.new]


def looked_at(posteriors: tfd.Distribution, prior: tfd.Distribution) -> tuple[str, ...]:
    """Looks at some draws of the posteriors before the weights of many are computed.

    Args:
      posteriors: q(z|x_n), batch `[N]`, every parameter broadcast to it.
      prior: p(z).

    Returns:
      What to warn of: draws that rounding moved.

    Raises:
      ValueError: If a draw has no finite density under its own posterior, or lies outside the
        support of the prior, whose formula is finite there.
    """
    z = draws_of(posteriors)
    check_codes_in_support(prior, z)
    return consistency.explained([], rounding_of_draws(z.numpy(), posteriors))


def _share(total: int, limit: int) -> int:
    """The size of the fewest equal parts of a total, none above the limit."""
    return -(-total // -(-total // limit))
