from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.testing import oracles
from tfp_surgery.log_density.tree import component_tree, local_expansion

pytest.importorskip("numba")

_N = 1000
_M = 3000


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets cells of few queries have series; the shares of queries that these answered."""
    shares: list[float] = []
    evaluate = local_expansion.evaluate

    def recorded(*arguments: Any) -> np.ndarray:
        found = evaluate(*arguments)
        shares.append(float(found.mean()))
        return found

    monkeypatch.setattr(local_expansion, "_FEWEST", 8)
    monkeypatch.setattr(local_expansion, "_company", lambda *_: math.inf)
    monkeypatch.setattr(local_expansion, "evaluate", recorded)
    return shares


def _check(
    z: np.ndarray,
    loc: np.ndarray,
    scale: np.ndarray,
    tolerance: float,
    log_weights: np.ndarray | None = None,
) -> None:
    """The tolerance, beside rounding of 4 eps |log q| and that of the entropy's weights."""
    dtype = loc.dtype
    if log_weights is None:
        log_weights = np.full(len(loc), -math.log(len(loc)))
    log_weights = log_weights.astype(dtype)
    tree = component_tree.ComponentTree(loc, scale, log_weights)
    log_prob, entropy, num_visited = tree.evaluate(z, tolerance)
    scores = oracles.gaussian_log_densities(z, loc, scale) + log_weights
    expected = np.logaddexp.reduce(scores, axis=1)
    log_probs = scores - expected[:, None]
    probs = np.exp(log_probs)
    terms = np.where(probs > 0, probs * np.where(probs > 0, log_probs, 0), 0)
    eps = float(np.finfo(dtype).eps)
    rounding = np.maximum(1e-4 * eps / np.finfo(np.float32).eps, 4 * eps * np.abs(expected))
    np.testing.assert_array_less(np.abs(log_prob - expected), tolerance + rounding)
    np.testing.assert_array_less(
        np.abs(entropy + terms.sum(axis=1)), tolerance + (1 + math.log(len(loc))) * rounding
    )
    assert num_visited.min() >= 1
    assert num_visited.max() <= len(loc)


