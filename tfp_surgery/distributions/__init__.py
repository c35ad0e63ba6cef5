"""Distributions: the aggregate posterior and its kernels."""
