"""All that this package takes from TFP beside its public names: what a new TFP may change."""

from __future__ import annotations

from tensorflow_probability.python.distributions import kullback_leibler
from tensorflow_probability.python.distributions.distribution import DiscreteDistributionMixin
from tensorflow_probability.python.internal import (
    assert_util,
    auto_composite_tensor,
    batch_shape_lib,
    dtype_util,
    parameter_properties,
    prefer_static,
    reparameterization,
    samplers,
    tensor_util,
)

__all__ = [
    "REGISTERED_DIVERGENCES",
    "DiscreteDistributionMixin",
    "assert_util",
    "auto_composite_tensor",
    "batch_shape_lib",
    "dtype_util",
    "parameter_properties",
    "prefer_static",
    "reparameterization",
    "samplers",
    "tensor_util",
]

# By pair of classes; `tfd.RegisterKL` adds to it.
REGISTERED_DIVERGENCES = kullback_leibler._DIVERGENCES
