"""Gaussian posteriors from arrays of any library, whose scales say what they are."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.arrays import checked_numbers

tfd = tfp.distributions

_HALVES = ("float16", "bfloat16")


def gaussians_from_arrays(
    *,
    loc: Any,
    scale: Any = None,
    variance: Any = None,
    log_variance: Any = None,
    scale_tril: Any = None,
) -> tfd.Distribution:
    """Makes N Gaussians of arrays from NumPy, PyTorch, JAX, R or any other library.

    Exactly one of the last four says how wide they are, and has exactly the shape stated: a number
    or a row for all observations is not repeated. Arrays may be anything that NumPy takes (through
    `__array__` or DLPack). They are copied, and gradients do not flow to them. Half precision
    becomes float32.

    Args:
      loc: The means: floating, shape `[N, D]`, or `[N]` for codes that are scalars.
      scale: Standard deviations, shape of `loc`.
      variance: Squared standard deviations, shape of `loc`.
      log_variance: Natural logarithms of the variances, shape of `loc`.
      scale_tril: Cholesky factors of the covariances, shape `[N, D, D]`.

    Returns:
      Batch shape `[N]`: a `tfd.MultivariateNormalDiag`, a `tfd.MultivariateNormalTriL` if
      `scale_tril` is given, or a `tfd.Normal` if `loc` has shape `[N]`.

    Raises:
      TypeError: If not exactly one of the four is given; if an argument is not one array of
        floating-point numbers (a PyTorch tensor that requires grad among them), or is a variable;
        if dtypes differ.
      ValueError: If a shape is another one; if a value is not finite; if a standard deviation, or
        an entry on the diagonal of `scale_tril`, is not positive, or one above it not zero.
    """
    widths = {
        "scale": scale,
        "variance": variance,
        "log_variance": log_variance,
        "scale_tril": scale_tril,
    }
    given = {name: value for name, value in widths.items() if value is not None}
    if len(given) != 1:
        raise TypeError(
            "exactly one of scale= (standard deviations), variance=, log_variance= and scale_tril= "
            f"must be given beside loc=, got {' and '.join(given) or 'none'}."
        )
    ((name, value),) = given.items()
    means = _checked("loc", loc, "[N, D] or [N]")
    if means.ndim not in (1, 2) or not means.size:
        raise ValueError(
            "loc must have shape [N, D], or [N] for codes that are scalars, with N and D at least "
            f"1, got {list(means.shape)}. Codes of higher rank: "
            "AggregatePosterior(tfd.Independent(tfd.Normal(loc, scale), loc.ndim - 1))."
        )
    width = _checked(name, value, "[N, D, D]" if name == "scale_tril" else "[N, D] or [N]")
    if width.dtype != means.dtype:
        raise TypeError(
            f"loc and {name} must have one dtype, got {means.dtype} and {width.dtype} (lists count "
            "as float32)."
        )
    if name == "scale_tril":
        _check_scale_tril(means, width)
        return tfd.MultivariateNormalTriL(tf.constant(means), tf.constant(width))
    if width.shape != means.shape:
        raise ValueError(
            f"{name} must have the shape of loc, {list(means.shape)}, got {list(width.shape)}. "
            f"What all observations share: np.broadcast_to({name}, loc.shape)."
        )
    scales = tf.constant(_scales(name, width))
    if means.ndim == 1:
        return tfd.Normal(tf.constant(means), scales)
    return tfd.MultivariateNormalDiag(tf.constant(means), scales)


def _checked(name: str, value: Any, shape: str) -> np.ndarray:
    """Returns an array of finite floating-point numbers, of 32 bits or more."""
    if isinstance(value, tf.Variable | keras.Variable):
        raise TypeError(
            f"{name} is a variable, whose later values the posteriors would not have. Of variables "
            "make the distribution yourself: AggregatePosterior(tfd.MultivariateNormalDiag(loc, "
            f"scale)); of their values now, {name}.numpy()."
        )
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        value = np.from_dlpack(value)
    array = checked_numbers(name, value, shape)
    if not tf.as_dtype(array.dtype).is_floating:
        raise TypeError(
            f"{name} must hold floating-point numbers, got dtype {array.dtype}. Are they the right "
            f"array? Then {name}.astype('float32')."
        )
    if array.dtype.name in _HALVES:
        array = array.astype(np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(_bad(name, "finite", "NaN or infinite", ~finite))
    return array


def _scales(name: str, width: np.ndarray) -> np.ndarray:
    """Returns standard deviations, of which the array holds those, squares or logarithms."""
    if name != "log_variance" and not (width > 0).all():
        hint = " Are they logarithms? Then log_variance=." if (width < 0).any() else ""
        raise ValueError(_bad(name, "positive", "zero or negative", ~(width > 0)) + hint)
    if name == "scale":
        return width
    wide = width.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        wide = np.sqrt(wide) if name == "variance" else np.exp(0.5 * wide)
        scales = wide.astype(width.dtype)
    lost = ~(np.isfinite(scales) & (scales > 0))
    if lost.any():
        expected = f"such that exp(log_variance / 2) is a positive {width.dtype}"
        raise ValueError(_bad(name, expected, "too large or too small", lost))
    return scales


def _check_scale_tril(means: np.ndarray, factors: np.ndarray) -> None:
    if means.ndim != 2 or factors.shape != (*means.shape, means.shape[-1]):
        raise ValueError(
            f"scale_tril must have shape [N, D, D] for loc of shape [N, D], got "
            f"{list(factors.shape)} for loc of shape {list(means.shape)}."
        )
    above = np.triu(factors, 1) != 0
    if above.any():
        raise ValueError(
            _bad("scale_tril", "zero above the diagonal", "above it and not zero", above)
            + " Of covariances: scale_tril=np.linalg.cholesky(covariance)."
        )
    diagonal = np.diagonal(factors, axis1=-2, axis2=-1)
    if not (diagonal > 0).all():
        expected, found = "positive on the diagonal", "on it and zero or negative"
        raise ValueError(_bad("scale_tril", expected, found, ~(diagonal > 0)))


def _bad(name: str, expected: str, found: str, bad: np.ndarray) -> str:
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)) if bad.ndim else np.zeros(1, int)
    return (
        f"{name} must be {expected}, but {bad.sum()} of its values are {found}, in {rows.size} of "
        f"{bad.shape[0] if bad.ndim else 1} observations (the first at index {rows[0]})."
    )
