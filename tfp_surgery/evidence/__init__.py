"""Estimates of log p(x) by importance weighting and annealing, and its gaps to the ELBO."""
