r"""Gaussian mixtures of one or two dimensions at many queries: series that serve cells of queries.

In few dimensions nearly all components near a query count, and a `component_tree` has nothing to
leave out but what is far. Here all queries in a small cell share one sum over the components: with
c the centre of the cell, h half its width, u_n = (mu_n - c) / s_n, rho_n = h / s_n and
z = c + h t, each in every dimension,

    w_n N(z; mu_n, s_n) = w_n N(c; mu_n, s_n) prod_d exp(u_nd rho_nd t_d - rho_nd^2 t_d^2 / 2),

and every factor is the generating function of Hermite polynomials, with the coefficients
a_k = He_k(u) rho^k / k! of t^k. The sums over n of products of two coefficients whose orders are
together less than p are a polynomial of t that all queries of the cell evaluate (the local series
of the fast Gauss transform, Greengard and Strain 1991). So is sum_n t_n exp t_n, whose factors
b_k = u rho a_{k-1} - rho^2 / 2 a_{k-2} are the coefficients of the exponent times the exponential.

#### Certificate

Components are left out for a whole cell by the bounds of a `component_tree`, taken over all z of
the cell. What is left out of a leaf is counted: its size times the exponential of its bound. Nodes
are left out where all N components at their bound would add less than a share to be neglected. A
query is answered only if the sum of both is at most d Q(z), where d = `omitted_share` of half of
the tolerance.

By Cramér's inequality |He_k(u)| <= 1.0864 sqrt(k!) e^{u^2 / 4} (Abramowitz and Stegun 1964,
22.14.17), and by that of Cauchy and Schwarz

    sum_{j + k = m} rho_1^j rho_2^k / sqrt(j! k!) <= sqrt(m + 1) |rho|^m / sqrt(m!),

so that with |t_d| <= 1 the terms of order p and more add up to at most

    1.0864^2 V_n R_p,   V_n = w_n N(c; mu_n, s_n) e^{|u_n|^2 / 4},
    R_p = sum_{m >= p} sqrt(m + 1) |rho_n|^m / sqrt(m!),

and those of sum_n t_n exp t_n, with |u_d| rho_d <= (u_d^2 + rho_d^2) / 2, to at most

    1.0864^2 V_n (|t_n(c)| R_p + (|u_n|^2 + |rho_n|^2) / 2 R_{p-1} + |rho_n|^2 / 2 R_{p-2}).

The sums of both, E and F, are computed with the coefficients; p is chosen for 16 components at a
time. With Q and M the polynomials' values and m = M / Q, -log(1 - E / Q) <= E / (Q - E) bounds the
error of log q(z), and

    |H - (log Q - m)| <= E / (Q - E) + (F + |m| E) / (Q - E)

that of the entropy of the components not left out. (Scores t_n are relative to log q(c) and to the
mean of log p_n there: M and m, and with them F, are small then.) Half of the tolerance is for what
is left out, half for this. Queries for which it does not suffice are left to the tree, as are those
in too small a company. Components with |rho| above `_REACH` are scored for each query of a cell.

All is computed in float64. The terms of a component's polynomial add up to at most
1.0864^2 V_n R_0, and R_0 < 50 where |rho| is at most `_REACH`: what operations on them round off
is less than 1e-9 V_n, by which R_p is larger than said above.

#### References

Leslie Greengard and John Strain. The fast Gauss transform. SIAM Journal on Scientific and
Statistical Computing, 12(1), 1991.

Milton Abramowitz and Irene A. Stegun. Handbook of Mathematical Functions. National Bureau of
Standards, 1964.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tfp_surgery.log_density.tree.threads import in_threads

MAX_DIMENSIONS = 2
_FEWEST = 64  # queries of a cell that pay for a sum over its components
_CELL_REACH = 1.2  # |rho| of an average component near a cell
_REACH = 1.8  # |rho| of a component whose series is used
_TERMS = 28  # the most p there is
_LEAST = 1e-2  # how much less q(z) may be than at the centre of its cell, for nodes left out
_VECTORS = 4000  # that a cell meets, about
_BORDER = 400  # leaves that may be left out though their bounds are as large as may be
_EXCESS = 1e-2  # of the tolerance: E, relative to Q at the centre
_STEPS = 64  # of the table of R_p
_SAMPLE = 256  # vectors that tell how many queries a cell will have
_ROUNDING = 1e-9  # of coefficients, relative to V
_LEAST_TOLERANCE = 1e-6  # nats: less, and rounding alone may exceed it


class Mixture(NamedTuple):
    """A tree as this module needs it.

    Attributes:
      tree: the `search.Tree`.
      dims: integers, shape `[D]`: its order of dimensions.
      bottom: the first node whose children are leaves.
    """

    tree: Any
    dims: np.ndarray
    bottom: int


def evaluate(
    mixture: Mixture,
    queries: np.ndarray,
    rows: np.ndarray,
    route: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    at_points: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    share: float,
    tolerance: float,
    results: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Evaluates those queries that cells can answer.

    Args:
      mixture: of at most `MAX_DIMENSIONS` dimensions.
      queries: of the dtype of the components, shape `[M, D]`.
      rows: integers: the finite queries among them.
      route: of points of shape `[M, D]` a leaf near each, integers of shape `[M]`, and the distance
        to the balls, which is not used.
      at_points: log q and H of points of shape `[cells, D]`, in nats, about: the certificate does
        not depend on them.
      share: of q(z), that may be left out.
      tolerance: of the series, in nats.
      results: where log q(z), H[q(n|z)] and the number of components of the cell's sum are written,
        each of shape `[M]`.

    Returns:
      bool, shape `[M]`: which queries were answered.
    """
    from tfp_surgery.log_density.tree import local_expansion_kernels as kernels
    from tfp_surgery.log_density.tree.build import UNIT
    from tfp_surgery.log_density.tree.vectors import WIDTH

    tree, dims = mixture.tree, mixture.dims
    answered = np.zeros(len(queries), bool)
    if tolerance < _LEAST_TOLERANCE:
        return answered
    leaf_data = tree.leaf_data.reshape(-1, 1 + 2 * len(dims), WIDTH)
    if _company(leaf_data, UNIT) * len(rows) < _FEWEST * tree.num_components:
        return answered
    leaves, _ = route(queries)
    vectors = tree.first_vector[leaves]
    rows = rows[np.argsort(leaves[rows], kind="stable")]
    cells = np.zeros((len(rows) // _FEWEST, 6))
    count = kernels.divide(queries, dims, vectors, leaf_data, _CELL_REACH, _FEWEST, rows, cells)
    if count == 0:
        return answered
    cells = cells[:count]
    centres = np.empty((count, len(dims)), queries.dtype)
    centres[:, dims] = cells[:, 2 : 2 + len(dims)]
    rule = kernels.Rule(
        share=share,
        far=-math.log2(0.5 * _LEAST * share / tree.num_components),
        far_share=0.5 * _LEAST * share,
        depth=math.log2(WIDTH * min(_BORDER, len(leaf_data)) / share),
        leaf_size=WIDTH * np.diff(tree.first_vector).max(),
        excess=_EXCESS * tolerance,
        least=1 / min(_VECTORS, len(leaf_data)),
        tolerance=tolerance,
        reach=_REACH,
        tails=_tails() + _ROUNDING,
    )
    in_threads(
        kernels.expand,
        count,
        *(queries, dims, rows, cells, *at_points(centres), tree, mixture.bottom, rule),
        *(*results, answered),
    )
    return answered


def _company(leaf_data: np.ndarray, unit: float) -> float:
    """About how many components lie in a cell: the median over some vectors."""
    sample = leaf_data[:: max(1, len(leaf_data) // _SAMPLE)]
    location, rate = sample[:, 1::2], sample[:, 2::2] / unit  # each [sample, D, 16]
    rho = 0.5 * np.ptp(location, axis=-1) * np.median(rate, axis=-1)
    with np.errstate(divide="ignore"):  # duplicates
        cells = (_CELL_REACH / np.linalg.norm(rho, axis=1)) ** rho.shape[1]
    return float(location.shape[-1] * np.median(cells))


@functools.cache
def _tails() -> np.ndarray:
    """R_p of p = 0 .. `_TERMS`, where |rho|^2 is 0 .. `_REACH`^2 in `_STEPS` steps."""
    squares = _REACH**2 * np.arange(_STEPS + 1) / _STEPS
    orders = np.arange(_TERMS + 100)  # the rest is less than 1e-60
    log_factorials = np.cumsum(np.log(np.maximum(orders, 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_terms = 0.5 * (np.log(orders + 1) + orders * np.log(squares)[:, None] - log_factorials)
    terms = np.exp(log_terms)
    terms[0] = orders == 0
    tails: np.ndarray = np.cumsum(terms[:, ::-1], axis=1)[:, ::-1][:, : _TERMS + 1]
    return tails * (1 + 1e-12)
