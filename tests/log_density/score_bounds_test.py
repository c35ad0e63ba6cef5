from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.testing import oracles
from tfp_surgery.log_density import gaussian_scores, score_bounds

N = 640


def _screen(z: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> score_bounds.Screen:
    """For one block of queries."""
    constant = gaussian_scores.log_normaliser(tf.constant(scale))
    components, _ = score_bounds.prepare(tf.constant(loc), tf.constant(scale), constant)
    features = score_bounds.features(components, tf.constant(z)[tf.newaxis])
    return score_bounds.Screen(components, features)


def _below(screen: score_bounds.Screen, threshold: np.ndarray) -> np.ndarray:
    below: np.ndarray = screen.below(tf.constant(0), tf.constant(threshold))(tf.range(N)).numpy()
    return below


def _check(screen: score_bounds.Screen, scores: np.ndarray) -> None:
    """No component is below a threshold that one of its scores `[m, N]` exceeds."""
    assert np.all(scores.max(axis=0) <= screen.box_bounds(tf.constant(0)).numpy())
    # Thresholds at the scores of a component: rounding decides about its neighbours.
    for n in np.argsort(scores.max(axis=0))[:: max(1, N // 40)]:
        below = _below(screen, scores[:, n])
        assert not np.any(below & np.any(scores > scores[:, n : n + 1], axis=0))


@pytest.mark.parametrize("case", oracles.CASES)
@pytest.mark.parametrize("event_size", [3, 20])
@pytest.mark.parametrize("shrink", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_score_exceeds_a_bound(case: str, event_size: int, shrink: float, dtype: Any) -> None:
    loc, scale = (part.astype(dtype) for part in oracles.gaussian_case(case, N, event_size))
    scale = scale / dtype(shrink)
    noise = np.random.default_rng(5).normal(size=loc.shape).astype(dtype)
    z = (loc + scale * noise)[:128]
    _check(_screen(z, loc, scale), oracles.gaussian_log_densities(z, loc, scale))


def test_scales_over_ten_orders_of_magnitude() -> None:
    rng = np.random.default_rng(0)
    loc = rng.normal(size=(N, 20)).astype(np.float32)
    scale = (10.0 ** rng.uniform(-8, 2, size=(N, 20))).astype(np.float32)
    z = (loc + scale * rng.normal(size=loc.shape)).astype(np.float32)[:128]
    _check(_screen(z, loc, scale), oracles.gaussian_log_densities(z, loc, scale))


def test_thresholds_far_larger_than_the_scores() -> None:
    loc, scale = (part.astype(np.float32) for part in oracles.gaussian_case("overlapping", N, 5))
    z = loc[:4]
    screen = _screen(z, loc, scale)
    for threshold in (-1e30, -1e7):
        assert not np.any(_below(screen, np.full(4, threshold)))
    for threshold in (1e7, 1e30):
        assert np.all(_below(screen, np.full(4, threshold)))


@pytest.mark.parametrize("event_size", [2, 12])
def test_the_bounds_are_near_the_scores_where_all_dimensions_are_screened(event_size: int) -> None:
    loc, scale = (
        part.astype(np.float32) for part in oracles.gaussian_case("separated", N, event_size)
    )
    z = loc[:128]
    scores = oracles.gaussian_log_densities(z, loc, scale)
    screen = _screen(z, loc, scale)
    slack = 1e-4 * max(1.0, np.abs(scores).max())
    for n in range(0, N, 40):
        threshold = scores[:, n]
        far = np.all(scores < (threshold - slack)[:, np.newaxis], axis=0)
        assert np.all(_below(screen, threshold)[far])
    likely = screen.products(tf.constant(0), tf.range(N)).numpy()
    np.testing.assert_allclose(likely, scores.T, atol=slack)
    # A block of one point: the box is the point.
    box = _screen(z[:1], loc, scale).box_bounds(tf.constant(0)).numpy()
    assert np.all(box - scores[0] <= 3e-3 * np.maximum(1.0, np.abs(scores[0])))


def test_what_is_no_number_passes() -> None:
    loc, scale = (part.astype(np.float32) for part in oracles.gaussian_case("separated", N, 3))
    high = np.full(2, 1e30)
    z = np.zeros((2, 3), np.float32)
    assert np.all(_below(_screen(z, loc, scale), high))
    # A threshold that is none passes everything, an infinite one what it says.
    assert not np.any(_below(_screen(z, loc, scale), np.array([1e30, np.nan])))
    assert not np.any(_below(_screen(z, loc, scale), np.array([1e30, -np.inf])))
    assert np.all(_below(_screen(z, loc, scale), np.array([1e30, np.inf])))
    for odd in (np.nan, np.inf, 1e30):  # whose square is none in float32
        far = z.copy()
        far[1, 1] = odd
        for threshold in (-1e30, 1e30):
            low = np.array([1e30, threshold])
            assert not np.any(_below(_screen(far, loc, scale), low)), odd
        # A component with such a location, and no other, passes.
        odd_loc = loc.copy()
        odd_loc[7, 2] = odd
        assert not _below(_screen(z, odd_loc, scale), high)[7]


@tf.function(jit_compile=True, autograph=False)
def _visits(mask: tf.Tensor, failing: tf.Tensor) -> tf.Tensor:
    """How often each component is visited, by a loop that is compiled."""

    def visit(index: tf.Tensor, is_valid: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        return tf.tensor_scatter_nd_add(state, index[:, tf.newaxis], tf.cast(is_valid, tf.int32))

    passing = score_bounds.without(score_bounds.listed(mask), lambda n: tf.gather(failing, n))
    times = tf.zeros([mask.shape[0]], tf.int32)
    return score_bounds.in_parts(passing, score_bounds.BATCH, visit, times)


def _visited(mask: np.ndarray, failing: set[int]) -> list[int]:
    flags = np.isin(np.arange(len(mask)), list(failing))
    times = _visits(tf.constant(mask), tf.constant(flags)).numpy()
    assert set(times) <= {0, 1}
    return list(np.flatnonzero(times))


@pytest.mark.parametrize("num", [1, 63, 64, 5000])
def test_what_passes_is_visited_once(num: int) -> None:
    everything = np.ones(num, bool)
    assert _visited(everything, set()) == list(range(num))
    assert _visited(~everything, set()) == []
    mask = np.arange(num) % 3 != 1
    failing = set(range(0, num, 2))
    expected = [n for n in range(num) if mask[n] and n not in failing]
    assert _visited(mask, failing) == expected


@pytest.mark.parametrize("num", [1, 64, 65, 5000])
def test_a_list_grows_in_order(num: int) -> None:
    rng = np.random.default_rng(0)
    first, mask = (rng.integers(0, 2, size=num).astype(bool) for _ in range(2))
    index = rng.permutation(num).astype(np.int32)
    longer, places = score_bounds.append(
        score_bounds.listed(tf.constant(first)), tf.constant(index), tf.constant(mask)
    )
    expected = np.concatenate([np.flatnonzero(first), index[mask]])
    room = len(longer.index) - 1  # a list holds at most N components and a tile
    assert int(longer.count) == len(expected)
    np.testing.assert_array_equal(longer.index[: len(expected)][:room], expected[:room])
    np.testing.assert_array_equal(
        places.numpy()[mask], np.arange(first.sum(), len(expected), dtype=np.int32)
    )


def test_the_cut_leaves_about_a_tile() -> None:
    rng = np.random.default_rng(0)
    for spread in (1e-2, 1.0, 1e6):
        bounds = tf.constant(-spread * rng.uniform(size=60000), tf.float32)
        near = np.sum(bounds >= score_bounds.cut_near(bounds))
        tile = len(score_bounds.first_tile(score_bounds.listed(bounds >= -np.inf)))
        assert tile / 4 < near < 2 * tile
    odd = tf.constant([-np.inf, np.nan, 0.0] * 10000, tf.float32)
    assert np.isfinite(score_bounds.cut_near(odd))


def test_leaders_are_the_largest_bounds() -> None:
    bounds = np.random.default_rng(0).normal(size=(256, 7)).astype(np.float32)
    np.testing.assert_array_equal(score_bounds.leaders(tf.constant(bounds)), bounds.argmax(axis=0))
