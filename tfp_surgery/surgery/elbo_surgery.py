"""elbo_surgery: the three terms of the ELBO over a whole data set, with standard errors."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Literal

import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.arrays import reject_missing
from tfp_surgery.components.batch_size import checked_batch_size
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.evidence.log_evidence import LogEvidence
from tfp_surgery.log_density.evaluation import checked_tolerance
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model_checks import check_aggregate_posterior
from tfp_surgery.measurement.prepared_model import (
    PreparedModel,
    check_same_layout,
    code_layout,
    prepared_model,
)
from tfp_surgery.measurement.rounded_draws import cause, rounding_of_draws
from tfp_surgery.surgery.elbo_surgery_result import ElboSurgery
from tfp_surgery.surgery.parts import parts_of
from tfp_surgery.surgery.scored_draws import chosen_components, chosen_observations, score_draws
from tfp_surgery.surgery.terms import disagreements, terms

tfd = tfp.distributions


def elbo_surgery(
    x: Any,
    encoder: Callable[..., tfd.Distribution] | tfd.Distribution,
    decoder: Callable[..., tfd.Distribution] | None,
    prior: tfd.Distribution | Callable[..., tfd.Distribution],
    *,
    condition: Any = None,
    num_samples: int = 2,
    num_query: int | None = None,
    seed: Any = 0,
    batch_size: int | None = None,
    training_aggregate_posterior: AggregatePosterior | None = None,
    tolerance: float | None = None,
    detail: Literal["terms", "full"] = "terms",
    log_evidence: Any = None,
    reencode: bool = False,
    num_components: int | None = None,
    validate_args: bool = True,
) -> ElboSurgery:
    r"""Decomposes the ELBO of a latent-variable model into its three terms, over a whole data set.

    With q(n) = 1/N, q(z|n) = q(z|x_n) and q(z) = 1/N sum_n q(z|x_n) (Hoffman and Johnson 2016,
    equation 8 and following):

        ELBO = 1/N sum_n E_q(z|x_n)[log p(x_n|z)]      (1) average reconstruction
               - I(n; z)                               (2) index-code mutual information
               - KL(q(z) || p(z))                      (3) marginal KL

    log q(z) is exact over all N components. The average KL is in closed form where TFP registers
    one. The other expectations over z are Monte Carlo averages over `num_samples` draws from every
    q(z|x_n), stratified by observation, from which control variates take what is known of their
    variance: entropies and divergences of the posteriors, and H[q(n|z)] (see `ElboSurgery`). On the
    codes of images, the standard error of the marginal KL falls by 10 to 14 and that of the mutual
    information by 2, and for posteriors that overlap by up to 20 (docs/performance.md). Standard
    errors are conditional on the data; `population_standard_error` is not.

    With `num_query`, the expectations run over a random subset of the observations, and standard
    errors include the spread between observations; the aggregate posterior, and closed forms,
    remain those of all N. The closed-form average KL then has no error, the mutual information that
    of the subset, less what the closed forms of all N know of it, and the marginal KL, their
    difference, the same.

    All estimates are unbiased, up to rounding in the dtype of the model and a part of the standard
    error that vanishes as 1 / (N num_samples), since the coefficients of the control variates come
    from the same draws. Intervals are too narrow in two cases. Where posteriors are so narrow that
    hardly any draw lies between two of them, log N - I(n; z) rests on draws that may be missing.
    With `num_query`, if few of the observations have most of the average KL, the standard errors of
    mutual information and marginal KL are too small (by 1.6 where the KL has mean 12 and spread
    54): take all N there, or the plain means.

    The index-code mutual information is a property of this finite data set, and at most log N. It
    is not the mutual information of X and Z in the population. A held-out data set is decomposed
    with its own aggregate posterior; `training_aggregate_posterior` adds the cross term with the
    aggregate posterior of the training set.

    A structured code, of an encoder and a prior that are joint distributions, is one code: the
    terms are those of all of it, and `per_part` has the index-code mutual information and the
    marginal KL of each part. With a `condition`, `condition_split` splits the average KL given the
    condition; if the prior takes it, there is no p(z) and no marginal KL, and the third term is
    `conditional_prior_term`.

    Args:
      x: The data set: array-like of shape `[N, *event_shape]`, a sparse matrix, a
        `tf.RaggedTensor`, a dict or tuple of these, which is a structured observation, a
        `tf.data.Dataset`, or a `tfp_surgery.datasets.Dataset`; see `read_observations`. A
        stochastic binarization is drawn once, from `seed`. None if posteriors stand in the
        encoder's place and decoder is None.
      encoder: Callable from observations `[B, *event_shape]` to a `tfd.Distribution` over codes
        with batch shape `[B]`. Or the posteriors of x, which are then not encoded again: an
        `AggregatePosterior`, or a `tfd.Distribution` with batch shape `[N]`.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations with
        batch shape `[B]` and event shape `event_shape`. None leaves out the reconstruction and the
        ELBO.
      prior: `tfd.Distribution` over codes with batch shape `[]`, or a callable that returns one.
        A callable that takes the condition returns one distribution for each, batch shape `[B]`.
      condition: What encoder, decoder and prior may depend on beside x and z: array-like of shape
        `[N, ...]`, or a structure of these. Those of them that have a keyword argument `condition`
        get the conditions of their batch, repeated in step with the codes.
      num_samples: Number of draws of z per observation, at least 1. With 1, the standard errors of
        the sampled estimates are NaN.
      num_query: Number of observations in the expectations; None for all N.
      seed: Integer in [0, 2**31), or a TFP seed (pair of int32). The same seed gives the same
        draws, whatever `batch_size` from 2000 on is; smaller ones give others, and with `reencode`
        or p(z|c) each gives its own.
      batch_size: Number of observations encoded, and of codes decoded and scored, at a time (at
        least the `num_samples` codes of one observation). None for as many as fit in 32 MiB by
        their shapes, whatever the machine is. From the fifth step on, codes are decoded by a graph,
        where the decoder can be traced as one that gives the same values.
      training_aggregate_posterior: Aggregate posterior of another data set over the same codes,
        batch shape `[]`.
      tolerance: Bound in nats on the error of log q(z) and H[q(n|z)] from a certified tree over the
        components; see `AggregatePosterior.evaluate`. None for exact values. The field `evaluation`
        of the result says how log q(z) was evaluated.
      detail: `"full"` adds more quantities to the terms: the four readings of the ELBO, the split
        of the marginal KL over dimensions (log q(z_j) within `tolerance`, or 1e-5 nats), active
        units, and bounds on the mutual information (from their own draws). Quantities that do not
        exist for this model are None, with the reason in `absent`. If the likelihood is a
        probability mass function, H in H - D <= I is the entropy of these observations.
      log_evidence: log p(x_n) of the observations, array-like of shape `[N]`, in nats, for the
        first of the four readings; for instance
        `log_evidence_by_importance_sampling(...).per_observation`. The result then has `readings`,
        whatever `detail` is.
      reencode: Whether the encoder is called again, in blocks of observations, whenever log
        q(z|x_m) is needed, for posteriors whose parameters cannot be joined: context in closures,
        `tfd.MarkovChain`, `tfd.Autoregressive`, state-space models, linear operators, joint
        distributions of dependent parts. The terms are exact. Scoring num_samples * num_query codes
        evaluates num_samples * num_query * N densities in TFP's own operations; for large N,
        `num_query` and `num_components` bound that.
      num_components: Number K of posteriors, at least 40, drawn at random to stand for all in log
        q(z), with `reencode`; None for all, which is exact. The posterior that a code is drawn from
        always counts. Standard errors include those of the subset and its bias, by a jackknife; the
        mutual information is biased upwards and the marginal KL downwards (see
        `log_prob_by_subset`), and `evaluation` states both.
      validate_args: Whether x outside of the support of the likelihood is refused. False scores x
        as it is (grey pixels under a Bernoulli, for instance); the result then says in
        `outside_support` that it is not the ELBO of a normalised model.

    Returns:
      `ElboSurgery`, in nats per observation.

    Raises:
      TypeError: If encoder, decoder or prior do not return distributions, if none of them takes the
        condition, or if posteriors cannot be joined by their parameters and `reencode` is False.
      ValueError: If x is empty, not finite or outside the support of the likelihood, if shapes do
        not fit, if a number is out of range, if codes lie outside the support of the prior, if
        posterior and prior are a point mass and a density, or if a log density is not finite.

    Warns:
      UserWarning: If numbers of the result contradict each other, as listed in its `warnings` (see
        `docs/when-numbers-disagree.md`), or if standard errors are unknown.
    """
    num_samples = checked_integer("num_samples", num_samples, 1)
    batch_size = checked_batch_size(batch_size)
    seed = seeds.checked_seed(seed)
    tolerance = checked_tolerance(tolerance)
    if detail not in ("terms", "full"):
        raise ValueError(f'detail must be "terms" or "full"; got {detail!r}.')
    if isinstance(log_evidence, LogEvidence):
        raise TypeError(
            "log_evidence must be an array of shape [N]: hand in log_evidence.per_observation. The "
            "readings take it for exact, without its standard error."
        )
    reject_missing("log_evidence", log_evidence)
    model = prepared_model(
        x,
        encoder,
        decoder,
        prior,
        seed,
        batch_size,
        condition=condition,
        reencode=reencode,
        validate_args=validate_args,
        decoder_optional=True,
    )
    index = chosen_observations(model.num_observations, num_query, seed)
    subset = chosen_components(model, num_components, seed)
    if training_aggregate_posterior is not None:
        _check_same_codes(training_aggregate_posterior, model)
    if log_evidence is not None:
        _check_decoder_for_log_evidence(model)
        log_evidence = checked_draws("log_evidence", log_evidence, (model.num_observations,))
        log_evidence = log_evidence[index]
    if num_samples == 1 or (len(index) == 1 and model.num_observations > 1):
        warnings.warn(
            "with num_samples=1 or num_query=1 the standard errors are unknown (NaN).",
            stacklevel=2,
        )

    draws = score_draws(model, index, num_samples, seed, tolerance, subset)
    log_training_aggregate = None
    if training_aggregate_posterior is not None:
        log_training_aggregate = checked_draws(
            "log training aggregate",
            training_aggregate_posterior.log_prob(draws.z, tolerance=tolerance),
            cause=cause(draws.z),
        )
    surgery = terms(draws, log_training_aggregate)
    found = consistency.explained(
        disagreements(surgery, draws), rounding_of_draws(draws.z.numpy(), model.posteriors)
    )
    with consistency.silent():
        parts = parts_of(surgery, model, draws, detail == "full", log_evidence)
    for part in parts.values():
        found += getattr(part, "warnings", ())
    found = tuple(dict.fromkeys(found))  # each once
    consistency.warn(found, stacklevel=3)
    return dataclasses.replace(surgery, **parts, warnings=found)


def _check_decoder_for_log_evidence(model: PreparedModel) -> None:
    if model.decoder is None:
        raise ValueError(
            "log_evidence is for the readings of the ELBO, and without a decoder there is no ELBO."
        )


def _check_same_codes(aggregate_posterior: Any, model: PreparedModel) -> None:
    posteriors = model.first_posteriors
    check_aggregate_posterior(aggregate_posterior, "training_aggregate_posterior")
    own = code_layout(aggregate_posterior.components_distribution)
    if own is not None and model.layout is not None:
        check_same_layout(own, model.layout, "training_aggregate_posterior")
    is_joint = own is not None, model.layout is not None
    if is_joint[0] != is_joint[1] or aggregate_posterior.event_shape != posteriors.event_shape:
        raise ValueError(
            "training_aggregate_posterior must be over the codes of this model, of shape "
            f"{posteriors.event_shape}; got event shape {aggregate_posterior.event_shape}."
        )
