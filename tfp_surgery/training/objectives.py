"""Training objectives: lower bounds of log p(x), in nats, to be maximised.

An objective is a callable `objective(x, encoder, decoder, prior, seed)` that returns
`ObjectiveTerms`, one value an observation. It estimates on a minibatch; for measurements over a
data set, with standard errors, there are `tfp_surgery.elbo_surgery` and
`tfp_surgery.importance_weighted_elbo`.
"""

from tfp_surgery.measurement.log_likelihood import log_likelihood
from tfp_surgery.training.elbo_objective import Elbo, ObjectiveTerms, elbo
from tfp_surgery.training.iwae_objective import Iwae, iwae

__all__ = ["Elbo", "Iwae", "ObjectiveTerms", "elbo", "iwae", "log_likelihood"]


def __dir__() -> list[str]:
    """Lists the public names."""
    return __all__
