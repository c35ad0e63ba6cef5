"""split_of_draws: the split of the marginal KL from scored draws."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.components import named_component
from tfp_surgery.components.divergence import closed_form_kl
from tfp_surgery.components.entropy import closed_form_entropy
from tfp_surgery.components.flat_events import with_flat_events
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.control_variates import (
    ControlVariate,
    ControlVariates,
    ReducedDraws,
)
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.rounded_draws import cause, rounding_of_draws
from tfp_surgery.surgery import mixture_marginals
from tfp_surgery.surgery.marginal_kl_split_result import GroupSplit, MarginalKLSplit
from tfp_surgery.surgery.reduced_terms import finite
from tfp_surgery.surgery.scored_draws import ScoredDraws

tfd = tfp.distributions


def split_of_draws(
    draws: ScoredDraws,
    aggregate_posterior: AggregatePosterior,
    prior: tfd.Distribution,
    controls: ControlVariates,
    marginal_kl: ReducedDraws,
    groups: tuple[tuple[int, ...], ...] | None = None,
    tolerance: float | None = None,
) -> MarginalKLSplit:
    """Splits the marginal KL as `marginal_kl_split` does.

    Args:
      draws: The draws.
      aggregate_posterior: See `marginal_kl_split`.
      prior: p(z), batch shape `[]`.
      controls: The control variates of the draws.
      marginal_kl: Draws of the marginal KL.
      groups: Partition of the dimensions; None for none.
      tolerance: See `marginal_kl_split`, of log q(z_j) and log q(z_g).

    Returns:
      `MarginalKLSplit`, with warnings that have not been issued.

    Raises:
      ValueError: If a log density is not finite.
      NotImplementedError: If the marginals of the components are not known.
    """
    codes = _Codes(draws, aggregate_posterior, prior, controls, marginal_kl, tolerance)
    estimate = controls.estimate_of
    whole = codes.whole
    dimensions = codes.dimensions()
    by_name: dict[str, Any] = {
        "marginal_kl": estimate(marginal_kl),
        "total_correlation": estimate(whole.log_q - _sum(d.log_q for d in dimensions)),
        "dimension_wise_mutual_information": tuple(estimate(d.information) for d in dimensions),
        "dimension_wise_kl": None,
        "summed_dimension_wise_kl": None,
        "prior_factorization": None,
    }
    if codes.p is not None:
        by_name["dimension_wise_kl"] = tuple(estimate(d.kl) for d in dimensions)
        by_name["summed_dimension_wise_kl"] = estimate(_sum(d.kl for d in dimensions))
        by_name["prior_factorization"] = estimate(_sum(d.log_p for d in dimensions) - whole.log_p)
    split = MarginalKLSplit(
        **by_name,
        groups=None if groups is None else _group_split(groups, codes, dimensions),
        absent=_absent(by_name, prior, groups is not None),
        num_observations=draws.num_observations,
        num_query=len(draws.index),
        num_samples=len(draws.log_posterior),
    )
    sentences = consistency.explained(
        split.impossible_values(),
        rounding_of_draws(draws.z.numpy(), aggregate_posterior.components_distribution),
    )
    return dataclasses.replace(split, warnings=sentences)


class _Marginal(NamedTuple):
    """Draws about some dimensions b of a code; None where they are not known."""

    log_q: ReducedDraws  # of log q(z_b)
    log_p: ReducedDraws | Any  # of log p(z_b)
    information: ReducedDraws | Any  # of I(n; z_b)

    @property
    def kl(self) -> ReducedDraws:
        """Of KL(q(z_b) || p(z_b))."""
        return self.log_q - self.log_p


class _Codes:
    """Log densities of the draws, of all dimensions and of some."""

    def __init__(
        self,
        draws: ScoredDraws,
        aggregate_posterior: AggregatePosterior,
        prior: tfd.Distribution,
        controls: ControlVariates,
        marginal_kl: ReducedDraws,
        tolerance: float | None,
    ) -> None:
        self.draws, self.controls = draws, controls
        self.tolerance = tolerance
        self.z = tf.reshape(draws.z, [*draws.z.shape[:2], -1])  # [S, Q, *code_shape] -> [S, Q, D]
        self.q = AggregatePosterior(with_flat_events(aggregate_posterior.components_distribution))
        self.p = mixture_marginals.as_mixture(prior)
        # A single component is exact at no cost.
        self.is_single = self.p is not None and int(self.p.num_components) == 1
        log_p = controls.reduced(draws.log_prior, truncation=self._error_of_p())
        self.whole = _Marginal(marginal_kl + log_p, log_p, None)

    def _error_of_p(self) -> float:
        return 0.0 if self.p is None or self.is_single else self.tolerance or 0.0

    def dimensions(self) -> list[_Marginal]:
        """Returns the marginals of each dimension."""
        q = self.q.marginals()
        components = components_lib.broadcast(q.components_distribution)  # batch [D, N]
        log_q = self._score("q", q, self.z)  # [S, Q, D]
        index = tf.broadcast_to(self.draws.index[:, np.newaxis], self.z.shape)  # [Q] -> [S, Q, D]
        log_own = checked_draws(
            "log q(z_j|x)",
            named_component.log_prob(components, self.z, index),
            cause=cause(self.z, True),
        )
        log_p = log_reference = None
        if self.p is not None:
            p = self.p.marginals()
            log_p = self._score("p", p, self.z)
        if self.is_single:
            reference, log_reference = p.components_distribution, log_p  # batch [D, 1]
        else:
            loc, scale = q.mean(), tf.sqrt(q.variance())  # [D]
            if loc.dtype.is_floating:
                reference = tfd.Normal(loc[:, tf.newaxis], scale[:, tf.newaxis])
                log_reference = tfd.Normal(loc, scale).log_prob(self.z).numpy()
        entropy = _values(closed_form_entropy(components), [*components.batch_shape])
        kl = None
        if log_reference is not None and np.isfinite(log_reference).all():
            kl = _values(closed_form_kl(components, reference), [*components.batch_shape])
        return [
            self._marginal(
                log_q[..., j],
                None if log_p is None else log_p[..., j],
                log_own[..., j],
                None if entropy is None else entropy[j],
                None if log_reference is None else log_reference[..., j],
                None if kl is None else kl[j],
            )
            for j in range(log_q.shape[-1])
        ]

    def group(self, group: tuple[int, ...]) -> _Marginal:
        """Returns the marginal of several dimensions, fewer than all."""
        z = tf.gather(self.z, group, axis=-1)
        q = mixture_marginals.aggregate_group_marginal(self.q, group)
        components = components_lib.broadcast(q.components_distribution)
        index = tf.broadcast_to(self.draws.index, self.z.shape[:2])  # [Q] -> [S, Q]
        log_own = checked_draws(
            "log q(z_g|x)", named_component.log_prob(components, z, index), cause=cause(z, True)
        )
        log_p = kl = None
        if self.p is not None:
            p = mixture_marginals.aggregate_group_marginal(self.p, group)
            log_p = self._score("p", p, z)
            if self.is_single:
                kl = _values(
                    closed_form_kl(components, p.components_distribution),
                    [*components.batch_shape],
                )
        entropy = _values(closed_form_entropy(components), [*components.batch_shape])
        return self._marginal(self._score("q", q, z), log_p, log_own, entropy, log_p, kl)

    def _score(self, name: str, mixture: AggregatePosterior, z: tf.Tensor) -> np.ndarray:
        tolerance = None if name == "p" and self.is_single else self.tolerance
        values = mixture.log_prob(z, tolerance=tolerance)
        return checked_draws(f"log {name}(z_j)", values, cause=cause(z, name == "q"))

    def _marginal(
        self,
        log_q: np.ndarray,
        log_p: np.ndarray | None,
        log_own: np.ndarray,
        entropy: np.ndarray | None,
        log_reference: np.ndarray | None,
        kl: np.ndarray | None,
    ) -> _Marginal:
        """Takes control variates from log densities `[S, Q]`; closed forms have shape `[N]`."""
        left_out = self.tolerance or 0.0
        if self.z.shape[-1] == 1:  # the only dimension is the code
            information = self.controls.reduced(log_own, -log_q, truncation=left_out, unseen=1.0)
            return self.whole._replace(information=information)
        own = self.controls
        if not own.is_cut:
            candidates = []
            if entropy is not None:
                candidates.append(
                    ControlVariate.of_known("H[q(z_b|x)]", -entropy, self.draws.index, log_own)
                )
            if kl is not None and log_reference is not None:
                candidates.append(
                    ControlVariate.of_known(
                        "KL(q(z_b|x) || p(z_b))", kl, self.draws.index, log_own, -log_reference
                    )
                )
            own = ControlVariates(candidates, self.draws.num_observations)
        return _Marginal(
            own.reduced(log_q, truncation=left_out),
            None if log_p is None else own.reduced(log_p, truncation=self._error_of_p()),
            own.reduced(log_own, -log_q, truncation=left_out),
        )


def _group_split(
    groups: Sequence[tuple[int, ...]], codes: _Codes, dimensions: Sequence[_Marginal]
) -> GroupSplit:
    estimate = codes.controls.estimate_of
    whole, has_prior = codes.whole, codes.p is not None
    marginals = [
        dimensions[group[0]]
        if len(group) == 1
        else whole
        if len(group) == len(dimensions)
        else codes.group(group)
        for group in groups
    ]
    pairs = [
        (marginal, [dimensions[j] for j in group])
        for marginal, group in zip(marginals, groups, strict=True)
    ]
    return GroupSplit(
        dimensions=tuple(groups),
        total_correlation=estimate(whole.log_q - _sum(m.log_q for m in marginals)),
        prior_factorization=(
            estimate(_sum(m.log_p for m in marginals) - whole.log_p) if has_prior else None
        ),
        group_wise_kl=tuple(estimate(m.kl) for m in marginals) if has_prior else None,
        within_total_correlation=tuple(
            estimate(marginal.log_q - _sum(d.log_q for d in inside)) for marginal, inside in pairs
        ),
        within_prior_factorization=(
            tuple(
                estimate(_sum(d.log_p for d in inside) - marginal.log_p)
                for marginal, inside in pairs
            )
            if has_prior
            else None
        ),
    )


def _sum(draws: Iterable[ReducedDraws]) -> ReducedDraws:
    return functools.reduce(operator.add, draws)


def _values(known: tf.Tensor | None, shape: list[int]) -> np.ndarray | None:
    """Returns closed forms of every component, if they are known and finite."""
    return None if known is None else finite(tf.broadcast_to(known, shape).numpy())


def _absent(by_name: dict[str, Any], prior: tfd.Distribution, grouped: bool) -> dict[str, str]:
    names = [name for name, value in by_name.items() if value is None]
    if names and grouped:
        parts = ("prior_factorization", "group_wise_kl", "within_prior_factorization")
        names += [f"groups.{part}" for part in parts]
    reason = (
        f"the marginals of the prior {prior.name} ({type(prior).__name__}) are not known in closed "
        "form here"
    )
    return dict.fromkeys(names, reason)
