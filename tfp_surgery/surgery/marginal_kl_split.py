"""Splitting the marginal KL: total correlation, dimension-wise KL, prior factorization."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import arrays
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.networks import build_prior, check_prior
from tfp_surgery.components import components as components_lib
from tfp_surgery.components import group_marginals, named_component
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.log_density.evaluation import checked_tolerance
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model_checks import check_vector_codes
from tfp_surgery.measurement.rounded_draws import cause, rounding_of_draws
from tfp_surgery.surgery import mixture_marginals
from tfp_surgery.surgery.marginal_kl_split_result import GroupSplit, MarginalKLSplit

tfd = tfp.distributions


def marginal_kl_split(
    z: Any,
    index: Any,
    aggregate_posterior: AggregatePosterior,
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    groups: Sequence[Sequence[int]] | None = None,
    tolerance: float | None = None,
    log_aggregate: Any = None,
    log_prior: Any = None,
) -> MarginalKLSplit:
    r"""Splits the marginal KL over the dimensions of the code, from draws of z.

    For any prior (Zheng, equations 20 and 21; for priors that factorize Chen et al. 2018,
    equation 2, where the last part is 0):

        KL(q(z) || p(z)) = E_q(z)[log q(z) - sum_j log q(z_j)]      total correlation
                           + sum_j KL(q(z_j) || p(z_j))             dimension-wise KL
                           + E_q(z)[sum_j log p(z_j) - log p(z)]    prior factorization

    With `groups` the same is done in two levels, between groups of dimensions and within each
    (Esmaeili et al. 2019); see `GroupSplit`. The total correlation is then that between the groups
    plus those within them.

    Each dimension also has an index-code mutual information, I(n; z_j). If the dimensions are
    independent within every component,

        sum_j I(n; z_j) = I(n; z) + TC(q(z)),

    and otherwise less by 1/N sum_n TC(q(z|x_n)). So the sum over dimensions may exceed log N.

    log q(z), log q(z_j) and log q(z_g) are exact over all N components, or within `tolerance`; the
    estimates are unbiased beside that, and their standard errors are those of the draws.

    Args:
      z: Draws of q(z|x_n), shape `[S, Q, D]`: S for each of Q observations.
      index: Which observations they are: integers in [0, N), shape `[Q]`, all different. Standard
        errors hold the spread between observations where Q < N, which takes a random subset.
      aggregate_posterior: q(z) of N observations, batch shape `[]`, event shape `[D]`, equal
        weights; its components Gaussians, or `tfd.Independent` over scalars.
      prior: `tfd.Distribution` over codes with batch `[]`, or a callable that returns one. Its
        marginals are known for the same families, for `tfd.Sample` of scalars, and for mixtures
        of them by `tfd.MixtureSameFamily` and `AggregatePosterior`. For other priors the terms
        that need them are None, with the reason in `absent`.
      groups: Optional partition of 0, ..., D - 1.
      tolerance: Bound in nats on the error of each of log q(z), log q(z_j), log q(z_g) and their
        like under a mixture prior; see `AggregatePosterior.evaluate`. A total correlation may be
        off by D + 1 times as much. None for exact values, which for D marginals of N = 60000 take
        minutes.
      log_aggregate: log q(z) of the draws, shape `[S, Q]`, where it is known already.
      log_prior: log p(z) of the draws, shape `[S, Q]`, where it is known already.

    Returns:
      `MarginalKLSplit`, in nats per observation. Standard errors are NaN at S = 1.

    Raises:
      TypeError: If `aggregate_posterior` or `prior` are no such thing, or the index or a dimension
        no integer.
      ValueError: If shapes do not fit, an index is out of range or repeated, `groups` is no
        partition, or a log density is not finite.
      NotImplementedError: If the marginals of the components are not known.

    #### References

    Ricky T. Q. Chen, Xuechen Li, Roger Grosse and David Duvenaud. Isolating sources of
    disentanglement in variational autoencoders. NeurIPS 2018.

    Babak Esmaeili et al. Structured disentangled representations. AISTATS 2019.
    """
    tolerance = checked_tolerance(tolerance)
    prior = build_prior(prior)
    z, index = _checked_codes(z, index, aggregate_posterior, prior)
    num_samples, num_query, event_size = z.shape
    num_observations = int(aggregate_posterior.num_components)
    partition = None if groups is None else _checked_partition(groups, event_size)

    q = _LogDensities(
        "q", z, aggregate_posterior, tolerance, _known(log_aggregate, "log_aggregate", z)
    )
    log_prior = _known(log_prior, "log_prior", z)
    mixture = mixture_marginals.as_mixture(prior)
    if mixture is not None:
        # A single component needs no approximation.
        p_tolerance = None if int(mixture.num_components) == 1 else tolerance
        p = _LogDensities("p", z, mixture, p_tolerance, log_prior)
        log_prior = p.joint
    else:
        p = None
        if log_prior is None:
            log_prior = checked_draws("log p(z)", prior.log_prob(z), cause=cause(z))

    left_out = tolerance or 0.0  # of each log density of a mixture

    def estimate(*terms: np.ndarray) -> Estimate:
        return stratified_estimate(terms, num_observations, len(terms) * left_out)

    def estimates(*terms: np.ndarray) -> tuple[Estimate, ...]:
        """One for each dimension j of terms `[S, Q, D]`."""
        return tuple(estimate(*(term[..., j] for term in terms)) for j in range(event_size))

    by_name: dict[str, Any] = {
        "marginal_kl": estimate(q.joint, -log_prior),
        "total_correlation": estimate(q.joint, *_dimensions(-q.marginals)),
        "dimension_wise_mutual_information": estimates(_own(z, index, q), -q.marginals),
        "dimension_wise_kl": None,
        "summed_dimension_wise_kl": None,
        "prior_factorization": None,
    }
    if p is not None:
        by_name["dimension_wise_kl"] = estimates(q.marginals, -p.marginals)
        by_name["summed_dimension_wise_kl"] = estimate(
            *_dimensions(q.marginals), *_dimensions(-p.marginals)
        )
        by_name["prior_factorization"] = estimate(*_dimensions(p.marginals), -p.joint)
    split = MarginalKLSplit(
        **by_name,
        groups=None if partition is None else _group_split(partition, q, p, estimate),
        absent=_absent(by_name, prior, partition is not None),
        num_observations=num_observations,
        num_query=num_query,
        num_samples=num_samples,
    )
    sentences = consistency.explained(
        split.impossible_values(),
        rounding_of_draws(z.numpy(), aggregate_posterior.components_distribution),
    )
    consistency.warn(sentences, stacklevel=3)
    return dataclasses.replace(split, warnings=sentences)


@dataclasses.dataclass
class _LogDensities:
    """Log densities of the draws under a mixture, jointly and by dimension, float64."""

    name: str
    z: tf.Tensor
    mixture: AggregatePosterior
    tolerance: float | None
    joint: Any  # [S, Q]; computed if None

    def __post_init__(self) -> None:
        if self.joint is None:
            self.joint = self._score(self.mixture, self.z, "z")
        self.mixture_marginals = self.mixture.marginals()
        self.marginals = self._score(self.mixture_marginals, self.z, "z_j")  # [S, Q, D]

    def _score(self, mixture: AggregatePosterior, z: tf.Tensor, argument: str) -> np.ndarray:
        values = mixture.log_prob(z, tolerance=self.tolerance)
        own = self.name == "q"
        return checked_draws(f"log {self.name}({argument})", values, cause=cause(z, own))

    def group(self, dimensions: tuple[int, ...]) -> np.ndarray:
        """log q(z_g), `[S, Q]`."""
        if len(dimensions) == 1:
            return self.marginals[..., dimensions[0]]
        marginal = mixture_marginals.aggregate_group_marginal(self.mixture, dimensions)
        return self._score(marginal, tf.gather(self.z, dimensions, axis=-1), "z_g")


def _own(z: tf.Tensor, index: tf.Tensor, q: _LogDensities) -> np.ndarray:
    """log q(z_j|x_n) of the observation that each draw is of, `[S, Q, D]`."""
    components = components_lib.broadcast(q.mixture_marginals.components_distribution)
    index = tf.broadcast_to(index[:, tf.newaxis], z.shape)  # [Q] -> [S, Q, D]
    return checked_draws(
        "log q(z_j|x)", named_component.log_prob(components, z, index), cause=cause(z, True)
    )


def _dimensions(values: np.ndarray, group: Sequence[int] | None = None) -> list[np.ndarray]:
    """The terms `[S, Q]` of values `[S, Q, D]` that belong to dimensions of the code."""
    return [values[..., j] for j in (range(values.shape[-1]) if group is None else group)]


def _group_split(
    partition: tuple[tuple[int, ...], ...],
    q: _LogDensities,
    p: _LogDensities | None,
    estimate: Callable[..., Estimate],
) -> GroupSplit:
    log_q = [q.group(group) for group in partition]
    log_p = None if p is None else [p.group(group) for group in partition]
    return GroupSplit(
        dimensions=partition,
        total_correlation=estimate(q.joint, *(-values for values in log_q)),
        prior_factorization=(None if p is None or log_p is None else estimate(*log_p, -p.joint)),
        group_wise_kl=(
            None
            if log_p is None
            else tuple(estimate(a, -b) for a, b in zip(log_q, log_p, strict=True))
        ),
        within_total_correlation=tuple(
            estimate(values, *_dimensions(-q.marginals, group))
            for values, group in zip(log_q, partition, strict=True)
        ),
        within_prior_factorization=(
            None
            if p is None or log_p is None
            else tuple(
                estimate(*_dimensions(p.marginals, group), -values)
                for values, group in zip(log_p, partition, strict=True)
            )
        ),
    )


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


def _known(values: Any, name: str, z: tf.Tensor) -> np.ndarray | None:
    return None if values is None else checked_draws(name, values, tuple(z.shape[:2]))


def _checked_codes(
    z: Any, index: Any, aggregate_posterior: Any, prior: tfd.Distribution
) -> tuple[tf.Tensor, tf.Tensor]:
    """The draws `[S, Q, D]` and the index `[Q]`, once all arguments are known to fit."""
    check_vector_codes(aggregate_posterior)
    components = aggregate_posterior.components_distribution
    if not group_marginals.has_group_marginals(components):
        raise NotImplementedError(
            "the total correlation needs the marginals of q(z|x), which are not known here for "
            f"{type(components).__name__}; they are for Gaussians and for tfd.Independent over "
            "scalars."
        )
    check_prior(prior, aggregate_posterior)
    arrays.reject_missing("z", z)
    z = tf.convert_to_tensor(z, aggregate_posterior.dtype)
    event_size = aggregate_posterior.event_shape[0]
    if z.shape.rank != 3 or z.shape[-1] != event_size or 0 in z.shape:
        raise ValueError(
            f"z must have shape [S, Q, D] with D = {event_size} and at least one draw; got "
            f"{list(z.shape)}."
        )
    index = named_component.checked_index(index, int(aggregate_posterior.num_components))
    if index.shape != z.shape[1:2]:
        raise ValueError(
            f"index must name the observation of each of the {z.shape[1]} columns of z; its shape "
            f"is {list(index.shape)}, expected [{z.shape[1]}]."
        )
    if len(np.unique(index.numpy())) < len(index):
        raise ValueError("index must name each observation once; some occur more than once.")
    return z, index


def _checked_partition(
    groups: Sequence[Sequence[int]], event_size: int
) -> tuple[tuple[int, ...], ...]:
    partition = tuple(
        tuple(checked_integer("a dimension in groups", j, 0, event_size - 1) for j in group)
        for group in groups
    )
    flat = sorted(j for group in partition for j in group)
    if flat != list(range(event_size)) or not all(partition):
        raise ValueError(
            f"groups must hold each of the dimensions 0 to {event_size - 1} once, and none may be "
            f"empty; got {[list(group) for group in partition]}."
        )
    return partition
