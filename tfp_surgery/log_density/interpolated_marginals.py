r"""log q of one-dimensional Gaussian mixtures at many queries, interpolated within a proved error.

A marginal of an aggregate posterior, q(z) = sum_n w_n N(z; mu_n, s_n^2), costs N densities a query.
This module computes log q and its first two derivatives on a uniform grid of some hundred nodes and
interpolates the queries by a quintic Hermite spline. With the responsibilities
p_n = w_n N(z; mu_n, s_n^2) / q(z) and the slopes g_n = -(z - mu_n) / s_n^2,

    (log q)'(z) = E_p[g],    (log q)''(z) = Var_p(g) - E_p[1 / s^2].

#### The error bound

On an interval of length h the interpolant f of log q has an error of at most
h^6 / 46080 max |f^(6)| (Birkhoff and Priver 1967). The sixth derivative is not computed: Cauchy's
estimate bounds it. At a node c let x_n = R (g_n - E_p[g]) and v_n = R^2 / (2 s_n^2). For complex t
with |t| <= R

    u(t) = q(c + t) / q(c) e^{-t E_p[g]} = E_p[exp(t x / R - v t^2 / R^2)],

and as E_p[x] = 0 and e^{v - |x|} >= 1 + v - |x|,

    |u(t) - 1| <= E_p[e^{|x| + v} - 1 - |x|] <= E_p[e^v (e^x + e^-x)] - 2 - E_p[v] =: eta.

Where eta < 1, log q is analytic in the disc of radius R around c and differs there from its tangent
by at most -log(1 - eta), so its Taylor coefficients are at most -log(1 - eta) / R^k, k >= 2. With
R = m h, the divided differences of t^k on three nodes at either end of an interval that begins or
ends at c add up to

    |error| <= -log(1 - eta) (1 / 2m)^6 / (1 - 1/m)^4.

The exponential moments in eta are values, m nodes away, of a second mixture, which shares every
exponential with the first:

    E_p[e^{v +- x}] = e^{-+ R E_p[g]} Q(c +- R) / q(c),
    Q(z) = sum_n w_n e^{R^2 / s_n^2} N(z; mu_n, s_n^2).

Components that matter only between two nodes, kinks between far clusters and gaps all make eta
large. Components whose e^{R^2 / s^2} would overflow are left out of Q: nothing is certified within
3 R of one of them, and farther away all of them together add at most
2 e^{R |E_p[g]|} sum_k w_k e^{-R^2 / s_k^2} / (s_k sqrt(2 pi) q(c)) to eta.

Queries in intervals whose bound is within the tolerance are interpolated; all others are scored
exactly. The bound holds for exact arithmetic. The nodes' values are rounded as those of the exact
loop, by about 4 eps |log q|, which adds to the error; the effect of that rounding on eta is allowed
for by an estimate that is not proved.

#### References

Garrett Birkhoff and Addison Priver. Hermite interpolation errors for derivatives. Journal of
Mathematics and Physics 46, 440-447, 1967.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.log_density import streamed_pass
from tfp_surgery.log_density.compiled import compiled

tfd = tfp.distributions

_Floats = npt.NDArray[np.float64]

_COMPONENT_BLOCK = 1024
_POINT_BLOCK = 64  # points that one call of the kernel scores, all of one mixture
_MIXTURES = 8  # laid out for the kernel at a time
# What a grid is planned from: blocks of components, points, and queries that these are drawn from.
_PLAN_BLOCKS, _PLAN_POINTS, _PLAN_QUERIES = 8, 128, 4096
_ATTEMPTS = 3  # at a step that certifies enough
_STEP_BITS = 5  # a step is an integer of so many bits times a power of two, so that with
_MAX_INDEX = 2**19  # multiples no larger than this every node is exact in float32
_MAX_EXPONENT = 40.0  # of e^{R^2 / s^2} in Q; float32 holds e^{-87} to e^{88}


class _Rule(NamedTuple):
    """The largest distance between nodes, R / m, for an R with eta <= max_eta."""

    m: int
    max_eta: float
    reach: float  # R / s that gives max_eta if all scales are s and g is normal of variance 1/s^2


class _Grid(NamedTuple):
    """Nodes step * (first + i), i = 0..num_nodes-1."""

    first: int
    num_nodes: int
    step: float

    def is_exact(self) -> bool:
        return max(-self.first, self.first + self.num_nodes) <= _MAX_INDEX

    def nodes(self) -> _Floats:
        return self.step * np.arange(self.first, self.first + self.num_nodes, dtype=np.float64)


class _Moments(NamedTuple):
    """The quantities that the kernel computes at P points, each `[P]`."""

    log_prob: _Floats
    slope: _Floats  # (log q)'
    curvature: _Floats  # (log q)''
    log_widened: _Floats  # log Q
    precision: _Floats  # E_p[1 / s^2]


def log_prob(
    loc: Any, scale: Any, log_weights: Any, queries: Any, tolerance: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log q of B one-dimensional Gaussian mixtures, interpolated where that is certified.

    Runs eagerly only, because the number of nodes depends on the values. The exact loop answers for
    a mixture whose grid would cost more than a quarter of it.

    Args:
      loc: `Tensor`, shape `[B, N]`, float32 or float64.
      scale: Positive `Tensor` of that shape and dtype.
      log_weights: `Tensor` of that shape and dtype: normalised log weights; may be `-inf`.
      queries: `Tensor`, shape `[M, B]`, of that dtype. The exact loop answers for NaN and
        infinities.
      tolerance: Positive Python `float`: bound on the interpolation error in nats, beside rounding
        of about 4 eps |log q|.

    Returns:
      log_prob: `Tensor`, shape `[M, B]`, in nats. It has no derivatives (those of the spline would
        be less exact than its values): asking for them raises `LookupError`.
      num_nodes: int32 `Tensor`, shape `[B]`: nodes of a mixture's grid, 0 where the exact loop
        answered.

    Raises:
      ValueError: If the tolerance is not positive and finite.
      RuntimeError: If called inside a `tf.function`.
    """
    if not (isinstance(tolerance, float | int) and 0 < tolerance < math.inf):
        raise ValueError(f"tolerance must be a positive finite float; got {tolerance!r}.")
    if not tf.executing_eagerly():
        raise RuntimeError("The grid depends on the values: interpolation runs eagerly only.")
    inputs = [tf.convert_to_tensor(part) for part in (loc, scale, log_weights, queries)]
    constants = [tf.stop_gradient(part) for part in inputs]
    values, num_nodes = _log_prob(constants[:3], constants[3], float(tolerance))

    @tf.custom_gradient
    def without_derivatives(*_: tf.Tensor) -> Any:
        def grad(_: tf.Tensor) -> Any:
            raise LookupError("An interpolated log_prob has no derivatives; the exact one has.")

        return values, grad

    return without_derivatives(*inputs), num_nodes


