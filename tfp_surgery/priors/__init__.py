"""Priors p(z) that go to meet the aggregate posterior, as Keras layers."""

from tfp_surgery.networks.priors import Prior, StandardNormalPrior

__all__ = ["Prior", "StandardNormalPrior"]
