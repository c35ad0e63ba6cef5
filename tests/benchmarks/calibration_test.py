from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from scipy import stats

from benchmarks import calibration as calibration_lib
from benchmarks import calibration_cases as cases
from benchmarks import calibration_references as references
from benchmarks.calibration_measurements import MEASUREMENTS, Measurement
from benchmarks.calibration_page import markdown
from benchmarks.calibration_setting import Calibrated, Setting
from benchmarks.calibration_statistics import (
    Truth,
    calibration,
    coverage_range,
    estimates_of,
    mean_over_seeds,
    no_truth,
    verdict_of,
)
from experiments.common import workdir
from tests.testing import oracles
from tfp_surgery.estimate import Estimate
from tfp_surgery.measurement.bound import Bound

STANDARD_ERRORS = 4.5
NUM = 12


def made_up(num: int, error: float, claimed: float, off: float = 0.0) -> list[Estimate]:
    """Estimates of 3.0 with a normal error of `error`, of which they claim `claimed`."""
    values = 3.0 + off + error * np.random.default_rng(0).normal(size=num)
    return [Estimate(float(value), claimed, 100, 9.0) for value in values]


def test_coverage_bias_and_ratio_of_numbers_that_are_known() -> None:
    estimates = made_up(400, 0.2, 0.1, off=0.05)
    row = calibration(estimates, Truth(3.0, 0.003, "given"))
    values = np.array([estimate.value for estimate in estimates])
    off = np.abs(values - 3.0)
    assert row["coverage"] == np.mean(off <= stats.t.ppf(0.975, 9.0) * 0.1)
    assert row["bias"] == pytest.approx((values.mean() - 3.0) / 0.1)
    of_mean = np.hypot(values.std(ddof=1) / 20.0, 0.003)
    assert row["bias_error"] == pytest.approx(of_mean / 0.1)
    assert row["ratio"] == pytest.approx(0.1 / values.std(ddof=1))
    assert row["largest_error"] == pytest.approx(off.max())
    assert (row["num_seeds"], row["truth_how"]) == (400, "given")
    assert row["verdict"] == "coverage, bias"


def test_intervals_that_are_right_are_found_good_and_biased_ones_not() -> None:
    truth = Truth(3.0, 0.0, "given")
    assert calibration(made_up(500, 0.1, 0.1), truth)["verdict"] == "good"
    row = calibration(made_up(500, 0.1, 0.1, off=0.03), truth)
    assert "bias" in row["verdict"]
    rough = calibration(made_up(500, 0.1, 0.1), Truth(3.0, 0.01, "given"))
    assert rough["verdict"] == "truth"


def test_errors_that_are_no_matter_of_sampling_have_words_of_their_own() -> None:
    truth = Truth(3.0, 0.0, "given")
    verdicts = {
        "exact": [Estimate(3.0 + 1e-7, 0.0, 0)] * 30,
        "not exact": [Estimate(3.1, 0.0, 0)] * 30,
        "rounding": [Estimate(3.0 + 1e-8, 1e-8, 100)] * 30,
        "bound": [Estimate(3.0 + 1e-4, 1e-3, 100)] * 30,
        "standard error unknown": [Estimate(3.0, math.nan, 100)] * 30,
    }
    for verdict, estimates in verdicts.items():
        assert calibration(estimates, truth)["verdict"] == verdict
    row = calibration([Estimate(3.0, 0.1, 5)], no_truth("for a reason"))
    assert (row["verdict"], row["truth_how"], row["truth"]) == ("no truth", "for a reason", None)


def test_a_mean_over_seeds_tells_no_bias() -> None:
    estimates = made_up(500, 0.1, 0.1, off=7.0)
    row = calibration(estimates, mean_over_seeds(estimates))
    assert (row["bias"], row["bias_error"], row["verdict"]) == (None, None, "good")
    assert row["truth"] == pytest.approx(10.0, abs=0.05)


def test_the_range_of_the_coverage_is_that_of_the_issue_for_500_seeds() -> None:
    assert coverage_range(500) == pytest.approx((0.91, 0.99), abs=0.002)
    low, high = coverage_range(100)
    assert low == pytest.approx(0.95 - 4 * math.sqrt(0.95 * 0.05 / 100))
    assert high == 1.0
    assert (
        verdict_of(
            {
                "truth": 1.0,
                "mean_standard_error": 0.1,
                "largest_error": 1.0,
                "num_seeds": 500,
                "coverage": 0.9,
                "bias": 0.5,
                "bias_error": 0.05,
                "truth_error": 0.0,
            }
        )
        == "coverage, bias"
    )


@dataclasses.dataclass(frozen=True)
class _Result:
    _derived = ("derived",)

    term: Estimate
    bound: Bound
    parts: Mapping[str, tuple[Estimate, ...]]
    nothing: None
    text: str

    @property
    def derived(self) -> Estimate:
        return Estimate(9.0, 0.1, 1)


