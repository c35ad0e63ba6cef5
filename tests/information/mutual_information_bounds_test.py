from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

from tests.testing import oracles
from tfp_surgery.components import components as components_lib
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate
from tfp_surgery.information import mutual_information_bounds as bounds_lib
from tfp_surgery.information.contrastive_bounds import contrastive_bounds, jensen_shannon_ceiling
from tfp_surgery.information.mutual_information_bounds import (
    MutualInformationBounds,
    mutual_information_bounds,
)
from tfp_surgery.measurement.bound import Bound, batch_estimate

tfd = tfp.distributions

_STANDARD_ERRORS = 4.5


def _estimates(bounds: MutualInformationBounds) -> dict[str, Estimate]:
    fields = {field.name: getattr(bounds, field.name) for field in dataclasses.fields(bounds)}
    found = {name: value.estimate for name, value in fields.items() if isinstance(value, Bound)}
    return {
        **found,
        **{name: value for name, value in fields.items() if isinstance(value, Estimate)},
    }


def _aggregate(loc: np.ndarray, scale: np.ndarray) -> AggregatePosterior:
    return AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale))


class _Enumeration:
    """Expectations over every batch and by quadrature over every code, in one dimension."""

    def __init__(self, loc: np.ndarray, scale: np.ndarray) -> None:
        nodes = np.linspace(-12, 12, 4001)
        self.weights = stats.norm.pdf(nodes) * (nodes[1] - nodes[0])
        self.z = loc + scale * nodes  # [N, T]: nodes of each posterior
        # log q(z|x_j) at the nodes of posterior i, [N, T, N]
        self.scores = stats.norm.logpdf(self.z[..., None], loc[:, 0], scale[:, 0])
        self.own = stats.norm.logpdf(nodes) - np.log(scale)  # [N, T]
        self.num = len(loc)

    def _mean(self, values: np.ndarray) -> float:
        """1/N sum_i E_q(z|x_i) of values `[N, T]`."""
        return float((values @ self.weights).mean())

    def _mixture(self, members: tuple[int, ...], i: int) -> np.ndarray:
        scores = self.scores[i][:, list(members)]
        return np.asarray(special.logsumexp(scores, axis=1) - math.log(len(members)))

    @property
    def log_aggregate(self) -> np.ndarray:
        return np.stack([self._mixture(tuple(range(self.num)), i) for i in range(self.num)])

    def terms(self, batch_size: int) -> dict[str, float]:
        batches = list(itertools.combinations(range(self.num), batch_size))
        info_nce = leave_one_out = batch_information = 0.0
        for batch in batches:
            for i in batch:
                weights = self.weights / (len(batches) * batch_size)
                mixture = self._mixture(batch, i)
                rest = self._mixture(tuple(j for j in batch if j != i), i)
                info_nce += (self.own[i] - mixture) @ weights
                leave_one_out += (self.own[i] - rest) @ weights
                batch_information += (mixture - self.log_aggregate[i]) @ weights
        ratios = self.own - self.log_aggregate
        softplus = np.logaddexp(0, self.scores - self.log_aggregate[..., None]).mean(axis=-1)
        return {
            "index_code_mutual_information": self._mean(ratios),
            "info_nce": info_nce,
            "leave_one_out": leave_one_out,
            "batch_information": batch_information,
            "nguyen_wainwright_jordan": self._mean(ratios),
            "jensen_shannon": (math.log(2) - 0.5 * self._mean(np.logaddexp(0, -ratios) + softplus)),
            "barber_agakov": self._mean(self.own - stats.norm.logpdf(self.z)),
            "aggregate_entropy": -self._mean(self.log_aggregate),
            "conditional_entropy": -self._mean(self.own),
        }


@pytest.mark.parametrize("case", oracles.CASES)
@pytest.mark.parametrize("batch_size", [2, 4, 6])
def test_expectations_agree_with_enumeration_and_bound_the_truth(
    case: str, batch_size: int
) -> None:
    loc, scale = oracles.gaussian_case(case, 6, 1, seed=1)
    truth = _Enumeration(loc, scale).terms(batch_size)
    information = truth["index_code_mutual_information"]
    # What the docstring says of the expectations, exactly.
    assert truth["info_nce"] == pytest.approx(information - truth["batch_information"], abs=1e-9)
    assert truth["info_nce"] <= information + 1e-9
    assert truth["leave_one_out"] >= information * 6 / 5 - 1e-9
    assert truth["barber_agakov"] >= information - 1e-9

    bounds = mutual_information_bounds(
        _aggregate(loc, scale),
        batch_size=batch_size,
        num_batches=600,
        seed=5,
        prior=tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1)),
    )
    estimates = _estimates(bounds)
    assert set(estimates) == set(truth) - {"batch_information"}
    for name, estimate in estimates.items():
        tolerance = _STANDARD_ERRORS * estimate.standard_error + 1e-9
        assert abs(estimate.value - truth[name]) <= tolerance, (name, estimate, truth[name])
        assert estimate.num_draws == 600 * batch_size


