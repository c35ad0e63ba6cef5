"""first_not_finite: says what is not finite in a training step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_surgery.training.objectives import ObjectiveTerms
from tfp_surgery.training.variables import path_of

_KEPT = "Weights, optimizer and metrics are those of before this step."


class DifferentiatedLoss(NamedTuple):
    """The loss of one training step and its gradient.

    Attributes:
      terms: Of each observation.
      penalties: Scalars that layers add to the loss.
      loss: Scalar: the negative mean objective, with the penalties.
      gradients: Of the loss, scaled as the optimizer asks for it, with respect to each trainable
        weight; None for a weight that it does not depend on.
    """

    terms: ObjectiveTerms
    penalties: list[tf.Tensor]
    loss: tf.Tensor
    gradients: list[Any]


def first_not_finite(model: Any, step: DifferentiatedLoss) -> str:
    """Says what is the first that is not finite: a weight, a term, a gradient or the update.

    Args:
      model: The model, with the weights from before the step.
      step: The loss of the step and its gradient.

    Returns:
      Sentences for an error.
    """
    number = f"training step {int(tf.convert_to_tensor(model.optimizer.iterations)) + 1}"
    bad = [weight for weight in model.trainable_weights if not _is_finite(weight.value)]
    if bad:
        return (
            f"before {number} {_paths(bad)} held values that are not finite already. Nothing was "
            "trained."
        )
    cure = (
        "Look for logarithms, square roots and quotients at zero and for draws on the border of "
        "the support; float64, a smaller learning rate or clipnorm may help."
    )
    if np.any(step.terms.kl.numpy() == np.inf):
        cure = (
            "The posterior has mass where the prior has none, or draws are rounded onto the border "
            "of its support."
        )
    return f"{number} was stopped: {_cause(model, step)}. {_KEPT} {cure}"


def _cause(model: Any, step: DifferentiatedLoss) -> str:
    if not _is_finite(step.loss):
        for name, term in (
            ("the reconstruction log p(x|z)", step.terms.reconstruction),
            ("the KL divergence of q(z|x) from the prior", step.terms.kl),
            ("the objective", step.terms.objective),
        ):
            values = term.numpy()
            bad = values[~np.isfinite(values)]
            if bad.size:
                return (
                    f"{name} is not finite ({bad[0]}) for {bad.size} of its {values.size} "
                    "observations"
                )
        for number, penalty in enumerate(step.penalties, 1):
            if not _is_finite(penalty):
                return (
                    f"penalty {number} of the {len(step.penalties)} that layers add to the loss "
                    f"is not finite ({penalty.numpy()})"
                )
        return f"the sum of finite terms is not ({step.loss.numpy()})"
    weights = model.trainable_weights
    bad = [
        weight
        for weight, gradient in zip(weights, step.gradients, strict=True)
        if gradient is not None and not _is_finite(gradient)
    ]
    if bad:
        return (
            f"the loss is {step.loss.numpy():.6g}, but its gradient with respect to {_paths(bad)} "
            "is not finite"
        )
    return (
        f"loss ({step.loss.numpy():.6g}) and gradients are finite, but what the optimizer makes of "
        "them is not: they are too large for its learning rate or its squares"
    )


def _paths(weights: Iterable[Any]) -> str:
    paths = [path_of(weight) for weight in weights]
    more = f" and {len(paths) - 3} more of the weights" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more


def _is_finite(value: Any) -> bool:
    if isinstance(value, tf.IndexedSlices):
        value = value.values
    return bool(np.all(np.isfinite(tf.cast(value, tf.float64))))
