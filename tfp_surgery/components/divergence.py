"""Kullback-Leibler divergences in closed form."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.tfp_internals import REGISTERED_DIVERGENCES

tfd = tfp.distributions

_LIBRARIES = ("tensorflow_probability.", "tfp_surgery.")


def closed_form_kl(posterior: tfd.Distribution, prior: tfd.Distribution) -> tf.Tensor | None:
    """KL(q || p) in nats, shape `[B]`, or None where TFP registers no formula for the pair.

    TFP finds the formula of a base class too. For a class with a log_prob of its own that is
    another divergence, and none is returned, unless a formula was registered for the class itself.
    """
    if any(map(_has_density_of_its_own, (posterior, prior))):
        return None
    try:
        return tfd.kl_divergence(posterior, prior)
    except NotImplementedError:
        return None


def _has_density_of_its_own(distribution: tfd.Distribution) -> bool:
    """Whether a class in a distribution overrides the density of a base that has formulas."""
    for kind in type(distribution).__mro__:
        if kind.__module__.startswith(_LIBRARIES):
            break
        if any(kind in pair for pair in REGISTERED_DIVERGENCES):
            break
        if {"log_prob", "_log_prob"} & kind.__dict__.keys():
            return True
    return any(
        _has_density_of_its_own(part)
        for part in distribution.parameters.values()
        if isinstance(part, tfd.Distribution)
    )
