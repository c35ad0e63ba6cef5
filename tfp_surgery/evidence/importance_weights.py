"""Importance weights of every observation, streamed: what the bounds on the log evidence sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.model import (
    check_codes_in_support,
    code_sampler,
    reconstruction_log_prob,
)
from tfp_surgery.measurement.rounded_draws import draws_of, rounding_of_draws

tfd = tfp.distributions


def log_weight_chunks(
    x: np.ndarray,
    posteriors: tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    num_samples: int,
    seed: tf.Tensor,
    batch_size: int,
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Draws log p(x_n, z) - log q(z|x_n), at most `batch_size` of them at a time.

    Args:
      x: Observations `[N, *event_shape]`.
      posteriors: q(z|x_n), batch `[N]`, every parameter broadcast to it.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations.
      prior: p(z), or a callable that returns it.
      num_samples: Draws an observation over all chunks.
      seed: `Tensor` of two int32.
      batch_size: Number of codes decoded at a time.

    Yields:
      Which draws, of which observations, and their log weights, float64 `[S, B]`. Every draw of
      every observation comes once; those of an observation come in order.
    """
    num_observations = len(x)
    # Steps as equal as can be, since all decode the same number of codes: kernels compile once.
    per_step = _share(num_observations, batch_size)
    chunk_size = _share(num_samples, batch_size // per_step)

    draw = code_sampler(posteriors, prior, chunk_size, per_step)
    fold_in = tf.random.experimental.stateless_fold_in
    for number, start in enumerate(range(0, num_observations, per_step)):
        # The last step repeats earlier observations, and the last chunk draws more than it needs.
        shown = min(start, num_observations - per_step)
        rows = slice(start, shown + per_step)
        indices = tf.range(shown, shown + per_step, dtype=tf.int32)
        observations = tf.convert_to_tensor(x[shown : shown + per_step])
        row_seed = fold_in(seed, number)
        for chunk, first in enumerate(range(0, num_samples, chunk_size)):
            z, log_prior, log_posterior = draw(indices, fold_in(row_seed, chunk))
            log_likelihood = reconstruction_log_prob(decoder, z, observations)
            log_weights = log_likelihood.numpy().astype(np.float64)
            log_weights += log_prior.numpy()
            log_weights -= log_posterior.numpy()
            draws = slice(first, min(first + chunk_size, num_samples))
            yield draws, rows, log_weights[: draws.stop - first, start - shown :]


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