def test_every_estimate_of_a_result_is_found_by_its_name() -> None:
    one, other = Estimate(1.0, 0.1, 1), Estimate(2.0, 0.1, 1)
    result = _Result(one, Bound(other, "lower", "I", "none"), {"a": (one, other)}, None, "x")
    found = estimates_of({"result": result})
    assert {name: estimate.value for name, estimate in found.items()} == {
        "result.term": 1.0,
        "result.bound": 2.0,
        "result.parts.a[0]": 1.0,
        "result.parts.a[1]": 2.0,
        "result.derived": 9.0,
    }


@pytest.mark.parametrize("regime", cases.REGIMES)
def test_references_agree_with_closed_forms_and_with_plain_draws(regime: str) -> None:
    case = cases.case(regime, NUM)
    means = references.code_expectations(case)
    divergence = references.average_kl(case.loc, case.scale**2)
    assert references.truth_of(means, "+own", "-prior").value == pytest.approx(divergence)
    reconstruction = references.average_reconstruction(case, case.loc, case.scale**2)
    found = references.truth_of(means, "+reconstruction")
    assert abs(found.value - reconstruction) < STANDARD_ERRORS * found.standard_error
    # Shared draws of every posterior, scored by SciPy.
    noise = np.random.default_rng(1).normal(size=[2000, NUM, cases.LATENT_SIZE])
    z = (case.loc + case.scale * noise).reshape(-1, cases.LATENT_SIZE)
    scores = oracles.gaussian_log_densities(z, case.loc, case.scale)
    aggregate, entropy = oracles.log_prob_and_entropy(scores)
    own = scores[np.arange(len(z)), np.tile(np.arange(NUM), 2000)]
    given = case.condition[np.tile(np.arange(NUM), 2000)]
    of_condition = np.select(
        [given == value for value in range(3)],
        [oracles.log_prob_and_entropy(scores[:, case.condition == value])[0] for value in range(3)],
    )
    plain = {
        ("+own", "-aggregate"): own - aggregate,
        ("+index_entropy",): entropy,
        ("+own", "-given"): own - of_condition,
        ("+softplus_all",): np.logaddexp(0.0, scores - aggregate[:, None]).mean(axis=1),
    }
    for terms, values in plain.items():
        expected = references.truth_of(means, *terms)
        repeats = values.reshape(2000, NUM).mean(axis=1)
        error = math.hypot(repeats.std(ddof=1) / math.sqrt(2000), expected.standard_error)
        assert abs(repeats.mean() - expected.value) <= STANDARD_ERRORS * error + 1e-9


def test_references_of_batches_agree_with_batches_drawn_one_by_one() -> None:
    case, size = cases.case("overlapping", NUM), 5
    rng = np.random.default_rng(2)
    others = size - 1
    found: dict[str, list[float]] = {"info_nce": [], "leave_one_out": [], "gap": []}
    for _ in range(2000):
        batch = rng.permutation(NUM)[:size]
        z = case.loc[batch] + case.scale[batch] * rng.normal(size=[size, cases.LATENT_SIZE])
        scores = oracles.gaussian_log_densities(z, case.loc, case.scale)
        aggregate = np.log(np.exp(scores).mean(axis=1))
        densities = np.exp(scores[:, batch])
        off = densities - np.diag(np.diag(densities))
        weights = np.full([size, size], 1.0 / others)
        for b in range(size):
            weights[b, (b + 1) % size] = (NUM - others) / (NUM * others)
            weights[b, b] = 1.0 / NUM
        found["info_nce"].append((aggregate - np.log(densities.mean(axis=1))).mean())
        found["leave_one_out"].append((aggregate - np.log(off.sum(axis=1) / others)).mean())
        found["gap"].append((aggregate - np.log((weights * densities).sum(axis=1))).mean())
    expected = {
        **references.contrastive_gaps(case, size, num_repeats=1000),
        "gap": references.stratified_gap(case, size, num_repeats=1000),
    }
    for name, values in found.items():
        error = math.hypot(np.std(values) / math.sqrt(2000), expected[name].standard_error)
        assert abs(np.mean(values) - expected[name].value) < STANDARD_ERRORS * error


@pytest.mark.parametrize("regime", cases.REGIMES)
def test_expectations_over_the_population_are_means_over_many_observations(regime: str) -> None:
    parts = [cases.case(regime, 2000, seed) for seed in range(30)]
    reconstructions, divergences = np.transpose(
        [
            (
                references.average_reconstruction(part, part.loc, part.scale**2),
                references.average_kl(part.loc, part.scale**2),
            )
            for part in parts
        ]
    )
    for values, expected in zip(
        (reconstructions, divergences), cases.population_expectations(regime), strict=True
    ):
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert abs(values.mean() - expected) < STANDARD_ERRORS * error


