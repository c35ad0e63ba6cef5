"""Checks that a prior's bijector maps unconstrained space one-to-one to the codes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.measurement.event_space import (
    default_bijector,
    event_space_bijector,
    num_components,
    with_components,
)

tfd = tfp.distributions

_NUM_DRAWS = 512
# Number of components of a mixture whose supports are compared.
_NUM_COMPONENTS = 8
# Largest share allowed of draws on the border of the support, and of points that are not inverted.
_FEW = 0.01
# Number of points at which Jacobians are computed, and largest size of codes for which they are.
_NUM_JACOBIANS = 8
_MAX_JACOBIAN_SIZE = 64
# Largest range of the error of the log determinants, in nats.
_JACOBIAN_TOLERANCE = 0.05

_WAY_OUT = (
    "log_evidence_by_importance_sampling needs no such map and takes the prior as it is. Or let "
    "the codes be others that have such a map, and form these in the decoder: a direction as "
    "z / |z| of Gaussian z, a correlation or covariance matrix as L L^T of a triangular L."
)


def check_code_space(prior: tfd.Distribution) -> None:
    """Checks on draws of a prior that its event space bijector is valid.

    The inverse followed by the forward map must return the draws, the forward followed by the
    inverse map must return points among the unconstrained draws, and the log determinant must be
    that of the Jacobian up to a constant. The log determinant is checked for codes of at most 64
    numbers whose support is flat (part of an affine subspace, such as a simplex or the symmetric
    matrices), but not for curved supports, such as Cholesky factors of correlation matrices.

    Args:
      prior: p(z), batch shape `[]`.

    Raises:
      TypeError: If the bijector is not valid, or if the components of a mixture have different
        supports.

    Warns:
      UserWarning: If more than 1% of the draws lie on the border of the support, from where chains
        cannot move them.
    """
    bijector = event_space_bijector(prior)
    z = _draws(prior)
    if default_bijector(prior) is None:
        for index in range(min(num_components(prior), _NUM_COMPONENTS)):
            _check_component(prior, with_components(prior, index), z)
    u, on_border = _reached(prior.name, bijector, z)
    if on_border.mean() > _FEW:
        # The caller of the estimator, which called checked_prior.
        warnings.warn(_border_message(prior, on_border), stacklevel=4)
    if u.size == 0:
        return
    _check_one_to_one(prior.name, bijector, u)
    _check_jacobian(prior.name, bijector, u)


def _draws(distribution: tfd.Distribution) -> np.ndarray:
    draws: np.ndarray = distribution.sample(_NUM_DRAWS, seed=tf.constant([0, 0], tf.int32)).numpy()
    return draws


def _check_component(prior: tfd.Distribution, component: tfd.Distribution, z: np.ndarray) -> None:
    """Raises a TypeError if the bijector of a mixture's component does not reach all draws."""
    bijector = default_bijector(component)
    if bijector is None:
        raise TypeError(
            f"HMC needs to know the space of the codes, and {component.name}, a component of "
            f"{prior.name}, does not say it (_default_event_space_bijector)."
        )
    _reached(component.name, bijector, _draws(component))
    u, missed = _unconstrained(component.name, bijector, z)
    missed &= ~_on_border(bijector, z, u, missed)
    if missed.any():
        raise TypeError(
            f"the components of {prior.name} do not share one support: the map from real numbers, "
            f"in which HMC moves, to the codes of one of them ({component.name}) does not reach "
            f"{missed.sum()} of {len(missed)} draws of the mixture. {_WAY_OUT}"
        )


