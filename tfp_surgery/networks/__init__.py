"""Keras layers that own weights and build a `tfd.Distribution` on each call."""

from tfp_surgery.networks.decoders import ConvDecoder, MLPDecoder
from tfp_surgery.networks.encoders import ConvEncoder, MLPEncoder
from tfp_surgery.networks.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticLikelihood,
    GaussianLikelihood,
)

__all__ = [
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "ConvDecoder",
    "ConvEncoder",
    "DiscretizedLogisticLikelihood",
    "GaussianLikelihood",
    "MLPDecoder",
    "MLPEncoder",
]