def test_collapsed_posteriors_have_no_information() -> None:
    bounds = mutual_information_bounds(
        _aggregate(*oracles.gaussian_case("collapsed", 50, 3)),
        batch_size=10,
        num_batches=20,
        prior=tfd.MultivariateNormalDiag(np.zeros(3), np.ones(3)),
    )
    for name, estimate in _estimates(bounds).items():
        if not name.endswith("entropy"):
            assert estimate.value == pytest.approx(0.0, abs=1e-12), name
    assert bounds.ceilings_reached == ()


def test_separated_posteriors_reach_every_ceiling() -> None:
    bounds = mutual_information_bounds(
        _aggregate(*oracles.gaussian_case("separated", 200, 3)), batch_size=16, num_batches=20
    )
    assert bounds.info_nce.estimate.value == pytest.approx(math.log(16), abs=1e-9)
    for bound in (bounds.index_code_mutual_information, bounds.nguyen_wainwright_jordan):
        assert bound.estimate.value == pytest.approx(math.log(200), abs=1e-9)
    assert bounds.jensen_shannon.estimate.value == pytest.approx(jensen_shannon_ceiling(200))
    assert bounds.leave_one_out is not None
    assert bounds.leave_one_out.estimate.value > 100
    assert bounds.ceilings_reached == (
        "index_code_mutual_information",
        "info_nce",
        "nguyen_wainwright_jordan",
        "jensen_shannon",
    )
    assert str(bounds).count("REACHED") == 4


def test_a_small_batch_reaches_its_ceiling_before_the_data_set_does() -> None:
    # Pairs of posteriors that coincide, the pairs far apart: I(n; z) = log(N / 2).
    loc = np.repeat(np.arange(100.0), 2)[:, None]
    bounds = mutual_information_bounds(
        _aggregate(loc, np.full([200, 1], 0.01)), batch_size=4, num_batches=50
    )
    assert bounds.index_code_mutual_information.estimate.value == pytest.approx(math.log(100))
    assert bounds.info_nce.estimate.value == pytest.approx(math.log(4), rel=0.01)
    assert bounds.info_nce.at_ceiling
    assert not bounds.index_code_mutual_information.at_ceiling


def test_overlapping_posteriors_reach_no_ceiling() -> None:
    bounds = mutual_information_bounds(
        _aggregate(*oracles.gaussian_case("overlapping", 200, 2)), batch_size=32, num_batches=50
    )
    assert bounds.ceilings_reached == ()
    assert "REACHED" not in str(bounds)


def test_distinct_pairs_alone_put_nwj_a_nat_above_the_information() -> None:
    """The off-diagonal scores of TFP are no sample of q(n) q(z) for a finite data set."""
    loc, scale = oracles.gaussian_case("separated", 10, 1)
    scores = oracles.gaussian_log_densities(loc, loc, scale)
    ratios = scores - oracles.log_prob_and_entropy(scores)[0][:, None]
    plain = tfp.vi.mutual_information.lower_bound_nguyen_wainwright_jordan(1.0 + ratios)
    assert float(plain) == pytest.approx(math.log(10) + 1.0)
    bounds = mutual_information_bounds(_aggregate(loc, scale), batch_size=10, num_batches=2)
    assert bounds.nguyen_wainwright_jordan.estimate.value == pytest.approx(math.log(10))