def _reached(name: str, bijector: Any, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps draws to unconstrained space and checks that the bijector reaches them.

    Args:
      name: Name of the distribution, for error messages.
      bijector: The bijector.
      z: Draws, shape `[S, *code_shape]`.

    Returns:
      u: Unconstrained draws, shape `[S, *shape]`.
      on_border: Mask of draws on the border of the support, shape `[S]`.

    Raises:
      TypeError: If draws inside the support are not reached.
    """
    u, missed = _unconstrained(name, bijector, z)
    on_border = _on_border(bijector, z, u, missed)
    missed &= ~on_border
    if missed.any():
        raise TypeError(
            f"HMC moves codes as real numbers, and the map from these to the codes of {name} "
            f"({bijector.name}) does not reach its whole support: {missed.sum()} of {len(missed)} "
            f"draws are not what its inverse and forward map return. {_WAY_OUT}"
        )
    return u, on_border


def _unconstrained(name: str, bijector: Any, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the draws mapped by the inverse, and a mask of those the forward map misses."""
    try:
        # NumPy copies defeat the cache of bijectors, which would return the original tensors.
        u = bijector.inverse(tf.constant(z)).numpy()
        returned = bijector.forward(tf.constant(u)).numpy()
    except Exception as error:
        raise TypeError(
            f"HMC moves codes as real numbers, and the map from the codes of {name} to these "
            f"({bijector.name}) fails on its own draws: {error} {_WAY_OUT}"
        ) from error
    # Far above the rounding error of bijectors, and far below the error of a wrong support.
    tolerance = float(np.finfo(z.dtype).eps) ** 0.25
    with np.errstate(invalid="ignore", over="ignore"):
        spread = np.subtract(*np.quantile(z, [0.75, 0.25], axis=0))
        near = np.abs(returned - z) <= tolerance * (np.abs(z) + spread)  # NaN is not near
    missed: np.ndarray = ~near.reshape(len(z), -1).all(axis=1)
    return u, missed


def _on_border(bijector: Any, z: np.ndarray, u: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """Returns a mask `[S]` of draws that the dtype has rounded to the border of the support.

    A draw counts as such if it is infinite, if several draws share its extreme value (TFP clips
    draws next to the border), or if the bijector maps it to unconstrained space only after it is
    moved slightly inside.
    """
    size = len(z)
    flat = u.reshape(size, -1)
    border: np.ndarray = ~np.isfinite(z).reshape(size, -1).all(axis=1)
    lost = missed | ~np.isfinite(flat).all(axis=1)
    if lost.any() and not lost.all():
        with np.errstate(invalid="ignore"):
            inside = z[~lost].mean(axis=0)
            moved = z[lost] + z.dtype.type(_FEW) * (inside - z[lost])
        border[lost] |= ~_unconstrained("", bijector, moved)[1]
    if flat.size:
        for extreme in (flat.min(axis=0), flat.max(axis=0)):
            tied = (flat == extreme) & np.isfinite(extreme)
            border |= (tied & (tied.sum(axis=0) > 1)).any(axis=1)
    return border


def _border_message(prior: tfd.Distribution, on_border: np.ndarray) -> str:
    cure = "A family of the logarithms of the codes has none (tfd.ExpGamma, tfd.SigmoidBeta)"
    if prior.dtype != tf.float64:
        cure += "; float64 has its own further out"
    return (
        f"{prior.dtype.name} rounds {on_border.sum()} of {len(on_border)} draws of {prior.name} "
        "onto the border of its support. HMC cannot move codes from there: acceptance rates are "
        f"low and the bounds loose. {cure}."
    )


def _check_one_to_one(name: str, bijector: Any, u: np.ndarray) -> None:
    """Raises a TypeError if the forward map takes two points in reach of chains to one code."""
    with np.errstate(invalid="ignore", over="ignore"):
        low, median, high = np.quantile(u, [0.05, 0.5, 0.95], axis=0)
        points = (2 * median - np.clip(u, low, high)).astype(u.dtype)
        codes = bijector.forward(tf.constant(points)).numpy()
        returned = bijector.inverse(tf.constant(codes)).numpy()
        other = np.isfinite(returned) & (np.abs(returned - points) > 0.25 * (high - low))
    share = other.reshape(len(u), -1).any(axis=1).mean()
    if share > _FEW:
        raise TypeError(
            f"HMC moves codes as real numbers, and the map from these to the codes of {name} "
            f"({bijector.name}) takes several of them to one code: for {share:.0%} of the points "
            "among its draws the inverse map gives another point back. The density that the chains "
            f"would keep is not that of the draws. {_WAY_OUT}"
        )


def _check_jacobian(name: str, bijector: Any, u: np.ndarray) -> None:
    """Raises a TypeError if the log determinant of a bijector is not that of its forward map."""
    code_size = int(np.prod(bijector.forward_event_shape(u.shape[1:])))
    if code_size > _MAX_JACOBIAN_SIZE:
        return
    rng = np.random.default_rng(0)
    points = rng.normal(size=[_NUM_JACOBIANS, *u.shape[1:]]).astype(u.dtype)
    # Each point is repeated for each coordinate of the code, whose derivatives are one row.
    repeated = tf.constant(np.repeat(points, code_size, axis=0))  # [P E, *shape]
    chosen = tf.tile(tf.eye(code_size, dtype=repeated.dtype), [_NUM_JACOBIANS, 1])  # [P E, E]
    with tf.GradientTape() as tape:
        tape.watch(repeated)
        codes = tf.reshape(bijector.forward(repeated), [-1, code_size])
        total = tf.reduce_sum(codes * chosen)
    rows = tape.gradient(total, repeated, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    found = _log_volumes(np.float64(rows.numpy()).reshape(_NUM_JACOBIANS, code_size, -1))
    if found is None or not np.isfinite(found).all():
        return
    reported = bijector.forward_log_det_jacobian(tf.constant(points), event_ndims=points.ndim - 1)
    # HMC is invariant to a constant.
    off = float(np.ptp(found - reported.numpy()))
    if off > _JACOBIAN_TOLERANCE:
        raise TypeError(
            f"HMC moves codes as real numbers, and the map from these to the codes of {name} "
            f"({bijector.name}) reports log determinants that are not those of its Jacobian: from "
            f"one point to another they are off by {off:.2g} nats. The density that the chains "
            f"would keep is not that of the draws. {_WAY_OUT}"
        )


def _log_volumes(jacobians: np.ndarray) -> np.ndarray | None:
    """Returns log |det J| `[P]` of Jacobians `[P, E, D]` up to a constant; None if curved."""
    num_points, code_size, size = jacobians.shape
    if code_size != size:
        # The support is flat if the columns of all Jacobians span D dimensions.
        columns = jacobians.transpose(1, 0, 2).reshape(code_size, num_points * size)
        basis, singular_values, _ = np.linalg.svd(columns, full_matrices=False)
        if np.sum(singular_values > 1e-3 * singular_values[0]) != size:
            return None
        jacobians = basis[:, :size].T @ jacobians
    volumes: np.ndarray = np.linalg.slogdet(jacobians)[1]
    return volumes
