from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special

from tests.testing import oracles
from tfp_surgery.log_density import interpolated_marginals, streamed_pass

tfd = tfp.distributions

_Floats = npt.NDArray[np.float64]


def _exact(loc: _Floats, scale: _Floats, log_weights: _Floats, z: _Floats) -> _Floats:
    """log q of mixtures `[B, N]` at queries `[M, B]`, in float64."""
    columns = []
    for mu, s, log_w, part in zip(loc, scale, log_weights, z.T, strict=True):
        densities = oracles.gaussian_log_densities(part[:, None], mu[:, None], s[:, None])
        columns.append(special.logsumexp(densities + log_w, axis=1))
    return np.stack(columns, axis=1)


def _uniform(loc: _Floats) -> _Floats:
    return np.full_like(loc, -np.log(loc.shape[1]))


def _draws(loc: _Floats, scale: _Floats, num_queries: int) -> _Floats:
    """Queries `[M, B]` from the mixtures, weighted equally."""
    rng = np.random.default_rng(5)
    index = rng.integers(0, loc.shape[1], num_queries)
    noise = rng.normal(size=(num_queries, loc.shape[0]))
    draws: _Floats = loc.T[index] + scale.T[index] * noise
    return draws


def _check(
    loc: _Floats,
    scale: _Floats,
    z: _Floats,
    tolerance: float,
    dtype: Any = np.float64,
    log_weights: _Floats | None = None,
) -> npt.NDArray[np.int32]:
    """Compares with float64 brute force and returns the numbers of nodes.

    Rounding: 4 eps of log q, and of the up to 8 nats in a component's log normaliser.
    """
    log_weights = _uniform(loc) if log_weights is None else log_weights
    inputs = [np.asarray(part, dtype) for part in (loc, scale, log_weights, z)]
    values, num_nodes = interpolated_marginals.log_prob(
        inputs[0], inputs[1], inputs[2], inputs[3], tolerance
    )
    assert values.dtype == dtype
    assert num_nodes.dtype == tf.int32
    expected = _exact(*[part.astype(np.float64) for part in inputs])
    error = np.abs(values.numpy().astype(np.float64) - expected)
    rounding = 4 * float(np.finfo(dtype).eps) * (np.abs(expected) + 8)
    np.testing.assert_array_less(error, tolerance + rounding)
    result: npt.NDArray[np.int32] = num_nodes.numpy()
    return result


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", oracles.CASES)
def test_agrees_with_brute_force_in_float64(case: str, dtype: Any) -> None:
    loc, scale = (part.T for part in oracles.gaussian_case(case, 1100, 2))  # [B, N]
    num_nodes = _check(loc, scale, _draws(loc, scale, 6000), 1e-5, dtype)
    # The separated case has a kink between any two neighbours.
    assert (num_nodes > 0).tolist() == [case != "separated"] * 2


def test_tighter_tolerances_are_kept_with_more_nodes() -> None:
    loc, scale = (part.T for part in oracles.gaussian_case("overlapping", 300, 1))
    z = _draws(loc, scale, 3000)
    num_nodes = [int(_check(loc, scale, z, 10.0**-k)[0]) for k in (1, 2, 3, 4, 5, 6, 8, 10)]
    assert num_nodes[0] > 0
    assert (np.diff(num_nodes) > 0).all()


def _adversarial_mixtures(num_mixtures: int, num_components: int) -> tuple[_Floats, _Floats]:
    """Wide components over a few narrow and very narrow ones, in one to four clusters."""
    rng = np.random.default_rng(3)
    loc, scale = np.empty((2, num_mixtures, num_components))
    for mu, s in zip(loc, scale, strict=True):
        centres = rng.normal(scale=10.0 ** rng.uniform(-1, 1), size=rng.integers(1, 5))
        mu[:] = rng.choice(centres, num_components) + rng.normal(size=num_components)
        s[:] = rng.uniform(0.3, 0.9, num_components)
        narrow = rng.integers(1, 6)
        s[:narrow] = 10 ** rng.uniform(-6, -0.5, narrow)
    return loc, scale


