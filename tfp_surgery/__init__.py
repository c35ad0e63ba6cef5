"""ELBO surgery for models made of TensorFlow Probability distributions."""

# isort: off
from tfp_surgery import xla_flags as _xla_flags  # noqa: F401  before anything is compiled

# isort: on
from tfp_surgery import datasets, networks, priors
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate
from tfp_surgery.models.vae import VAE
from tfp_surgery.surgery.active_units import active_units
from tfp_surgery.surgery.annealed_importance_sampling import (
    log_evidence_by_annealed_importance_sampling,
)
from tfp_surgery.surgery.bidirectional_monte_carlo import bidirectional_monte_carlo
from tfp_surgery.surgery.decomposition import elbo_surgery
from tfp_surgery.surgery.evidence import log_evidence_by_importance_sampling
from tfp_surgery.surgery.full_detail import FullElboSurgery
from tfp_surgery.surgery.generative_mutual_information import generative_mutual_information
from tfp_surgery.surgery.importance_weighting import importance_weighted_elbo
from tfp_surgery.surgery.inference_gaps import inference_gaps
from tfp_surgery.surgery.joint import decoder_and_prior
from tfp_surgery.surgery.minibatch import minibatch_log_prob, minibatch_marginal_log_prob
from tfp_surgery.surgery.minibatch_information import minibatch_mutual_information
from tfp_surgery.surgery.mutual_information import mutual_information_bounds
from tfp_surgery.surgery.posterior_refinement import refined_posteriors
from tfp_surgery.surgery.rate_distortion import empirical_entropy, rate_distortion_bounds
from tfp_surgery.surgery.result import ElboSurgery
from tfp_surgery.surgery.total_correlation import marginal_kl_split
from tfp_surgery.surgery.views import elbo_readings
from tfp_surgery.training import objectives
from tfp_surgery.training.callbacks import ElboSurgeryCallback
from tfp_surgery.training.checkpoint import CheckpointCallback, load_checkpoint
from tfp_surgery.training.prior_fit import PriorFit
from tfp_surgery.training.prior_fitting import fit_prior

__all__ = [
    "VAE",
    "AggregatePosterior",
    "CheckpointCallback",
    "ElboSurgery",
    "ElboSurgeryCallback",
    "Estimate",
    "FullElboSurgery",
    "PriorFit",
    "active_units",
    "bidirectional_monte_carlo",
    "datasets",
    "decoder_and_prior",
    "elbo_readings",
    "elbo_surgery",
    "empirical_entropy",
    "fit_prior",
    "generative_mutual_information",
    "importance_weighted_elbo",
    "inference_gaps",
    "load_checkpoint",
    "log_evidence_by_annealed_importance_sampling",
    "log_evidence_by_importance_sampling",
    "marginal_kl_split",
    "minibatch_log_prob",
    "minibatch_marginal_log_prob",
    "minibatch_mutual_information",
    "mutual_information_bounds",
    "networks",
    "objectives",
    "priors",
    "rate_distortion_bounds",
    "refined_posteriors",
]
