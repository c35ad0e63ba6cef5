r"""Mixtures of diagonal Gaussians within a certified tolerance, at less than quadratic cost.

A k-d tree over the components (Bentley 1975) has up to 16 children a node and 16 components a leaf;
where the data has tight groups of components it is a tree over these groups, which are its leaves.
With c_n = log w_n - sum_d log s_nd - D/2 log 2 pi, the scores t_n(z) = log w_n + log q_n(z) of the
components in a node are at most

    c - 1/2 sum_{d in K} (dist(z_d, [l_d, h_d]) r_d)^2 - 1/2 max(|z - m| - R, 0)^2,

where c is their largest c_n, [l_d, h_d] the range of their locations, r_d their smallest 1 / s_nd
and, over the dimensions that tell components apart too little to be in K, |.| the norm of
differences times the smallest 1 / s_nd of all components, m a centre, and R the largest |mu_n - m|
(triangle inequality). A component in a leaf is bounded likewise: by some terms of its own sum, and
what bounds the others for all of the leaf.

#### Certificate

Let S be the sum of exp t_n over the components visited, and L <= log q(z): at first the logarithm
of the sum over one leaf, the one on whose side of every split z lies, raised as S grows. Components
are left out whose bound is at most T = L + log a - log N, which together is at most a exp L. Hence
the share d = 1 - S / q(z) left out is at most a, and

    0 <= log q(z) - log S = -log(1 - d),
    H(p) = h(d) + (1 - d) H(p_visited) + d H(p_omitted),   h(d) = -d log d - (1 - d) log(1 - d),
    |H(p) - H(p_visited)| <= h(d) + d log N,

since entropies over at most N components lie in [0, log N]. `omitted_share` returns the a for which
both errors are within the tolerance.

For many queries L starts at a quantile of what some of them gave; a query whose sum turns out to be
less is evaluated again, with that sum, a lower bound of q(z), as L.

In the first evaluation of these queries T is at least some F, and a small c_n makes up for a small
inverse scale. Components with c_n <= F never count. For the others, with f_n = (c - F) / (c_n - F),
which is at least 1, and r_d^2 = min_n f_n / s_nd^2, nodes whose bound is at most T can be left out
as before: if the terms taken from c sum to at least c - T, those of a component, with its own
1 / s_nd, sum to at least (c - T) / f_n, and

    (c - T) / f_n - (c_n - T) = (T - F) (c - c_n) / (c - F) >= 0.

This compares with the c of the node. In a leaf a component is compared with its own c_n: r_d of
the dimensions that are bounded for all of the leaf there has no f_n.

In one or two dimensions, where nearly all components near a query count, many queries in a small
cell share one sum over the components instead: see `local_expansion`.

#### Rounding

Bounds are computed in the dtype of the components, by sums of at most D + 1 squares; every square
carries a relative error of at most 8 units in the last place and the sum one of D more (Higham
2002, section 4.2). What they are compared with is lowered by 2 D + 32 units of its distance from
the largest c, which also pays for the rounding of the inverse scales; c is rounded up, L and r_d
down, and F is less than all that is compared with it by more than rounding. What is visited is
scored in float32 where that rounds by at most 8.8e-5 nats and in float64 otherwise, except for
scores up to T - log a - log 64: even all components together would weigh at most 1/64 there, and
may be rounded twice as much. Scores are exponentiated with the precision of the dtype, to which the
results are rounded: beside the tolerance, log q(z) is off by at most max(1e-4, 4 eps |log q(z)|) in
float32, and H by that times 1 + log N.

#### References

Jon L. Bentley. Multidimensional binary search trees used for associative searching.
Communications of the ACM, 18(9), 1975.

Nicholas J. Higham. Accuracy and Stability of Numerical Algorithms. SIAM, second edition, 2002.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from typing import Any

import numpy as np

from tfp_surgery.log_density.tree import local_expansion
from tfp_surgery.log_density.tree.threads import in_threads

_BLOCK = 8192  # queries that traverse the tree together
_PILOT = 512  # queries that tell where L starts for the others
_PILOT_QUANTILE = 0.03
_FLOOR_QUANTILE = 0.01  # of what L starts at for the others; none starts lower
_BOXED_SPREAD = 0.7  # of locations, in units of the scale: less, and a dimension is not in K
_SAMPLE = 4096  # components that the choice of K looks at
_ROUNDING = 8.8e-5  # nats; where rounding in float32 could exceed them scores are float64
_MINOR = 6  # bits: scores that together weigh 2^-6 at most may be rounded twice as much
_MARGIN = 2e-4  # nats that L may be too large by rounding
_GROUP_SAMPLE = 256  # components that tell whether there are groups
_TASKS = 64  # that nodes are cut into, so that all threads are at work on the first ones too
_FEWEST_IN_SERIES = 2048  # queries that pay for cells
_CENTRE_TOLERANCE = 0.1  # nats, of log q at the centres of cells, on which no certificate depends
_ROWS = 4096  # components whose normalisers are computed at a time


def is_available() -> bool:
    """Whether numba, which compiles the tree, is installed."""
    return importlib.util.find_spec("numba") is not None


def _kernels() -> tuple[Any, Any, Any, Any]:
    try:
        from tfp_surgery.log_density.tree import build, groups, scan, search
    except ImportError as error:
        raise ImportError(
            "a ComponentTree is compiled by numba, which cannot be imported: "
            "pip install 'tfp-surgery[fast]'."
        ) from error
    return build, groups, scan, search


def omitted_share(tolerance: float, num_components: int) -> float:
    """The share of q(z) that may be left out.

    Args:
      tolerance: in nats, positive.
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
          scale: positive, of that shape and dtype.
          log_weights: of that dtype, shape `[N]`: normalised log weights; may be `-inf`.

        Raises:
          ImportError: if numba is not installed.
        """
        self._build, self._groups, self._scan, self._search = _kernels()
        self._parameters = loc, scale
        self._constant = _constants(loc, scale, log_weights)
        order = np.flatnonzero(log_weights > -np.inf)
        # What is no number, or no density, is left to the plain sum.
        self._is_regular = bool(
            order.size
            and np.isfinite(loc).all()
            and np.isfinite(scale).all()
            and (scale >= np.finfo(loc.dtype).tiny).all()  # 1 / s is finite
            and np.isfinite(log_weights[order]).all()
        )
        if not self._is_regular:
            return
        self._choose_dimensions(order)
        self._split(loc, scale, order, self._build.WIDTH)
        members = np.full((self._num_leaves, self._build.WIDTH), -1)
        members.reshape(-1)[: order.size] = order
        self._fill(members, np.arange(len(members) + 1))
        groups = self._find_groups(members.reshape(-1))
        if groups is not None:
            members, first_vector = self._split_groups(*groups)
            self._fill(members, first_vector)
        self._fill_exact(members)

    def evaluate(
        self, queries: np.ndarray, tolerance: float, excluded_index: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evaluates log q(z) and H[q(n|z)].

        Args:
          queries: of the dtype of the components, shape `[M, D]`.
          tolerance: of the truncation, in nats, for both.
          excluded_index: optional integers, shape `[M]`: the component that is masked for a query.

        Returns:
          log_prob: of the dtype of the queries, shape `[M]`, in nats.
          index_entropy: the same; `NaN` where log_prob is `-inf` or `NaN`.
          num_visited: int64, shape `[M]`: components scored for each query.

        Raises:
          ValueError: if the tolerance is not positive and finite.
        """
        if not (isinstance(tolerance, int | float) and 0 < tolerance < math.inf):
            raise ValueError(f"tolerance must be a positive finite number; got {tolerance!r}.")
        num_queries = len(queries)
        results = np.empty(num_queries), np.empty(num_queries), np.empty(num_queries, np.int64)
        regular = np.zeros(num_queries, bool)
        if self._is_regular:
            in_threads(self._build.find_finite, num_queries, queries, regular)
        irregular = np.flatnonzero(~regular)
        if irregular.size:
            excluded = np.full(num_queries, -1) if excluded_index is None else excluded_index
            self._scan.scan(
                *(queries, irregular, excluded.astype(np.int64)),
                *(*self._parameters, self._constant, *results),
            )
        in_series = (
            excluded_index is None
            and queries.shape[1] <= local_expansion.MAX_DIMENSIONS
            and num_queries - irregular.size >= _FEWEST_IN_SERIES
        )
        if in_series:
            regular &= ~self._expand(queries, np.flatnonzero(regular), tolerance, results)
        if regular.any():
            self._search_tree(queries, regular, tolerance, excluded_index, results)
        log_prob, entropy, num_visited = results
        return log_prob.astype(queries.dtype), entropy.astype(queries.dtype), num_visited

    def _choose_dimensions(self, order: np.ndarray) -> None:
        """Orders the dimensions by how well they tell components apart; the first K get boxes."""
        loc, scale = self._parameters
        sample = order[:: max(1, order.size // _SAMPLE)]
        wide = loc[sample].astype(np.float64)
        spread = wide.std(axis=0) * (1.0 / scale[sample].astype(np.float64)).mean(axis=0)
        self._dims = np.argsort(-spread, kind="stable")
        self._num_boxed = max(1, int(np.count_nonzero(spread > _BOXED_SPREAD)))
        rest = self._dims[self._num_boxed :]
        self._ball_center = np.zeros(loc.shape[1])
        self._ball_rate = np.zeros(loc.shape[1])
        self._ball_center[self._num_boxed :] = wide[:, rest].mean(axis=0)
        # Downwards, by more than the rounding of a reciprocal.
        largest = scale.max(axis=0)[rest].astype(np.float64)
        self._ball_rate[self._num_boxed :] = (1 - 1e-12) * self._build.UNIT / largest

    def _split(self, loc: np.ndarray, scale: np.ndarray, order: np.ndarray, per_leaf: int) -> None:
        """Orders components, or groups that are leaves, by leaf."""
        width = self._build.WIDTH
        self._num_leaves = num_leaves = -(-order.size // per_leaf)
        self._height = 1
        while width**self._height < num_leaves:
            self._height += 1
        first_leaf, leaves = np.zeros(1, np.int64), np.full(1, num_leaves)
        keys = np.empty(order.size, loc.dtype)
        levels = []
        for level in range(self._height):
            children = -(-leaves // width ** (self._height - 1 - level))
            dims = np.zeros((leaves.size, width), np.int64)
            values = np.zeros((leaves.size, width), loc.dtype)
            self._split_nodes(
                *(loc, scale, order, keys, first_leaf, leaves, children, dims, values, per_leaf)
            )
            levels.append((children, dims, values))
            rank = np.arange(width)
            used = rank < children[:, None]
            begin = first_leaf[:, None] + leaves[:, None] * rank // children[:, None]
            end = first_leaf[:, None] + leaves[:, None] * (rank + 1) // children[:, None]
            first_leaf, leaves = begin[used], (end - begin)[used]
        self._num_children, self._split_dim, self._split_value = (
            np.concatenate(parts) for parts in zip(*levels, strict=True)
        )
        # Where the levels' nodes start, and the number of nodes.
        self._starts = [0, *np.cumsum([len(children) for children, _, _ in levels]).tolist()]

    def _split_nodes(self, *arguments: Any) -> None:
        """Splits the nodes of a level; see `split` for the arguments."""
        *_, children, _, _, _ = arguments
        # Parts of nodes, from one child to another.
        node, low, high = np.arange(children.size), np.zeros_like(children), children
        while node.size < _TASKS and (high - low > 1).any():
            in_threads(self._build.split, node.size, *arguments, node, low, high, False)
            middle = (low + high) // 2
            node, low, high = np.tile(node, 2), np.append(low, middle), np.append(middle, high)
        in_threads(self._build.split, node.size, *arguments, node, low, high, True)

    def _fill(self, members: np.ndarray, first_vector: np.ndarray) -> None:
        """Fills leaves and boxes.

        Args:
          members: `[vectors, 16]`, components lane by lane; after a vector's last ones -1.
          first_vector: `[leaves + 1]`, the first vector of each leaf, and the number of vectors.
        """
        loc, scale = self._parameters
        num_components, num_dims = loc.shape
        dtype, eps = loc.dtype, float(np.finfo(loc.dtype).eps)
        width, starts = self._build.WIDTH, self._starts
        num_vectors = len(members)
        slots = np.flatnonzero(members.reshape(-1) >= 0)
        order = members.reshape(-1)[slots]
        sizes = np.count_nonzero(members >= 0, axis=1)

        first_child = np.cumsum(self._num_children) - self._num_children + 1
        first_child[starts[-2] :] -= starts[-1]  # a leaf's number counts leaves alone
        aligned = self._build.aligned
        leaf_data = aligned((num_vectors, 1 + 2 * num_dims, width), dtype)
        in_threads(
            self._build.fill_leaves,
            num_vectors,
            *(loc, scale, members, sizes, self._dims, leaf_data),
        )
        exact_constant = aligned((num_vectors * width,), np.float64)
        exact_constant[:] = -np.inf
        constant = self._constant[order] * self._build.BITS
        exact_constant[slots] = constant
        upper = np.full(num_vectors * width, -np.inf, dtype)
        rounded = constant.astype(dtype)
        upper[slots] = np.where(
            rounded < constant, np.nextafter(rounded, dtype.type(np.inf)), rounded
        )
        leaf_data[:, 0] = upper.reshape(num_vectors, width)

        self._slot = np.full(num_components, -1)
        self._slot[order] = slots
        # Scores down to `depth` below c can stay in float32. In units of rounding, c is off by 2,
        # each square by 7 and their sum by one for every addition that a square goes through. The
        # differences from T, which is at most 2 `depth` below c, and from the reference, which is
        # at most `reach` below the largest score, are off by 2 `depth` or by 2 `reach` at most.
        head, chunk = min(self._search.HEAD, self._num_boxed), self._search.CHUNK
        longest = max(head, min(chunk, num_dims - head))
        sums = 7 + longest / 2 + 2 + math.ceil((num_dims - head) / chunk) + 2
        reach = self._search.REACH + math.log2(order.size)
        units = _ROUNDING * self._build.BITS / (eps / 2) - 2 * np.abs(constant).max()
        depth = min(units / (sums + 2), (units - 2 * reach) / sums)
        tree = self._search.Tree(
            first_child,
            self._num_children,
            None,
            leaf_data.reshape(-1),
            np.empty(0),
            exact_constant,
            first_vector,
            sizes,
            order.size,
            num_dims,
            self._num_boxed,
            self._height,
            upper.max(),
            upper.max() - depth if dtype == np.float32 else -math.inf,
        )
        self._tree = tree._replace(boxes=self._boxes(tree, -math.inf))

    def _find_groups(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Finds groups of close components, if leaves are not such groups but could be.

        Args:
          members: the components of all lanes, -1 after the last.

        Returns:
          order: components, group by group.
          starts: where groups start in it, and its size.
        """
        tree, groups = self._tree, self._groups
        free, room = groups.all_free(tree), groups.room(tree)
        num_components = tree.num_components
        sample = np.arange(0, num_components, max(1, num_components // _GROUP_SAMPLE))
        if not groups.is_grouped(sample, free, tree, room):
            return None
        taken, sizes = np.empty((2, num_components), np.int64)
        num_groups = groups.gather(free, tree, room, taken, sizes)
        if num_groups > 2 * self._num_leaves:
            return None
        return members[taken], np.append(0, np.cumsum(sizes[:num_groups]))

    def _split_groups(self, order: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Makes a tree whose leaves are groups; see `_find_groups` and `_fill`."""
        width, num_groups = self._build.WIDTH, starts.size - 1
        loc, scale = (
            np.empty((num_groups, part.shape[1]), part.dtype) for part in self._parameters
        )
        for values, means in zip(self._parameters, (loc, scale), strict=True):
            in_threads(self._groups.average, num_groups, values, order, starts, means)
        leaves = np.arange(num_groups)
        self._split(loc, scale, leaves, 1)
        sizes = np.diff(starts)[leaves]
        first_vector = np.append(0, np.cumsum(-(-sizes // width)))
        rank = np.arange(order.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        members = np.full(first_vector[-1] * width, -1)
        slots = np.repeat(width * first_vector[:-1], sizes) + rank
        members[slots] = order[np.repeat(starts[leaves], sizes) + rank]
        return members.reshape(-1, width), first_vector

    def _fill_exact(self, members: np.ndarray) -> None:
        """Fills the inverse scales in float64, which only the search needs."""
        scale, sizes = self._parameters[1], self._tree.sizes
        shape = sizes.size, scale.shape[1], self._build.WIDTH
        exact_rates = self._build.aligned(shape, np.float64)
        arguments = scale, members, sizes, self._dims, exact_rates
        in_threads(self._build.fill_exact_rates, sizes.size, *arguments)
        self._tree = self._tree._replace(exact_rates=exact_rates.reshape(-1))

    def _boxes(self, tree: Any, floor: float) -> np.ndarray:
        """The boxes of a tree, for thresholds of at least `floor` (F, in bits)."""
        shape = self._starts[-1], 2 + 3 * tree.num_boxed, self._build.WIDTH
        boxes: np.ndarray = self._build.aligned(shape, tree.leaf_data.dtype)
        boxes[:, 1] = -np.inf
        bottom = slice(self._starts[-2], self._starts[-1])
        leaf_data = tree.leaf_data.reshape(tree.sizes.size, -1, self._build.WIDTH)
        in_threads(
            self._build.box_leaves,
            bottom.stop - bottom.start,
            *(leaf_data, self._ball_center, self._ball_rate, tree.first_vector, tree.sizes),
            *(tree.first_child[bottom], tree.num_children[bottom], boxes[bottom], floor),
        )
        for first, end in reversed(list(itertools.pairwise(self._starts[:-1]))):
            self._build.box_nodes(boxes, tree.first_child, tree.num_children, floor, first, end)
        return boxes.reshape(-1)

    def _expand(
        self,
        queries: np.ndarray,
        rows: np.ndarray,
        tolerance: float,
        results: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> np.ndarray:
        """Writes the results of the queries that local series answer; which these are."""

        def at_points(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            parts = np.empty(len(points)), np.empty(len(points)), np.empty(len(points), np.int64)
            self._search_tree(points, np.ones(len(points), bool), _CENTRE_TOLERANCE, None, parts)
            return parts[:2]

        # Half of the tolerance for what is left out, half for where series end.
        share = omitted_share(tolerance / 2, self._tree.num_components)
        return local_expansion.evaluate(
            local_expansion.Mixture(self._tree, self._dims, self._starts[-2]),
            *(queries, rows, self._route, at_points, share, tolerance / 2, results),
        )

    def _route(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The leaf of each query, and its distance to the balls; see `route`."""
        # NumPy sorts 16 bits by counting.
        leaves = np.empty(len(queries), np.uint16 if self._num_leaves <= 2**16 else np.int64)
        distance = np.empty(len(queries))
        in_threads(
            self._build.route,
            len(queries),
            *(queries, self._split_dim, self._split_value),
            *(self._tree.first_child, self._num_children),
            *(self._height, self._dims, self._ball_center, self._ball_rate, self._num_boxed),
            *(leaves, distance),
        )
        return leaves, distance

    def _search_tree(
        self,
        queries: np.ndarray,
        regular: np.ndarray,
        tolerance: float,
        excluded_index: np.ndarray | None,
        results: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        """Writes the results of the regular queries."""
        tree = self._tree
        share = omitted_share(tolerance, tree.num_components)
        unit = float(np.finfo(queries.dtype).eps) / 2
        budget = self._search.Budget(
            (math.log(share) - math.log(tree.num_components) - _MARGIN) * self._build.BITS,
            (2 * tree.num_dims + 32) * unit,
            -math.log2(share) - _MINOR,
        )
        leaves, distance = self._route(queries)
        rows = np.argsort(leaves, kind="stable")
        rows = rows[regular[rows]]
        skipped = np.full(len(queries), -1)
        if excluded_index is not None:
            skipped = self._slot[excluded_index]
        start = np.full(len(queries), -np.inf)

        def search(rows: np.ndarray, tree: Any) -> None:
            def block(first: int, stop: int) -> None:
                part = rows[first:stop]
                shape = part.size, tree.num_dims, self._height
                self._search.search(
                    *(queries, part, self._dims, leaves, distance, start, skipped),
                    *(tree, budget, self._search.workspace(*shape, queries.dtype), *results),
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
        # The dimensions without boxes move log q(z) by about half their squared distance.
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
        # Less the rounding of thresholds, by more than it is.
        floor = lowest * self._build.BITS + budget.log_share
        floor -= budget.margin * max(tree.top - floor, 0.0) + 16 * unit * abs(floor) + 1e-3
        search(others, tree._replace(boxes=self._boxes(tree, floor)))
        again = others[log_prob[others] < start[others]]
        start[again] = log_prob[again]
        search(again, tree)


def _constants(loc: np.ndarray, scale: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """c_n in float64."""
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