def test_bounds_of_held_out_data_enclose_the_information_of_the_population() -> None:
    # x ~ N(0, 1) and z|x ~ N(x, s^2) in each of two dimensions: I(X; Z) = log(1 + 1 / s^2).
    scale, batch_size, num_batches = 0.5, 16, 100
    information = math.log1p(1 / scale**2)
    rng = np.random.default_rng(7)
    x = rng.normal(size=(10000, 2))
    # The observations are a sample of their own: at most this adds to the variance of 1600 draws.
    inflation = math.sqrt(1 + batch_size * num_batches / len(x))
    bounds = mutual_information_bounds(
        _aggregate(x, np.full(x.shape, scale)),
        batch_size=batch_size,
        num_batches=num_batches,
        seed=3,
        prior=tfd.MultivariateNormalDiag(np.zeros(2), math.sqrt(1 + scale**2) * np.ones(2)),
    )
    assert bounds.leave_one_out is not None
    assert bounds.barber_agakov is not None
    # Fresh batches of the population in NumPy.
    x = rng.normal(size=(1000, batch_size, 2))
    z = x + scale * rng.normal(size=x.shape)
    scores = stats.norm.logpdf(z[:, :, None], x[:, None], scale).sum(-1)  # [K, B, B]
    own = np.diagonal(scores, axis1=1, axis2=2)
    masked = scores - np.where(np.eye(batch_size, dtype=bool), np.inf, 0.0)
    fresh = {
        "info_nce": own - special.logsumexp(scores, -1) + math.log(batch_size),
        "leave_one_out": own - special.logsumexp(masked, -1) + math.log(batch_size - 1),
    }
    for name, values in fresh.items():
        expected = batch_estimate(values.mean(axis=1), batch_size)
        estimate = getattr(bounds, name).estimate
        error = math.hypot(inflation * estimate.standard_error, expected.standard_error)
        assert abs(estimate.value - expected.value) <= _STANDARD_ERRORS * error, name
    lower, upper = bounds.info_nce.estimate, bounds.leave_one_out.estimate
    multiple = _STANDARD_ERRORS * inflation
    assert lower.value + multiple * lower.standard_error < information
    assert upper.value - multiple * upper.standard_error > information
    rate = bounds.barber_agakov.estimate
    assert abs(rate.value - information) <= multiple * rate.standard_error


def test_float32_posteriors_and_whole_data_batches() -> None:
    loc, scale = oracles.gaussian_case("overlapping", 30, 2)
    posteriors = tfd.MultivariateNormalDiag(loc.astype(np.float32), scale.astype(np.float32))
    bounds = mutual_information_bounds(AggregatePosterior(posteriors), batch_size=30, num_batches=5)
    # At B = N InfoNCE and the index-code mutual information are one average.
    assert bounds.info_nce.estimate.value == pytest.approx(
        bounds.index_code_mutual_information.estimate.value, abs=1e-5
    )