def run_main(*arguments: str) -> int:
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    calibration_lib.define_flags(values)
    return calibration_lib.main(values(["calibration.py", *arguments]), values)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_lib, "_pool", concurrent.futures.ThreadPoolExecutor)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A measurement that raises in the regime that is put in here."""
    regimes: dict[str, str] = {}

    def run(setting: Setting, _: Mapping[str, np.ndarray]) -> Calibrated:
        if setting.regime == regimes.get("regime"):
            raise ValueError("as it was told to")
        estimates = made_up(setting.num_seeds, 0.1, 0.1)
        return Calibrated({"term": estimates}, {"term": Truth(3.0, 0.0, "given")})

    monkeypatch.setitem(MEASUREMENTS, "made_up", Measurement("made_up()", run))
    return regimes


@pytest.mark.usefixtures("in_this_process")
def test_a_run_goes_on_where_it_was_stopped_and_is_never_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: dict[str, str]
) -> None:
    folder, page = tmp_path / "run", tmp_path / "calibration.md"
    command = (
        f"--workdir={folder}",
        f"--page={page}",
        "--measurements=made_up",
        "--regimes=collapsed,separated",
        "--num_seeds=300",
        f"--num_observations={NUM}",
        "--num_query=5",
        "--processes=1",
    )
    fails["regime"] = "separated"
    assert run_main(*command) == 1
    assert "as it was told to" in capsys.readouterr().err
    assert not (folder / "results.json").exists()
    first = folder / "made_up_collapsed_all.json"
    made = first.stat().st_mtime_ns
    fails.clear()
    assert run_main(*command) == 0
    assert "1 parts were done before" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == made
    rows = workdir.read_json(folder / "results.json")["rows"]
    assert [row["regime"] for row in rows] == ["collapsed", "separated"]
    assert all(row["verdict"] == "good" for row in rows)
    text = page.read_text(encoding="utf-8")
    assert text == (folder / "report.md").read_text(encoding="utf-8")
    assert "| `term` | all | given |" in text
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run_main(*command) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert run_main(*command, "--num_seeds=20") == 1
    assert "num_seeds was 300, is 20" in capsys.readouterr().err


def test_an_estimate_without_a_truth_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(setting: Setting, _: Mapping[str, np.ndarray]) -> Calibrated:
        return Calibrated({"new_field": made_up(setting.num_seeds, 0.1, 0.1)}, {})

    monkeypatch.setitem(MEASUREMENTS, "made_up", Measurement("made_up()", run))
    np.savez(tmp_path / "references_collapsed.npz", own=np.zeros(3))
    part = calibration_lib.Part("made_up", Setting("collapsed", NUM, None, 5))
    with pytest.raises(ValueError, match="estimates without a truth: new_field"):
        calibration_lib.record_of(tmp_path, part)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measurements=elbo"], "--measurements takes some of elbo_surgery"),
        (["--regimes="], "got none"),
        (["--num_seeds=1"], "--num_seeds must be at least 2"),
        (["--num_query=200"], "--num_query=200 must be less than --num_observations=200"),
        (["--processes=0"], "--processes must be at least 1"),
    ],
)
def test_settings_that_do_not_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run_main(f"--workdir={folder}", *arguments) == 1
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_the_page_names_what_is_out_of_range() -> None:
    heading = {"measurement": "elbo_surgery", "regime": "collapsed", "num_query": 60}
    row = calibration(made_up(500, 0.2, 0.1), Truth(3.0, 0.0, "given"))
    config = {
        "measurements": ["elbo_surgery"],
        "regimes": ["collapsed"],
        "num_seeds": 500,
        "num_dear_seeds": 100,
        "num_observations": 200,
        "num_query": 60,
    }
    results: dict[str, Any] = {
        "command": "python -m benchmarks.calibration",
        "date": "2026-01-01",
        "versions": {"python": "3"},
        "config": config,
        "cpu_seconds": {"part": 60.0},
        "rows": [{**heading, "estimate": "never_explained", **row}],
    }
    text = markdown(results)
    assert "NOT EXPLAINED" in text
    assert "`never_explained`, collapsed, 60: coverage" in text


@functools.cache
def _means(regime: str) -> dict[str, np.ndarray]:
    return references.code_expectations(cases.case(regime, 200))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "regime", "num_query", "num_seeds"),
    [
        ("elbo_surgery", "overlapping", 60, 100),
        ("from_log_probs", "overlapping", None, 200),
        ("marginal_kl_split", "overlapping", None, 100),
        ("importance_weighted_elbo", "overlapping", None, 200),
        ("from_log_probs", "separated", 60, 200),
        ("bidirectional_monte_carlo", "collapsed", None, 100),
    ],
)
def test_intervals_cover_and_unbiased_estimates_are(
    name: str, regime: str, num_query: int | None, num_seeds: int
) -> None:
    """A part of the report, whose coverage is 95% within 4.5 binomial standard errors."""
    found = MEASUREMENTS[name].run(Setting(regime, 200, num_query, num_seeds), _means(regime))
    width = STANDARD_ERRORS * math.sqrt(0.95 * 0.05 / num_seeds)
    assert found.estimates
    for estimate, values in found.estimates.items():
        row = calibration(values, found.truths[estimate])
        if row["verdict"] in ("exact", "rounding", "bound", "no truth"):
            continue
        assert row["coverage"] >= 0.95 - width, (estimate, row)
        if row["bias"] is not None:
            assert abs(row["bias"]) < STANDARD_ERRORS * row["bias_error"], (estimate, row)
        assert abs(math.log(row["ratio"])) < STANDARD_ERRORS * math.sqrt(2.0 / num_seeds), estimate
