"""Index-code mutual information and marginal KL of each part of a structured code."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import plain_class
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.flat_joint import FlatJoint
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.prepared_model import PreparedModel
from tfp_surgery.measurement.result import Result
from tfp_surgery.measurement.rounded_draws import cause
from tfp_surgery.surgery.scored_draws import ScoredDraws

tfd = tfp.distributions

_BLOCKWISE = plain_class(tfd.Blockwise)
_NO_POSTERIOR = "the posterior of a part is not known: parts depend on each other"
_NO_PRIOR = "the prior of a part is not known: parts depend on each other"


@dataclasses.dataclass(frozen=True)
class PartTerms(Result):
    """The terms of one part z_g of a structured code, in nats per observation.

    Attributes:
      index_code_mutual_information: I(n; z_g), at most log N; None if the posteriors of the part
        are not known.
      marginal_kl: KL(q(z_g) || p(z_g)); None if these are not known.
      average_kl: 1/N sum_n KL(q(z_g|x_n) || p(z_g)), their sum.
    """

    index_code_mutual_information: Estimate | None
    marginal_kl: Estimate | None
    average_kl: Estimate | None

    def _title(self) -> list[str]:
        return ["One part of a code, nats per observation"]

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            ("index-code mutual information", self.index_code_mutual_information),
            ("marginal KL", self.marginal_kl),
            ("average KL", self.average_kl),
        ]


@dataclasses.dataclass(frozen=True)
class PerPart(Result, Mapping[str, PartTerms]):
    """The terms of each part of a structured code, by the name of the part.

    The terms of parts do not add up to those of the code: the marginal KL of a code also has the
    dependence between its parts.

    Attributes:
      parts: `PartTerms` by name.
    """

    parts: Mapping[str, PartTerms] = dataclasses.field(hash=False)

    def __getitem__(self, name: str) -> PartTerms:
        """Returns the terms of a part."""
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        """Yields the names of the parts."""
        return iter(self.parts)

    def __len__(self) -> int:
        """Returns the number of parts."""
        return len(self.parts)

    def _title(self) -> list[str]:
        return ["Parts of the code, nats per observation"]

    def _rows(self) -> list[tuple[str, Any]]:
        rows: list[tuple[str, Any]] = []
        for name, terms in self.parts.items():
            rows.append((f"{name}: index-code MI", terms.index_code_mutual_information))
            rows.append((f"{name}: marginal KL", terms.marginal_kl))
        return rows

    def _remarks(self) -> list[str]:
        return [
            f"  ({name}: {', '.join(terms.absent)} absent: {next(iter(terms.absent.values()))})"
            for name, terms in self.parts.items()
            if terms.absent
        ]


def per_part(model: PreparedModel, draws: ScoredDraws) -> PerPart | None:
    """Computes the terms of each part of a structured code.

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
        parts[name] = _terms(
            z, draws, None if posteriors is None else posteriors[number], prior, shapes[number]
        )
    return PerPart(parts, warnings=tuple(w for part in parts.values() for w in part.warnings))


def _terms(
    z: tf.Tensor,
    draws: ScoredDraws,
    posterior: tfd.Distribution | None,
    prior: tfd.Distribution | None,
    shape: tf.TensorShape,
) -> PartTerms:
    if posterior is None:
        names = ("index_code_mutual_information", "marginal_kl", "average_kl")
        return PartTerms(None, None, None, absent=dict.fromkeys(names, _NO_POSTERIOR))
    own = components_lib.gather(posterior, tf.constant(draws.index, tf.int32))
    log_own = checked_draws("log q(z_g|x)", own.log_prob(z), cause=cause(z, own=True))
    evaluated = AggregatePosterior(posterior).evaluate(z, tolerance=draws.tolerance)
    log_aggregate = checked_draws("log q(z_g)", evaluated.log_prob, cause=cause(z, own=True))
    left_out = draws.tolerance or 0.0

    def estimate(*summands: np.ndarray) -> Estimate:
        return stratified_estimate(summands, draws.num_observations, left_out)

    information = estimate(log_own, -log_aggregate)
    found = consistency.negative("Index-code mutual information of a part", information)
    if prior is None or prior.event_shape != shape:
        absent = dict.fromkeys(("marginal_kl", "average_kl"), _NO_PRIOR)
        return PartTerms(information, None, None, absent=absent, warnings=tuple(found))
    log_prior = checked_draws("log p(z_g)", prior.log_prob(z), cause=cause(z))
    marginal = estimate(log_aggregate, -log_prior)
    found += consistency.negative("Marginal KL of a part", marginal)
    return PartTerms(information, marginal, estimate(log_own, -log_prior), warnings=tuple(found))


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
