from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_surgery
from tests.testing import oracles
from tfp_surgery.log_density import tree as tree_folder
from tfp_surgery.log_density.tree import component_tree as tree

pytest.importorskip("numba")

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def _evaluate(
    z: np.ndarray,
    loc: np.ndarray,
    scale: np.ndarray,
    tolerance: float,
    log_weights: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
) -> Any:
    if log_weights is None:
        log_weights = np.full(len(loc), -math.log(len(loc)), loc.dtype)
    components = tree.ComponentTree(loc, scale, log_weights.astype(loc.dtype))
    return components.evaluate(z, tolerance, excluded)


def _scores(z: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return oracles.gaussian_log_densities(z, loc, scale) - math.log(len(loc))


def _check(results: Any, scores: np.ndarray, tolerance: float) -> None:
    """Within the tolerance, beside rounding of 4 eps |log q| and that of the entropy's weights."""
    log_prob, entropy, num_visited = results
    eps = float(np.finfo(log_prob.dtype).eps)
    expected = np.logaddexp.reduce(scores, axis=1)
    index_log_probs = scores - expected[:, None]
    index_probs = np.exp(index_log_probs)
    terms = np.where(
        index_probs > 0, index_probs * np.where(index_probs > 0, index_log_probs, 0), 0
    )
    rounding = np.maximum(1e-4 * eps / np.finfo(np.float32).eps, 4 * eps * np.abs(expected))
    num = scores.shape[1]
    assert np.all(np.abs(log_prob - expected) <= tolerance + rounding)
    assert np.all(np.abs(entropy + terms.sum(axis=1)) <= tolerance + (1 + math.log(num)) * rounding)
    assert num_visited.dtype == np.int64
    assert num_visited.min() >= 0
    assert num_visited.max() <= num


def _case(case: str, num: int, event_size: int, dtype: type, shrink: float = 1.0) -> Arrays:
    loc, scale = oracles.gaussian_case(case, num, event_size)
    scale = scale / shrink
    z = loc + scale * np.random.default_rng(5).normal(size=loc.shape)
    return z.astype(dtype), loc.astype(dtype), scale.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("event_size", [1, 3, 20])
@pytest.mark.parametrize("case", oracles.CASES)
def test_agrees_with_brute_force_within_the_tolerance(
    case: str, event_size: int, dtype: type
) -> None:
    z, loc, scale = _case(case, 900, event_size, dtype)
    for tolerance in (1e-6, 1e-4, 0.1):
        _check(_evaluate(z, loc, scale, tolerance), _scores(z, loc, scale), tolerance)


@pytest.mark.parametrize("event_size", [2, 20])
def test_components_are_left_out_where_that_is_certain(event_size: int) -> None:
    z, loc, scale = _case("overlapping", 3000, event_size, np.float32, shrink=4.0)
    visited = {
        tolerance: _evaluate(z, loc, scale, tolerance)[2].mean() for tolerance in (1e-6, 1e-4, 0.1)
    }
    assert visited[0.1] <= visited[1e-4] <= visited[1e-6] < 1500
    assert visited[0.1] < visited[1e-6]


@pytest.mark.parametrize("event_size", [1, 2, 5, 17, 64, 128])
@pytest.mark.parametrize("seed", range(3))
def test_scales_over_ten_orders_of_magnitude(event_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    loc = rng.normal(size=(500, event_size)).astype(np.float32)
    scale = 10.0 ** rng.uniform(-8, 2, size=loc.shape if seed else (500, 1))
    scale = np.broadcast_to(scale, loc.shape).astype(np.float32)
    z = (loc + scale * rng.normal(size=loc.shape)).astype(np.float32)[:150]
    z[100:] = rng.normal(size=(50, event_size))
    for tolerance in (1e-4, 0.05):
        _check(_evaluate(z, loc, scale, tolerance), _scores(z, loc, scale), tolerance)


def test_duplicated_components_share_a_query() -> None:
    rng = np.random.default_rng(0)
    loc = np.repeat(rng.normal(size=(7, 4)), 100, axis=0)
    scale = np.full_like(loc, 0.01)
    z = loc + scale * rng.normal(size=loc.shape)
    results = _evaluate(z, loc, scale, 1e-6)
    _check(results, _scores(z, loc, scale), 1e-6)
    np.testing.assert_allclose(results[1], math.log(100), atol=1e-6)


@pytest.mark.parametrize("distance", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_queries_have_a_density(distance: float, dtype: type) -> None:
    rng = np.random.default_rng(0)
    loc: np.ndarray = rng.normal(size=(800, 6)).astype(dtype)
    scale: np.ndarray = rng.uniform(0.5, 2.0, size=loc.shape).astype(dtype)
    z: np.ndarray = (distance * rng.normal(size=(60, 6))).astype(dtype)
    results = _evaluate(z, loc, scale, 1e-4)
    assert np.isfinite(results[0]).all()
    _check(results, _scores(z, loc, scale), 1e-4)


@pytest.mark.parametrize("seed", range(12))
def test_small_problems_of_every_kind(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num, event_size = int(rng.integers(1, 200)), int(rng.integers(1, 9))
    clusters = rng.normal(size=(3, event_size)) * 10.0 ** rng.uniform(-1, 3)
    loc = clusters[rng.integers(3, size=num)] + rng.normal(size=(num, event_size))
    scale = 10.0 ** rng.uniform(-3, 1, size=loc.shape)
    z = np.concatenate([loc + scale * rng.normal(size=loc.shape), 5 * rng.normal(size=loc.shape)])
    for dtype in (np.float32, np.float64):
        queries, means, scales = (part.astype(dtype) for part in (z, loc, scale))
        for tolerance in (1e-5, 1e-2, 0.3):
            results = _evaluate(queries, means, scales, tolerance)
            _check(results, _scores(queries, means, scales), tolerance)


def test_weights_of_zero_and_excluded_components() -> None:
    rng = np.random.default_rng(1)
    z, loc, scale = _case("overlapping", 700, 3, np.float64)
    weights = rng.uniform(size=700) * (rng.uniform(size=700) < 0.6)
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights / weights.sum())
    excluded = np.arange(700)
    results = _evaluate(z, loc, scale, 1e-4, log_weights, excluded)
    scores = oracles.gaussian_log_densities(z, loc, scale) + log_weights
    scores[excluded, excluded] = -np.inf
    _check(results, scores, 1e-4)


def test_what_nothing_reaches_and_what_is_no_number() -> None:
    loc = np.zeros((100, 2), np.float32)
    z = np.array([[np.inf, 0.0], [np.nan, 0.0], [0.0, 0.0]], np.float32)
    log_prob, entropy, _ = _evaluate(z, loc, np.ones_like(loc), 1e-4)
    assert log_prob[0] == -np.inf
    assert np.isnan(log_prob[1])
    assert np.isnan(entropy[:2]).all()
    np.testing.assert_allclose(log_prob[2], -math.log(2 * math.pi), atol=1e-4)
    np.testing.assert_allclose(entropy[2], math.log(100), atol=2e-4)


def test_a_scale_whose_inverse_is_infinite() -> None:
    loc = np.zeros((40, 1), np.float32)
    scale = np.ones_like(loc)
    scale[3] = 1e-40
    scores = _scores(loc[:1], loc, scale)
    _check(_evaluate(loc[:1], loc, scale, 1e-4), scores, 1e-4)


def test_one_component_left_out_leaves_nothing() -> None:
    loc = np.zeros((1, 2))
    log_prob, entropy, _ = _evaluate(loc, loc, np.ones_like(loc), 1e-4, None, np.array([0]))
    assert log_prob[0] == -np.inf
    assert np.isnan(entropy[0])


@pytest.mark.parametrize("num", [2, 1000, 10**9])
@pytest.mark.parametrize("tolerance", [1e-8, 1e-4, 0.1, 3.0])
def test_the_omitted_share_keeps_both_errors_within_the_tolerance(
    num: int, tolerance: float
) -> None:
    """The worst mixture: one component visited, the share left out spread over the others."""
    share = tree.omitted_share(tolerance, num)
    assert 0 < share <= 0.5
    assert -math.log1p(-share) <= tolerance
    worst = -share * math.log(share / num) - (1 - share) * math.log1p(-share)
    assert worst <= tolerance * (1 + 1e-9)
    if share < 0.5:
        assert worst > 0.99 * tolerance


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan, math.inf, "1e-4"])
def test_a_tolerance_is_positive_and_finite(tolerance: Any) -> None:
    loc = np.zeros((3, 2))
    with pytest.raises(ValueError, match="tolerance must be a positive finite number"):
        _evaluate(loc, loc, np.ones_like(loc), tolerance)


def test_without_numba_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tfp_surgery.log_density.tree.build", None)
    monkeypatch.delattr(tree_folder, "build", raising=False)
    loc = np.zeros((3, 2))
    with pytest.raises(ImportError, match=r"pip install 'tfp-surgery\[fast\]'"):
        tree.ComponentTree(loc, np.ones_like(loc), np.zeros(3))


def test_the_rest_of_the_package_imports_the_interface_alone() -> None:
    folder, package = Path(tree.__file__).parent, Path(tfp_surgery.__file__).parent
    inner = r"log_density\.tree import (?!component_tree\b)|log_density\.tree\.(?!component_tree\b)"
    for path in package.rglob("*.py"):
        if path.parent != folder:
            text = path.read_text(encoding="utf-8")
            assert not re.search(rf"{inner}|^ *(import|from) (numba|llvmlite)", text, re.M), path


def test_many_queries_start_from_what_some_of_them_gave() -> None:
    """Of 3000 queries most are near; the far ones are evaluated again from their own sums."""
    z, loc, scale = _case("overlapping", 3000, 4, np.float32, shrink=3.0)
    z[::50] += 20.0
    _check(_evaluate(z, loc, scale, 1e-4), _scores(z, loc, scale), 1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("event_size", [1, 4, 24])
def test_many_queries_where_scales_and_weights_differ(
    event_size: int, spread: float, dtype: type
) -> None:
    """A component may have a small scale in one dimension, or weigh little, but not in a box."""
    rng = np.random.default_rng(event_size)
    loc: np.ndarray = rng.normal(size=(400, event_size)).astype(dtype)
    log_scale = rng.normal(size=(400, 1)) + rng.normal(size=loc.shape)
    scale: np.ndarray = (0.3 * np.exp(spread * log_scale)).astype(dtype)
    log_weights = rng.normal(size=400, scale=spread)
    log_weights -= np.logaddexp.reduce(log_weights)
    drawn = rng.integers(400, size=2500)
    noise = rng.normal(size=(2500, event_size))
    z: np.ndarray = (loc[drawn] + scale[drawn] * noise).astype(dtype)
    log_weights = log_weights.astype(dtype)
    scores = oracles.gaussian_log_densities(z, loc, scale) + log_weights
    for tolerance in (1e-6, 1e-2):
        _check(_evaluate(z, loc, scale, tolerance, log_weights), scores, tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight", [105.0, 107.5, 109.0])
def test_a_broad_component_beside_heavy_ones_in_its_leaf(weight: float, dtype: type) -> None:
    """Heavy components are far off in the first ten dimensions, one is broad in the next four.

    Half of the density may be the broad one's: its own terms in the first dimensions are small, and
    what bounds the others for its leaf must not count for more than its own.
    """
    rng = np.random.default_rng(0)
    loc, scale, log_weights = np.zeros((32, 15)), np.ones((32, 15)), np.zeros(32)
    for n in range(15):
        loc[n, 1 + n % 9] = 13.5 if n < 9 else -13.5
    scale[15, 10:14] = 2.0
    log_weights[15] = 4 * math.log(2) - 97.5
    loc[16:, 0], loc[16:, 10:14] = 12.0, 4.47
    log_weights[16:] = 72.0 - math.log(16) - weight
    log_weights -= np.logaddexp.reduce(log_weights)
    loc += 1e-3 * rng.normal(size=loc.shape)
    loc[:, 14] = rng.choice([-0.5, 0.5], 32)
    queries = 1e-4 * rng.normal(size=(3000, 15))
    queries[:, 10:14] += 4.47
    queries[rng.random(3000) < 0.05, 14] += 5.0  # some of low density, so that L starts low
    loc, scale, queries = loc.astype(dtype), scale.astype(dtype), queries.astype(dtype)
    scores = oracles.gaussian_log_densities(queries, loc, scale) + log_weights.astype(dtype)
    _check(_evaluate(queries, loc, scale, 1e-2, log_weights), scores, 1e-2)


def test_scores_that_count_are_not_rounded_in_float32() -> None:
    """Scores 97 bits below the largest possible one, that are all of q(z), are in float64."""
    rng = np.random.default_rng(0)
    num, event_size = 3000, 50
    # Scales whose inverse, in the tree's unit, is just above eight, where float32 is coarsest.
    candidates = np.linspace(0.105, 0.106, 500, dtype=np.float32)
    unit = math.sqrt(0.5 / math.log(2))
    exact = unit / candidates.astype(np.float64)
    scale = np.full((num, event_size), candidates[np.argmax(exact.astype(np.float32) / exact)])
    loc = (0.02 * scale * rng.normal(size=scale.shape)).astype(np.float32)
    z = loc[:5] + scale[:5] * np.float32(math.sqrt(2 * 67 / event_size))
    components = tree.ComponentTree(loc, scale, np.full(num, -math.log(num), np.float32))
    expected = np.logaddexp.reduce(_scores(z, loc, scale), axis=1)
    bound = 1e-6 + 2.0**-21 + 2.0**-24 * np.abs(expected)  # truncation, 2^x, rounding of results
    log_prob, _, num_visited = components.evaluate(z, 1e-6)
    assert num_visited.min() == num
    assert np.all(np.abs(log_prob - expected) <= bound)
    # Rates in float32 would not do.
    rate = (unit / scale.astype(np.float64)).astype(np.float32)
    bits = np.square((z[:, None] - loc) * rate).sum(axis=-1, dtype=np.float64)
    log_normaliser = -np.log(scale, dtype=np.float64).sum(axis=1) - math.log(num)
    log_normaliser -= 0.5 * event_size * math.log(2 * math.pi)
    rounded = np.logaddexp.reduce(log_normaliser - bits * math.log(2), axis=1)
    assert np.any(np.abs(rounded - expected) > 2 * bound)


@pytest.mark.parametrize("seed", range(10))
def test_many_queries_where_components_are_left_out_or_weigh_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    event_size = int(rng.choice([3, 14, 20]))
    loc = rng.normal(size=(150, event_size)) * np.exp(rng.normal(size=event_size))
    scale = np.exp(rng.choice([0.5, 1.0]) * rng.normal(size=loc.shape))
    log_weights = rng.normal(size=150, scale=rng.choice([3.0, 30.0]))
    log_weights[rng.uniform(size=150) < 0.05] = -np.inf
    log_weights -= np.logaddexp.reduce(log_weights)
    z = loc[:1] + 0.3 * rng.normal(size=(2300, event_size))
    excluded = rng.integers(150, size=2300)
    scores = oracles.gaussian_log_densities(z, loc, scale) + log_weights
    scores[np.arange(2300), excluded] = -np.inf
    _check(_evaluate(z, loc, scale, 0.1, log_weights, excluded), scores, 0.1)
