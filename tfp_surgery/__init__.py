"""ELBO surgery for models made of TensorFlow Probability distributions."""

from tfp_surgery import datasets, networks
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate
from tfp_surgery.models.vae import VAE
from tfp_surgery.surgery.decomposition import elbo_surgery
from tfp_surgery.surgery.joint import decoder_and_prior
from tfp_surgery.surgery.result import ElboSurgery
from tfp_surgery.training import objectives
from tfp_surgery.training.callbacks import ElboSurgeryCallback
from tfp_surgery.training.checkpoint import CheckpointCallback, load_checkpoint

__all__ = [
    "VAE",
    "AggregatePosterior",
    "CheckpointCallback",
    "ElboSurgery",
    "ElboSurgeryCallback",
    "Estimate",
    "datasets",
    "decoder_and_prior",
    "elbo_surgery",
    "load_checkpoint",
    "networks",
    "objectives",
]
