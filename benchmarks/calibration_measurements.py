"""What is calibrated: each measurement of the package, and what its estimates refer to."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import calibration_references as references
from benchmarks.calibration_cases import (
    CONDITIONAL_MEANS,
    EVENT_SIZE,
    GROUPS,
    LATENT_SIZE,
    MIXTURE_PRIOR,
    PARTS,
    TRAINING,
    Case,
    Mixture,
    case,
    population_expectations,
)
from benchmarks.calibration_references import Means, average_kl, average_reconstruction, exact
from benchmarks.calibration_statistics import (
    Truth,
    estimates_of,
    mean_over_seeds,
    no_truth,
)
from tfp_surgery.estimate import Estimate

Estimates = dict[str, Estimate]

_BATCH_SIZE = 128  # of the mutual information bounds in elbo_surgery(..., detail="full")
_MINIBATCH = 32
_INNER_CODES = 20  # of the generative mutual information
_DATA_SETS_TOGETHER = 50  # in one call of a measurement of the log evidence
_CODES_TOGETHER = 100_000
_NUM_ANNEALED = 40  # observations of AIS and BDMC
_ANNEALING: dict[str, int] = {"num_temperatures": 50, "num_chains": 8, "num_leapfrog_steps": 3}
_NUM_STEPS = 200  # of the refinement
_SAME_AS_ANNEALED = "see log_evidence_by_annealed_importance_sampling"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a part is computed for.

    Attributes:
      regime: One of `calibration_cases.REGIMES`.
      num_observations: N.
      num_query: Observations in the expectations; None for all.
      num_seeds: How many estimates.
    """

    regime: str
    num_observations: int
    num_query: int | None
    num_seeds: int

    @property
    def case(self) -> Case:
        """The data set, its model and posteriors."""
        return case(self.regime, self.num_observations)


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """The estimates of all seeds by name, and what they refer to by the same names."""

    estimates: Mapping[str, list[Estimate]]
    truths: Mapping[str, Truth]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A measurement whose estimates are calibrated.

    Attributes:
      label: What is called, for tables.
      run: Computes the estimates of a setting, and what they refer to, given `code_expectations`.
      seeds: Which number of seeds it takes: "num_seeds", "num_dear_seeds" or "num_data_sets".
      with_query: Whether it takes `num_query`.
      seconds: About how long a seed takes; the longest parts begin first.
    """

    label: str
    run: Callable[[Setting, Means], Calibrated]
    seeds: str = "num_seeds"
    with_query: bool = False
    seconds: float = 0.2


def _over_seeds(setting: Setting, measure: Callable[[int], Any]) -> dict[str, list[Estimate]]:
    """Measures with each seed, and collects the estimates by name."""
    found: dict[str, list[Estimate]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(setting.num_seeds):
            for name, estimate in estimates_of(measure(seed)).items():
                found.setdefault(name, []).append(estimate)
    return found


class _Model:
    """The distributions of a case, of TensorFlow Probability."""

    def __init__(self, of: Case) -> None:
        import tensorflow as tf
        import tensorflow_probability as tfp

        import tfp_surgery as tfs

        self.tfd = tfp.distributions
        self.x = of.x
        self.posteriors = self.tfd.MultivariateNormalDiag(
            tf.constant(of.loc), tf.constant(of.scale)
        )
        self.aggregate_posterior = tfs.AggregatePosterior(self.posteriors)
        zeros = tf.zeros([LATENT_SIZE], tf.float64)
        self.prior = self.tfd.MultivariateNormalDiag(zeros, tf.ones_like(zeros))
        self._weights = tf.constant(of.weights.T)
        self._scale = tf.fill([EVENT_SIZE], tf.constant(of.noise, tf.float64))

    def decoder(self, z: Any) -> Any:
        return self.tfd.MultivariateNormalDiag(z @ self._weights, self._scale)

    def prior_given(self, condition: Any) -> Any:
        import tensorflow as tf

        means = tf.gather(tf.constant(CONDITIONAL_MEANS), tf.cast(condition, tf.int32))
        return self.tfd.MultivariateNormalDiag(means, tf.ones_like(means))

    def mixture(self, of: Mixture) -> Any:
        return self.tfd.MixtureSameFamily(
            self.tfd.Categorical(probs=np.full(len(of.loc), 1.0 / len(of.loc))),
            self.tfd.MultivariateNormalDiag(of.loc, of.scale),
        )

    def parts(self, distribution: Any) -> Any:
        """A joint distribution of two parts of a code, of another's means and deviations."""
        import tensorflow as tf

        loc, scale = distribution.loc, distribution.stddev()
        return self.tfd.JointDistributionNamed(
            {
                name: self.tfd.MultivariateNormalDiag(
                    tf.gather(loc, group, axis=-1), tf.gather(scale, group, axis=-1)
                )
                for name, group in zip(PARTS, GROUPS, strict=True)
            }
        )


