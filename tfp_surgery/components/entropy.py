"""Entropies in closed form."""

from __future__ import annotations

import math

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import plain_class, unwrap
from tfp_surgery.checks.parts_given import has_dependent_parts
from tfp_surgery.checks.point_mass import measures
from tfp_surgery.components.flat_joint import FlatJoint
from tfp_surgery.components.gaussian_form import gaussian_form
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions

_LIBRARIES = ("tensorflow_probability.", "tfp_surgery.")


def closed_form_entropy(distribution: tfd.Distribution) -> tf.Tensor | None:
    """Returns the entropy H[q] in closed form, or None if there is no formula.

    That is the formula that TFP implements, or the Gaussians' where the distribution is surely
    Gaussian, in whatever class it is written (see `gaussian_form`). A class that overrides
    `log_prob` of its TFP base and not `entropy` has none.

    Args:
      distribution: q, with batch shape `[B]`.

    Returns:
      Floating `Tensor`, shape `[B]`, in nats, or None. It is not finite where a scale is 0.
    """
    distribution = unwrap(distribution)
    if isinstance(distribution, FlatJoint):
        return _of_parts(distribution)
    if _has_another_density(distribution) or _is_without_formula(distribution):
        return None
    try:
        entropy = distribution.entropy()
    except Exception as error:
        # A user's class may fail in its own way; without its entropy a measurement is as right.
        if not isinstance(error, NotImplementedError):
            return None
        form = gaussian_form(distribution)
        if form is None:
            return None
        scale = form.scale if form.is_diagonal else tf.linalg.diag_part(form.scale_tril())
        of_dimensions = tf.math.log(tf.abs(scale)) + 0.5 * (math.log(2.0 * math.pi) + 1.0)
        shape = ps.broadcast_shape(ps.shape(of_dimensions), ps.shape(form.loc))
        return tf.reduce_sum(tf.broadcast_to(of_dimensions, shape), axis=-1)
    if distribution.batch_shape.is_fully_defined():
        if entropy.shape.rank > distribution.batch_shape.rank:  # of a class with a shape of its own
            return None
        return tf.broadcast_to(entropy, distribution.batch_shape)
    return tf.broadcast_to(entropy, distribution.batch_shape_tensor())


def _is_without_formula(distribution: tfd.Distribution) -> bool:
    """Returns whether TFP has no entropy of a distribution or a part of it, or a wrong one.

    TFP raises a ValueError for joint distributions of dependent parts. To the entropy of numbers
    that have masses it adds the Jacobian of a bijector, under which masses do not change.
    """
    is_transformed = isinstance(distribution, plain_class(tfd.TransformedDistribution))
    if is_transformed and "mass" in measures(distribution.distribution):
        return True
    return has_dependent_parts(distribution) or any(
        map(_is_without_formula, _distributions_in(distribution))
    )


def _of_parts(joint: FlatJoint) -> tf.Tensor | None:
    """Returns the sum of the entropies of independent parts; None if one is not known."""
    total = None
    for number in range(len(joint.layout.names)):
        part = joint.part(number)
        entropy = None if part is None else closed_form_entropy(part)
        if entropy is None:
            return None
        total = entropy if total is None else total + entropy
    return total


def _has_another_density(distribution: tfd.Distribution) -> bool:
    """Returns whether a user's class in a distribution overrides the density, but no entropy."""
    for kind in type(distribution).__mro__:
        names = kind.__dict__.keys()
        if kind.__module__.startswith(_LIBRARIES) or {"entropy", "_entropy"} & names:
            break
        if {"log_prob", "_log_prob"} & names:
            return True
    return any(map(_has_another_density, _distributions_in(distribution)))


def _distributions_in(distribution: tfd.Distribution) -> list[tfd.Distribution]:
    parameters = tf.nest.flatten(list(distribution.parameters.values()))
    return [part for part in parameters if isinstance(part, tfd.Distribution)]
