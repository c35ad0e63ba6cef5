"""The result classes of all measurements."""

from tfp_surgery.estimate import Estimate
from tfp_surgery.evidence.bidirectional_monte_carlo import BidirectionalMonteCarlo
from tfp_surgery.evidence.inference_gaps import InferenceGaps
from tfp_surgery.evidence.log_evidence import LogEvidence
from tfp_surgery.information.generative_mutual_information import GenerativeMutualInformation
from tfp_surgery.information.minibatch_mutual_information import MinibatchInformation
from tfp_surgery.information.mutual_information_bounds import MutualInformationBounds
from tfp_surgery.information.rate_distortion import RateDistortionBounds
from tfp_surgery.measurement.bound import Bound
from tfp_surgery.measurement.result import Result
from tfp_surgery.surgery.active_units import ActiveUnits
from tfp_surgery.surgery.condition_split import ConditionSplit
from tfp_surgery.surgery.elbo_readings import ElboReadings
from tfp_surgery.surgery.elbo_surgery_result import ElboSurgery
from tfp_surgery.surgery.marginal_kl_split_result import GroupSplit, MarginalKLSplit
from tfp_surgery.surgery.per_part_result import PartTerms, PerPart
from tfp_surgery.surgery.prior_change import PriorChange
from tfp_surgery.surgery.scored_draws import ScoredDraws
from tfp_surgery.training.prior_fit import PriorFit, PriorFitProgress

__all__ = [
    "ActiveUnits",
    "BidirectionalMonteCarlo",
    "Bound",
    "ConditionSplit",
    "ElboReadings",
    "ElboSurgery",
    "Estimate",
    "GenerativeMutualInformation",
    "GroupSplit",
    "InferenceGaps",
    "LogEvidence",
    "MarginalKLSplit",
    "MinibatchInformation",
    "MutualInformationBounds",
    "PartTerms",
    "PerPart",
    "PriorChange",
    "PriorFit",
    "PriorFitProgress",
    "RateDistortionBounds",
    "Result",
    "ScoredDraws",
]


def __dir__() -> list[str]:
    """Lists the public names."""
    return __all__
