"""elbo_surgery: the three terms of the ELBO over a whole data set, with standard errors."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.arguments import MAX_SEED, checked_integer
from tfp_surgery.checks.networks import build_prior
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.divergence import closed_form_kl
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import (
    Estimate,
    exact_strata_estimate,
    rounding,
    stratified_estimate,
)
from tfp_surgery.log_density.evaluation import Evaluation, checked_tolerance
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model import (
    check_codes_in_support,
    check_model,
    check_no_nan,
    observations_of,
    reconstruction_log_prob,
    traced,
)
from tfp_surgery.measurement.rounded_draws import cause, rounding_of_draws
from tfp_surgery.surgery.elbo_surgery_result import ElboSurgery
from tfp_surgery.surgery.full_detail import full_detail
from tfp_surgery.surgery.saturation import saturated_reconstruction

tfd = tfp.distributions

_EAGER_STEPS = 4  # up to which a graph costs more than it saves
# Of the comparisons. Below this entropy of q(n|z) one component has more than four fifths.
_RARE_ENTROPY = 0.5
_ENOUGH_DRAWS = 10  # an observation, to know the spread within it


def elbo_surgery(
    x: Any,
    encoder: Callable[[Any], tfd.Distribution],
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    num_samples: int = 2,
    num_query: int | None = None,
    seed: int = 0,
    batch_size: int = 2000,
    training_aggregate_posterior: AggregatePosterior | None = None,
    tolerance: float | None = None,
    detail: Literal["terms", "full"] = "terms",
    log_evidence: Any = None,
) -> ElboSurgery:
    r"""Carves up the ELBO of a latent-variable model on a data set.

    With q(n) = 1/N, q(z|n) = q(z|x_n) and q(z) = 1/N sum_n q(z|x_n) (Hoffman and Johnson 2016,
    equation 8 ff.):

        ELBO = 1/N sum_n E_q(z|x_n)[log p(x_n|z)]      (1) average reconstruction
               - I(n; z)                               (2) index-code mutual information
               - KL(q(z) || p(z))                      (3) marginal KL

    log q(z) is exact over all N components. The expectations over z are Monte Carlo averages over
    `num_samples` draws from every q(z|x_n), stratified by observation; each comes with its
    standard error, which is that of the draws given the data. With `num_query` the expectations
    run over a random subset of the observations (the aggregate posterior is still that of all N),
    and the standard errors contain the spread between observations. All estimates are unbiased,
    except that rounding is that of the model's dtype.

    The index-code mutual information is a quantity of this finite data set, with ceiling log N. It
    is not the mutual information of X and Z in the population. A held-out data set is carved with
    its own aggregate posterior; `training_aggregate_posterior` adds the cross term against that of
    the training set, under its own name.

    Args:
      x: The data set: array-like or `Tensor` of shape `[N, *event_shape]`, or a
        `tfp_surgery.datasets.Dataset`. A stochastic binarization is observed in the one draw that
        `seed` names.
      encoder: Callable from `[B, *event_shape]` to a `tfd.Distribution` over codes, batch `[B]`.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations,
        batch `[B]`, event `event_shape`.
      prior: `tfd.Distribution` over codes with batch `[]`, or a callable that returns one.
      num_samples: Draws of z an observation, at least 1. With 1 the standard errors of the sampled
        estimates are NaN.
      num_query: Number of observations to take the expectations over; None for all N.
      seed: Integer in [0, 2**31). The same seed and `batch_size` give the same draws.
      batch_size: Number of observations encoded, and of codes decoded and scored, at a time (at
        least the `num_samples` codes of one observation).
      training_aggregate_posterior: Aggregate posterior of another data set over the same codes,
        batch `[]`.
      tolerance: Bound in nats on what a certified tree over the components may leave out of
        log q(z) and H[q(n|z)]; see `AggregatePosterior.evaluate`. None for none. The result says
        in `evaluation` how log q(z) was evaluated.
      detail: `"full"` adds what the same pass tells beside the terms: the ELBO's four readings, the
        split of the marginal KL over dimensions (log q(z_j) within `tolerance`, or 1e-5 nats),
        active units, and bounds of the mutual information. What this model does not have is absent,
        with the reason. The entropy of the data in H - D <= I is that of these observations, where
        the likelihood is a probability mass function.
      log_evidence: log p(x_n) of the observations, array-like of shape `[N]`, for the first of the
        four readings; from `log_evidence_by_importance_sampling(...).per_observation`, for one. It
        goes with `detail="full"`.

    Returns:
      `ElboSurgery`, everything in nats per observation; `FullElboSurgery` with `detail="full"`.

    Raises:
      TypeError: If encoder, decoder or prior do not give distributions.
      ValueError: If x is empty, not finite or outside the likelihood's support; if shapes do not
        fit; if a number is out of range; if codes lie outside the prior's support, or posterior and
        prior are a point mass and a density; or if a log density is not finite.

    Warns:
      UserWarning: Of what the result has in `warnings`: numbers that cannot all be right. See
        `docs/when-numbers-disagree.md`.
    """
    num_samples = checked_integer("num_samples", num_samples, 1)
    batch_size = checked_integer("batch_size", batch_size, 1)
    if num_query is not None:
        num_query = checked_integer("num_query", num_query, 1)
    seed = checked_integer("seed", seed, 0, MAX_SEED)
    tolerance = checked_tolerance(tolerance)
    if detail not in ("terms", "full"):
        raise ValueError(f'detail must be "terms" or "full"; got {detail!r}.')
    if log_evidence is not None and detail != "full":
        raise ValueError('log_evidence is for detail="full"; the terms do not need it.')
    prior_now = build_prior(prior)
    x, data = observations_of(x, seed)
    num_observations = len(x)
    if log_evidence is not None:
        log_evidence = checked_draws("log_evidence", log_evidence, (num_observations,))
    if num_query is not None and num_query > num_observations:
        raise ValueError(
            f"num_query = {num_query} exceeds the number of observations, {num_observations}."
        )
    check_model(x, encoder, decoder, prior_now, training_aggregate_posterior)
    if num_samples == 1 or (num_query == 1 and num_observations > 1):
        warnings.warn(
            "with num_samples=1 or num_query=1 the standard errors are unknown (NaN).",
            stacklevel=2,
        )

    aggregate = AggregatePosterior.from_encoder(encoder, x, batch_size=batch_size)
    check_no_nan(aggregate)
    rng = np.random.default_rng([seed, 0])
    queries = (
        np.arange(num_observations)
        if num_query is None or num_query == num_observations
        else np.sort(rng.choice(num_observations, size=num_query, replace=False))
    )
    samples, z, kl = _sample_terms(
        x, queries, aggregate, decoder, prior_now, num_samples, seed, batch_size
    )
    check_codes_in_support(prior_now, z)
    # All draws at once: the components are put in order once, and kernels compile for one shape.
    evaluated = aggregate.evaluate(z, tolerance=tolerance)
    samples["log_aggregate"] = checked_draws(
        "log aggregate", evaluated.log_prob, cause=cause(z, own=True)
    )
    samples["index_entropy"] = checked_draws(
        "index entropy", evaluated.index_entropy, cause=cause(z, own=True)
    )
    if training_aggregate_posterior is not None:
        samples["log_training_aggregate"] = checked_draws(
            "log training aggregate",
            training_aggregate_posterior.log_prob(z, tolerance=tolerance),
            cause=cause(z),
        )

    def estimate(*terms: np.ndarray, truncation: float = 0.0) -> Estimate:
        return stratified_estimate(terms, num_observations, truncation)

    log_posterior, log_aggregate, log_prior = (
        samples[name] for name in ("log_posterior", "log_aggregate", "log_prior")
    )
    left_out = tolerance or 0.0  # of log q(z) and of H[q(n|z)]
    log_num_observations = np.full_like(log_aggregate, np.log(num_observations))
    surgery = ElboSurgery(
        elbo=estimate(samples["reconstruction"], -log_posterior, log_prior),
        average_reconstruction=estimate(samples["reconstruction"]),
        average_kl=estimate(log_posterior, -log_prior),
        index_code_mutual_information=estimate(log_posterior, -log_aggregate, truncation=left_out),
        marginal_kl=estimate(log_aggregate, -log_prior, truncation=left_out),
        average_kl_analytic=None if kl is None else exact_strata_estimate(kl, num_observations),
        index_code_mutual_information_from_entropy=estimate(
            log_num_observations,
            -samples["index_entropy"],
            # Of the scores that the entropy is one of.
            truncation=left_out + rounding(log_aggregate),
        ),
        index_code_mutual_information_by_subtraction=(
            None
            if kl is None
            else estimate(
                np.broadcast_to(kl, log_prior.shape),
                -log_aggregate,
                log_prior,
                truncation=left_out,
            )
        ),
        cross_term=(
            estimate(samples["log_training_aggregate"], -log_prior, truncation=left_out)
            if "log_training_aggregate" in samples
            else None
        ),
        num_observations=num_observations,
        num_query=len(queries),
        num_samples=num_samples,
        seed=seed,
        data=data,
        evaluation=describe_evaluation(evaluated, num_observations, tolerance),
    )
    surgery = dataclasses.replace(
        surgery,
        warnings=consistency.explained(
            _disagreements(surgery, samples, kl),
            rounding_of_draws(z.numpy(), aggregate.components_distribution),
        ),
    )
    if detail == "terms":
        consistency.warn(surgery.warnings, stacklevel=3)
        return surgery
    likelihood = decoder(z[0, :1])
    if log_evidence is not None:
        log_evidence = log_evidence[queries]
    with consistency.silent():
        full = full_detail(
            *(surgery, x, likelihood, samples, z, queries, aggregate, prior_now),
            *(tolerance, log_evidence),
        )
    consistency.warn(full.warnings, stacklevel=3)
    return full


def _sample_terms(
    x: np.ndarray,
    queries: np.ndarray,
    aggregate: AggregatePosterior,
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution,
    num_samples: int,
    seed: int,
    batch_size: int,
) -> tuple[dict[str, np.ndarray], tf.Tensor, np.ndarray | None]:
    """Draws z, and scores it by the model.

    Returns:
      Log densities `[S, Q]` by name, z `[S, Q, *code_shape]`, the analytic KL `[Q]`.
    """
    posteriors = aggregate.components_distribution
    per_step = min(len(queries), max(1, batch_size // num_samples))

    def draw(indices: tf.Tensor, step_seed: tf.Tensor) -> Any:
        posterior = components_lib.gather(posteriors, indices)
        z = posterior.sample(num_samples, seed=step_seed)  # [S, B, *code_shape]
        terms = {"log_posterior": posterior.log_prob(z), "log_prior": prior.log_prob(z)}
        return terms, z, closed_form_kl(posterior, prior)

    # One graph for many steps: TFP takes longer to assemble these ops than they take to run. The
    # decoder stays eager, since it may be any Python function.
    if len(queries) > _EAGER_STEPS * per_step:
        draw = traced(draw, tf.TensorSpec([per_step], tf.int32), tf.TensorSpec([2], tf.int32))

    base_seed = tf.constant([seed, 1], tf.int32)
    parts: list[dict[str, np.ndarray]] = []
    z_parts: list[tf.Tensor] = []
    kl_parts: list[np.ndarray] = []
    for number, start in enumerate(range(0, len(queries), per_step)):
        # The last step repeats earlier observations to keep one shape: kernels compile once.
        shown = min(start, len(queries) - per_step)
        indices = queries[shown : shown + per_step]
        step_seed = tf.random.experimental.stateless_fold_in(base_seed, number)
        terms, z, kl = draw(tf.constant(indices, tf.int32), step_seed)
        terms["reconstruction"] = reconstruction_log_prob(
            decoder, z, tf.convert_to_tensor(x[indices])
        )
        new = slice(start - shown, None)
        parts.append({name: value.numpy()[:, new] for name, value in terms.items()})
        z_parts.append(z[:, new])
        if kl is not None:
            kl_parts.append(kl.numpy()[new])
    codes = tf.concat(z_parts, axis=1)
    samples = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    causes = {
        "log_posterior": cause(codes, own=True),
        "log_prior": cause(codes),
        "reconstruction": lambda failed: saturated_reconstruction(decoder, codes, failed),
    }
    for name, values in samples.items():
        samples[name] = checked_draws(name.replace("_", " "), values, cause=causes[name])
    kl = np.concatenate(kl_parts) if kl_parts else None
    return samples, codes, kl


def _disagreements(
    surgery: ElboSurgery, samples: dict[str, np.ndarray], kl: np.ndarray | None
) -> list[str]:
    """Sentences on terms that cannot all be right.

    Args:
      surgery: The terms.
      samples: Log densities of its draws by name, `[S, Q]`.
      kl: KL(q(z|x_n) || p(z)) in closed form, `[Q]`; None where there is none.
    """
    found = []
    log_posterior = samples["log_posterior"]
    if surgery.average_kl_analytic is not None and kl is not None:
        found += consistency.apart(
            "Average KL",
            "by Monte Carlo",
            surgery.average_kl,
            "in closed form",
            surgery.average_kl_analytic,
            _difference(
                log_posterior, -samples["log_prior"], np.broadcast_to(-kl, log_posterior.shape)
            ),
        )
    name, information = "Index-code mutual information", surgery.index_code_mutual_information
    from_entropy = surgery.index_code_mutual_information_from_entropy
    found += consistency.apart(
        name,
        "from log q(z)",
        information,
        "from the entropy of q(n|z)",
        from_entropy,
        dataclasses.replace(
            information,
            value=information.value - from_entropy.value,
            standard_error=math.hypot(
                information.standard_error,
                from_entropy.standard_error,
                _unseen(samples["index_entropy"], surgery.log_num_observations),
            ),
        ),
    )
    ceiling = Estimate(surgery.log_num_observations, 0.0, 0)
    found += consistency.negative(name, information)
    found += consistency.above(name, information, "log N", ceiling)
    found += consistency.negative("Marginal KL", surgery.marginal_kl)
    found += consistency.negative("Average KL", surgery.average_kl)
    found += consistency.negative("Average KL in closed form", surgery.average_kl_analytic)
    if surgery.cross_term is not None:  # the marginal KL less KL(q(z) || q_train(z))
        found += consistency.above(
            "Cross term", surgery.cross_term, "Marginal KL", surgery.marginal_kl
        )
    return found


def _difference(*terms: np.ndarray) -> Estimate:
    """The mean of what has the mean 0 in every stratum, if two ways to it are right.

    Two draws do not tell the spread within one observation that has more of it than all others.
    With few draws the error is thus that of means around 0: one observation alone proves nothing.
    """
    num_samples, num_query = terms[0].shape
    estimate = stratified_estimate(terms, num_query)
    if num_samples >= _ENOUGH_DRAWS:
        return estimate
    means = np.sum([term.astype(np.float64) for term in terms], axis=0).mean(axis=0)
    error = max(math.sqrt(np.square(means).sum()) / num_query, rounding(*terms))
    if estimate.standard_error > error:
        return estimate
    return dataclasses.replace(estimate, standard_error=error, degrees_of_freedom=float(num_query))


def _unseen(index_entropy: np.ndarray, log_num_observations: float) -> float:
    """The standard error of E[log q(n|z)] that draws cannot show.

    Where one component has nearly all of q(n|z), draws from the others are too rare to occur, and
    log q(n|z) seems to vary less than it does. Its variance given z is at most about twice
    H (1 + log N - log H).
    """
    rare = np.asarray(index_entropy, np.float64)
    rare = np.where(rare < _RARE_ENTROPY, rare, 0.0)
    variance = 2.0 * rare * (1.0 + log_num_observations - np.log(np.maximum(rare, 1e-300)))
    return math.sqrt(variance.mean() / variance.size)


def describe_evaluation(
    evaluated: Evaluation, num_observations: int, tolerance: float | None
) -> str:
    """How log q(z) was evaluated, in words."""
    visited = evaluated.num_visited.numpy()
    if visited.min() >= num_observations:
        return "exact"
    return (
        f"by a tree within {tolerance:g} nats, which visits {visited.mean():.0f} of "
        f"{num_observations} components on average"
    )
