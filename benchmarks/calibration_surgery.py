"""The measurements of the calibration that take the ELBO apart."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import calibration_references as references
from benchmarks.calibration_cases import (
    CONDITIONAL_MEANS,
    GROUPS,
    LATENT_SIZE,
    MIXTURE_PRIOR,
    PARTS,
    TRAINING,
    Case,
    case,
    population_expectations,
)
from benchmarks.calibration_references import Means, average_kl, exact
from benchmarks.calibration_setting import Calibrated, Model, Setting, over_seeds
from benchmarks.calibration_statistics import estimates_of, mean_over_seeds
from benchmarks.calibration_terms import (
    bound_terms,
    elbo_terms,
    prefixed,
    rate_distortion_terms,
    reading_terms,
    split_terms,
)
from tfp_surgery.estimate import Estimate


def elbo_surgery(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    of = setting.case
    model = Model(of)
    training = tfs.AggregatePosterior(model.mixture(TRAINING).components_distribution)

    def measure(seed: int) -> Any:
        surgery = tfs.elbo_surgery(
            model.x,
            model.aggregate_posterior,
            model.decoder,
            model.prior,
            num_query=setting.num_query,
            seed=seed,
            training_aggregate_posterior=training,
            # The bounds of the full detail run over all observations.
            detail="full" if setting.num_query is None else "terms",
            log_evidence=of.log_evidence,
        )
        bounds = tfs.rate_distortion_bounds(
            surgery.elbo,
            surgery.average_reconstruction,
            surgery.average_kl,
            data_entropy=of.entropy,
        )
        return {**estimates_of(surgery), **estimates_of(bounds, "rate_distortion_bounds")}

    truths = {**elbo_terms(of, means), **reading_terms(of, means)}
    truths |= prefixed("rate_distortion_bounds", rate_distortion_terms(of, of.entropy))
    if setting.num_query is None:
        truths |= prefixed("marginal_kl_split", split_terms(means, "prior"))
        truths |= bound_terms(of, means) | prefixed(
            "rate_distortion", rate_distortion_terms(of, None)
        )
    return Calibrated(over_seeds(setting, measure), truths)


def parts(setting: Setting, means: Means) -> Calibrated:
    import tensorflow as tf

    import tfp_surgery as tfs

    of = setting.case
    model = Model(of)
    posteriors, prior = model.parts(model.posteriors), model.parts(model.prior)

    def decoder(z: Mapping[str, Any]) -> Any:
        return model.decoder(tf.concat([z[name] for name in PARTS], axis=-1))

    def measure(seed: int) -> Any:
        return tfs.elbo_surgery(
            model.x, posteriors, decoder, prior, num_query=setting.num_query, seed=seed
        )

    truths = elbo_terms(of, means)
    for g, part in enumerate(PARTS):
        terms = {
            "index_code_mutual_information": (f"+own_g{g}", f"-aggregate_g{g}"),
            "marginal_kl": (f"+aggregate_g{g}", f"-prior_g{g}"),
            "average_kl": (f"+own_g{g}", f"-prior_g{g}"),
        }
        for name, summands in terms.items():
            truths[f"per_part.{part}.{name}"] = references.truth_of(means, *summands)
    return Calibrated(over_seeds(setting, measure), truths)


def conditional_prior(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    of = setting.case
    model = Model(of)

    def measure(seed: int) -> Any:
        return tfs.elbo_surgery(
            model.x,
            model.posteriors,
            model.decoder,
            model.prior_given,
            condition=of.condition,
            num_query=setting.num_query,
            seed=seed,
        )

    terms = elbo_terms(of, means)
    variance = of.scale**2
    divergence = average_kl(of.loc - CONDITIONAL_MEANS[of.condition.astype(int)], variance)
    reconstruction = float(terms["average_reconstruction"].value)
    truths = {
        **terms,
        **dict.fromkeys(("average_kl", "average_kl_sampled"), exact(divergence)),
        "elbo": exact(reconstruction - divergence),
        **dict.fromkeys(
            ("conditional_prior_term", "conditional_prior_term_sampled"),
            references.truth_of(means, "+aggregate", "-conditional_prior"),
        ),
        "condition_split.index_code_mutual_information": references.truth_of(
            means, "+own", "-given"
        ),
        "condition_split.marginal_kl": references.truth_of(means, "+given", "-conditional_prior"),
        "condition_split.condition_mutual_information": references.truth_of(
            means, "+given", "-aggregate"
        ),
    }
    return Calibrated(over_seeds(setting, measure), truths)


def component_subset(setting: Setting, means: Means) -> Calibrated:
    import tensorflow as tf

    import tfp_surgery as tfs

    of = setting.case
    model = Model(of)
    rows = np.arange(setting.num_observations, dtype=np.float64)[:, np.newaxis]

    def encoder(x: Any) -> Any:
        own = tf.cast(x[:, 0], tf.int32)
        return model.tfd.MultivariateNormalDiag(tf.gather(of.loc, own), tf.gather(of.scale, own))

    def measure(seed: int) -> Any:
        return tfs.elbo_surgery(
            rows,
            encoder,
            None,
            model.prior,
            num_query=setting.num_query,
            seed=seed,
            reencode=True,
            num_components=setting.num_observations // 2,
        )

    return Calibrated(over_seeds(setting, measure), elbo_terms(of, means))


def _draws(of: Case, seed: int, num_query: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns two codes of each observation in the expectations, `[2, Q, D]`, and which, `[Q]`."""
    rng = np.random.default_rng([seed, 41])
    num = len(of.x)
    index = np.arange(num)
    if num_query is not None:
        index = np.sort(rng.choice(num, num_query, replace=False))
    noise = rng.normal(size=[2, len(index), LATENT_SIZE])
    return of.loc[index] + of.scale[index] * noise, index


