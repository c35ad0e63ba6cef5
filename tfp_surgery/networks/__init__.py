"""Keras layers that own weights and build a `tfd.Distribution` on each call."""

from tfp_surgery.networks.bernoulli_decoder import BernoulliDecoder
from tfp_surgery.networks.decoders import ConvDecoder, MLPDecoder
from tfp_surgery.networks.encoders import ConvEncoder, MLPEncoder
from tfp_surgery.networks.gaussian_decoder import GaussianDecoder
from tfp_surgery.networks.gaussian_encoder import GaussianEncoder
from tfp_surgery.networks.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticLikelihood,
    GaussianLikelihood,
)

__all__ = [
    "BernoulliDecoder",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "ConvDecoder",
    "ConvEncoder",
    "DiscretizedLogisticLikelihood",
    "GaussianDecoder",
    "GaussianEncoder",
    "GaussianLikelihood",
    "MLPDecoder",
    "MLPEncoder",
]


def __dir__() -> list[str]:
    """Lists the public names."""
    return __all__