def test_the_same_seed_gives_the_same_result() -> None:
    aggregate = _aggregate(*oracles.gaussian_case("overlapping", 30, 2))
    first, second, other = (
        mutual_information_bounds(aggregate, batch_size=5, num_batches=3, seed=seed).to_dict()
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first["info_nce"]["value"] != other["info_nce"]["value"]


@pytest.mark.parametrize("block", [1, 60])
def test_blocks_of_posteriors_change_nothing_but_rounding(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a family without a kernel of its own, a batch or some batches at a time."""
    loc, scale = oracles.gaussian_case("overlapping", 12, 2)
    q_z = AggregatePosterior(tfd.Independent(tfd.Logistic(loc, scale), 1))
    together = _estimates(mutual_information_bounds(q_z, batch_size=6, num_batches=9))
    monkeypatch.setattr(bounds_lib, "_BLOCK_ELEMENTS", block)
    apart = _estimates(mutual_information_bounds(q_z, batch_size=6, num_batches=9))
    assert set(together) == set(apart)
    for name, estimate in together.items():
        assert apart[name].value == pytest.approx(estimate.value, rel=1e-12), name


def test_absent_bounds_give_their_reason_and_the_record_is_strict_json() -> None:
    posteriors = tfd.Independent(
        tfd.Uniform(np.arange(4.0)[:, None], np.arange(4.0)[:, None] + 0.5), 1
    )
    bounds = mutual_information_bounds(AggregatePosterior(posteriors), batch_size=2, num_batches=3)
    assert bounds.leave_one_out is None
    assert bounds.barber_agakov is None
    record = json.loads(json.dumps(bounds.to_dict(), allow_nan=False))
    assert record["leave_one_out"] is None
    assert "infinite" in record["absent"]["leave_one_out"]
    assert record["absent"]["barber_agakov"] == "no prior was given"
    assert record["info_nce"]["at_ceiling"] is True
    assert record["ceilings_reached"][1] == "info_nce"
    assert "absent: no prior was given" in str(bounds)
    assert "log N = 1.3863" in str(bounds)


@pytest.mark.parametrize("case", oracles.CASES)
def test_what_a_tolerance_leaves_out_is_in_the_errors(case: str) -> None:
    loc, scale = oracles.gaussian_case(case, 400, 2)
    q_z = AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale))
    exact, loose = (
        mutual_information_bounds(q_z, batch_size=8, num_batches=5, seed=4, tolerance=tolerance)
        for tolerance in (None, 0.05)
    )
    for name in ("index_code_mutual_information", "nguyen_wainwright_jordan", "jensen_shannon"):
        found, expected = getattr(loose, name).estimate, getattr(exact, name).estimate
        assert abs(found.value - expected.value) <= 0.1
        assert found.standard_error >= max(0.05, expected.standard_error)
    assert abs(loose.aggregate_entropy.value - exact.aggregate_entropy.value) <= 0.05
    assert loose.aggregate_entropy.standard_error >= 0.05
    # These two know nothing of log q(z).
    assert loose.info_nce.estimate.value == pytest.approx(exact.info_nce.estimate.value, abs=1e-9)
    assert loose.info_nce.estimate.standard_error == pytest.approx(
        exact.info_nce.estimate.standard_error, rel=1e-6, abs=1e-12
    )


_LOC, _SCALE = oracles.gaussian_case("overlapping", 10, 2)


@pytest.mark.parametrize(
    ("aggregate", "options", "error", "message"),
    [
        (tfd.Normal(0.0, 1.0), {}, TypeError, "must be an AggregatePosterior"),
        (_aggregate(_LOC, _SCALE), {"batch_size": 11}, ValueError, "batch_size must be"),
        (_aggregate(_LOC, _SCALE), {"batch_size": 1}, ValueError, "batch_size must be"),
        (_aggregate(_LOC, _SCALE), {"batch_size": 2.0}, TypeError, "batch_size must be"),
        (_aggregate(_LOC, _SCALE), {"num_batches": 1}, ValueError, "num_batches must be"),
        (_aggregate(_LOC, _SCALE), {"seed": -1}, ValueError, "seed must be"),
        (_aggregate(_LOC[:1], _SCALE[:1]), {}, ValueError, "at least two components"),
        (
            AggregatePosterior(tfd.MultivariateNormalDiag(_LOC, _SCALE), weights=np.ones(10)),
            {},
            ValueError,
            "weight its components equally",
        ),
        (
            AggregatePosterior(tfd.MultivariateNormalDiag(_LOC[None], _SCALE[None])),
            {},
            ValueError,
            "batch shape",
        ),
        (
            _aggregate(_LOC, _SCALE),
            {"prior": tfd.MultivariateNormalDiag(np.zeros(3), np.ones(3))},
            ValueError,
            "codes of shape",
        ),
        (_aggregate(_LOC, _SCALE), {"prior": 3}, TypeError, "prior must be"),
        (_aggregate(_LOC * np.nan, _SCALE), {}, ValueError, "not finite"),
    ],
)
def test_bad_input_is_refused(
    aggregate: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mutual_information_bounds(aggregate, **{"batch_size": 5, "num_batches": 2, **options})


class _NanElsewhere(tfd.Normal):
    """A density that is NaN more than five scales from its centre."""

    def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
        near = tf.abs(z - self.loc) < 5 * self.scale
        return tf.where(near, super()._log_prob(z), tf.constant(np.nan, z.dtype))


def test_a_density_that_is_nan_at_the_codes_of_others_is_refused() -> None:
    aggregate = AggregatePosterior(_NanElsewhere(np.arange(4.0) * 100, np.ones(4)))
    with pytest.raises(ValueError, match="is not finite"):
        mutual_information_bounds(aggregate, batch_size=2, num_batches=2)


@pytest.mark.slow
def test_intervals_cover_the_expectations_of_the_bounds() -> None:
    """400 results of 40 batches each; a coverage has a standard error of 1.1 per cent."""
    results, per_result, batch_size = 400, 40, 4
    loc, scale = oracles.gaussian_case("overlapping", 6, 1, seed=1)
    truth = _Enumeration(loc, scale).terms(batch_size)
    rng = np.random.default_rng(0)
    batches = np.stack(
        [rng.permutation(6)[:batch_size] for _ in range(results * per_result)]
    ).astype(np.int32)
    z = loc[batches] + scale[batches] * rng.normal(size=(*batches.shape, 1))
    posteriors = components_lib.broadcast(tfd.MultivariateNormalDiag(loc, scale))
    scores = stats.norm.logpdf(z, loc[:, 0], scale[:, 0])  # [K, B, N]
    log_aggregate = special.logsumexp(scores, axis=-1) - math.log(6)
    values = contrastive_bounds(posteriors, batches, tf.constant(z), log_aggregate)
    own = stats.norm.logpdf(z[..., 0], loc[batches, 0], scale[batches, 0])
    values["index_code_mutual_information"] = (own - log_aggregate).mean(axis=1)
    values["barber_agakov"] = (own - stats.norm.logpdf(z[..., 0])).mean(axis=1)
    for name, batch_values in values.items():
        covered = []
        for result in batch_values.reshape(results, per_result):
            low, high = batch_estimate(result, batch_size).interval()
            covered.append(low <= truth[name] <= high)
        # The interval is the normal one; with 40 batches Student's would cover 0.943.
        tolerance = _STANDARD_ERRORS * math.sqrt(0.95 * 0.05 / results)
        assert abs(np.mean(covered) - 0.95) <= tolerance, (name, np.mean(covered))
