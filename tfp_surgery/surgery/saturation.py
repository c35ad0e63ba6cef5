"""Detects decoders whose probabilities are rounded to 0 or 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import unwrap

tfd = tfp.distributions

_CODES = 4  # number of codes decoded again


def saturated_reconstruction(
    decoder: Callable[[Any], tfd.Distribution], z: Any, failed: np.ndarray
) -> str:
    """Explains log p(x|z) of -inf or NaN by saturated probabilities.

    Decodes the first few of the failed codes again.

    Args:
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` with batch shape
        `[B]`.
      z: Codes, shape `[S, B, *code_shape]`.
      failed: Mask of values log p(x|z) that are not finite, bool, shape `[S, B]`.

    Returns:
      Sentences for an error message; an empty string if saturation is not the cause.
    """
    bad = np.argwhere(failed)[:_CODES]
    if not len(bad):
        return ""
    return saturation(unwrap(decoder(tf.gather_nd(z, bad))))


def saturation(likelihood: tfd.Distribution) -> str:
    """Describes the first distribution in a likelihood whose probabilities are exactly 0 or 1.

    Args:
      likelihood: p(x|z) with known values.

    Returns:
      Sentences for an error message; an empty string if there is none.
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
                "logits in place of probabilities, as in tfd.Bernoulli(logits=...) or "
                "tfs.networks.BernoulliDecoder(network, from_logits=True)."
            )
    return ""


def _parts(distribution: tfd.Distribution) -> Iterator[tfd.Distribution]:
    """Yields a distribution and, recursively, the distributions among its parameters."""
    yield distribution
    for parameter in distribution.parameters.values():
        inner = parameter if isinstance(parameter, list | tuple) else [parameter]
        for part in inner:
            if isinstance(part, tfd.Distribution):
                yield from _parts(part)
