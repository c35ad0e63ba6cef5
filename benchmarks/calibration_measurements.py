"""All measurements of the calibration by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from benchmarks import calibration_evidence, calibration_surgery
from benchmarks.calibration_references import Means
from benchmarks.calibration_setting import Calibrated, Setting


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


MEASUREMENTS: dict[str, Measurement] = {
    "elbo_surgery": Measurement(
        'elbo_surgery(..., detail="full")',
        calibration_surgery.elbo_surgery,
        with_query=True,
        seconds=0.45,
    ),
    "parts": Measurement(
        "elbo_surgery of a code in two parts",
        calibration_surgery.parts,
        "num_dear_seeds",
        with_query=True,
        seconds=0.4,
    ),
    "conditional_prior": Measurement(
        "elbo_surgery with a prior p(z|c)",
        calibration_surgery.conditional_prior,
        "num_dear_seeds",
        with_query=True,
    ),
    "from_log_probs": Measurement(
        "elbo_surgery_from_log_probs",
        calibration_surgery.from_log_probs,
        with_query=True,
        seconds=0.02,
    ),
    "marginal_kl_split": Measurement(
        "marginal_kl_split(..., groups=...)", calibration_surgery.marginal_kl_split, with_query=True
    ),
    "fit_prior": Measurement(
        "fit_prior", calibration_surgery.fit_prior, "num_dear_seeds", seconds=0.3
    ),
    "minibatch_mutual_information": Measurement(
        "minibatch_mutual_information",
        calibration_evidence.minibatches,
        "num_dear_seeds",
        seconds=0.6,
    ),
    "generative_mutual_information": Measurement(
        "generative_mutual_information", calibration_evidence.generative
    ),
    "component_subset": Measurement(
        "elbo_surgery(..., reencode=True, num_components=N/2)",
        calibration_surgery.component_subset,
        "num_dear_seeds",
        seconds=1.2,
    ),
    "importance_weighted_elbo": Measurement(
        "importance_weighted_elbo, k = 2, m = 8",
        calibration_evidence.importance_weighted,
        seconds=0.02,
    ),
    "importance_sampling": Measurement(
        "log_evidence_by_importance_sampling, m = 30",
        calibration_evidence.importance_sampling,
        seconds=0.03,
    ),
    "annealed_importance_sampling": Measurement(
        "log_evidence_by_annealed_importance_sampling", calibration_evidence.annealed, seconds=0.05
    ),
    "bidirectional_monte_carlo": Measurement(
        "bidirectional_monte_carlo", calibration_evidence.bidirectional, seconds=0.05
    ),
    "inference_gaps": Measurement(
        "inference_gaps", calibration_evidence.inference_gaps, "num_dear_seeds", seconds=2.0
    ),
    "population": Measurement(
        "elbo_surgery, errors over observations (population_standard_error)",
        calibration_surgery.population,
        "num_data_sets",
    ),
}