def _log_prob(
    parameters: list[tf.Tensor], queries: tf.Tensor, tolerance: float
) -> tuple[tf.Tensor, tf.Tensor]:
    rule = _rule(tolerance)
    num_mixtures = queries.shape[1]
    values: list[tf.Tensor | None] = [None] * num_mixtures
    num_nodes = [0] * num_mixtures
    if len(queries) >= 4 * _POINT_BLOCK:
        for start in range(0, num_mixtures, _MIXTURES):
            group = slice(start, start + _MIXTURES)
            mixtures = _Mixtures(*[part[group] for part in parameters])
            for i, part in _interpolated(mixtures, tf.transpose(queries[:, group]), rule).items():
                values[start + i], num_nodes[start + i] = part
    exact = [i for i, part in enumerate(values) if part is None]
    if exact:
        loc, scale, log_weights = (tf.gather(part, exact) for part in parameters)
        scored, _ = streamed_pass.log_prob_and_index_entropy(
            tfd.Normal(loc, scale), log_weights, tf.gather(queries, exact, axis=1)
        )
        for i, part in zip(exact, tf.unstack(scored, axis=1), strict=True):
            values[i] = part
    return tf.stack(values, axis=1), tf.constant(num_nodes, tf.int32)


def _rule(tolerance: float) -> _Rule:
    """The m that lets nodes be farthest apart."""

    def rule(m: int) -> _Rule:
        eta = min(0.99, -math.expm1(-tolerance * (2 * m) ** 6 * (1 - 1 / m) ** 4))
        squared = 0.0  # of R / s; eta = 2 e^{squared} - 2 - squared / 2
        for _ in range(20):
            squared = math.log1p((eta + squared / 2) / 2)
        return _Rule(m, eta, math.sqrt(squared))

    return max((rule(m) for m in range(2, 65)), key=lambda each: each.reach / each.m)


