"""ELBO surgery for models made of TensorFlow Probability distributions."""

# isort: off
from tfp_surgery import xla_flags as _xla_flags  # noqa: F401  before anything is compiled

# isort: on
from tfp_surgery import datasets, models, networks, priors, results
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate
from tfp_surgery.evidence.annealed_importance_sampling import (
    log_evidence_by_annealed_importance_sampling,
)
from tfp_surgery.evidence.bidirectional_monte_carlo import bidirectional_monte_carlo
from tfp_surgery.evidence.importance_sampling import log_evidence_by_importance_sampling
from tfp_surgery.evidence.importance_weighted_elbo import importance_weighted_elbo
from tfp_surgery.evidence.inference_gaps import inference_gaps
from tfp_surgery.evidence.refined_posteriors import refined_posteriors
from tfp_surgery.information.generative_mutual_information import generative_mutual_information
from tfp_surgery.information.minibatch_log_prob import (
    minibatch_log_prob,
    minibatch_marginal_log_prob,
)
from tfp_surgery.information.minibatch_mutual_information import minibatch_mutual_information
from tfp_surgery.information.mutual_information_bounds import mutual_information_bounds
from tfp_surgery.information.rate_distortion import empirical_entropy, rate_distortion_bounds
from tfp_surgery.measurement.decoder_and_prior import decoder_and_prior
from tfp_surgery.models.vae import VAE
from tfp_surgery.surgery.active_units import active_units
from tfp_surgery.surgery.elbo_readings import elbo_readings
from tfp_surgery.surgery.elbo_surgery import elbo_surgery
from tfp_surgery.surgery.elbo_surgery_from_log_probs import elbo_surgery_from_log_probs
from tfp_surgery.surgery.elbo_surgery_result import ElboSurgery
from tfp_surgery.surgery.marginal_kl_split import marginal_kl_split
from tfp_surgery.surgery.scored_draws import scored_draws
from tfp_surgery.training import objectives
from tfp_surgery.training.callbacks import ElboSurgeryCallback
from tfp_surgery.training.checkpoint import CheckpointCallback, load_checkpoint
from tfp_surgery.training.fit_prior import fit_prior

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "AggregatePosterior",
    "CheckpointCallback",
    "ElboSurgery",
    "ElboSurgeryCallback",
    "Estimate",
    "__version__",
    "active_units",
    "bidirectional_monte_carlo",
    "datasets",
    "decoder_and_prior",
    "elbo_readings",
    "elbo_surgery",
    "elbo_surgery_from_log_probs",
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
    "models",
    "mutual_information_bounds",
    "networks",
    "objectives",
    "priors",
    "rate_distortion_bounds",
    "refined_posteriors",
    "results",
    "scored_draws",
]


def __dir__() -> list[str]:
    """Lists the public names and the subpackages."""
    packages = (name for name, value in globals().items() if hasattr(value, "__path__"))
    return sorted({*__all__, *packages})