def _mixture(
    rng: np.random.Generator, event_size: int, dtype: type, spread: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A dense mixture, and queries drawn from it."""
    loc = rng.normal(size=(_N, event_size))
    scale = 0.2 * np.exp(spread * rng.normal(size=loc.shape))
    drawn = rng.integers(_N, size=_M)
    z = loc[drawn] + scale[drawn] * rng.normal(size=(_M, event_size))
    return z.astype(dtype), loc.astype(dtype), scale.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("event_size", [1, 2])
@pytest.mark.parametrize("tolerance", [1e-5, 1e-4, 0.1])
def test_series_answer_within_the_tolerance(
    tolerance: float, event_size: int, dtype: type, answered: list[float]
) -> None:
    _check(*_mixture(np.random.default_rng(0), event_size, dtype), tolerance)
    assert answered[0] > 0.5


@pytest.mark.parametrize(
    ("excess", "border"),
    [(0.03, 20), (1.0, 400), (30.0, 400), (1e3, 400), (1e6, 400), (0.01, 1e-4)],
)
def test_what_ends_too_early_is_answered_only_where_that_is_within_the_tolerance(
    excess: float, border: float, answered: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few terms, too few leaves: whatever is asked for, the certificate alone decides."""
    monkeypatch.setattr(local_expansion, "_EXCESS", excess)
    monkeypatch.setattr(local_expansion, "_BORDER", border)
    rng = np.random.default_rng(0)
    z, loc, scale = _mixture(rng, 2, np.float64)
    same = np.zeros((64, 2)), np.ones((64, 2))  # whose errors do not cancel
    for tolerance in (1e-4, 1e-2, 0.1, 1.0):
        _check(z, loc, scale, tolerance)
        _check(rng.uniform(-4, 4, size=(_M, 2)), *same, tolerance)
    assert np.mean(answered) < 0.9


@pytest.mark.parametrize("seed", range(4))
def test_scales_and_weights_that_differ_by_orders_of_magnitude(
    seed: int, answered: list[float]
) -> None:
    """Components too narrow for a series beside wide ones, some heavy, some without weight."""
    rng = np.random.default_rng(seed)
    z, loc, scale = _mixture(rng, 2, np.float64)
    narrow = rng.uniform(size=_N) < 0.2
    scale[narrow] *= 10.0 ** rng.uniform(-7, 0, size=(narrow.sum(), 2))
    z[:150] = (loc + scale * rng.normal(size=loc.shape))[narrow][:150]
    log_weights = rng.normal(size=_N, scale=2.0)
    log_weights[rng.uniform(size=_N) < 0.1] = -np.inf
    log_weights -= np.logaddexp.reduce(log_weights)
    _check(z, loc, scale, 1e-4, log_weights)
    assert answered[0] > 0.2


def test_queries_far_off_and_queries_that_are_all_the_same(answered: list[float]) -> None:
    z, loc, scale = _mixture(np.random.default_rng(0), 2, np.float64)
    z[:1000] = z[0]
    z[1000:1500, 1] = 0.25
    z[1500:1600] *= 30.0
    _check(z, loc, scale, 1e-4)
    assert answered[0] > 0.5


@pytest.mark.parametrize("distance", [20.0, 100.0, 3000.0])
def test_cells_far_from_all_components_but_a_narrow_one(
    distance: float, answered: list[float]
) -> None:
    """At the centre of a cell q is so small that what is near to it has no place beside it."""
    rng = np.random.default_rng(0)
    z, loc, scale = _mixture(rng, 2, np.float64)
    z[:2000] = distance + 0.1 * rng.normal(size=(2000, 2))
    loc[0], scale[0] = distance + 0.03, 1e-4
    z[:50] = loc[0] + 1e-4 * rng.normal(size=(50, 2))
    _check(z, loc, scale, 1e-4)
    assert answered[0] > 0.0


@pytest.mark.parametrize("offset", [1e3, 1e5, 1e6])
def test_locations_far_from_the_origin(offset: float, answered: list[float]) -> None:
    """The centres of cells are rounded to float32."""
    z, loc, scale = _mixture(np.random.default_rng(0), 2, np.float64)
    z, loc = (z + offset).astype(np.float32), (loc + offset).astype(np.float32)
    _check(z, loc, scale.astype(np.float32), 1e-4)
    assert len(answered) == 1


def test_duplicated_components(answered: list[float]) -> None:
    rng = np.random.default_rng(0)
    loc = np.repeat(rng.normal(size=(10, 2)), 150, axis=0)
    z = loc[::-1] + rng.normal(size=loc.shape)
    _check(np.concatenate([z, z + 0.1]), loc, np.ones_like(loc), 1e-4)
    assert answered[0] > 0.5


def test_leaves_that_are_groups(answered: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Some leaves have more than one vector, and vectors have empty lanes."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 40, size=60)
    loc = np.repeat(3 * rng.normal(size=(60, 2)), sizes, axis=0)
    loc += 0.1 * rng.normal(size=loc.shape)
    scale = np.full_like(loc, 0.5)
    z = (loc + scale * rng.normal(size=loc.shape))[rng.integers(len(loc), size=_M)]
    build = component_tree.ComponentTree
    monkeypatch.setattr(
        build, "_find_groups", lambda *_: (np.arange(len(loc)), np.append(0, np.cumsum(sizes)))
    )
    assert np.diff(build(loc, scale, np.zeros(len(loc)))._tree.first_vector).max() > 1
    _check(z, loc, scale, 1e-4)
    assert answered[0] > 0.5


def test_queries_without_company_are_left_to_the_tree() -> None:
    """As many queries as components that hardly overlap."""
    rng = np.random.default_rng(0)
    loc = rng.normal(size=(2500, 2))
    scale = np.full_like(loc, 0.01)
    tree = component_tree.ComponentTree(loc, scale, np.full(2500, -math.log(2500)))
    asked = []

    def at_points(points: np.ndarray) -> Any:
        asked.append(len(points))

    mixture = local_expansion.Mixture(tree._tree, tree._dims, tree._starts[-2])
    results = np.empty(2500), np.empty(2500), np.empty(2500, np.int64)
    found = local_expansion.evaluate(
        mixture, loc, np.arange(2500), tree._route, at_points, 1e-6, 1e-4, results
    )
    assert not found.any()
    assert not asked


def test_tails_are_the_sums_that_they_bound() -> None:
    """R_p, term by term, in decimal logarithms of factorials that are exact."""
    tails = local_expansion._tails()
    steps = len(tails) - 1
    for step in (1, steps // 2, steps):
        rho = local_expansion._REACH * math.sqrt(step / steps)
        for p in (0, 4, 17, 28):
            terms = [
                math.sqrt(m + 1) * rho**m / math.sqrt(math.factorial(m)) for m in range(p, p + 90)
            ]
            np.testing.assert_allclose(tails[step, p], math.fsum(terms), rtol=1e-9)


def test_hermite_polynomials_keep_the_inequality_that_bounds_them() -> None:
    u = np.linspace(-12, 12, 4001)
    for k in range(local_expansion._TERMS):
        values = np.polynomial.hermite_e.HermiteE.basis(k)(u)
        assert np.all(np.abs(values) <= 1.0864 * math.sqrt(math.factorial(k)) * np.exp(u**2 / 4))
