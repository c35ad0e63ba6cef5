"""Tests for the vectors inside the tree's compiled functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from tfp_surgery.log_density.tree import vectors as tv  # noqa: E402


@numba.njit
def _exp2(x: Any, y: Any) -> None:
    source, target = tv.pointer(x), tv.pointer(y)
    for at in range(0, x.size, tv.WIDTH):
        tv.store(target, at, tv.exp2(tv.load(source, at)))


@numba.njit
def _masks(x: Any, y: Any) -> Any:
    a, b = tv.load(tv.pointer(x), 0), tv.load(tv.pointer(y), 0)
    return tv.less(a, b), tv.any_less(a, b)


@pytest.mark.parametrize(
    ("dtype", "lowest", "bits"), [(np.float32, -125, 21), (np.float64, -1021, 50)]
)
def test_powers_of_two(dtype: type, lowest: int, bits: int) -> None:
    inside = np.concatenate([np.linspace(lowest + 1e-3, 100, 31999), np.arange(lowest + 1, 101)])
    x: np.ndarray = np.resize(inside, tv.WIDTH * 4096).astype(dtype)
    y = np.empty_like(x)
    _exp2(x, y)
    expected = np.exp2(x.astype(np.longdouble))
    assert np.max(np.abs(y - expected) / expected) <= 2.0**-bits
    x[:4] = lowest - 1, -1e30, -np.inf, lowest
    _exp2(x, y)
    np.testing.assert_array_equal(y[:4], 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masks_have_a_bit_for_each_lane_that_is_less(dtype: type) -> None:
    x: np.ndarray = np.zeros(tv.WIDTH, dtype)
    y: np.ndarray = np.zeros(tv.WIDTH, dtype)
    assert _masks(x, y) == (0, 0)
    y[[2, 15]] = 1
    y[3] = np.nan
    assert _masks(x, y) == (2**2 + 2**15, 1)
