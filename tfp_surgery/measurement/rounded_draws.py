"""Detects codes that rounding has moved to the border of their support or to equal values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.point_mass import measures
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.flat_joint import FlatJoint
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors
from tfp_surgery.measurement.draws import checked_draws

tfd = tfp.distributions

# A value shared by at least this many draws, and this share of them, is an atom; densities have
# none.
_LEAST_DRAWS, _LEAST_SHARE = 3, 1e-3
# Largest share of pairs of draws of one posterior that may be equal. At 5% its scale is about six
# times the spacing of floating-point numbers, and the mean of ((z - mu) / sigma)^2 is off by 0.002.
_LARGEST_SHARE_OF_TIES = 0.05
# Relative to the square root of the largest number, beyond which squares overflow. Families that
# divide by a clamped Gamma draw (tfd.StudentT) end a few powers of ten below the root.
_NEAR_OVERFLOW = 1e-2
_OBSERVATIONS = 10_000  # largest number of posteriors that draws_of samples


def rounding_of_draws(z: np.ndarray, posteriors: tfd.Distribution) -> str | None:
    """Describes rounding of draws that is large enough to bias estimates.

    Under a density, every single value has probability 0. A value next to 0 that is the smallest or
    largest draw of a code dimension and is shared by many draws comes from a sampler that clamps
    (`tfd.Gamma` at the smallest normal number), so that the draws do not follow the density. Draws
    rounded to values such as 0 or 1 change little if their densities are finite; otherwise, `cause`
    explains the failure.

    Args:
      z: Draws, shape `[S, Q, *code_shape]`, S from each of Q posteriors.
      posteriors: The distribution of the draws. Discrete codes, and discrete parts of structured
        ones, are not checked.

    Returns:
      One or two sentences with the dimension, the value and the remedy; None if nothing is found.
    """
    if not np.issubdtype(z.dtype, np.floating) or z.shape[0] * z.shape[1] < _LEAST_DRAWS:
        return None
    flat = z.reshape(*z.shape[:2], -1)  # [S, Q, *code_shape] -> [S, Q, D]
    limits = np.finfo(z.dtype)
    dimensions = _with_densities(flat, posteriors)
    flat = flat[..., dimensions]
    if np.array_equal(flat, np.round(flat)):
        return None
    narrow = _too_narrow(flat, limits, dimensions)
    if narrow is not None:
        return narrow
    for j, codes in zip(dimensions, np.moveaxis(flat, -1, 0), strict=True):
        share, what = _largest_atom(codes)
        far = np.mean(np.abs(codes) > _NEAR_OVERFLOW * np.sqrt(limits.max))
        if far > share:
            share, what = far, f"lie beyond {_NEAR_OVERFLOW * np.sqrt(limits.max):.0e}"
        if share >= max(_LEAST_SHARE, _LEAST_DRAWS / codes.size):
            return (
                f"{z.dtype.name} rounds draws of the posteriors to the end of what it can hold: "
                f"{100 * share:.3g}% of those of code dimension {j} {what}. Their log densities "
                f"are not those of the distribution. {_cure(z.dtype)}"
            )
    return None


def _with_densities(flat: np.ndarray, posteriors: Any) -> np.ndarray:
    """Returns the dimensions of draws `[S, Q, D]` that may have a density, not a mass."""
    if isinstance(posteriors, ReencodedPosteriors):
        posteriors = posteriors.distribution
    dimensions = np.arange(flat.shape[2])
    if not isinstance(posteriors, FlatJoint):
        return dimensions[:0] if "mass" in measures(posteriors) else dimensions
    chosen = []
    dtypes = tf.nest.flatten(posteriors.layout.dtypes)
    for number, (places, dtype) in enumerate(zip(posteriors.layout.slices, dtypes, strict=True)):
        part = posteriors.part(number)
        found = measures(part) if part is not None else frozenset()
        values = flat[..., places]
        is_mass = "mass" in found or (not found and np.array_equal(values, np.round(values)))
        if dtype.is_floating and not is_mass:
            chosen.append(dimensions[places])
    return np.concatenate(chosen) if chosen else dimensions[:0]


def _too_narrow(flat: np.ndarray, limits: np.finfo[Any], dimensions: np.ndarray) -> str | None:
    """Describes posteriors whose scale is near the spacing of numbers.

    Args:
      flat: Draws, shape `[S, Q, D]`.
      limits: Those of their dtype.
      dimensions: The dimensions of the code that the draws are, shape `[D]`.

    Returns:
      One or two sentences; None if there are none.
    """
    if len(flat) == 1:
        return None
    first, lowest, highest = flat[0], flat.min(axis=(0, 1)), flat.max(axis=(0, 1))
    # Exclude draws that a sampler has clamped: at an end of all draws, or next to 0.
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        spread = highest - lowest > 32 * limits.eps * np.abs(highest)
    clamped = ((first == lowest) | (first == highest)) & spread
    clamped |= ~np.isfinite(first) | (np.abs(first) < limits.eps**2)
    # Exclude constant dimensions, such as the corner of a Cholesky factor.
    ties = np.where(highest > lowest, np.mean((first == flat[1]) & ~clamped, axis=0), 0.0)
    j = int(np.argmax(ties))
    if ties[j] <= _LARGEST_SHARE_OF_TIES:
        return None
    cure = "Centre the codes." if limits.bits >= 64 else "Use float64, or centre the codes."
    return (
        f"{limits.dtype.name} has too few digits for posteriors so narrow so far from 0: in "
        f"{100 * ties[j]:.3g}% of pairs of draws of one posterior, code dimension {dimensions[j]} "
        f"is the same number. {cure}"
    )


def draws_of(posteriors: tfd.Distribution) -> tf.Tensor:
    """Draws two codes from each posterior, of at most 10000, and checks their densities.

    Args:
      posteriors: q(z|x_n), batch shape `[N]`, every parameter broadcast to it.

    Returns:
      Codes, shape `[2, Q, *code_shape]`, Q = min(N, 10000).

    Raises:
      ValueError: If the log density of a draw under its own posterior is not finite.
    """
    num_observations = int(posteriors.batch_shape[0])
    if num_observations > _OBSERVATIONS:
        chosen = np.linspace(0, num_observations - 1, _OBSERVATIONS).astype(np.int32)
        posteriors = components_lib.gather(posteriors, tf.constant(chosen))
    z = tf.identity(posteriors.sample(2, seed=tf.constant([0, 0], tf.int32)))
    checked_draws("log q(z|x)", posteriors.log_prob(z), cause=cause(z, own=True))
    return z


def cause(z: Any, own: bool = False) -> Callable[[np.ndarray], str]:
    """Returns a function that explains log densities that rounding has made infinite or NaN.

    Args:
      z: Draws, shape `[S, Q, ..., *code_shape]`.
      own: Whether the density is that of the sampled distribution, or of a mixture containing it.

    Returns:
      A callable from a mask `[S, Q, ...]` of the draws without a finite log density to one or two
      sentences; an empty string if rounding is not the cause.
    """
    return lambda failed: _explained(np.asarray(z), failed, own)


def _explained(z: np.ndarray, failed: np.ndarray, own: bool) -> str:
    if not np.issubdtype(z.dtype, np.floating):
        return ""
    flat = z.reshape(*failed.shape, -1)[failed]  # [S, Q, ..., *code_shape] -> [F, D]
    at_end = _at_end(z.reshape(-1, flat.shape[1]), flat)
    if not at_end.any(axis=-1).all():
        if not own:
            return ""
        if np.array_equal(z, np.round(z)):
            return (
                "TFP gives a one-hot code no log probability where another has a probability of "
                "exactly 0. Codes that are points, as those of a VQ-VAE, are their indices in "
                "tfd.Deterministic or tfd.Categorical, with a tfd.Categorical prior."
            )
        return (
            f"the distribution that drew them gives them none, since {z.dtype.name} rounds what it "
            f"computes of them, or its parameters are not finite. {_cure(z.dtype)}"
        )
    values = np.unique(flat[at_end])
    values = values[np.isin(values, _ends(z.dtype))]
    shown = ", ".join(f"{value:g}" for value in values[:3])
    return (
        f"{z.dtype.name} rounds these draws onto the border of the support"
        f"{f' ({shown})' if shown else ''}. {_cure(z.dtype)}"
    )


def _at_end(every: np.ndarray, failed: np.ndarray) -> np.ndarray:
    """Returns a mask `[F, D]` of values at the end of a support or near overflow.

    Args:
      every: All draws, shape `[M, D]`. A dimension of whole numbers alone is a discrete part.
      failed: Those without a finite log density, shape `[F, D]`.
    """
    at_end: np.ndarray = np.isin(failed, _ends(failed.dtype))
    at_end |= np.abs(failed) > _NEAR_OVERFLOW * np.sqrt(np.finfo(failed.dtype).max)
    is_whole = np.isfinite(every).all(axis=0) & (every == np.round(every)).all(axis=0)
    at_end &= ~is_whole
    return at_end


def _ends(dtype: np.dtype[Any]) -> np.ndarray:
    limits = np.finfo(dtype)
    ends = [0.0, 1.0, -1.0, limits.tiny, limits.max, -limits.max, np.inf, -np.inf]
    return np.asarray(ends, dtype)


def _cure(dtype: np.dtype[Any]) -> str:
    wider = "" if dtype.itemsize >= 8 else "float64, or "
    return (
        f"Use {wider}a code that {dtype.name} can hold: the unconstrained one before its bijector, "
        "or another family (tfd.ExpGamma for tfd.Gamma, tfd.SigmoidBeta for tfd.Beta, "
        "tfd.ExpRelaxedOneHotCategorical for tfd.RelaxedOneHotCategorical)."
    )


def _largest_atom(codes: np.ndarray) -> tuple[float, str]:
    """Returns the share of draws equal to their minimum or maximum, if that is next to 0.

    Args:
      codes: Draws of one code dimension, shape `[S, Q]`.

    Returns:
      share: The larger share; 0 if neither end is next to 0.
      description: The value, in words.
    """
    next_to_zero = np.finfo(codes.dtype).eps ** 2
    ends = {
        float(end): float(np.mean(codes == end))
        for end in (codes.min(), codes.max())
        if 0 < abs(end) < next_to_zero
    }
    value = max(ends, key=lambda end: ends[end], default=0.0)
    return ends.get(value, 0.0), f"are exactly {value:g}"
