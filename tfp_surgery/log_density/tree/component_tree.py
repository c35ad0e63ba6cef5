r"""Mixtures of diagonal Gaussians within a certified tolerance, at less than quadratic cost.

This module is the interface of the folder; numba is imported when a `ComponentTree` is made.

A k-d tree over the components (Bentley 1975) has up to 16 children a node and 16 components a leaf.
Let c_n = log w_n - sum_d log s_nd - D/2 log 2 pi. The scores t_n(z) = log w_n + log q_n(z) of the
components below a node are at most

    c - 1/2 sum_{d in K} (dist(z_d, [l_d, h_d]) r_d)^2 - 1/2 max(|z - m| - R, 0)^2.

Here c is their largest c_n, [l_d, h_d] the range of their locations and r_d their smallest
1 / s_nd. K holds the dimensions that tell components apart. Over all others, m is a centre, |.| the
norm of differences times the smallest 1 / s_nd of all components, and R the largest |mu_n - m|; the
last term is the triangle inequality. A component of a leaf has the same kind of bound: its own
squares in the first dimensions, and what bounds the whole leaf in the rest.

#### Certificate

Let S be the sum of exp t_n over the components visited and L <= log q(z). L starts as the logarithm
of the sum over one leaf, the one on whose side of every split z lies, and rises with S. Components
are left out if their bound is at most T = L + log a - log N: together they add at most a exp L.
Hence the share d = 1 - S / q(z) that is left out is at most a, and

    0 <= log q(z) - log S = -log(1 - d),
    H(p) = h(d) + (1 - d) H(p_visited) + d H(p_omitted),   h(d) = -d log d - (1 - d) log(1 - d),
    |H(p) - H(p_visited)| <= h(d) + d log N,

because the entropy of at most N components lies in [0, log N]. `omitted_share` returns the largest
a for which both errors are within the tolerance.

For many queries L starts at a quantile of the log S of a few of them. A query whose sum turns out
to be below its L is evaluated again with log S, a lower bound of log q(z), as L.

For those many queries T is at least some F, and the bound of a node can be tighter: a component of
small c_n cannot also count for its small 1 / s_nd. Components with c_n <= F never count. The others
have f_n = (c - F) / (c_n - F) >= 1, and r_d^2 = min_n f_n / s_nd^2. Nodes whose bound is at most T
are left out as before: if the squares subtracted from c sum to at least c - T, those of component n
with its own 1 / s_nd sum to at least (c - T) / f_n, and

    (c - T) / f_n - (c_n - T) = (T - F) (c - c_n) / (c - F) >= 0.

This argument compares with the c of the node. A component of a leaf is compared with its own c_n in
the dimensions beyond the first, so that r_d has no f_n there.

#### Rounding

Bounds are computed in the dtype of the components, as sums of at most D + 1 squares. Each square
has a relative error of at most 8 units in the last place, and the sum one of D more (Higham 2002,
section 4.2). Thresholds are lowered by 2 D + 32 units of their distance from the largest c, which
covers the rounding of the inverse scales too. c is rounded up, L and r_d are rounded down, and F is
below all thresholds by more than rounding. Scores are computed in float32 if that rounds them by at
most 8.8e-5 nats and in float64 otherwise. Scores of at most T - log a - log 64 are an exception:
all components together would weigh at most 1/64 there, and may be rounded twice as much. Scores are
exponentiated in the dtype of the components and the results rounded to it. Beside the tolerance,
log q(z) is off by at most max(1e-4, 4 eps |log q(z)|) in float32, and H by (1 + log N) times that.

#### References

Jon L. Bentley. Multidimensional binary search trees used for associative searching.
Communications of the ACM, 18(9), 1975.

Nicholas J. Higham. Accuracy and Stability of Numerical Algorithms. SIAM, second edition, 2002.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np

from tfp_surgery.log_density.tree.threads import in_threads

_BLOCK = 8192  # queries that traverse the tree together
_PILOT = 512  # queries that determine the L at which the others start
_PILOT_QUANTILE = 0.03
_FLOOR_QUANTILE = 0.01  # of the L at which the others start; none starts lower
_MINOR = 6  # bits; scores that together weigh at most 2^-6 may be rounded twice as much
_MARGIN = 2e-4  # nats by which rounding may raise L
_ROWS = 4096  # components whose normalisers are computed at a time


def is_available() -> bool:
    """Returns whether numba, which compiles the tree, is installed."""
    return importlib.util.find_spec("numba") is not None


def omitted_share(tolerance: float, num_components: int) -> float:
    """Returns the share of q(z) that may be left out.

    Args:
      tolerance: In nats, positive.
      num_components: N.

    Returns:
      The largest d up to 1/2 with -log(1 - d) and h(d) + d log N at most the tolerance.
    """

    def excess(log_share: float) -> float:
        d = math.exp(log_share)
        binary_entropy = -d * log_share - (1 - d) * math.log1p(-d)
        error = max(-math.log1p(-d), binary_entropy + d * math.log(num_components))
        return error - tolerance

    low, high = -700.0, math.log(0.5)
    if excess(high) <= 0:
        return 0.5
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) <= 0 else (low, middle)
    return math.exp(low)


class ComponentTree:
    """A tree over the components of a mixture of Gaussians with independent dimensions.

    Needs numba, and uses as many threads as numba is set to.
    """

    def __init__(self, loc: np.ndarray, scale: np.ndarray, log_weights: np.ndarray) -> None:
        """Builds the tree.

        Args:
          loc: float32 or float64, shape `[N, D]`.
          scale: Positive, of that shape and dtype.
          log_weights: Of that dtype, shape `[N]`: normalised log weights; may be `-inf`.

        Raises:
          ImportError: If numba is not installed.
        """
        try:
            from tfp_surgery.log_density.tree import build, built_tree, scan, search
        except ImportError as error:
            raise ImportError(
                "a ComponentTree is compiled by numba, which cannot be imported: "
                "pip install 'tfp-surgery[fast]'."
            ) from error
        self._build, self._scan, self._search = build, scan, search
        self._parameters = loc, scale
        self._constant = _constants(loc, scale, log_weights)
        order = np.flatnonzero(log_weights > -np.inf)
        # Values that are not finite, or no density, are left to the plain sum.
        is_regular = (
            order.size
            and np.isfinite(loc).all()
            and np.isfinite(scale).all()
            and (scale >= np.finfo(loc.dtype).tiny).all()  # 1 / s is finite
            and np.isfinite(log_weights[order]).all()
        )
        self._tree = None
        if is_regular:
            self._tree = built_tree.BuiltTree(loc, scale, self._constant, order)

    def evaluate(
        self, queries: np.ndarray, tolerance: float, excluded_index: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evaluates log q(z) and H[q(n|z)].

        Args:
          queries: Of the dtype of the components, shape `[M, D]`.
          tolerance: Bound on the truncation error of both, in nats.
          excluded_index: Optional integers, shape `[M]`: the component that is masked for each
            query; negative for none.

        Returns:
          log_prob: Of the dtype of the queries, shape `[M]`, in nats.
          index_entropy: Likewise; `NaN` where log_prob is `-inf` or `NaN`.
          num_visited: int64, shape `[M]`: the number of components scored for each query.

        Raises:
          ValueError: If the tolerance is not positive and finite.
        """
        if not (isinstance(tolerance, int | float) and 0 < tolerance < math.inf):
            raise ValueError(f"tolerance must be a positive finite number; got {tolerance!r}.")
        num_queries = len(queries)
        results = np.empty(num_queries), np.empty(num_queries), np.empty(num_queries, np.int64)
        excluded = np.full(num_queries, -1)
        if excluded_index is not None:
            excluded = excluded_index.astype(np.int64)
        regular = np.zeros(num_queries, bool)
        if self._tree is not None:
            in_threads(self._build.find_finite, num_queries, queries, regular)
        irregular = np.flatnonzero(~regular)
        if irregular.size:
            self._scan.scan(
                *(queries, irregular, excluded, *self._parameters, self._constant, *results)
            )
        if regular.any():
            self._search_tree(queries, regular, tolerance, excluded, results)
        log_prob, entropy, num_visited = results
        return log_prob.astype(queries.dtype), entropy.astype(queries.dtype), num_visited

    def _search_tree(
        self,
        queries: np.ndarray,
        regular: np.ndarray,
        tolerance: float,
        excluded: np.ndarray,
        results: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        """Writes the results of the regular queries."""
        built: Any = self._tree
        tree = built.arrays
        share = omitted_share(tolerance, tree.num_components)
        unit = float(np.finfo(queries.dtype).eps) / 2
        budget = self._search.Budget(
            (math.log(share) - math.log(tree.num_components) - _MARGIN) * self._build.BITS,
            (2 * tree.num_dims + 32) * unit,
            -math.log2(share) - _MINOR,
        )
        leaves, distance = built.route(queries)
        # NumPy sorts 16 bits by counting.
        is_short = leaves.max() < 2**16
        rows = np.argsort(leaves.astype(np.uint16) if is_short else leaves, kind="stable")
        rows = rows[regular[rows]]
        skipped = np.where(excluded < 0, -1, built.slot[excluded])
        start = np.full(len(queries), -np.inf)

        def search(rows: np.ndarray, tree: Any) -> None:
            def block(first: int, stop: int) -> None:
                part = rows[first:stop]
                room = self._search.workspace(part.size, tree.num_dims, tree.height, queries.dtype)
                self._search.search(
                    *(queries, part, built.dims, leaves, distance, start, skipped),
                    *(tree, budget, room, *results),
                )

            in_threads(block, len(rows), most=_BLOCK)

        if len(rows) <= 4 * _PILOT:
            search(rows, tree)
            return
        is_pilot = np.zeros(len(rows), bool)
        is_pilot[:: len(rows) // _PILOT] = True
        pilot, others = rows[is_pilot], rows[~is_pilot]
        search(pilot, tree)
        log_prob = results[0]
        # The dimensions without boxes lower log q(z) by about half their squared distance.
        level = np.quantile(
            log_prob[pilot] + distance[pilot] ** 2 / self._build.BITS,
            _PILOT_QUANTILE,
            method="lower",
        )
        if not np.isfinite(level):
            search(others, tree)
            return
        levels = level - distance[others] ** 2 / self._build.BITS
        lowest = np.quantile(levels, _FLOOR_QUANTILE, method="lower")
        start[others] = np.maximum(levels, lowest)
        # Less than any threshold by more than these are rounded.
        floor = lowest * self._build.BITS + budget.log_share
        floor -= budget.margin * max(tree.top - floor, 0.0) + 16 * unit * abs(floor) + 1e-3
        search(others, built.with_floor(floor))
        again = others[log_prob[others] < start[others]]
        start[again] = log_prob[again]
        search(again, tree)


def _constants(loc: np.ndarray, scale: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """Returns c_n in float64."""
    constants = np.empty(len(loc))

    def fill(start: int, stop: int) -> None:
        for first in range(start, stop, _ROWS):
            rows = slice(first, min(stop, first + _ROWS))
            with np.errstate(divide="ignore", invalid="ignore"):
                log_scale = np.log(scale[rows], dtype=np.float64).sum(axis=1)
                constants[rows] = log_weights[rows] - log_scale

    in_threads(fill, len(loc))
    constants -= 0.5 * loc.shape[1] * math.log(2 * math.pi)
    return constants