class _Mixtures:
    """Some mixtures, laid out for the kernel that scores them."""

    def __init__(self, loc: tf.Tensor, scale: tf.Tensor, log_weights: tf.Tensor) -> None:
        self._parameters = (loc, scale, log_weights)
        self.dtype = loc.dtype
        log_peak = log_weights - tf.math.log(scale * math.sqrt(2 * math.pi))
        count = -(-loc.shape[1] // _COMPONENT_BLOCK)
        nothing = tf.constant([[0.0], [1.0], [-math.inf]], loc.dtype)
        leaves = tf.concat(
            [
                tf.stack([loc, 1 / scale, log_peak], axis=1),
                tf.broadcast_to(nothing, [len(loc), 3, -loc.shape[1] % count]),
            ],
            axis=2,
        )  # [B, 3, blocks * n]
        # Block j holds components j, j + count, ...: the first blocks are a sample of them all.
        self._leaves = tf.transpose(
            tf.reshape(leaves, [len(loc), 3, -1, count]), [0, 3, 1, 2]
        )  # [B, blocks, 3, n]

    def score(
        self, points: dict[int, _Floats], radii: dict[int, float], max_blocks: int = 2**30
    ) -> dict[int, _Moments]:
        """Scores any number of points of any of the mixtures, R being `radii`, or else 0."""
        if not points:
            return {}
        chunks = {
            i: np.pad(part, (0, -len(part) % _POINT_BLOCK), mode="edge").reshape(-1, _POINT_BLOCK)
            for i, part in points.items()
        }
        owners = np.concatenate([np.full(len(part), i) for i, part in chunks.items()])
        scored = _score_chunks(
            self._leaves,
            tf.constant(min(max_blocks, self._leaves.shape[1])),
            tf.constant(owners),
            tf.constant(np.concatenate(list(chunks.values())), self.dtype),
            tf.constant([radii.get(i, 0.0) for i in owners], self.dtype),
        ).numpy()  # [chunks, 5, P]
        fields = {i: np.moveaxis(scored[owners == i], 1, 0) for i in points}  # [5, own chunks, P]
        return {
            i: _Moments(*fields[i].reshape(5, -1)[:, : len(part)].astype(np.float64))
            for i, part in points.items()
        }

    def log_left_out(self, i: int, radius: float, nodes: _Floats) -> _Floats:
        """What the components outside Q may add to eta, as log(eta q(c)) - R |E_p[g]|."""
        loc, scale, log_weights = (part[i].numpy().astype(float) for part in self._parameters)
        # A little more than the kernel leaves out, whose comparison is rounded.
        narrow = (scale < 1.001 * radius / math.sqrt(_MAX_EXPONENT)) & (log_weights > -math.inf)
        scale, log_weights = scale[narrow], log_weights[narrow]
        terms = log_weights - np.log(scale * math.sqrt(math.pi / 2)) - (radius / scale) ** 2
        sites = np.concatenate([[-math.inf], np.sort(loc[narrow]), [math.inf]])
        above = np.searchsorted(sites, nodes).clip(1, len(sites) - 1)
        distance = np.minimum(nodes - sites[above - 1], sites[above] - nodes)
        return np.where(distance >= 3 * radius, np.logaddexp.reduce(terms), math.inf)


@tf.function(reduce_retracing=True)
def _score_chunks(
    leaves: tf.Tensor, blocks: tf.Tensor, mixtures: tf.Tensor, points: tf.Tensor, radii: tf.Tensor
) -> tf.Tensor:
    """The kernel on every chunk of points, several at a time: `[chunks, 5, P]`."""
    return tf.map_fn(
        lambda chunk: _moments(leaves[chunk[0]], blocks, chunk[1], chunk[2]),
        (mixtures, points, radii),
        fn_output_signature=tf.TensorSpec([5, None], leaves.dtype),
        parallel_iterations=8,
    )


@compiled
def _moments(
    leaves: tf.Tensor, blocks: tf.Tensor, points: tf.Tensor, radius: tf.Tensor
) -> tf.Tensor:
    """The fields of `_Moments`, `[5, P]`, of one mixture: leaves `[blocks, 3, n]`, points `[P]`.

    The exponentials of a block are taken once, and all sums over it are one matrix product. What is
    multiplied out for that is centred on the points, which are neighbours on a grid; the exponents
    themselves are not multiplied out.
    """
    dtype, zero = points.dtype, tf.zeros([], points.dtype)
    centre = points[_POINT_BLOCK // 2]

    def step(j: tf.Tensor, top: tf.Tensor, sums: tf.Tensor) -> Any:
        loc, inverse_scale, log_peak = tf.unstack(leaves[j], num=3)  # each [n]
        standardised = (points - loc[:, tf.newaxis]) * inverse_scale[:, tf.newaxis]  # [n, P]
        scores = log_peak[:, tf.newaxis] - 0.5 * standardised**2
        new_top = tf.maximum(top, tf.reduce_max(scores, axis=0))
        exponent = (radius * inverse_scale) ** 2
        in_q = (exponent <= _MAX_EXPONENT) & (log_peak > -math.inf)
        precision = tf.where(in_q, inverse_scale**2, zero)
        pull = (loc - centre) * precision  # g = pull - offset * precision
        features = tf.stack(
            [
                tf.ones_like(loc),
                tf.where(in_q, tf.exp(exponent), zero),
                precision,
                pull,
                precision**2,
                precision * pull,
                pull**2,
            ]
        )
        block = _product(features, tf.exp(scores - new_top))  # [7, P]
        return j + 1, new_top, sums * tf.exp(top - new_top) + block

    shape = tf.shape(points)
    _, top, sums = tf.while_loop(
        lambda j, *_: j < blocks,
        step,
        (0, tf.fill(shape, dtype.min), tf.zeros(tf.concat([[7], shape], axis=0), dtype)),
        parallel_iterations=1,
    )
    mass, widened = sums[0], sums[1]
    precision, pull, precision_2, cross, pull_2 = tf.unstack(sums[2:] / mass, num=5)
    offset = points - centre
    slope = pull - offset * precision
    second_moment = pull_2 - offset * (2 * cross - offset * precision_2)  # E_p[g^2]
    curvature = second_moment - precision - slope**2
    log_mass, log_widened = top + tf.math.log(mass), top + tf.math.log(widened)
    return tf.stack([log_mass, slope, curvature, log_widened, precision])


def _product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """The matrix product; written out where there is a GPU, which may take it in TensorFloat-32."""
    if tf.config.list_physical_devices("GPU"):
        return tf.reduce_sum(a[:, :, tf.newaxis] * b, axis=1)
    return tf.matmul(a, b)


def _interpolated(
    mixtures: _Mixtures, queries: tf.Tensor, rule: _Rule
) -> dict[int, tuple[tf.Tensor, int]]:
    """log q at queries `[B, M]` and the number of nodes, of the mixtures where that is worth it."""
    values, missing, num_nodes = {}, {}, {}
    grids = _plan(mixtures, queries, rule)
    for _ in range(_ATTEMPTS):
        finer = {}
        for i, table in _tables(mixtures, grids, rule).items():
            grid = grids[i]
            first, step = tf.constant(grid.first), tf.constant(grid.step, tf.float64)
            values[i] = _evaluate(queries[i], first, step, table)
            missing[i] = np.flatnonzero(np.isnan(values[i].numpy()))
            num_nodes[i] = grid.num_nodes
            if len(missing[i]) > grid.num_nodes and 6 * grid.num_nodes < queries.shape[1]:
                least, greatest = grid.nodes()[[rule.m, -1 - rule.m]]
                finer[i] = _grid(least, greatest, 0.75 * grid.step, rule.m)
        grids = finer
    worth = {i: value for i, value in values.items() if 2 * len(missing[i]) < queries.shape[1]}
    points = {i: queries[i].numpy()[missing[i]] for i in worth if len(missing[i])}
    for i, moments in mixtures.score(points, {}).items():
        exact = tf.constant(moments.log_prob, mixtures.dtype)
        worth[i] = tf.tensor_scatter_nd_update(worth[i], missing[i][:, np.newaxis], exact)
    return {i: (value, num_nodes[i]) for i, value in worth.items()}


def _plan(mixtures: _Mixtures, queries: tf.Tensor, rule: _Rule) -> dict[int, _Grid]:
    """The grids that seem worth it, from some components at quantiles of some of the queries."""
    stride = -(-queries.shape[1] // _PLAN_QUERIES)
    finite = tf.math.is_finite(queries)
    least = tf.reduce_min(tf.where(finite, queries, math.inf), axis=1).numpy().astype(float)
    greatest = tf.reduce_max(tf.where(finite, queries, -math.inf), axis=1).numpy().astype(float)
    levels = (np.arange(_PLAN_POINTS - 2) + 0.5) / (_PLAN_POINTS - 2)
    points = {}
    for i in np.flatnonzero(least < greatest):
        sample = queries[i, ::stride].numpy().astype(float)
        sample = np.append(sample[np.isfinite(sample)], [least[i], greatest[i]])
        points[int(i)] = np.concatenate([[least[i]], np.quantile(sample, levels), [greatest[i]]])
    scored = mixtures.score(points, {}, max_blocks=_PLAN_BLOCKS)
    grids = {i: _plan_grid(points[i], part, rule, queries.shape[1]) for i, part in scored.items()}
    return {i: grid for i, grid in grids.items() if grid is not None}


def _plan_grid(points: _Floats, moments: _Moments, rule: _Rule, num_queries: int) -> _Grid | None:
    """The grid that leaves least to be scored: its nodes, and the queries it does not answer."""
    # Half of Var_p(g) + E_p[1 / s^2], to which eta + E_p[v] is proportional for small R.
    information = moments.precision + np.maximum(moments.curvature, -moments.precision) / 2
    last = len(points) - 1
    best = (num_queries / 4, 0, 0, 0.0)
    with np.errstate(divide="ignore"):
        radii = np.nan_to_num(0.95 * rule.reach / np.sqrt(information), nan=0, posinf=0)
        for start, end in ((0, last), (1, last), (0, last - 1), (1, last - 1)):
            candidates = np.sort(radii[start : end + 1])
            lost = start + last - end + np.arange(len(candidates))
            nodes = (points[end] - points[start]) * rule.m / candidates + 2 * rule.m
            cost = nodes + lost * num_queries / last
            k = int(np.argmin(cost))
            best = min(best, (float(cost[k]), start, end, float(candidates[k])))
    _, start, end, radius = best
    if radius == 0:
        return None
    return _grid(points[start], points[end], radius / rule.m, rule.m)


def _grid(least: float, greatest: float, spacing: float, m: int) -> _Grid:
    """The grid over [least, greatest] and m nodes beyond."""
    fraction, exponent = math.frexp(spacing)
    step = math.ldexp(math.floor(math.ldexp(fraction, _STEP_BITS)), exponent - _STEP_BITS)
    first, last = math.floor(least / step) - m, math.ceil(greatest / step) + m
    return _Grid(first, last - first + 1, step)


def _tables(mixtures: _Mixtures, grids: dict[int, _Grid], rule: _Rule) -> dict[int, tf.Tensor]:
    """The polynomials of the intervals of every grid, `[intervals, 6]`; NaN where not certified."""
    eps = float(np.finfo(mixtures.dtype.as_numpy_dtype).eps)
    nodes = {i: grid.nodes() for i, grid in grids.items() if grid.is_exact()}
    radii = {i: rule.m * grid.step for i, grid in grids.items()}
    tables = {}
    for i, moments in mixtures.score(nodes, radii).items():
        log_left_out = mixtures.log_left_out(i, radii[i], nodes[i])
        certified = _eta(moments, log_left_out, rule.m, radii[i], eps) <= rule.max_eta
        table = _quintics(moments, grids[i].step)
        table[~(certified[:-1] | certified[1:])] = math.nan
        tables[i] = tf.constant(table)
    return tables


def _eta(moments: _Moments, log_left_out: _Floats, m: int, radius: float, eps: float) -> _Floats:
    """The bound eta of the module's docstring at every node, infinite at the outermost m."""
    log_prob, precision = moments.log_prob[m:-m], moments.precision[m:-m]
    drift = radius * moments.slope[m:-m]
    right, left = moments.log_widened[2 * m :], moments.log_widened[: -2 * m]
    with np.errstate(over="ignore", invalid="ignore"):
        rounding = 4 * eps * (np.abs(log_prob) + np.abs(drift) + 64)
        inner = np.exp(right - log_prob - drift + rounding + 4 * eps * np.abs(right))
        inner += np.exp(left - log_prob + drift + rounding + 4 * eps * np.abs(left))
        inner += np.exp(log_left_out[m:-m] - log_prob + np.abs(drift)) - 2
        inner -= 0.5 * radius**2 * precision
    return np.pad(np.where(np.isnan(inner), math.inf, inner), m, constant_values=math.inf)


def _quintics(moments: _Moments, step: float) -> _Floats:
    """Coefficients of 1, t, ..., t^5, t in [0, 1], between neighbouring nodes: `[count - 1, 6]`."""
    value, slope, curve = moments.log_prob, step * moments.slope, step**2 * moments.curvature
    with np.errstate(invalid="ignore"):  # nodes so far off that log q is -inf
        rise = value[1:] - value[:-1] - slope[:-1] - 0.5 * curve[:-1]
        slope_rise = slope[1:] - slope[:-1] - curve[:-1]
        curve_rise = curve[1:] - curve[:-1]
    cubic = 10 * rise - 4 * slope_rise + 0.5 * curve_rise
    quartic = -15 * rise + 7 * slope_rise - curve_rise
    quintic = 6 * rise - 3 * slope_rise + 0.5 * curve_rise
    return np.stack([value[:-1], slope[:-1], 0.5 * curve[:-1], cubic, quartic, quintic], axis=-1)


@tf.function(reduce_retracing=True, autograph=False)
def _evaluate(queries: tf.Tensor, first: tf.Tensor, step: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """The spline at queries `[M]`; NaN off the grid."""
    position = tf.cast(queries, tf.float64) / step - tf.cast(first, tf.float64)
    inside = (position >= 0) & (position < tf.cast(tf.shape(table)[0], tf.float64))
    position = tf.where(inside, position, tf.zeros([], tf.float64))
    cell = tf.floor(position)
    t = position - cell
    a = tf.unstack(tf.gather(table, tf.cast(cell, tf.int32)), num=6, axis=-1)  # each [M]
    value = a[0] + t * (a[1] + t * (a[2] + t * (a[3] + t * (a[4] + t * a[5]))))
    return tf.cast(tf.where(inside, value, tf.constant(math.nan, tf.float64)), queries.dtype)
