"""Splits a two-variable `tfd.JointDistribution` into decoder and prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds

tfd = tfp.distributions


def decoder_and_prior(
    joint: tfd.JointDistribution, seed: Any = (0, 0)
) -> tuple[Callable[[tf.Tensor], tfd.Distribution], tfd.Distribution]:
    """Splits p(z, x) = p(z) p(x|z) into the decoder and prior that `elbo_surgery` takes.

    ```python
    joint = tfd.JointDistributionSequential([prior, decoder])
    decoder, prior = tfs.decoder_and_prior(joint)
    tfs.elbo_surgery(x, encoder, decoder, prior)
    ```

    TFP calls the decoder of a joint distribution on single codes `[*code_shape]` and on batches, so
    that the decoder must accept both (use `tf.linalg.matvec` in place of a matrix product).

    Args:
      joint: A `tfd.JointDistribution` of two variables, first the code and then the observation,
        with batch shape `[]`.
      seed: Stateless seed of the draw that reveals the two distributions. It does not affect them.

    Returns:
      decoder: Callable from codes `[B, *code_shape]` to p(x|z) with batch shape `[B]`.
      prior: p(z).

    Raises:
      TypeError: If `joint` is not a `tfd.JointDistribution`.
      ValueError: If `joint` does not have two variables.
    """
    if not isinstance(joint, tfd.JointDistribution):
        raise TypeError(f"joint must be a tfd.JointDistribution; got {type(joint).__name__}.")
    seed = seeds.key(seeds.checked_seed(seed), "probe")
    distributions, _ = joint.sample_distributions(seed=seed)
    # In the order of execution, which the dict of a JointDistributionNamed does not preserve.
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
