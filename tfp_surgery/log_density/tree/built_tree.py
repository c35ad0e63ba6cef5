"""The arrays of a tree over components, built level by level. Needs numba."""

from __future__ import annotations

import itertools
import math

import numpy as np

from tfp_surgery.log_density.tree import build
from tfp_surgery.log_density.tree.leaf_sums import CHUNK, REACH
from tfp_surgery.log_density.tree.search import Tree
from tfp_surgery.log_density.tree.threads import in_threads
from tfp_surgery.log_density.tree.vectors import WIDTH

_BOXED_SPREAD = 0.7  # of locations in units of the scale; a dimension of K has more
_SAMPLE = 4096  # components that determine K
_ROUNDING = 8.8e-5  # nats; scores that float32 might round more are computed in float64
_TASKS = 64  # parts into which the first nodes are cut, so that all threads have work


class BuiltTree:
    """A tree over components; see `component_tree` for the bounds and the symbols.

    Attributes:
      dims: `[D]`, the dimensions in the order that the tree uses; the first K have boxes.
      slot: `[N]`, the place of each component in the leaves; -1 for components of weight 0.
      arrays: The `Tree`, with boxes for any threshold.
    """

    def __init__(
        self, loc: np.ndarray, scale: np.ndarray, constant: np.ndarray, order: np.ndarray
    ) -> None:
        """Builds the tree.

        Args:
          loc: float32 or float64, shape `[N, D]`.
          scale: Of that shape and dtype.
          constant: float64, shape `[N]`: c_n.
          order: The components to hold, at least one; put in the order of the leaves.
        """
        self._choose_dimensions(loc, scale, order)
        self._split(loc, scale, order)
        leaf_data, exact_rates = self._fill_leaves(loc, scale, order)
        first_child = np.cumsum(self._num_children) - self._num_children + 1
        first_child[self._starts[-2] :] -= self._starts[-1]  # leaves have numbers of their own
        exact = np.full(len(leaf_data) * WIDTH, -np.inf)
        exact[: order.size] = constant[order] * build.BITS
        exact_constant = build.aligned(exact.shape, np.float64)
        exact_constant[:] = exact
        upper = exact.astype(loc.dtype)
        upper = np.where(upper < exact, np.nextafter(upper, loc.dtype.type(np.inf)), upper)
        leaf_data[:, 0] = upper.reshape(-1, WIDTH)
        self.slot = np.full(len(loc), -1)
        self.slot[order] = np.arange(order.size)
        top = upper.max()
        near = -math.inf
        if loc.dtype == np.float32:
            near = top - self._depth(np.abs(exact[: order.size]).max(), order.size)
        tree = Tree(
            first_child,
            self._num_children,
            None,
            leaf_data.reshape(-1),
            exact_rates.reshape(-1),
            exact_constant,
            order.size,
            loc.shape[1],
            self._num_boxed,
            self._height,
            top,
            near,
        )
        self.arrays = tree._replace(boxes=self._boxes(tree, -math.inf))

    def with_floor(self, floor: float) -> Tree:
        """Returns the `Tree` with boxes for thresholds of at least `floor` (F, in bits)."""
        return self.arrays._replace(boxes=self._boxes(self.arrays, floor))

    def route(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the leaf of each query `[M, D]` and its distance to the centre of the balls."""
        leaves, distance = np.empty(len(queries), np.int64), np.empty(len(queries))
        in_threads(
            build.route,
            len(queries),
            *(queries, self._split_dim, self._split_value),
            *(self.arrays.first_child, self._num_children),
            *(self._height, self.dims, self._ball_center, self._ball_rate, self._num_boxed),
            *(leaves, distance),
        )
        return leaves, distance

    def _choose_dimensions(self, loc: np.ndarray, scale: np.ndarray, order: np.ndarray) -> None:
        """Orders the dimensions by how well they tell components apart, and chooses K."""
        sample = order[:: max(1, order.size // _SAMPLE)]
        wide = loc[sample].astype(np.float64)
        spread = wide.std(axis=0) * (1.0 / scale[sample].astype(np.float64)).mean(axis=0)
        self.dims = np.argsort(-spread, kind="stable")
        self._num_boxed = max(1, int(np.count_nonzero(spread > _BOXED_SPREAD)))
        rest = self.dims[self._num_boxed :]
        self._ball_center = np.zeros(loc.shape[1])
        self._ball_rate = np.zeros(loc.shape[1])
        self._ball_center[self._num_boxed :] = wide[:, rest].mean(axis=0)
        # Rounds down by more than a reciprocal is rounded.
        largest = scale.max(axis=0)[rest].astype(np.float64)
        self._ball_rate[self._num_boxed :] = (1 - 1e-12) * build.UNIT / largest

    def _split(self, loc: np.ndarray, scale: np.ndarray, order: np.ndarray) -> None:
        """Orders the components by leaf and makes the levels of nodes above the leaves."""
        num_leaves = -(-order.size // WIDTH)
        self._height = 1
        while WIDTH**self._height < num_leaves:
            self._height += 1
        first_leaf, leaves = np.zeros(1, np.int64), np.full(1, num_leaves)
        keys = np.empty(order.size, loc.dtype)
        levels = []
        for level in range(self._height):
            children = -(-leaves // WIDTH ** (self._height - 1 - level))
            dims = np.zeros((leaves.size, WIDTH), np.int64)
            values = np.zeros((leaves.size, WIDTH), loc.dtype)
            _split_nodes(children, loc, scale, order, keys, first_leaf, leaves, dims, values)
            levels.append((children, dims, values))
            rank = np.arange(WIDTH)
            used = rank < children[:, None]
            begin = first_leaf[:, None] + leaves[:, None] * rank // children[:, None]
            end = first_leaf[:, None] + leaves[:, None] * (rank + 1) // children[:, None]
            first_leaf, leaves = begin[used], (end - begin)[used]
        self._num_children, self._split_dim, self._split_value = (
            np.concatenate(parts) for parts in zip(*levels, strict=True)
        )
        # The first node of each level, and the number of nodes.
        self._starts = [0, *np.cumsum([len(children) for children, _, _ in levels]).tolist()]

    def _fill_leaves(
        self, loc: np.ndarray, scale: np.ndarray, order: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns `leaf_data`, without log weights, and `exact_rates`; see `build.fill_leaves`."""
        num_leaves, num_dims = -(-order.size // WIDTH), loc.shape[1]
        leaf_data = build.aligned((num_leaves, 1 + 2 * num_dims, WIDTH), loc.dtype)
        exact_rates = build.aligned((num_leaves, num_dims, WIDTH), np.float64)
        in_threads(
            build.fill_leaves,
            num_leaves,
            *(loc, scale, order, self.dims, leaf_data, exact_rates),
        )
        return leaf_data, exact_rates

    def _depth(self, largest_constant: float, num_components: int) -> float:
        """Returns how far below the largest c, in bits, scores may be computed in float32.

        In units of rounding, c is off by 2, each square by 7, and their sum by one for every
        addition that a square passes through. The differences from T, which is at most twice the
        depth below c, and from the reference, which is at most `reach` below the largest score, are
        off by twice the depth or twice `reach` at most.
        """
        num_dims, head = self.dims.size, min(build.HEAD, self._num_boxed)
        longest = max(head, min(CHUNK, num_dims - head))
        sums = 7 + longest / 2 + 2 + math.ceil((num_dims - head) / CHUNK) + 2
        reach = REACH + math.log2(num_components)
        unit = float(np.finfo(np.float32).eps) / 2
        units = _ROUNDING * build.BITS / unit - 2 * largest_constant
        return min(units / (sums + 2), (units - 2 * reach) / sums)

    def _boxes(self, tree: Tree, floor: float) -> np.ndarray:
        """Returns the boxes of all nodes, for thresholds of at least `floor`."""
        boxes: np.ndarray = build.aligned(
            (self._starts[-1], 2 + 3 * tree.num_boxed, WIDTH), tree.leaf_data.dtype
        )
        boxes[:, 1] = -np.inf
        bottom = slice(self._starts[-2], self._starts[-1])
        leaf_data = tree.leaf_data.reshape(-1, 1 + 2 * tree.num_dims, WIDTH)
        in_threads(
            build.box_leaves,
            bottom.stop - bottom.start,
            *(leaf_data, tree.num_components, self._ball_center, self._ball_rate),
            *(tree.first_child[bottom], tree.num_children[bottom], boxes[bottom], floor),
        )
        for first, end in reversed(list(itertools.pairwise(self._starts[:-1]))):
            build.box_nodes(boxes, tree.first_child, tree.num_children, floor, first, end)
        return boxes.reshape(-1)


def _split_nodes(
    children: np.ndarray,
    loc: np.ndarray,
    scale: np.ndarray,
    order: np.ndarray,
    keys: np.ndarray,
    first_leaf: np.ndarray,
    leaves: np.ndarray,
    dims: np.ndarray,
    values: np.ndarray,
) -> None:
    """Splits the nodes of a level; see `build.split`."""
    arguments = loc, scale, order, keys, first_leaf, leaves, children, dims, values
    # Parts of nodes, from one child to another.
    node, low, high = np.arange(children.size), np.zeros_like(children), children
    while node.size < _TASKS and (high - low > 1).any():
        in_threads(build.split, node.size, *arguments, node, low, high, False)
        middle = (low + high) // 2
        node, low, high = np.tile(node, 2), np.append(low, middle), np.append(middle, high)
    in_threads(build.split, node.size, *arguments, node, low, high, True)
