from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks import codes
from benchmarks.codes import Source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "codes.npz"
    codes.write_synthetic(path, 4000, 3)
    return Source(str(path), 4000, 4000)


def test_queries_are_drawn_from_their_own_posteriors(source: Source) -> None:
    loc, scale, z = source.load()
    assert (loc.dtype, scale.dtype, z.dtype) == 3 * (np.dtype(np.float32),)
    whitened = (z - loc) / scale
    # A mean of 12000 standard normals, and of their squares (variance 2).
    assert abs(whitened.mean()) < 4.5 / np.sqrt(12000)
    assert abs((whitened**2).mean() - 1) < 4.5 * np.sqrt(2 / 12000)
    for first, again in zip(source.load(), (loc, scale, z), strict=True):
        np.testing.assert_array_equal(first, again)


def test_narrower_posteriors_have_codes_of_their_own(source: Source) -> None:
    loc, scale, z = source.load()
    narrow = dataclasses.replace(source, shrink=1000.0, seed=1, num_queries=100).load()
    np.testing.assert_array_equal(narrow.loc, loc)
    np.testing.assert_allclose(narrow.scale, scale / 1000, rtol=1e-6)
    whitened = (narrow.z.astype(np.float64) - loc[:100]) / narrow.scale[:100]
    assert abs((whitened**2).mean() - 1) < 4.5 * np.sqrt(2 / 300)
    assert not np.allclose(whitened, ((z - loc) / scale)[:100], atol=0.1)


def test_resampled_posteriors_are_jittered_ones_of_the_file(source: Source) -> None:
    loc, scale, _ = dataclasses.replace(source, num_components=10, num_queries=10).load()
    few = dataclasses.replace(source, num_components=9000, num_queries=9000, jitter=0.5)
    drawn = few.load()
    assert drawn.loc.shape == drawn.scale.shape == drawn.z.shape == (9000, 3)
    files = source.load()
    origin = {row.tobytes(): n for n, row in enumerate(files.scale)}
    chosen = np.array([origin[row.tobytes()] for row in drawn.scale])
    assert len(set(chosen.tolist())) > 3000  # of 4000 (1 - exp(-9/4)) = 3578
    jitter = (drawn.loc - files.loc[chosen]) / drawn.scale
    assert abs((jitter**2).mean() - 0.25) < 4.5 * 0.25 * np.sqrt(2 / 27000)
    assert loc.shape == scale.shape == (10, 3)


def test_dimensions_can_be_left_out(source: Source) -> None:
    one = dataclasses.replace(source, dimensions=1).load()
    for array, whole in zip(one, source.load(), strict=True):
        np.testing.assert_array_equal(array, whole[:, :1])
