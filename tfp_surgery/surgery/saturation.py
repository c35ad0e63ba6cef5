"""Why a decoder gives an observation no probability: its probabilities rounded to 0 or 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import unwrap

tfd = tfp.distributions

_CODES = 4  # that are decoded again


def saturated_reconstruction(
    decoder: Callable[[Any], tfd.Distribution], z: Any, failed: np.ndarray
) -> str:
    """Why log p(x|z) is -inf or NaN at some codes, if it is for saturated probabilities.

    Decodes the first few of these codes again, so it is for when work has failed.

    Args:
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution`, batch `[B]`.
      z: Codes `[S, B, *code_shape]`.
      failed: Where log p(x|z) is not finite, bool `[S, B]`.

    Returns:
      Sentences for the message, or an empty string if this is not the cause.
    """
    bad = np.argwhere(failed)[:_CODES]
    if not len(bad):
        return ""
    return saturation(unwrap(decoder(tf.gather_nd(z, bad))))


def saturation(likelihood: tfd.Distribution) -> str:
    """Which distribution in a likelihood was given probabilities that are exactly 0 or 1.

    Args:
      likelihood: p(x|z), eager.

    Returns:
      Sentences for the message, or an empty string if there is none.
    """
    for part in _parts(likelihood):
        probs = part.parameters.get("probs")
        if probs is None:
            continue
        values = np.asarray(tf.convert_to_tensor(probs), np.float64)
        certain = (values == 0) | (values == 1)
        if certain.any():
            return (
                f"{certain.sum()} of {certain.size} probabilities that the decoder gives "
                f"{part.name} are exactly 0 or 1. In float32 a sigmoid is 1 from a logit of 17 on "
                "and 0 below one of about -90, a softmax 0 about 90 below its largest logit, and "
                "what is observed against them has log-probability -inf: give the distribution "
                "logits in place of probabilities, as in tfd.Bernoulli(logits=...)."
            )
    return ""


def _parts(distribution: tfd.Distribution) -> Iterator[tfd.Distribution]:
    """A distribution and all that it was made of."""
    yield distribution
    for parameter in distribution.parameters.values():
        inner = parameter if isinstance(parameter, list | tuple) else [parameter]
        for part in inner:
            if isinstance(part, tfd.Distribution):
                yield from _parts(part)
