"""Kullback-Leibler divergences in closed form."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import unwrap
from tfp_surgery.components.flat_joint import FlatJoint
from tfp_surgery.components.gaussian_form import GaussianForm, gaussian_form
from tfp_surgery.tfp_internals import REGISTERED_DIVERGENCES
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions

_LIBRARIES = ("tensorflow_probability.", "tfp_surgery.")


def closed_form_kl(posterior: tfd.Distribution, prior: tfd.Distribution) -> tf.Tensor | None:
    """Returns KL(q || p) in closed form, or None if there is no formula for the pair.

    That is the formula that TFP registers, or the Gaussians' where both are surely Gaussian, in
    whatever classes they are written (see `gaussian_form`).

    TFP falls back to the formula of a base class, which is wrong for a class that overrides
    `log_prob`: such a class needs a formula registered for itself, otherwise None is returned.

    Args:
      posterior: q, with batch shape `[B]`.
      prior: p.

    Returns:
      Floating `Tensor`, shape `[B]`, in nats, or None. It is not finite where a scale is 0.

    Raises:
      ValueError: If TFP's formula refuses the pair, as of other shapes.
    """
    posterior, prior = unwrap(posterior), unwrap(prior)
    if isinstance(posterior, FlatJoint) and isinstance(prior, FlatJoint):
        return _of_parts(posterior, prior)
    if any(map(has_density_of_its_own, (posterior, prior))):
        return None
    refusal = None
    try:
        return _of_full_batch(tfd.kl_divergence(posterior, prior), posterior, prior)
    except NotImplementedError:
        pass
    except ValueError as error:  # of tfd.Sample beside tfd.Sample of other parts of the event
        refusal = error
    q, p = gaussian_form(posterior), gaussian_form(prior)
    if q and p and q.event_shape == p.event_shape and q.loc.dtype == p.loc.dtype:
        return _gaussian_kl(q, p)
    if refusal is not None:
        raise refusal
    return None


def _of_parts(posterior: FlatJoint, prior: FlatJoint) -> tf.Tensor | None:
    """Returns the sum of the divergences of independent parts; None if one is not known."""
    total = None
    for number in range(len(posterior.layout.names)):
        q, p = posterior.part(number), prior.part(number)
        kl = None if q is None or p is None else closed_form_kl(q, p)
        if kl is None:
            return None
        total = kl if total is None else total + kl
    return total


def _of_full_batch(
    kl: tf.Tensor, posterior: tfd.Distribution, prior: tfd.Distribution
) -> tf.Tensor:
    """Repeats a divergence that TFP took from parts without a batch, as of equal bijectors."""
    shapes = posterior.batch_shape, prior.batch_shape
    if not all(isinstance(shape, tf.TensorShape) for shape in shapes):  # of joint distributions
        return kl
    if all(shape.is_fully_defined() for shape in shapes):
        return tf.broadcast_to(kl, tf.broadcast_static_shape(*shapes))
    return tf.broadcast_to(
        kl, ps.broadcast_shape(posterior.batch_shape_tensor(), prior.batch_shape_tensor())
    )


def _gaussian_kl(q: GaussianForm, p: GaussianForm) -> tf.Tensor:
    """Returns KL(q || p), shape `[B]`, not finite where a scale is 0.

    With T = L_p^-1 L_q, lower triangular, and d = L_p^-1 (mu_q - mu_p), it is

        sum_i [(T_ii^2 - 1) / 2 - log |T_ii|] + (sum_{i > j} T_ij^2 + |d|^2) / 2,

    where the first sum keeps its digits if T_ii is close to 1.
    """
    if q.is_diagonal and p.is_diagonal:
        shift = (q.loc - p.loc) / p.scale
        log_ratio = tf.math.log(tf.abs(q.scale)) - tf.math.log(tf.abs(p.scale))
        rest = tf.square(shift)
    else:
        q_scale, p_scale = q.scale_tril(), p.scale_tril()
        shape = ps.broadcast_shape(ps.shape(q_scale), ps.shape(p_scale))
        p_scale = tf.broadcast_to(p_scale, shape)
        shift = tf.broadcast_to(q.loc - p.loc, shape[:-1])
        columns = tf.concat([tf.broadcast_to(q_scale, shape), shift[..., tf.newaxis]], axis=-1)
        solved = tf.linalg.triangular_solve(p_scale, columns, lower=True)  # [B, F, F + 1]
        log_ratio = tf.math.log(tf.abs(tf.linalg.diag_part(q_scale)))
        log_ratio -= tf.math.log(tf.abs(tf.linalg.diag_part(p_scale)))
        below = tf.linalg.set_diag(solved[..., :-1], tf.zeros_like(shift))
        rest = tf.reduce_sum(tf.square(below), axis=-1) + tf.square(solved[..., -1])
    terms = 0.5 * tf.math.expm1(2.0 * log_ratio) - log_ratio + 0.5 * rest
    return tf.reduce_sum(terms, axis=-1)


def has_density_of_its_own(distribution: tfd.Distribution) -> bool:
    """Returns whether a distribution or a part of it overrides the density of its TFP base.

    Args:
      distribution: Any distribution.

    Returns:
      True for a class of a user that overrides `log_prob` of one that has a registered divergence.
    """
    for kind in type(distribution).__mro__:
        if kind.__module__.startswith(_LIBRARIES):
            break
        if any(kind in pair for pair in REGISTERED_DIVERGENCES):
            break
        if {"log_prob", "_log_prob"} & kind.__dict__.keys():
            return True
    return any(
        has_density_of_its_own(part)
        for part in distribution.parameters.values()
        if isinstance(part, tfd.Distribution)
    )
