"""From the ELBO to log p(x): importance weighting, annealing, the gaps between them."""
