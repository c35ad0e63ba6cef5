"""Bounds and minibatch estimates of mutual information, and rate-distortion bounds."""
