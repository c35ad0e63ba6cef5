"""The measurements of the calibration of log evidence and of information."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import calibration_references as references
from benchmarks.calibration_cases import Case, case
from benchmarks.calibration_references import Means, average_kl, average_reconstruction, exact
from benchmarks.calibration_setting import Calibrated, Model, Setting, over_seeds
from benchmarks.calibration_statistics import Truth, estimates_of, mean_over_seeds, no_truth
from tfp_surgery.estimate import Estimate

_MINIBATCH = 32
_INNER_CODES = 20  # of the generative mutual information
_DATA_SETS_TOGETHER = 50  # in one call of a measurement of the log evidence
_CODES_TOGETHER = 100_000
_NUM_ANNEALED = 40  # observations of AIS and BDMC
_ANNEALING: dict[str, int] = {"num_temperatures": 50, "num_chains": 8, "num_leapfrog_steps": 3}
_NUM_STEPS = 200  # of the refinement
_SAME_AS_ANNEALED = "see log_evidence_by_annealed_importance_sampling"


def minibatches(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    of = setting.case
    model = Model(of)

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
    return Calibrated(over_seeds(setting, measure), truths)


def generative(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    del means
    of = setting.case
    model = Model(of)

    def measure(seed: int) -> Any:
        return tfs.generative_mutual_information(
            model.decoder,
            model.prior,
            num_observations=setting.num_observations,
            num_importance_samples=_INNER_CODES,
            seed=seed,
        )

    return Calibrated(over_seeds(setting, measure), references.generative_bounds(of, _INNER_CODES))


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
    setting: Setting, of: Case, measure: Callable[[Model, int], Any]
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
            evidence = measure(Model(_repeated(of, times)), start)
            estimates += _of_data_sets(evidence, len(of.x))
    return estimates


def importance_weighted(setting: Setting, means: Means) -> Calibrated:
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


def importance_sampling(setting: Setting, means: Means) -> Calibrated:
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


def annealed(setting: Setting, means: Means) -> Calibrated:
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


def bidirectional(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs
    from tfp_surgery.evidence.bidirectional_monte_carlo import pair_average

    del means
    model = Model(setting.case)
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


def inference_gaps(setting: Setting, means: Means) -> Calibrated:
    import tfp_surgery as tfs

    del means
    of = setting.case
    model = Model(of)

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
    return Calibrated(over_seeds(setting, measure), truths)
