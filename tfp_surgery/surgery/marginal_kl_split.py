"""Splits the marginal KL into total correlation, dimension-wise KL and prior factorization."""

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
from tfp_surgery.components import named_component
from tfp_surgery.components.flat_events import with_flat_events
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.log_density.evaluation import checked_tolerance
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model_checks import check_aggregate_posterior
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

    For any prior (Zheng, equations 20 and 21):

        KL(q(z) || p(z)) = E_q(z)[log q(z) - sum_j log q(z_j)]      total correlation
                           + sum_j KL(q(z_j) || p(z_j))             dimension-wise KL
                           + E_q(z)[sum_j log p(z_j) - log p(z)]    prior factorization

    For priors that factorize, the last term is 0 (Chen et al. 2018, equation 2). With `groups`, the
    marginal KL is split between groups of dimensions and within each group (Esmaeili et al. 2019);
    see `GroupSplit`. The total correlation is the sum of those between and within the groups.

    The result also has the index-code mutual information I(n; z_j) of each dimension. If the
    dimensions are independent within every component,

        sum_j I(n; z_j) = I(n; z) + TC(q(z)),

    otherwise the sum is smaller by 1/N sum_n TC(q(z|x_n)). It may exceed log N.

    log q(z), log q(z_j) and log q(z_g) are exact over all N components, or within `tolerance`.
    Otherwise, the estimates are unbiased.

    Args:
      z: Draws from q(z|x_n), shape `[S, Q, *code_shape]`, S for each of Q observations. The D
        dimensions of a code that is no vector are its numbers in row-major order.
      index: Indices of the Q observations, distinct integers in [0, N), shape `[Q]`. If Q < N, they
        must be a random subset, and standard errors include the spread between observations.
      aggregate_posterior: q(z) of N observations, batch shape `[]`, event shape `code_shape`, equal
        weights. Its components must be Gaussians, or `tfd.Independent` over scalars.
      prior: `tfd.Distribution` over codes with batch shape `[]`, or a callable that returns one.
        Its marginals are known for the same families, for `tfd.Sample` of scalars, and for mixtures
        of these (`tfd.MixtureSameFamily` and `AggregatePosterior`). For other priors, the terms
        that need the marginals are None, with the reason in `absent`.
      groups: Optional partition of 0, ..., D - 1.
      tolerance: Bound in nats on the error of each log density of q, and of p if it is a mixture;
        see `AggregatePosterior.evaluate`. The error of a total correlation is at most D + 1 times
        as large. None for exact values, which take minutes for D marginals of N = 60000.
      log_aggregate: log q(z) of the draws, shape `[S, Q]`; computed if None.
      log_prior: log p(z) of the draws, shape `[S, Q]`; computed if None.

    Returns:
      `MarginalKLSplit`, in nats per observation. Standard errors are NaN if S = 1.

    Raises:
      TypeError: If `aggregate_posterior` is not an `AggregatePosterior`, `prior` does not give a
        distribution, or an index or a dimension is not an integer.
      ValueError: If shapes do not fit, an index is out of range or repeated, `groups` is not a
        partition, or a log density is not finite.
      NotImplementedError: If the marginals of the components are not known.

    Warns:
      UserWarning: If an estimate lies outside the range of its quantity by many standard errors.

    #### References

    Ricky T. Q. Chen, Xuechen Li, Roger Grosse and David Duvenaud. Isolating sources of
    disentanglement in variational autoencoders. NeurIPS 2018.

    Babak Esmaeili et al. Structured disentangled representations. AISTATS 2019.
    """
    tolerance = checked_tolerance(tolerance)
    prior = build_prior(prior)
    z, index = _checked_codes(z, index, aggregate_posterior, prior)
    log_prior = _known(log_prior, "log_prior", z)
    mixture = mixture_marginals.as_mixture(prior)
    if mixture is None and log_prior is None:
        log_prior = checked_draws("log p(z)", prior.log_prob(z), cause=cause(z))
    aggregate_posterior = AggregatePosterior(
        with_flat_events(aggregate_posterior.components_distribution)
    )
    z = tf.reshape(z, [*z.shape[:2], -1])  # [S, Q, *code_shape] -> [S, Q, D]
    num_samples, num_query, event_size = z.shape
    num_observations = int(aggregate_posterior.num_components)
    partition = None if groups is None else _checked_partition(groups, event_size)

    q = _LogDensities(
        "q", z, aggregate_posterior, tolerance, _known(log_aggregate, "log_aggregate", z)
    )
    if mixture is not None:
        # A single component is exact at no cost.
        p_tolerance = None if int(mixture.num_components) == 1 else tolerance
        p = _LogDensities("p", z, mixture, p_tolerance, log_prior)
        log_prior = p.joint
    else:
        p = None

    left_out = tolerance or 0.0  # error bound of each log density of a mixture

    def estimate(*terms: np.ndarray) -> Estimate:
        return stratified_estimate(terms, num_observations, len(terms) * left_out)

    def estimates(*terms: np.ndarray) -> tuple[Estimate, ...]:
        """Returns one estimate for each dimension of terms `[S, Q, D]`."""
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
    """Log densities of the draws under a mixture, joint and of each dimension."""

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
        """Returns log q(z_g), shape `[S, Q]`."""
        if len(dimensions) == 1:
            return self.marginals[..., dimensions[0]]
        marginal = mixture_marginals.aggregate_group_marginal(self.mixture, dimensions)
        return self._score(marginal, tf.gather(self.z, dimensions, axis=-1), "z_g")


def _own(z: tf.Tensor, index: tf.Tensor, q: _LogDensities) -> np.ndarray:
    """Returns log q(z_j|x_n) of each draw under its own posterior, shape `[S, Q, D]`."""
    components = components_lib.broadcast(q.mixture_marginals.components_distribution)
    index = tf.broadcast_to(index[:, tf.newaxis], z.shape)  # [Q] -> [S, Q, D]
    return checked_draws(
        "log q(z_j|x)", named_component.log_prob(components, z, index), cause=cause(z, True)
    )


def _dimensions(values: np.ndarray, group: Sequence[int] | None = None) -> list[np.ndarray]:
    """Splits values `[S, Q, D]` into terms `[S, Q]`, one per dimension of the group, or per j."""
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
    """Checks that the arguments fit; returns draws `[S, Q, *code_shape]` and the index `[Q]`."""
    check_aggregate_posterior(aggregate_posterior)
    with_flat_events(aggregate_posterior.components_distribution)
    check_prior(prior, aggregate_posterior)
    arrays.reject_missing("z", z)
    z = tf.convert_to_tensor(z, aggregate_posterior.dtype)
    code_shape = aggregate_posterior.event_shape
    if z.shape.rank != 2 + code_shape.rank or z.shape[2:] != code_shape or 0 in z.shape:
        raise ValueError(
            f"z must have shape [S, Q, *code_shape] with code_shape = {list(code_shape)} and at "
            f"least one draw; got {list(z.shape)}."
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
