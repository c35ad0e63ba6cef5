"""What measurements are held against: float64 sums over all components, and error bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

_BLOCK_ELEMENTS = 2**21


def log_prob_and_index_entropy(
    z: np.ndarray, loc: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """log q(z) and H[q(n|z)] of equally weighted diagonal Gaussians, by brute force in float64.

    Args:
      z: queries `[K, D]`.
      loc: means `[N, D]`.
      scale: standard deviations `[N, D]`.

    Returns:
      Two float64 arrays `[K]`, in nats.
    """
    z, loc, scale = (np.asarray(array, np.float64) for array in (z, loc, scale))
    num, size = loc.shape
    constant = -np.log(scale).sum(axis=1) - 0.5 * size * math.log(2 * math.pi) - math.log(num)
    log_prob, entropy = np.empty(len(z)), np.empty(len(z))
    step = max(1, _BLOCK_ELEMENTS // num)
    for start in range(0, len(z), step):
        block = z[start : start + step]
        scores = np.repeat(constant[None], len(block), axis=0)  # [k, N]
        for j in range(size):
            scores -= 0.5 * ((block[:, j, None] - loc[:, j]) / scale[:, j]) ** 2
        total = special.logsumexp(scores, axis=1)
        scores -= total[:, None]
        log_prob[start : start + step] = total
        entropy[start : start + step] = -np.sum(np.exp(scores) * scores, axis=1)
    return log_prob, entropy


def error_bound(log_prob: np.ndarray) -> np.ndarray:
    """The error that is allowed: max(1e-4, 4 eps |log q|) nats, eps that of float32.

    Args:
      log_prob: log q(z) in float64, any shape.

    Returns:
      Array of the same shape.
    """
    bound: np.ndarray = np.maximum(1e-4, 4 * np.finfo(np.float32).eps * np.abs(log_prob))
    return bound


def max_error(values: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> tuple[float, float]:
    """The largest error and the largest ratio of error to bound.

    Args:
      values: what was computed for the first queries, `[K', ...]`.
      expected: the truth for the first queries, `[K, ...]`; the shorter one counts.
      bound: the errors allowed, like `expected`.

    Returns:
      Error in nats, and error / bound. Infinite if a value is not finite.
    """
    num = min(len(values), len(expected))
    errors = np.abs(np.asarray(values[:num], np.float64) - expected[:num])
    if not np.isfinite(errors).all():
        return math.inf, math.inf
    return float(errors.max()), float((errors / bound[:num]).max())


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The p of seconds = c sizes^p, by least squares on the logarithms.

    Args:
      sizes: at least two different ones.
      seconds: as many.

    Returns:
      The exponent.
    """
    slope, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(slope)