def marginal_kl_split(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    of = setting.case
    model = Model(of)
    prior = model.mixture(MIXTURE_PRIOR)

    def measure(seed: int) -> Any:
        z, index = _draws(of, seed, setting.num_query)
        return tfs.marginal_kl_split(z, index, model.aggregate_posterior, prior, groups=GROUPS)

    return Calibrated(over_seeds(setting, measure), split_terms(means, "mixture_prior"))


def from_log_probs(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    of = setting.case

    def measure(seed: int) -> Any:
        z, index = _draws(of, seed, setting.num_query)
        densities = references.normal_log_densities
        scores = densities(z[:, :, np.newaxis], of.loc, of.scale).sum(axis=-1)  # [2, Q, N]
        return tfs.elbo_surgery_from_log_probs(
            log_posterior=np.take_along_axis(scores, index[np.newaxis, :, np.newaxis], 2)[..., 0],
            log_prior=densities(z, 0.0, 1.0).sum(axis=-1),
            log_posteriors=scores,
            log_likelihood=densities(of.x[index], z @ of.weights.T, of.noise).sum(axis=-1),
            index=index,
            num_observations=setting.num_observations,
            log_evidence=of.log_evidence[index],
        )

    truths = {**elbo_terms(of, means), **reading_terms(of, means)}
    return Calibrated(over_seeds(setting, measure), truths)


def fit_prior(setting: Setting, means: Means) -> Calibrated:
    import tensorflow as tf

    import tfp_surgery as tfs

    model = Model(setting.case)
    # Its variables are fitted in no step: what is measured is the change of prior.
    prior = model.tfd.MixtureSameFamily(
        model.tfd.Categorical(logits=tf.Variable(np.zeros(len(MIXTURE_PRIOR.loc)))),
        model.tfd.MultivariateNormalDiag(MIXTURE_PRIOR.loc, MIXTURE_PRIOR.scale),
    )

    def measure(seed: int) -> Any:
        return tfs.fit_prior(
            model.aggregate_posterior, prior, num_steps=0, seed=seed, verbose=False
        )

    truths = {
        "training.marginal_kl_before": references.truth_of(means, "+aggregate", "-prior"),
        "training.marginal_kl_after": references.truth_of(means, "+aggregate", "-mixture_prior"),
        "training.elbo_change": references.truth_of(means, "+mixture_prior", "-prior"),
    }
    return Calibrated(over_seeds(setting, measure), truths)


def population(setting: Setting, means: Means) -> Calibrated:
    """Estimates of data sets of one population, with their errors over observations."""
    import tfp_surgery as tfs

    del means
    estimates: dict[str, list[Estimate]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(setting.num_seeds):
            of = case(setting.regime, setting.num_observations, 1 + seed)
            model = Model(of)
            surgery = tfs.elbo_surgery(
                model.x,
                model.posteriors,
                model.decoder,
                model.prior,
                num_query=setting.num_query,
                seed=seed,
            )
            for name, estimate in estimates_of(surgery).items():
                error = estimate.population_standard_error
                if error is not None:
                    own = dataclasses.replace(
                        estimate, standard_error=error, degrees_of_freedom=math.inf
                    )
                    estimates.setdefault(name, []).append(own)
    reconstruction, divergence = population_expectations(setting.regime)
    known = {
        "elbo": exact(reconstruction - divergence),
        "average_reconstruction": exact(reconstruction),
        **dict.fromkeys(("average_kl", "average_kl_sampled"), exact(divergence)),
    }
    return Calibrated(
        estimates,
        {name: known.get(name, mean_over_seeds(found)) for name, found in estimates.items()},
    )
