from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing import oracles
from tfp_surgery.distributions import gaussian, screening

tfd = tfp.distributions

N = 640


def _screen(z: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> screening.Screen:
    leaves = gaussian.diagonal_leaves(tfd.MultivariateNormalDiag(loc, scale))
    assert leaves is not None
    components, _ = screening.prepare(*leaves)
    return screening.Screen(components, tf.constant(z))


@pytest.mark.parametrize("case", oracles.CASES)
@pytest.mark.parametrize("event_size", [3, 20])
@pytest.mark.parametrize("shrink", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_score_exceeds_a_bound(case: str, event_size: int, shrink: float, dtype: Any) -> None:
    loc, scale = (part.astype(dtype) for part in oracles.gaussian_case(case, N, event_size))
    scale = scale / dtype(shrink)
    noise = np.random.default_rng(5).normal(size=loc.shape).astype(dtype)
    z = (loc + scale * noise)[:128]
    scores = oracles.gaussian_log_densities(z, loc, scale)  # [m, N]
    screen = _screen(z, loc, scale)
    assert np.all(scores.max(axis=0) <= screen.box_bounds().numpy())
    assert np.all(screen.product_bounds(tf.range(N)).numpy() >= scores.T)


def test_scales_over_ten_orders_of_magnitude() -> None:
    rng = np.random.default_rng(0)
    loc = rng.normal(size=(N, 20)).astype(np.float32)
    scale = (10.0 ** rng.uniform(-8, 2, size=(N, 20))).astype(np.float32)
    z = (loc + scale * rng.normal(size=loc.shape)).astype(np.float32)[:128]
    scores = oracles.gaussian_log_densities(z, loc, scale)
    screen = _screen(z, loc, scale)
    assert np.all(scores.max(axis=0) <= screen.box_bounds().numpy())
    bounds = screen.product_bounds(tf.range(N)).numpy()
    assert np.all(np.isnan(bounds) | (bounds >= scores.T))


@pytest.mark.parametrize("event_size", [2, 12])
def test_the_bounds_are_near_the_scores_where_all_dimensions_are_screened(event_size: int) -> None:
    loc, scale = (
        part.astype(np.float32) for part in oracles.gaussian_case("separated", N, event_size)
    )
    z = loc[:128]
    scores = oracles.gaussian_log_densities(z, loc, scale).T
    bounds = _screen(z, loc, scale).product_bounds(tf.range(N)).numpy()
    largest = np.abs(scores).max()
    assert np.all(bounds - scores <= 1e-4 * max(1.0, largest))
    # A block of one point: the box is the point.
    box = _screen(z[:1], loc, scale).box_bounds().numpy()
    assert np.all(box - scores[:, 0] <= 3e-3 * np.maximum(1.0, np.abs(scores[:, 0])))


def _visited(mask: np.ndarray, failing: set[int]) -> list[int]:
    """The components that are visited, by a loop that is compiled."""

    @tf.function(jit_compile=True)
    def run(mask: tf.Tensor, failing: tf.Tensor) -> tf.Tensor:
        def fails(index: tf.Tensor, state: Any) -> Any:
            return tf.gather(failing, index), state

        def visit_batch(index: tf.Tensor, is_valid: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
            return tf.tensor_scatter_nd_add(
                state, index[:, tf.newaxis], tf.cast(is_valid, tf.int32)
            )

        return screening.visit(mask, fails, visit_batch, tf.zeros([mask.shape[0]], tf.int32))

    flags = np.isin(np.arange(len(mask)), list(failing))
    times = run(tf.constant(mask), tf.constant(flags)).numpy()
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
def test_running_counts_are_cumulative_sums(num: int) -> None:
    x = np.random.default_rng(0).integers(0, 2, size=num).astype(np.float32)
    np.testing.assert_array_equal(screening._running_count(tf.constant(x)), np.cumsum(x))


def test_the_cut_leaves_about_a_tile() -> None:
    rng = np.random.default_rng(0)
    for spread in (1e-2, 1.0, 1e6):
        bounds = tf.constant(-spread * rng.uniform(size=60000), tf.float32)
        near = np.sum(bounds >= screening.cut_near(bounds))
        assert screening._TILE / 4 < near < 2 * screening._TILE
    odd = tf.constant([-np.inf, np.nan, 0.0] * 10000, tf.float32)
    assert np.isfinite(screening.cut_near(odd))


def test_leaders_are_the_largest_bounds() -> None:
    bounds = np.random.default_rng(0).normal(size=(256, 7)).astype(np.float32)
    np.testing.assert_array_equal(screening.leaders(tf.constant(bounds)), bounds.argmax(axis=0))


def test_what_is_no_number_is_not_below() -> None:
    bounds = tf.constant([[0.0, np.nan], [0.0, 0.0], [2.0, 0.0]])
    np.testing.assert_array_equal(
        screening.below(bounds, tf.constant([1.0, 1.0])), [False, True, False]
    )


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-m", "not slow"]))