def _adversarial_queries(loc: _Floats, scale: _Floats) -> _Floats:
    """Draws, and queries about the narrow components: at, beside and up to 30 sigma from them."""
    z = _draws(loc, scale, 12000)
    steps = np.linspace(-30, 30, 241)
    for k in range(5):
        z[k * 241 : (k + 1) * 241] = loc[:, k] + steps[:, None] * scale[:, k]
    return z


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_no_feature_between_nodes_goes_unseen(tolerance: float) -> None:
    loc, scale = _adversarial_mixtures(16, 60)
    num_nodes = _check(loc, scale, _adversarial_queries(loc, scale), tolerance)
    assert (num_nodes > 0).sum() >= 8


def test_the_certificate_is_what_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the queries of the test above are answered wrongly."""
    loc, scale = _adversarial_mixtures(16, 60)
    z = _adversarial_queries(loc, scale)
    monkeypatch.setattr(
        interpolated_marginals, "_eta", lambda moments, *_: np.zeros_like(moments.log_prob)
    )
    values, _ = interpolated_marginals.log_prob(loc, scale, _uniform(loc), z, 1e-2)
    error = np.abs(values.numpy() - _exact(loc, scale, _uniform(loc), z))
    assert error.max() > 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eta_bounds_the_mixture_in_the_complex_disc(dtype: Any) -> None:
    """|q(c + t) / q(c) e^{-t (log q)'(c)} - 1| <= eta at nodes c, on the circle |t| = R."""
    loc, scale = _adversarial_mixtures(16, 60)
    loc, scale = loc.astype(dtype), scale.astype(dtype)
    mixtures = interpolated_marginals._Mixtures(*map(tf.constant, (loc, scale, _uniform(loc))))
    m, step = 4, 2.0**-5
    radius = m * step
    angles = np.exp(2j * np.pi * np.arange(32) / 32)
    num_finite = 0
    for i in range(len(loc)):
        grid = interpolated_marginals._grid(float(loc[i].min()), float(loc[i].max()), step, m)
        nodes = grid.nodes()
        moments = mixtures.score({i: nodes}, {i: radius})[i]
        left_out = mixtures.log_left_out(i, radius, nodes)
        eta = interpolated_marginals._eta(moments, left_out, m, radius, float(np.finfo(dtype).eps))
        mu, s = (part[i].astype(np.float64) for part in (loc, scale))
        slope = (nodes[:, None] - mu) / -(s**2)
        scores = -0.5 * ((nodes[:, None] - mu) / s) ** 2 - np.log(s)
        index_prob = special.softmax(scores, axis=1)
        slope = slope - (index_prob * slope).sum(axis=1, keepdims=True)
        t = radius * angles[:, None, None]
        with np.errstate(all="ignore"):
            exponents = np.log(index_prob) + slope * t - t**2 / (2 * s**2)
            distance = np.abs(np.exp(exponents).sum(axis=2) - 1).max(axis=0)
        finite = eta < 10
        np.testing.assert_array_less(distance[finite], eta[finite] + 1e-12)
        num_finite += finite.sum()
    assert num_finite > 500


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_spike_among_wide_components(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=(1, 500)), np.full((1, 500), 0.8)
    scale[0, 7] = 1e-6
    z = _draws(loc, scale, 10000)
    z[:400, 0] = loc[0, 7] + 1e-6 * rng.normal(size=400)
    z[400:500, 0] = loc[0, 7] + np.linspace(-0.3, 0.3, 100)
    assert _check(loc, scale, z, 1e-5, dtype)[0] > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distance", [5.0, 500.0])  # down to -1e4 and -1e6 nats
def test_a_gap_between_clusters(distance: float, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    loc = np.where(np.arange(400) % 2, distance, -distance)[None] + rng.normal(size=(1, 400)) / 3
    scale = np.full((1, 400), distance / 15)
    z = _draws(loc, scale, 20000)
    z[:500, 0] = np.linspace(-distance, distance, 500)
    assert _check(loc, scale, z, 1e-5, dtype)[0] > 0
    _check(loc, scale / 50, z, 1e-5, dtype)


def test_components_of_no_weight_do_not_matter() -> None:
    loc, scale = (part.T for part in oracles.gaussian_case("overlapping", 3000, 2))
    scale[:, 1500:] = 1e-9
    weights = np.where(np.arange(3000) < 1500, np.linspace(0, 1, 3000), 0.0)
    with np.errstate(divide="ignore"):
        log_weights = np.broadcast_to(np.log(weights / weights.sum()), loc.shape)
    z = _draws(loc[:, :1500], scale[:, :1500], 5000)
    assert (_check(loc, scale, z, 1e-5, log_weights=log_weights) > 0).all()


def test_mixtures_fall_back_one_by_one() -> None:
    loc, scale = (part.T for part in oracles.gaussian_case("overlapping", 200, 20))
    loc[11], scale[11] = np.linspace(-100, 100, 200), 0.01  # a kink every 1, at most 1e-4 wide
    num_nodes = _check(loc, scale, _draws(loc, scale, 4000), 1e-4)
    assert np.flatnonzero(num_nodes == 0).tolist() == [11]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_queries_no_grid_can_hold(dtype: Any) -> None:
    """Outliers, NaN and infinities get what the exact loop gives; the others use the grid."""
    loc, scale = (part.T.astype(dtype) for part in oracles.gaussian_case("overlapping", 200, 1))
    log_weights = _uniform(loc)
    z = _draws(loc, scale, 20000).astype(dtype)
    z[[5, 50, 77, 500, 5000], 0] = [np.nan, np.inf, -np.inf, 1e6, -1e30]
    values, num_nodes = interpolated_marginals.log_prob(loc, scale, log_weights, z, 1e-4)
    exact, _ = streamed_pass.log_prob_and_index_entropy(
        tfd.Normal(loc, scale), tf.constant(log_weights), tf.constant(z)
    )
    assert num_nodes[0] > 0
    np.testing.assert_array_equal(np.isnan(values), np.isnan(exact))
    np.testing.assert_allclose(values, exact, rtol=4 * np.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("num_queries", [1, 7, 60])
def test_few_queries_are_scored_exactly(num_queries: int) -> None:
    loc, scale = (part.T for part in oracles.gaussian_case("overlapping", 50, 2))
    assert _check(loc, scale, _draws(loc, scale, num_queries), 1e-3).tolist() == [0, 0]


def test_equal_queries_are_scored_exactly() -> None:
    loc, scale = (part.T for part in oracles.gaussian_case("overlapping", 50, 2))
    z = _draws(loc, scale, 1000)
    z[:, 1] = 0.25
    num_nodes = _check(loc, scale, z, 1e-2)
    assert num_nodes[0] > 0
    assert num_nodes[1] == 0


@pytest.mark.parametrize("shift", [1e3, 1e5])
def test_float32_mixtures_far_from_the_origin(shift: float) -> None:
    """The nodes are exact float32 numbers, or there is no grid."""
    loc, scale = (part.T for part in oracles.gaussian_case("overlapping", 500, 1))
    z = _draws(loc + shift, scale, 5000)
    _check(loc + shift, scale, z, 1e-5, np.float32)


@pytest.mark.parametrize("watched", range(4))
def test_a_gradient_is_an_error(watched: int) -> None:
    loc, scale = (part.T for part in oracles.gaussian_case("overlapping", 50, 1))
    inputs = [tf.constant(part) for part in (loc, scale, _uniform(loc), _draws(loc, scale, 1000))]
    with tf.GradientTape() as tape:
        tape.watch(inputs[watched])
        values, _ = interpolated_marginals.log_prob(
            inputs[0], inputs[1], inputs[2], inputs[3], 1e-2
        )
    with pytest.raises(LookupError, match="no derivatives"):
        tape.gradient(values, inputs[watched])


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, np.inf, np.nan, "1e-3", None])
def test_a_tolerance_must_be_positive_and_finite(tolerance: Any) -> None:
    with pytest.raises(ValueError, match="tolerance must be a positive finite float"):
        interpolated_marginals.log_prob([[0.0]], [[1.0]], [[0.0]], [[0.0]], tolerance)


def test_a_graph_is_an_error() -> None:
    @tf.function
    def graph(z: tf.Tensor) -> Any:
        return interpolated_marginals.log_prob([[0.0]], [[1.0]], [[0.0]], z, 1e-3)

    with pytest.raises(RuntimeError, match="eagerly"):
        graph(tf.zeros([300, 1]))