def _terms(of: Case, means: Means) -> dict[str, Truth]:
    """What the terms of `ElboSurgery` refer to, and the same under older names."""

    def truth(*terms: str, constant: float = 0.0) -> Truth:
        return references.truth_of(means, *terms, constant=constant)

    variance = of.scale**2
    reconstruction = average_reconstruction(of, of.loc, variance)
    divergence = average_kl(of.loc, variance)
    information, third = truth("+own", "-aggregate"), truth("+aggregate", "-prior")
    kl = exact(divergence)
    return {
        "elbo": exact(reconstruction - divergence),
        "average_reconstruction": exact(reconstruction),
        "average_kl": kl,
        "average_kl_analytic": kl,
        "average_kl_sampled": kl,
        "index_code_mutual_information": information,
        "index_code_mutual_information_sampled": information,
        "index_code_mutual_information_from_entropy": information,
        "index_code_mutual_information_by_subtraction": information,
        "marginal_kl": third,
        "marginal_kl_sampled": third,
        "cross_term": truth("+training", "-prior"),
    }


def _readings(of: Case, means: Means) -> dict[str, Truth]:
    terms = _terms(of, means)
    evidence = float(of.log_evidence.mean())
    elbo, reconstruction = float(terms["elbo"].value), terms["average_reconstruction"]
    entropy = float(np.mean(0.5 * (references.LOG_2PI + 1.0) + np.log(of.scale))) * LATENT_SIZE
    readings = {
        "evidence_minus_posterior_kl": exact(elbo),
        "log_evidence": exact(evidence),
        "posterior_kl": exact(evidence - elbo),
        "negative_energy_plus_entropy": exact(elbo),
        "negative_energy": exact(elbo - entropy),
        "entropy": exact(entropy),
        "term_by_term": exact(elbo),
        "surgery": exact(elbo),
        "average_reconstruction": reconstruction,
        "average_kl": terms["average_kl"],
        "index_code_mutual_information": terms["index_code_mutual_information"],
        "marginal_kl": terms["marginal_kl"],
    }
    return {f"readings.{name}": truth for name, truth in readings.items()}


def _split(means: Means, prior: str) -> dict[str, Truth]:
    """What a split of the marginal KL refers to, for a prior by its name in `Means`."""

    def truth(*terms: str) -> Truth:
        return references.truth_of(means, *terms)

    dimensions = range(LATENT_SIZE)
    found = {
        "marginal_kl": truth("+aggregate", f"-{prior}"),
        "total_correlation": truth("+aggregate", *(f"-aggregate_{j}" for j in dimensions)),
        "summed_dimension_wise_kl": truth(
            *(f"+aggregate_{j}" for j in dimensions), *(f"-{prior}_{j}" for j in dimensions)
        ),
        "prior_factorization": truth(*(f"+{prior}_{j}" for j in dimensions), f"-{prior}"),
    }
    for j in dimensions:
        found[f"dimension_wise_kl[{j}]"] = truth(f"+aggregate_{j}", f"-{prior}_{j}")
        found[f"dimension_wise_mutual_information[{j}]"] = truth(f"+own_{j}", f"-aggregate_{j}")
    numbers = range(len(GROUPS))
    found["groups.total_correlation"] = truth("+aggregate", *(f"-aggregate_g{g}" for g in numbers))
    found["groups.prior_factorization"] = truth(*(f"+{prior}_g{g}" for g in numbers), f"-{prior}")
    for g, group in enumerate(GROUPS):
        found[f"groups.group_wise_kl[{g}]"] = truth(f"+aggregate_g{g}", f"-{prior}_g{g}")
        found[f"groups.within_total_correlation[{g}]"] = truth(
            f"+aggregate_g{g}", *(f"-aggregate_{j}" for j in group)
        )
        found[f"groups.within_prior_factorization[{g}]"] = truth(
            *(f"+{prior}_{j}" for j in group), f"-{prior}_g{g}"
        )
    return found


