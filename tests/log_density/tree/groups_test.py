from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.testing import oracles
from tfp_surgery.log_density.tree import component_tree

pytest.importorskip("numba")


def _clusters(
    event_size: int, sizes: Any, dtype: Any = np.float64, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means half a scale about centres, scales, and the centre of each component, shuffled."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centers = rng.normal(size=(len(sizes), event_size))
    scales = rng.uniform(0.05, 0.1, size=centers.shape)
    loc = centers[label] + 0.5 * scales[label] * rng.normal(size=(len(label), event_size))
    return loc.astype(dtype), scales[label].astype(dtype), label


def _tree(loc: np.ndarray, scale: np.ndarray, log_weights: np.ndarray | None = None) -> Any:
    if log_weights is None:
        log_weights = np.full(len(loc), -math.log(len(loc)))
    return component_tree.ComponentTree(loc, scale, log_weights.astype(loc.dtype))


def _leaf(tree: Any) -> np.ndarray:
    """The leaf of each component."""
    first_vector = tree._tree.first_vector
    leaf: np.ndarray = np.searchsorted(first_vector, tree._slot // 16, side="right") - 1
    return leaf


def _check(results: Any, scores: np.ndarray, tolerance: float) -> None:
    log_prob, entropy, _ = results
    expected = np.logaddexp.reduce(scores, axis=1)
    index_probs = np.exp(scores - expected[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(index_probs > 0, index_probs * (scores - expected[:, None]), 0.0)
    rounding = 2e-4 if log_prob.dtype == np.float32 else 1e-9
    np.testing.assert_allclose(log_prob, expected, atol=tolerance + rounding, rtol=0)
    bound = tolerance + rounding * (1 + math.log(scores.shape[1]))
    np.testing.assert_allclose(entropy, -terms.sum(axis=1), atol=bound, rtol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_planted_groups_are_leaves(dtype: Any) -> None:
    loc, scale, label = _clusters(20, np.random.default_rng(1).poisson(17, size=200), dtype)
    leaf = _leaf(_tree(loc, scale))
    pairs = np.unique(np.stack([leaf, label]), axis=1)
    assert leaf.max() + 1 < 1.1 * 200  # hardly any group is in two leaves
    assert pairs.shape[1] == leaf.max() + 1  # no leaf has components of two groups


def test_each_component_has_one_place() -> None:
    loc, scale, _ = _clusters(12, [40, 3, 1, 17, 16, 15, 9, 20] * 40)
    tree = _tree(loc, scale)
    slots = np.sort(tree._slot)
    lane, vector = slots % 16, slots // 16
    assert np.unique(slots).size == len(loc)
    assert np.any(tree._tree.sizes[:-1] < 16)
    np.testing.assert_array_equal(np.bincount(vector), tree._tree.sizes)
    assert np.all(lane < tree._tree.sizes[vector])
    data = tree._tree.leaf_data.reshape(-1, 25, 16)
    np.testing.assert_array_equal(data[tree._slot // 16, 1::2, tree._slot % 16], loc[:, tree._dims])


@pytest.mark.parametrize("event_size", [2, 10, 20])
def test_data_without_groups_has_full_leaves(event_size: int) -> None:
    rng = np.random.default_rng(0)
    loc = rng.normal(size=(3000, event_size))
    for scale in (0.03, 0.3, 1.0):
        tree = _tree(loc, np.full_like(loc, scale))
        np.testing.assert_array_equal(tree._tree.sizes, [16] * 187 + [8])


def test_two_dimensions_have_full_leaves() -> None:
    loc, scale, _ = _clusters(2, [17] * 300)
    np.testing.assert_array_equal(_tree(loc, 3 * scale)._tree.sizes[:-1], 16)


def test_groups_among_many_single_components_are_left() -> None:
    """Leaves of one component each would need 16 times the memory."""
    loc, scale, _ = _clusters(20, [17] * 60 + [1] * 2000)
    np.testing.assert_array_equal(_tree(loc, scale)._tree.sizes[:-1], 16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("event_size", [6, 20])
def test_agrees_with_brute_force(event_size: int, dtype: Any) -> None:
    """Weights of zero, duplicates and excluded components too."""
    rng = np.random.default_rng(event_size)
    loc, scale, label = _clusters(event_size, rng.poisson(17, size=300), dtype)
    for center in range(10):
        loc[label == center] = loc[label == center][:1]
    num = len(loc)
    weights = rng.uniform(0.1, 1.0, size=num) * (rng.uniform(size=num) < 0.9)
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights / weights.sum()).astype(dtype)
    tree = _tree(loc, scale, log_weights)
    assert np.any(tree._tree.sizes[:-1] < 16)
    own = rng.choice(num, 200, replace=False)
    z = loc[own] + scale[own] * rng.normal(size=(200, event_size))
    z = np.concatenate([z, rng.normal(size=(50, event_size))]).astype(dtype)
    excluded = np.concatenate([own, rng.integers(num, size=50)])
    scores = oracles.gaussian_log_densities(z, loc, scale) + log_weights
    for tolerance in (1e-5, 1e-2):
        _check(tree.evaluate(z, tolerance), scores, tolerance)
    scores[np.arange(250), excluded] = -np.inf
    for tolerance in (1e-5, 1e-2):
        _check(tree.evaluate(z, tolerance, excluded), scores, tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_queries_agree_with_brute_force(dtype: Any) -> None:
    """So many that most start from what some of them gave."""
    loc, scale, _ = _clusters(8, [17] * 150, dtype)
    tree = _tree(loc, scale)
    assert np.any(tree._tree.sizes[:-1] < 16)
    rng = np.random.default_rng(0)
    own = rng.choice(len(loc), 2200, replace=False)
    z = (loc[own] + scale[own] * rng.normal(size=(2200, 8))).astype(dtype)
    results = tree.evaluate(z, 1e-4)
    some = slice(None, None, 10)
    scores = oracles.gaussian_log_densities(z[some], loc, scale) - math.log(len(loc))
    _check([result[some] for result in results], scores, 1e-4)


def test_only_components_are_counted_as_visited() -> None:
    """Weights make up for distances, so that every component counts at the origin."""
    loc, scale, _ = _clusters(20, [17, 5, 30] * 100)
    scale[:] = 0.08
    log_weights = 0.5 * ((loc / scale) ** 2).sum(axis=1)
    tree = _tree(loc, scale, log_weights - np.logaddexp.reduce(log_weights))
    assert np.any(tree._tree.sizes[:-1] < 16)
    origin = np.zeros((50, 20))
    assert np.all(tree.evaluate(origin, 1e-9)[2] == len(loc))
    assert np.all(tree.evaluate(origin, 1e-9, np.arange(50))[2] == len(loc) - 1)
