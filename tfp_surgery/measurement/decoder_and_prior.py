"""Decoder and prior of a two-variable `tfd.JointDistribution`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


def decoder_and_prior(
    joint: tfd.JointDistribution, seed: Any = (0, 0)
) -> tuple[Callable[[tf.Tensor], tfd.Distribution], tfd.Distribution]:
    """Splits p(z, x) = p(z) p(x|z) into what `elbo_surgery` takes.

    ```python
    joint = tfd.JointDistributionSequential([prior, decoder])
    decoder, prior = tfs.decoder_and_prior(joint)
    tfs.elbo_surgery(x, encoder, decoder, prior)
    ```

    TFP runs a joint distribution on single codes `[*code_shape]` as well as on batches, so that its
    decoder must take both (`tf.linalg.matvec` where a network has a matrix product).

    Args:
      joint: A `tfd.JointDistribution` of two variables, the code first and the observation second,
        with batch shape `[]`.
      seed: Stateless seed of the draw that finds the two distributions; it does not enter them.

    Returns:
      decoder: Callable from codes `[B, *code_shape]` to p(x|z), batch `[B]`.
      prior: p(z).

    Raises:
      TypeError: If `joint` is no `tfd.JointDistribution`.
      ValueError: If it has not two variables.
    """
    if not isinstance(joint, tfd.JointDistribution):
        raise TypeError(f"joint must be a tfd.JointDistribution; got {type(joint).__name__}.")
    seed = tf.constant(seed, tf.int32)
    distributions, _ = joint.sample_distributions(seed=seed)
    # The order of the model's execution, which the dict of a JointDistributionNamed does not show.
    variables = joint._model_flatten(distributions)
    if len(variables) != 2:
        raise ValueError(
            "joint must have two variables, the code and the observation; got "
            f"{len(variables)}: {joint.dtype}."
        )

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        given = joint._model_unflatten([z, None])
        conditioned, _ = joint.sample_distributions(value=given, seed=seed)
        return joint._model_flatten(conditioned)[1]

    return decoder, variables[0]
