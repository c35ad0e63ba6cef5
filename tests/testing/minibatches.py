"""Weights of minibatch estimators, right and as published wrongly, and their exact expectation."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy import special, stats

from tests.testing.oracles import gaussian_case

NUM = 5  # small enough to look at every ordered minibatch


def weights_of(method: str, batch_size: int, num_observations: int) -> np.ndarray:
    """The weights `[B, B]` written out entry by entry."""
    weights = np.empty((batch_size, batch_size))
    others = batch_size - 1
    for row, column in np.ndindex(weights.shape):
        if method == "full":
            weight = 1 / num_observations
        elif method == "batch":
            weight = 1 / batch_size
        elif method == "mws":
            weight = 1 / (num_observations * batch_size)
        elif column == row:
            weight = 1 / num_observations
        elif method == "partially_stratified":
            weight = (num_observations - 1) / (num_observations * others)
        elif column == (row + 1) % batch_size:
            weight = (num_observations - others) / (num_observations * others)
        else:
            weight = 1 / others
        weights[row, column] = weight
    return weights


def misplaced_weights(batch_size: int, num_observations: int) -> np.ndarray:
    """The published mistake: a stride of B, and not B + 1, through the flattened `[B, B]` matrix.

    What was meant for the diagonal lands in column 0, what was meant beside it in column 1.
    """
    others = batch_size - 1
    last = (num_observations - others) / (num_observations * others)
    flat = np.full(batch_size * batch_size, 1 / others)
    flat[0::batch_size] = 1 / num_observations
    flat[1::batch_size] = last
    weights = flat.reshape(batch_size, batch_size)
    weights[batch_size - 2, 0] = last
    return weights


def expected_information(method: str, case: str, batch_size: int) -> tuple[float, float, float]:
    """E of the estimate, I(n; z) and the entropy of q(z|x), one-dimensional, by quadrature."""
    loc, scale = gaussian_case(case, NUM, 1)
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(120)
    node_weights = node_weights / node_weights.sum()
    z = loc[:, 0] + scale[:, 0] * nodes[:, np.newaxis]  # [nodes, N]
    every = stats.norm.logpdf(z[..., np.newaxis], loc[:, 0], scale[:, 0])  # [nodes, N, N]
    own = np.einsum("snn->sn", every)
    exact = node_weights @ (own - special.logsumexp(every, axis=-1) + math.log(NUM))
    log_weights = np.log(weights_of(method, batch_size, NUM))
    values = []
    for chosen in map(list, itertools.permutations(range(NUM), batch_size)):
        estimate = special.logsumexp(every[:, chosen][:, :, chosen] + log_weights, axis=-1)
        values.append((node_weights @ (own[:, chosen] - estimate)).mean())
    return float(np.mean(values)), float(exact.mean()), float(-(node_weights @ own).mean())
