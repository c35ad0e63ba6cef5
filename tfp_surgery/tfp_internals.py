"""All names that this package uses from TFP's private modules, which a new TFP may change."""

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

# KL formulas by pair of classes, extended by `tfd.RegisterKL`.
REGISTERED_DIVERGENCES = kullback_leibler._DIVERGENCES