def _bounds(of: Case, means: Means) -> dict[str, Truth]:
    def plus(first: Truth, second: Truth) -> Truth:
        error = math.hypot(first.standard_error, second.standard_error)
        return Truth(first.value + second.value, error, second.how)

    information = references.truth_of(means, "+own", "-aggregate")
    gaps = references.contrastive_gaps(of, min(_BATCH_SIZE, len(of.x)))
    softplus = 0.5 * (means["softplus_own"] + means["softplus_all"])
    found = {
        "index_code_mutual_information": information,
        "nguyen_wainwright_jordan": information,
        "info_nce": plus(information, gaps["info_nce"]),
        "leave_one_out": plus(information, gaps["leave_one_out"]),
        "barber_agakov": exact(average_kl(of.loc, of.scale**2)),
        "jensen_shannon": references.truth_of({"s": softplus}, "-s", constant=math.log(2.0)),
        "aggregate_entropy": references.truth_of(means, "-aggregate"),
        "conditional_entropy": references.truth_of(means, "-own"),
    }
    return {f"mutual_information_bounds.{name}": truth for name, truth in found.items()}


def _rate_distortion(of: Case, entropy: float | None) -> dict[str, Truth]:
    rate = average_kl(of.loc, of.scale**2)
    reconstruction = average_reconstruction(of, of.loc, of.scale**2)
    found = {"rate": rate, "upper_bound": rate, "distortion": -reconstruction}
    if entropy is not None:
        found["data_entropy"] = entropy
        found["lower_bound"] = entropy + reconstruction
        found["elbo_gap"] = rate - reconstruction - entropy
    return {name: exact(value) for name, value in found.items()}


def _prefixed(prefix: str, truths: Mapping[str, Truth]) -> dict[str, Truth]:
    return {f"{prefix}.{name}": truth for name, truth in truths.items()}


