"""closed_forms: divergences and entropies of all posteriors in closed form."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components.divergence import closed_form_kl
from tfp_surgery.components.entropy import closed_form_entropy
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors, picked
from tfp_surgery.measurement.prepared_model import PreparedModel
from tfp_surgery.measurement.steps import steps
from tfp_surgery.measurement.traced import traced_for_many

tfd = tfp.distributions


def closed_forms(
    model: PreparedModel, batch_size: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns what is known of the posteriors of all N observations without draws.

    Args:
      model: The model.
      batch_size: Number of posteriors at a time.

    Returns:
      closed_form_kl: KL(q(z|x_n) || p(z)), or of p(z|c_n), shape `[N]`; None if TFP registers none.
      closed_form_entropy: H[q(z|x_n)], shape `[N]`; None if TFP has none.
    """
    return closed_forms_of(
        model.posteriors,
        model.prior_at,
        model.num_observations,
        batch_size,
        is_conditional=model.prior is None,
    )


def closed_forms_of(
    posteriors: tfd.Distribution,
    prior_at: Callable[[Any], tfd.Distribution | None],
    num_observations: int,
    batch_size: int,
    is_conditional: bool = False,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns what is known of any posteriors, as `closed_forms` does of those of a model.

    Args:
      posteriors: q(z|x_n), batch shape `[N]`, every parameter broadcast to it.
      prior_at: Callable from indices of B posteriors to p(z), batch shape `[]` or `[B]`; or to None
        where there is none.
      num_observations: N.
      batch_size: See `closed_forms`.
      is_conditional: Whether the prior depends on the indices.

    Returns:
      See `closed_forms`.
    """
    length = min(num_observations, batch_size)

    def of_rows(rows: tf.Tensor) -> list[tf.Tensor | None]:
        posterior = picked(posteriors, rows).distribution
        prior = prior_at(rows)
        kl = None if prior is None else closed_form_kl(posterior, prior)
        return [kl, closed_form_entropy(posterior)]

    if not (isinstance(posteriors, ReencodedPosteriors) or is_conditional):
        num_steps = -(-num_observations // length)
        with contextlib.suppress(NotImplementedError, AttributeError, TypeError):
            # A prior of another library may be no graph.
            of_rows = traced_for_many(num_steps, of_rows, tf.TensorSpec([length], tf.int32))
    parts = []
    for step in steps(num_observations, length):
        rows = tf.range(step.shown.start, step.shown.stop, dtype=tf.int32)
        values = [value if value is None else value.numpy()[step.new] for value in of_rows(rows)]
        parts.append(values)
    kl, entropy = (
        None if any(part is None for part in values) else np.concatenate(values)
        for values in zip(*parts, strict=True)
    )
    return kl, entropy
