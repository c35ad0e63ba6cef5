"""Priors p(z) that go to meet the aggregate posterior, as Keras layers."""

from tfp_surgery.priors.aggregate import AggregatePrior
from tfp_surgery.priors.autoregressive import AutoregressivePrior
from tfp_surgery.priors.base import Prior, StandardNormalPrior
from tfp_surgery.priors.exemplar import ExemplarPrior
from tfp_surgery.priors.flow import FlowPrior
from tfp_surgery.priors.mixture import MixturePrior
from tfp_surgery.priors.resampled import ResampledPrior
from tfp_surgery.priors.vamp import VampPrior

__all__ = [
    "AggregatePrior",
    "AutoregressivePrior",
    "ExemplarPrior",
    "FlowPrior",
    "MixturePrior",
    "Prior",
    "ResampledPrior",
    "StandardNormalPrior",
    "VampPrior",
]


def __dir__() -> list[str]:
    """Lists the public names."""
    return __all__
