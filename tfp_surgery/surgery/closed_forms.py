"""closed_forms: divergences and entropies of all posteriors in closed form."""

from __future__ import annotations

import contextlib

import numpy as np
import tensorflow as tf

from tfp_surgery.components.divergence import closed_form_kl
from tfp_surgery.components.entropy import closed_form_entropy
from tfp_surgery.components.reencoded_posteriors import picked
from tfp_surgery.measurement.prepared_model import PreparedModel
from tfp_surgery.measurement.steps import steps
from tfp_surgery.measurement.traced import traced_for_many


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
    length = min(model.num_observations, batch_size)

    def of_rows(rows: tf.Tensor) -> list[tf.Tensor | None]:
        posterior = picked(model.posteriors, rows).distribution
        kl = closed_form_kl(posterior, model.prior_at(rows))
        return [kl, closed_form_entropy(posterior)]

    if not (model.is_reencoded or model.prior is None):
        num_steps = -(-model.num_observations // length)
        with contextlib.suppress(NotImplementedError, AttributeError, TypeError):
            # A prior of another library may be no graph.
            of_rows = traced_for_many(num_steps, of_rows, tf.TensorSpec([length], tf.int32))
    parts = []
    for step in steps(model.num_observations, length):
        rows = tf.range(step.shown.start, step.shown.stop, dtype=tf.int32)
        values = [value if value is None else value.numpy()[step.new] for value in of_rows(rows)]
        parts.append(values)
    kl, entropy = (
        None if any(part is None for part in values) else np.concatenate(values)
        for values in zip(*parts, strict=True)
    )
    return kl, entropy
