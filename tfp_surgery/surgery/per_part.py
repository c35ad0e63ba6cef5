"""Index-code mutual information and marginal KL of each part of a structured code."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import plain_class
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.flat_joint import FlatJoint
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.prepared_model import PreparedModel
from tfp_surgery.measurement.rounded_draws import cause
from tfp_surgery.surgery.closed_forms import closed_forms_of
from tfp_surgery.surgery.per_part_result import PartTerms, PerPart
from tfp_surgery.surgery.scored_draws import ScoredDraws
from tfp_surgery.surgery.terms import terms

tfd = tfp.distributions

_BLOCKWISE = plain_class(tfd.Blockwise)
_NO_POSTERIOR = "the posterior of a part is not known: parts depend on each other"
_NO_PRIOR = "the prior of a part is not known: parts depend on each other"


def per_part(model: PreparedModel, draws: ScoredDraws) -> PerPart | None:
    """Computes the terms of each part of a structured code, as `elbo_surgery` does of all of it.

    That is with closed forms and control variates of the part, where they are known.

    Args:
      model: The model.
      draws: Its scored draws.

    Returns:
      `PerPart`; None if a code is a single tensor and no `tfd.Blockwise`.

    Raises:
      ValueError: If a log density is not finite.
    """
    posteriors = _parts(model.posteriors)
    if model.layout is not None:
        names, slices = model.layout.names, model.layout.slices
        shapes, dtypes = model.layout.event_shapes, tf.nest.flatten(model.layout.dtypes)
    elif posteriors is not None:
        names = tuple(str(number) for number in range(len(posteriors)))
        sizes = [int(part.event_shape.num_elements()) for part in posteriors]
        ends = np.cumsum([0, *sizes]).tolist()
        slices = [slice(*pair) for pair in itertools.pairwise(ends)]
        shapes, dtypes = [part.event_shape for part in posteriors], [draws.z.dtype] * len(sizes)
    else:
        return None
    priors = None if model.prior is None else _parts(model.prior)
    parts = {}
    for number, name in enumerate(names):
        z = draws.z[..., slices[number]]
        z = tf.cast(tf.reshape(z, [*z.shape[:2], *shapes[number]]), dtypes[number])
        prior = None if priors is None else priors[number]
        posterior = None if posteriors is None else posteriors[number]
        parts[name] = _terms(z, draws, posterior, prior, shapes[number], model.batch_size)
    return PerPart(parts, warnings=tuple(w for part in parts.values() for w in part.warnings))


def _terms(
    z: tf.Tensor,
    draws: ScoredDraws,
    posterior: tfd.Distribution | None,
    prior: tfd.Distribution | None,
    shape: tf.TensorShape,
    batch_size: int,
) -> PartTerms:
    if posterior is None:
        names = ("index_code_mutual_information", "marginal_kl", "average_kl")
        return PartTerms(None, None, None, absent=dict.fromkeys(names, _NO_POSTERIOR))
    own = components_lib.gather(posterior, tf.constant(draws.index, tf.int32))
    log_own = checked_draws("log q(z_g|x)", own.log_prob(z), cause=cause(z, own=True))
    evaluated = AggregatePosterior(posterior).evaluate(z, tolerance=draws.tolerance)
    log_aggregate = checked_draws("log q(z_g)", evaluated.log_prob, cause=cause(z, own=True))
    if prior is not None and prior.event_shape != shape:
        prior = None
    log_prior = np.zeros_like(log_own)
    if prior is not None:
        log_prior = checked_draws("log p(z_g)", prior.log_prob(z), cause=cause(z))
    kl, entropy = closed_forms_of(posterior, lambda _: prior, draws.num_observations, batch_size)
    of_part = terms(
        dataclasses.replace(
            draws,
            z=z,
            reconstruction=None,
            log_posterior=log_own,
            log_prior=log_prior,
            log_aggregate=log_aggregate,
            index_entropy=checked_draws("H[q(n|z_g)]", evaluated.index_entropy),
            closed_form_kl=kl,
            closed_form_entropy=entropy,
            is_conditional=False,
        )
    )
    information, marginal = of_part.index_code_mutual_information, of_part.marginal_kl
    found = consistency.negative("Index-code mutual information of a part", information)
    if prior is None:
        absent = dict.fromkeys(("marginal_kl", "average_kl"), _NO_PRIOR)
        return PartTerms(information, None, None, absent=absent, warnings=tuple(found))
    found += consistency.negative("Marginal KL of a part", marginal)
    return PartTerms(information, marginal, of_part.average_kl, warnings=tuple(found))


def _parts(distribution: Any) -> list[Any] | None:
    """Returns the marginal distributions of the parts; None if they are not known."""
    if isinstance(distribution, FlatJoint):
        return [distribution.part(number) for number in range(len(distribution.layout.names))]
    if isinstance(distribution, _BLOCKWISE):
        return list(distribution.distributions)
    if isinstance(distribution, ReencodedPosteriors):
        of_one = _parts(distribution.distribution)
        if of_one is not None:
            return [
                None if part is None else _reencoded_part(distribution, number)
                for number, part in enumerate(of_one)
            ]
    return None


def _reencoded_part(posteriors: ReencodedPosteriors, number: int) -> ReencodedPosteriors:
    encode_rows = posteriors.parameters["encode_rows"]
    return ReencodedPosteriors(
        posteriors.rows,
        lambda rows: _parts(encode_rows(rows))[number],  # type: ignore[index]
        posteriors.batch_size,
    )
