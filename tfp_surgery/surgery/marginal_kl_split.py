"""Splits the marginal KL into total correlation, dimension-wise KL and prior factorization."""

from __future__ import annotations

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
from tfp_surgery.log_density.evaluation import checked_tolerance
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model_checks import check_aggregate_posterior
from tfp_surgery.measurement.rounded_draws import cause
from tfp_surgery.surgery import mixture_marginals
from tfp_surgery.surgery.closed_forms import closed_forms_of
from tfp_surgery.surgery.marginal_kl_split_result import MarginalKLSplit
from tfp_surgery.surgery.scored_draws import ScoredDraws
from tfp_surgery.surgery.split_of_draws import split_of_draws
from tfp_surgery.surgery.terms import control_variates
from tfp_surgery.surgery.unseen_variance import unseen_of_prior

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
    index_entropy: Any = None,
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

    log q(z), log q(z_j) and log q(z_g) are exact over all N components, or within `tolerance`. The
    means of log q(z) and log p(z) have the control variates of `elbo_surgery`: the entropies of the
    posteriors, their KL to the prior, and H[q(n|z)]. Those of a dimension or a group have the
    entropies of q(z_j|x_n) and their KL to p(z_j), or to a Gaussian with the moments of q(z_j)
    where that of a dimension is not known. With fewer than 20 degrees of freedom for each of the
    former, all have the same. All terms are sums and differences of these means, so that they add
    up to rounding. The prior factorization has no Monte Carlo error where all KLs are known.
    Otherwise, the estimates are unbiased up to the fit of the coefficients (see `ControlVariates`).

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
      index_entropy: H[q(n|z)] of the draws, shape `[S, Q]`, a control variate; computed with
        log q(z), and without it if `log_aggregate` was given.

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
    log_aggregate = _known(log_aggregate, "log_aggregate", z)
    log_prior = _known(log_prior, "log_prior", z)
    index_entropy = _known(index_entropy, "index_entropy", z)
    components = components_lib.broadcast(aggregate_posterior.components_distribution)
    num_observations = int(aggregate_posterior.num_components)
    num_samples, num_query = z.shape[:2]
    event_size = int(aggregate_posterior.event_shape.num_elements())
    partition = None if groups is None else _checked_partition(groups, event_size)

    if log_aggregate is None:
        evaluated = aggregate_posterior.evaluate(z, tolerance=tolerance)
        log_aggregate = checked_draws("log q(z)", evaluated.log_prob, cause=cause(z, True))
        index_entropy = checked_draws("H[q(n|z)]", evaluated.index_entropy, cause=cause(z, True))
    if log_prior is None:
        log_prior = checked_draws("log p(z)", _log_prob(prior, z, tolerance), cause=cause(z))
    own = tf.broadcast_to(index, [num_samples, num_query])  # [Q] -> [S, Q]
    log_posterior = named_component.log_prob(components, z, own)
    kl, entropy = closed_forms_of(components, lambda _: prior, num_observations, num_observations)
    draws = ScoredDraws(
        z=z,
        index=index.numpy(),
        reconstruction=None,
        log_posterior=checked_draws("log q(z|x)", log_posterior, cause=cause(z, True)),
        log_prior=log_prior,
        log_aggregate=log_aggregate,
        index_entropy=index_entropy,
        closed_form_kl=kl,
        closed_form_entropy=entropy,
        num_observations=num_observations,
        seed=None,
        data="",
        tolerance=tolerance,
        evaluation="",
    )
    controls = control_variates(draws)
    left_out = tolerance or 0.0
    unseen = unseen_of_prior(draws) - 1.0
    whole = controls.reduced(log_aggregate, -log_prior, truncation=left_out, unseen=unseen)
    split = split_of_draws(draws, aggregate_posterior, prior, controls, whole, partition, tolerance)
    consistency.warn(split.warnings, stacklevel=3)
    return split


def _log_prob(prior: tfd.Distribution, z: tf.Tensor, tolerance: float | None) -> tf.Tensor:
    """Returns log p(z), of mixtures without an array of queries times components."""
    mixture = mixture_marginals.as_mixture(prior)
    if mixture is None:
        return prior.log_prob(z)
    # A single component is exact at no cost.
    is_single = int(mixture.num_components) == 1
    flat = tf.reshape(z, [*z.shape[:2], -1])  # [S, Q, *code_shape] -> [S, Q, D]
    return mixture.log_prob(flat, tolerance=None if is_single else tolerance)


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
