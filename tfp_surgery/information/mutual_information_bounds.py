"""Bounds on the mutual information of observation and code, with the known critic log q(z|x)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.networks import build_prior, check_prior
from tfp_surgery.components import components as components_lib
from tfp_surgery.components import named_component
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate, rounding
from tfp_surgery.information.contrastive_bounds import contrastive_bounds, jensen_shannon_ceiling
from tfp_surgery.log_density.evaluation import checked_tolerance
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.bound import Bound, batch_estimate
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model_checks import check_aggregate_posterior
from tfp_surgery.measurement.result import Result
from tfp_surgery.measurement.rounded_draws import cause, draws_of, rounding_of_draws
from tfp_surgery.measurement.traced import traced, traced_for_many
from tfp_surgery.seeds import Seed

tfd = tfp.distributions

_BLOCK_ELEMENTS = 2**21  # of the parameters of the posteriors that a block gathers

_INDEX = "the index-code mutual information I(n; z) of the data set"
_BOTH = f"{_INDEX}; for held-out data also I(X; Z) of their population, over data sets"
_JENSEN_SHANNON = "the Jensen-Shannon divergence of q(n, z) and q(n) q(z): no mutual information"

_LABELS = {
    "index_code_mutual_information": "index-code MI, H[q(z)] - H[q(z|x)]",
    "info_nce": "InfoNCE",
    "nguyen_wainwright_jordan": "Nguyen-Wainwright-Jordan",
    "leave_one_out": "leave one out",
    "barber_agakov": "Barber-Agakov (rate)",
    "jensen_shannon": "Jensen-Shannon divergence",
    "aggregate_entropy": "entropy H[q(z)]",
    "conditional_entropy": "entropy H[q(z|x)]",
}


@dataclasses.dataclass(frozen=True)
class MutualInformationBounds(Result):
    """Bounds from common draws, in nats; see `mutual_information_bounds`.

    Attributes:
      index_code_mutual_information: I(n; z) = H[q(z)] - H[q(z|x)], over all N components.
      info_nce: Lower bound from the batch; ceiling log B.
      nguyen_wainwright_jordan: Lower bound with the critic 1 + log q(z|x) - log q(z), for which it
        is tight.
      leave_one_out: Upper bound from the batch without the code's own component; None if it is
        infinite.
      barber_agakov: Upper bound, the rate; None without a prior.
      jensen_shannon: Lower bound on a Jensen-Shannon divergence, tight for this critic.
      aggregate_entropy: H[q(z)].
      conditional_entropy: H[q(z|x)], averaged over the data set.
      num_observations: N.
      batch_size: B.
      num_batches: Number of batches.
      seed: Seed of the batches and draws.
    """

    _derived: ClassVar[tuple[str, ...]] = ("ceilings_reached",)

    index_code_mutual_information: Bound
    info_nce: Bound
    nguyen_wainwright_jordan: Bound
    leave_one_out: Bound | None
    barber_agakov: Bound | None
    jensen_shannon: Bound
    aggregate_entropy: Estimate
    conditional_entropy: Estimate
    num_observations: int
    batch_size: int
    num_batches: int
    seed: Seed

    def impossible_values(self) -> list[str]:
        """Describes bounds violated by many standard errors, one sentence each."""
        name, information = "Index-code mutual information", self.index_code_mutual_information
        found = consistency.negative(name, information.estimate)
        # Not Nguyen-Wainwright-Jordan, which is too high if the draws miss rare terms.
        limits = [("InfoNCE", self.info_nce, name, information)]
        for limit_name, limit in (
            ("leave one out", self.leave_one_out),
            ("Barber-Agakov", self.barber_agakov),
        ):
            if limit is not None:
                limits.append((name, information, limit_name, limit))
        for label, bound, limit_name, limit in limits:
            found += consistency.above(label, bound.estimate, limit_name, limit.estimate)
        for label, bound in ((name, information), ("InfoNCE", self.info_nce)):
            if bound.ceiling is not None:
                ceiling = Estimate(bound.ceiling, 0.0, 0)
                found += consistency.above(label, bound.estimate, "its ceiling", ceiling)
        return found

    @property
    def ceilings_reached(self) -> tuple[str, ...]:
        """The names of the fields at their ceiling; see `Bound.at_ceiling`."""
        return tuple(
            field.name
            for field in dataclasses.fields(self)
            if isinstance(bound := getattr(self, field.name), Bound) and bound.at_ceiling
        )

    def _title(self) -> list[str]:
        size = f"N = {self.num_observations} (log N = {math.log(self.num_observations):.4f})"
        batches = f"{self.num_batches} batches of {self.batch_size}, seed {self.seed}"
        return [f"Mutual information bounds, nats; {size}, {batches}"]

    def _rows(self) -> list[tuple[str, Any]]:
        return [(label, getattr(self, name)) for name, label in _LABELS.items()]


def mutual_information_bounds(
    aggregate_posterior: AggregatePosterior,
    *,
    batch_size: int = 128,
    num_batches: int = 100,
    seed: Any = 0,
    prior: tfd.Distribution | Callable[[], tfd.Distribution] | None = None,
    tolerance: float | None = None,
) -> MutualInformationBounds:
    r"""Bounds the mutual information of observation and code from minibatches.

    Each batch has B distinct observations, drawn uniformly from the N, with one code
    z_i ~ q(z|x_i) each; batches are independent. The optimal critic is known,
    q_j(z) = q(z|x_j), so that no critic is trained (Poole et al. 2019). With i, j in the batch and
    q(z) = 1/N sum_n q_n(z):

        index-code MI   E[log q_i(z_i) - log q(z_i)]                    unbiased, in [0, log N]
        InfoNCE         E[log q_i(z_i) - log 1/B sum_j q_j(z_i)]        lower, ceiling log B
        leave one out   E[log q_i(z_i) - log 1/(B-1) sum_{j!=i} q_j(z_i)]                  upper
        Barber-Agakov   E[log q_i(z_i) - log p(z_i)], the rate                             upper
        NWJ             E[f(n, z)] - 1/e E_q(n)q(z)[exp f(n, z)],
                        f = 1 + log q_n(z) - log q(z)              lower, tight at this critic

    InfoNCE and leave one out are equations 12 and 13 of Poole et al. (2019). `tfp.vi` computes
    InfoNCE, NWJ and Jensen-Shannon. TFP's Jensen-Shannon bound is E[log sigmoid(r)] +
    E_q(n)q(z)[log sigmoid(-r)] with r = log q_n(z) - log q(z), which is twice the divergence minus
    log 4. The result holds the divergence itself, in [0, log 2]. It is not a mutual information.

    *Bounded quantity.* The first row is the index-code mutual information I(n; z) of these N
    observations. Since the observations of a batch S are distinct,

        E[InfoNCE] = E_S[I(n; z | n in S)] = I(n; z) - I(S; z).

    It is below I(n; z) by the information of a code about its batch, and equal at B = N. The
    leave-one-out bound is at least N / (N-1) I(n; z) for every B. If the observations are
    independent draws from a population and the encoder was not fitted to them (held-out data),
    distinct observations give independent pairs of the population, and
    E[InfoNCE] <= I(X; Z) <= E[leave one out] and E[rate], in expectation over data sets. In the
    same sense I(n; z) <= I(X; Z), because I(n; z) is InfoNCE with B = N.

    *NWJ and Jensen-Shannon* average over pairs from q(n) q(z), in which z meets its own observation
    with probability 1/N. The mean over pairs of distinct observations (the off-diagonal scores that
    `tfp.vi` averages) makes NWJ exceed I(n; z) by up to one nat if posteriors do not overlap.
    Therefore own pairs get the weight 1/N, and both bounds are unbiased. They refer to the data
    set, not to its population. The variance of NWJ grows as exp(I), and NWJ is too high if the
    draws miss rare large terms.

    *Ceilings.* InfoNCE is at most log B, and the index-code quantities are at most log N.
    `ceilings_reached` lists the bounds within two standard errors or 1% of their ceiling
    (`Bound.at_ceiling`; McAllester and Stratos 2020).

    Standard errors are computed between batches, and include the spread between observations and
    between codes.

    Args:
      aggregate_posterior: q(z), batch shape `[]`, equal weights, at least two components. Its
        components are the critic.
      batch_size: B, from 2 to N. Memory grows as B^2.
      num_batches: Number of batches, at least 2. log q(z) is evaluated over all N components at
        each of the `num_batches * batch_size` codes.
      seed: Integer in [0, 2**31), or a pair of int32.
      prior: p(z) for the Barber-Agakov bound: a `tfd.Distribution` with batch shape `[]`, or a
        callable that returns one. None omits the bound.
      tolerance: Bound in nats on the error of log q(z), included in the standard errors; see
        `AggregatePosterior.evaluate`. None for exact values.

    Returns:
      `MutualInformationBounds`, from common draws.

    Raises:
      TypeError: If `aggregate_posterior` is not an `AggregatePosterior`, or a number is not an
        integer.
      ValueError: If `aggregate_posterior` is batched, weighted or has one component, if a number is
        out of range, if the prior is over other codes, or if a log density of a draw is not finite.

    Warns:
      UserWarning: If bounds are violated by many standard errors.

    #### References

    Ben Poole, Sherjil Ozair, Aaron van den Oord, Alexander A. Alemi and George Tucker. On
    Variational Bounds of Mutual Information. ICML, 2019.

    David McAllester and Karl Stratos. Formal Limitations on the Measurement of Mutual Information.
    AISTATS, 2020.

    XuanLong Nguyen, Martin J. Wainwright and Michael I. Jordan. Estimating divergence functionals
    and the likelihood ratio by convex risk minimization. IEEE Transactions on Information Theory,
    2010.
    """
    num_observations = _checked_size(aggregate_posterior)
    batch_size = checked_integer("batch_size", batch_size, 2, num_observations)
    num_batches = checked_integer("num_batches", num_batches, 2)
    seed = seeds.checked_seed(seed)
    tolerance = checked_tolerance(tolerance)
    posteriors = components_lib.broadcast(aggregate_posterior.components_distribution)
    prior_now = None
    if prior is not None:
        prior_now = check_prior(build_prior(prior), posteriors)

    batches = _batches(num_observations, batch_size, num_batches, seed)
    z, log_posterior = _draw_codes(posteriors, batches, seed)
    log_posterior = checked_draws(
        "log q(z|x) at its own draws", log_posterior, cause=cause(z, own=True)
    )
    log_aggregate = checked_draws(
        "log q(z)", aggregate_posterior.log_prob(z, tolerance=tolerance), cause=cause(z, own=True)
    )
    contrasts = contrastive_bounds(posteriors, batches, z, log_aggregate.astype(np.float64))
    checked_draws("InfoNCE", contrasts["info_nce"])

    left_out = tolerance or 0.0  # error bound of log q(z)

    def estimate(
        *terms: np.ndarray, rounding_error: float = 0.0, truncation: float = 0.0
    ) -> Estimate:
        values = np.sum([term.astype(np.float64) for term in terms], axis=0)
        return batch_estimate(
            values.reshape(num_batches, -1).mean(axis=1),
            batch_size,
            max(rounding(*terms), rounding_error) + truncation,
        )

    of_ratios = rounding(log_posterior, log_aggregate)

    absent: dict[str, str] = {}
    leave_one_out = None
    if np.isfinite(contrasts["leave_one_out"]).all():
        leave_one_out = Bound(
            estimate(contrasts["leave_one_out"], rounding_error=of_ratios),
            "upper",
            _BOTH,
            "not negative; at least I(n; z) / (N-1), also at B = N",
        )
    else:
        absent["leave_one_out"] = (
            "infinite: a code lies outside the support of all other posteriors in its batch"
        )
    barber_agakov = None
    if prior_now is None:
        absent["barber_agakov"] = "no prior was given"
    else:
        log_prior = checked_draws("log p(z)", prior_now.log_prob(z), cause=cause(z))
        barber_agakov = Bound(
            estimate(log_posterior, -log_prior), "upper", _BOTH, "KL(q(z) || p(z))"
        )
    log_size = math.log(num_observations)
    bounds = MutualInformationBounds(
        index_code_mutual_information=Bound(
            estimate(log_posterior, -log_aggregate, truncation=left_out),
            "unbiased",
            _INDEX,
            "none",
            log_size,
        ),
        info_nce=Bound(
            estimate(contrasts["info_nce"], rounding_error=of_ratios),
            "lower",
            _BOTH,
            "-I(S; z), S the set of observations in the batch; none at B = N",
            math.log(batch_size),
        ),
        nguyen_wainwright_jordan=Bound(
            estimate(
                contrasts["nguyen_wainwright_jordan"],
                rounding_error=of_ratios,
                truncation=2.0 * left_out,  # of the critic and of its exponential
            ),
            "lower",
            _INDEX,
            "none at this critic; the variance grows as exp(I)",
            log_size,
        ),
        leave_one_out=leave_one_out,
        barber_agakov=barber_agakov,
        jensen_shannon=Bound(
            estimate(contrasts["jensen_shannon"], rounding_error=of_ratios, truncation=left_out),
            "lower",
            _JENSEN_SHANNON,
            "none at this critic",
            jensen_shannon_ceiling(num_observations),
        ),
        aggregate_entropy=estimate(-log_aggregate, truncation=left_out),
        conditional_entropy=estimate(-log_posterior),
        num_observations=num_observations,
        batch_size=batch_size,
        num_batches=num_batches,
        seed=seed,
        absent=absent,
    )
    sentences = consistency.explained(
        bounds.impossible_values(), rounding_of_draws(draws_of(posteriors).numpy(), posteriors)
    )
    consistency.warn(sentences, stacklevel=3)
    return dataclasses.replace(bounds, warnings=sentences)


def _batches(num_observations: int, batch_size: int, num_batches: int, seed: Seed) -> np.ndarray:
    """Draws batches of distinct observations; returns their indices, int32, shape `[K, B]`."""
    rng = seeds.generator(seed, "mutual_information_bounds/batches")
    return np.stack(
        [rng.choice(num_observations, batch_size, replace=False) for _ in range(num_batches)]
    ).astype(np.int32)


def _draw_codes(
    posteriors: tfd.Distribution, batches: np.ndarray, seed: Seed
) -> tuple[tf.Tensor, np.ndarray]:
    """Draws a code for each observation of each batch.

    Args:
      posteriors: q(z|x_n), batch shape `[N]`, every parameter broadcast to it.
      batches: Indices of observations, shape `[K, B]`.
      seed: Seed of the draws.

    Returns:
      z: Codes, shape `[K, B, *code_shape]`.
      log_posterior: log q(z_i|x_i), shape `[K, B]`.
    """
    key = seeds.key(seed, "mutual_information_bounds/codes")

    def draw(indices: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        posterior = components_lib.gather(posteriors, indices)
        return posterior.sample(seed=seeds.fold_in(key, number))

    draw = traced(draw, tf.TensorSpec(batches.shape[1:], tf.int32), tf.TensorSpec([], tf.int32))
    z = tf.stack([draw(tf.constant(batch), tf.constant(k)) for k, batch in enumerate(batches)])
    return z, _own_log_probs(posteriors, batches, z)


def _own_log_probs(posteriors: tfd.Distribution, batches: np.ndarray, z: tf.Tensor) -> np.ndarray:
    """Returns log q(z_i|x_i), shape `[K, B]`, of the batches of one block of memory at a time."""
    num_batches, size = batches.shape
    elements = sum(math.prod(leaf.shape[1:]) for leaf in components_lib.leaves(posteriors))
    count = min(num_batches, max(1, _BLOCK_ELEMENTS // (size * max(1, elements))))
    event_shape = z.shape[2:]

    def score(indices: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
        return named_component.log_prob(posteriors, codes, indices)

    score = traced_for_many(
        -(-num_batches // count),
        score,
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None, *event_shape], z.dtype),
    )
    parts = [
        score(
            tf.constant(batches[start : start + count].reshape(-1)),
            tf.reshape(z[start : start + count], [-1, *event_shape]),
        )
        for start in range(0, num_batches, count)
    ]
    return np.asarray(tf.reshape(tf.concat(parts, axis=0), batches.shape))


def _checked_size(aggregate_posterior: Any) -> int:
    """Checks that an aggregate posterior has at least two components; returns their number."""
    check_aggregate_posterior(aggregate_posterior)
    num_components = int(aggregate_posterior.num_components)
    if num_components < 2:
        raise ValueError("aggregate_posterior must have at least two components, got 1.")
    return num_components