def _elbo_surgery(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    of = setting.case
    model = _Model(of)
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

    truths = {**_terms(of, means), **_readings(of, means)}
    truths |= _prefixed("rate_distortion_bounds", _rate_distortion(of, of.entropy))
    if setting.num_query is None:
        truths |= _prefixed("marginal_kl_split", _split(means, "prior"))
        truths |= _bounds(of, means) | _prefixed("rate_distortion", _rate_distortion(of, None))
    return Calibrated(_over_seeds(setting, measure), truths)


def _parts(setting: Setting, means: Means) -> Calibrated:
    import tensorflow as tf

    import tfp_surgery as tfs

    of = setting.case
    model = _Model(of)
    posteriors, prior = model.parts(model.posteriors), model.parts(model.prior)

    def decoder(z: Mapping[str, Any]) -> Any:
        return model.decoder(tf.concat([z[name] for name in PARTS], axis=-1))

    def measure(seed: int) -> Any:
        return tfs.elbo_surgery(
            model.x, posteriors, decoder, prior, num_query=setting.num_query, seed=seed
        )

    truths = _terms(of, means)
    for g, part in enumerate(PARTS):
        terms = {
            "index_code_mutual_information": (f"+own_g{g}", f"-aggregate_g{g}"),
            "marginal_kl": (f"+aggregate_g{g}", f"-prior_g{g}"),
            "average_kl": (f"+own_g{g}", f"-prior_g{g}"),
        }
        for name, summands in terms.items():
            truths[f"per_part.{part}.{name}"] = references.truth_of(means, *summands)
    return Calibrated(_over_seeds(setting, measure), truths)


def _conditional_prior(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    of = setting.case
    model = _Model(of)

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

    terms = _terms(of, means)
    variance = of.scale**2
    divergence = average_kl(of.loc - CONDITIONAL_MEANS[of.condition.astype(int)], variance)
    reconstruction = float(terms["average_reconstruction"].value)
    truths = {
        **terms,
        **dict.fromkeys(
            ("average_kl", "average_kl_analytic", "average_kl_sampled"), exact(divergence)
        ),
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
    return Calibrated(_over_seeds(setting, measure), truths)


def _component_subset(setting: Setting, means: Means) -> Calibrated:
    import tensorflow as tf

    import tfp_surgery as tfs

    of = setting.case
    model = _Model(of)
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

    return Calibrated(_over_seeds(setting, measure), _terms(of, means))


def _draws(of: Case, seed: int, num_query: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns two codes of each observation in the expectations, `[2, Q, D]`, and which, `[Q]`."""
    rng = np.random.default_rng([seed, 41])
    num = len(of.x)
    index = np.arange(num)
    if num_query is not None:
        index = np.sort(rng.choice(num, num_query, replace=False))
    noise = rng.normal(size=[2, len(index), LATENT_SIZE])
    return of.loc[index] + of.scale[index] * noise, index


def _marginal_kl_split(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    of = setting.case
    model = _Model(of)
    prior = model.mixture(MIXTURE_PRIOR)

    def measure(seed: int) -> Any:
        z, index = _draws(of, seed, setting.num_query)
        return tfs.marginal_kl_split(z, index, model.aggregate_posterior, prior, groups=GROUPS)

    return Calibrated(_over_seeds(setting, measure), _split(means, "mixture_prior"))


def _from_log_probs(setting: Setting, means: Means) -> Calibrated:
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

    truths = {**_terms(of, means), **_readings(of, means)}
    return Calibrated(_over_seeds(setting, measure), truths)


def _fit_prior(setting: Setting, means: Means) -> Calibrated:
    import tensorflow as tf

    import tfp_surgery as tfs

    model = _Model(setting.case)
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
    return Calibrated(_over_seeds(setting, measure), truths)


def _minibatches(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    of = setting.case
    model = _Model(of)

    def measure(seed: int) -> Any:
        return tfs.minibatch_mutual_information(
            model.aggregate_posterior, batch_size=_MINIBATCH, seed=seed
        )

    gap = references.stratified_gap(of, _MINIBATCH)
    truths = {}
    for name, terms in (
        ("mutual_information", ("+own", "-aggregate")),
        ("aggregate_entropy", ("-aggregate",)),
    ):
        exact_part = references.truth_of(means, *terms)
        error = math.hypot(exact_part.standard_error, gap.standard_error)
        truths[name] = Truth(exact_part.value + gap.value, error, gap.how)
    return Calibrated(_over_seeds(setting, measure), truths)


def _generative(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    del means
    of = setting.case
    model = _Model(of)

    def measure(seed: int) -> Any:
        return tfs.generative_mutual_information(
            model.decoder,
            model.prior,
            num_observations=setting.num_observations,
            num_importance_samples=_INNER_CODES,
            seed=seed,
        )

    return Calibrated(_over_seeds(setting, measure), references.generative_bounds(of, _INNER_CODES))


def _repeated(of: Case, times: int) -> Case:
    """The case with every observation so many times, data set by data set."""
    rows = {
        name: np.concatenate([getattr(of, name)] * times)
        for name in ("x", "loc", "scale", "condition")
    }
    return dataclasses.replace(of, **rows)


def _of_data_sets(evidence: Any, size: int) -> list[Estimate]:
    """What each `size` observations of a `LogEvidence` would have given by themselves."""
    return [
        dataclasses.replace(
            evidence,
            values=evidence.values[:, start : start + size],
            standard_errors=evidence.standard_errors[start : start + size],
        ).estimate
        for start in range(0, evidence.num_observations, size)
    ]


def _log_evidence(
    setting: Setting, of: Case, measure: Callable[[_Model, int], Any]
) -> list[Estimate]:
    """Estimates of data sets that stand one behind the other in a few calls.

    Weights and step sizes of an observation depend on no other: each data set gives what a call of
    its own with another seed gives.
    """
    estimates: list[Estimate] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for start in range(0, setting.num_seeds, _DATA_SETS_TOGETHER):
            times = min(_DATA_SETS_TOGETHER, setting.num_seeds - start)
            evidence = measure(_Model(_repeated(of, times)), start)
            estimates += _of_data_sets(evidence, len(of.x))
    return estimates


def _importance_weighted(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    del means
    of = setting.case
    estimates = _log_evidence(
        setting,
        of,
        lambda model, seed: tfs.importance_weighted_elbo(
            model.x,
            model.posteriors,
            model.decoder,
            model.prior,
            num_importance_samples=8,
            num_samples=2,
            seed=seed,
            batch_size=_CODES_TOGETHER,
        ),
    )
    return Calibrated(
        {"estimate": estimates}, {"estimate": references.importance_weighted(of, 8, 2000)}
    )


def _importance_sampling(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    del means
    of = setting.case
    estimates = _log_evidence(
        setting,
        of,
        lambda model, seed: tfs.log_evidence_by_importance_sampling(
            model.x,
            model.posteriors,
            model.decoder,
            model.prior,
            num_importance_samples=30,
            seed=seed,
            batch_size=_CODES_TOGETHER,
        ),
    )
    return Calibrated(
        {"estimate": estimates}, {"estimate": references.importance_weighted(of, 30, 1000)}
    )


def _annealed(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    del means
    of = case(setting.regime, _NUM_ANNEALED)
    estimates = _log_evidence(
        setting,
        of,
        lambda model, seed: tfs.log_evidence_by_annealed_importance_sampling(
            model.x,
            model.decoder,
            model.prior,
            seed=seed,
            batch_size=_CODES_TOGETHER,
            **_ANNEALING,
        ),
    )
    return Calibrated({"estimate": estimates}, {"estimate": mean_over_seeds(estimates)})


def _bidirectional(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs
    from tfp_surgery.evidence.bidirectional_monte_carlo import pair_average

    del means
    model = _Model(setting.case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = tfs.bidirectional_monte_carlo(
            model.decoder,
            model.prior,
            num_observations=_NUM_ANNEALED * setting.num_seeds,
            batch_size=_CODES_TOGETHER,
            **_ANNEALING,
        )
    lower, upper = result.forward.per_observation, result.reverse.per_observation
    estimates = {
        name: [
            pair_average(part, _ANNEALING["num_chains"])
            for part in values.reshape(setting.num_seeds, _NUM_ANNEALED)
        ]
        for name, values in (("lower", lower), ("upper", upper), ("gap", upper - lower))
    }
    truths = {name: mean_over_seeds(found) for name, found in estimates.items()}
    of_one = "conditional on the simulated codes: its docstring says that its errors are too small"
    truths |= {
        "forward.estimate": no_truth(_SAME_AS_ANNEALED),
        "reverse.estimate": no_truth(of_one),
    }
    found = estimates_of(result)
    for name in ("forward.estimate", "reverse.estimate"):
        estimates[name] = [found.pop(name)] * 2
    if found.keys() != {"lower", "upper", "gap"}:
        raise ValueError(f"bidirectional_monte_carlo has new estimates: {sorted(found)}.")
    return Calibrated(estimates, truths)


def _inference_gaps(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    del means
    of = setting.case
    model = _Model(of)

    def measure(seed: int) -> Any:
        return tfs.inference_gaps(
            model.x,
            model.posteriors,
            model.decoder,
            model.prior,
            log_evidence=of.log_evidence,
            num_samples=4,
            num_steps=_NUM_STEPS,
            seed=seed,
            batch_size=_CODES_TOGETHER,
        )

    others = [
        tfs.refined_posteriors(
            model.x,
            model.posteriors,
            model.decoder,
            model.prior,
            num_steps=_NUM_STEPS,
            seed=setting.num_seeds + number,
            batch_size=_CODES_TOGETHER,
        )
        for number in range(2)
    ]

    def elbo(loc: np.ndarray, variance: np.ndarray) -> float:
        return average_reconstruction(of, loc, variance) - average_kl(loc, variance)

    found = [elbo(other.mean().numpy(), other.variance().numpy()) for other in others]
    best, spread = float(np.mean(found)), abs(found[0] - found[1]) / 2.0
    own = elbo(of.loc, of.scale**2)
    evidence = float(of.log_evidence.mean())
    how = "closed form at the posteriors of two other refinements"
    truths = {
        "log_evidence": exact(evidence),
        "elbo": exact(own),
        "optimal_elbo": Truth(best, spread, how),
        "approximation_gap": Truth(evidence - best, spread, how),
        "amortization_gap": Truth(best - own, spread, how),
    }
    return Calibrated(_over_seeds(setting, measure), truths)


def _population(setting: Setting, means: Means) -> Calibrated:
    """Estimates of data sets of one population, with their errors over observations."""
    import tfp_surgery as tfs

    del means
    estimates: dict[str, list[Estimate]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(setting.num_seeds):
            of = case(setting.regime, setting.num_observations, 1 + seed)
            model = _Model(of)
            surgery = tfs.elbo_surgery(
                model.x,
                model.posteriors,
                model.decoder,
                model.prior,
                num_query=setting.num_query,
                seed=seed,
            )
            for name, estimate in estimates_of(surgery).items():
                error = getattr(estimate, "population_standard_error", None)
                if error is not None:
                    own = dataclasses.replace(
                        estimate, standard_error=error, degrees_of_freedom=math.inf
                    )
                    estimates.setdefault(name, []).append(own)
    reconstruction, divergence = population_expectations(setting.regime)
    known = {
        "elbo": exact(reconstruction - divergence),
        "average_reconstruction": exact(reconstruction),
        **dict.fromkeys(
            ("average_kl", "average_kl_sampled", "average_kl_analytic"), exact(divergence)
        ),
    }
    return Calibrated(
        estimates,
        {name: known.get(name, mean_over_seeds(found)) for name, found in estimates.items()},
    )


MEASUREMENTS: dict[str, Measurement] = {
    "elbo_surgery": Measurement(
        'elbo_surgery(..., detail="full")', _elbo_surgery, with_query=True, seconds=0.45
    ),
    "parts": Measurement(
        "elbo_surgery of a code in two parts",
        _parts,
        "num_dear_seeds",
        with_query=True,
        seconds=0.4,
    ),
    "conditional_prior": Measurement(
        "elbo_surgery with a prior p(z|c)", _conditional_prior, "num_dear_seeds", with_query=True
    ),
    "from_log_probs": Measurement(
        "elbo_surgery_from_log_probs", _from_log_probs, with_query=True, seconds=0.02
    ),
    "marginal_kl_split": Measurement(
        "marginal_kl_split(..., groups=...)", _marginal_kl_split, with_query=True
    ),
    "fit_prior": Measurement("fit_prior", _fit_prior, "num_dear_seeds", seconds=0.3),
    "minibatch_mutual_information": Measurement("minibatch_mutual_information", _minibatches),
    "generative_mutual_information": Measurement("generative_mutual_information", _generative),
    "component_subset": Measurement(
        "elbo_surgery(..., reencode=True, num_components=N/2)",
        _component_subset,
        "num_dear_seeds",
        seconds=1.2,
    ),
    "importance_weighted_elbo": Measurement(
        "importance_weighted_elbo, k = 2, m = 8", _importance_weighted, seconds=0.02
    ),
    "importance_sampling": Measurement(
        "log_evidence_by_importance_sampling, m = 30", _importance_sampling, seconds=0.03
    ),
    "annealed_importance_sampling": Measurement(
        "log_evidence_by_annealed_importance_sampling", _annealed, seconds=0.05
    ),
    "bidirectional_monte_carlo": Measurement(
        "bidirectional_monte_carlo", _bidirectional, seconds=0.05
    ),
    "inference_gaps": Measurement("inference_gaps", _inference_gaps, "num_dear_seeds", seconds=2.0),
    "population": Measurement(
        "elbo_surgery, errors over observations (population_standard_error)",
        _population,
        "num_data_sets",
    ),
}
