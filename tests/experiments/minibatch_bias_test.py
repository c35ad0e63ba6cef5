"""Tests of the experiment on minibatch estimates, with tiny settings."""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from experiments import minibatch_bias
from experiments.minibatch_bias import Config
from tests.testing.oracles import gaussian_log_densities, log_prob_and_entropy
from tests.testing.runs import run_command, snapshot, strict_json

CONFIG = Config(
    num_observations=60,
    latent_size=3,
    scales=(1.0, 0.6, 0.001),
    batch_sizes=(4, 60),
    num_draws=480,
    seed=1,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    minibatch_bias.run(CONFIG, folder)
    return folder


def estimates(folder: pathlib.Path, scale: float) -> dict[tuple[str, int], dict[str, Any]]:
    (record,) = [
        record
        for record in strict_json(folder / "results.json")["results"]
        if record["scale"] == scale
    ]
    return {(entry["method"], entry["batch_size"]): entry for entry in record["estimates"]}


def test_leaves_all_its_files(finished: pathlib.Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert files == {
        "config.json",
        "results.json",
        "results.csv",
        "figures/bias.png",
        *(f"scale_{number:02d}.json" for number in range(3)),
    }
    assert (finished / "figures/bias.png").read_bytes().startswith(b"\x89PNG")
    for name in ("config.json", "results.json"):
        content = strict_json(finished / name)
        assert content["config"] == CONFIG.to_dict()
        assert "N = 60 Gaussian posteriors" in content["dataset"]["posteriors"]
        assert "tensorflow" in content["versions"]


def test_collapsed_and_separated_posteriors_have_the_known_biases(finished: pathlib.Path) -> None:
    log_n = math.log(60)
    for (method, size), entry in estimates(finished, 1.0).items():
        bias = -log_n if method == "mws" else 0.0
        assert entry["log_prob_bias"]["value"] == pytest.approx(bias, abs=1e-9)
        assert entry["num_batches"] == {4: 120, 60: 10}[size]
    for (method, size), entry in estimates(finished, 0.001).items():
        bias = {"batch": log_n - math.log(size), "mws": -math.log(size)}.get(method, 0.0)
        assert entry["log_prob_bias"]["value"] == pytest.approx(bias, abs=1e-9)
        assert entry["mutual_information"]["value"] == pytest.approx(entry["ceiling"], abs=1e-9)


def test_overlapping_posteriors_agree_with_a_simulation_in_numpy(finished: pathlib.Path) -> None:
    """The bias of the stratified estimate at B = 4, from other draws and other code."""
    posteriors = minibatch_bias.make_posteriors(CONFIG, 0.6)
    loc, scale = posteriors.mean().numpy(), posteriors.stddev().numpy()
    np.testing.assert_allclose(scale, 0.6)
    rng = np.random.default_rng(9)
    biases = []
    for _ in range(2000):
        chosen = rng.choice(60, 4, replace=False)
        z = loc[chosen] + scale[chosen] * rng.standard_normal((4, 3))
        density = gaussian_log_densities(z, loc, scale)
        own = np.exp(density[np.arange(4), chosen])
        rest = np.exp(density[:, chosen]).sum(axis=-1) - own
        estimate = np.log(own / 60 + 59 / (60 * 3) * rest)
        biases.append(np.mean(estimate - log_prob_and_entropy(density)[0]))
    found = estimates(finished, 0.6)["partially_stratified", 4]["log_prob_bias"]
    error = math.hypot(found["standard_error"], np.std(biases, ddof=1) / math.sqrt(2000))
    assert abs(found["value"] - np.mean(biases)) < 4.5 * error
    assert found["value"] < -4.5 * found["standard_error"]  # a bias, not noise
    # The whole data set has none.
    for method in ("batch", "partially_stratified"):
        whole = estimates(finished, 0.6)[method, 60]["log_prob_bias"]
        assert whole["value"] == pytest.approx(0.0, abs=1e-9)


def test_bias_of_the_information_is_that_of_the_density_negated(finished: pathlib.Path) -> None:
    record = strict_json(finished / "results.json")["results"][1]
    exact = record["mutual_information"]
    assert 0.0 < exact["value"] < record["log_num_observations"]
    for entry in record["estimates"]:
        found = entry["mutual_information"]
        error = math.hypot(exact["standard_error"], found["standard_error"])
        difference = found["value"] - exact["value"] + entry["log_prob_bias"]["value"]
        assert abs(difference) < 4.5 * error


def test_csv_holds_the_same_numbers(finished: pathlib.Path) -> None:
    with (finished / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 4
    for row in rows:
        entry = estimates(finished, float(row["scale"]))[row["method"], int(row["batch_size"])]
        for name in ("log_prob_bias", "mutual_information"):
            assert float(row[name]) == entry[name]["value"]
            assert float(row[f"{name}_standard_error"]) == entry[name]["standard_error"]
        assert float(row["ceiling"]) == entry["ceiling"]


def test_a_finished_or_other_run_is_left_alone(
    finished: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(finished)
    records = minibatch_bias.run(CONFIG, finished)
    assert records == strict_json(finished / "results.json")["results"]
    assert "nothing was changed" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"seed was 1, is 2"):
        minibatch_bias.run(dataclasses.replace(CONFIG, seed=2), finished)
    assert snapshot(finished) == before


def test_a_stopped_run_goes_on_and_equals_the_uninterrupted_one(
    finished: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure = minibatch_bias.measure

    def stop_in_the_second(config: Config, aggregate: Any, number: int, position: int) -> Any:
        if (number, position) == (1, 1):
            raise KeyboardInterrupt
        return measure(config, aggregate, number, position)

    with monkeypatch.context() as patched:
        patched.setattr(minibatch_bias, "measure", stop_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            minibatch_bias.run(CONFIG, tmp_path)
    assert not (tmp_path / "results.json").exists()
    before = (tmp_path / "scale_00.json").stat().st_mtime_ns
    minibatch_bias.run(CONFIG, tmp_path)
    assert "scale 1: done before" in capsys.readouterr().out
    assert (tmp_path / "scale_00.json").stat().st_mtime_ns == before
    name = "results.json"
    assert strict_json(tmp_path / name) == strict_json(finished / name)


def test_the_flags_are_the_settings(
    finished: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(
        minibatch_bias,
        f"--workdir={finished}", "--num_observations=60", "--latent_size=3",
        "--scales=1,0.6,0.001", "--batch_sizes=4,60", "--num_draws=480", "--seed=1",
    ) == 0  # fmt: skip
    assert "nothing was changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--scales=1,x", "--scales takes numbers"),
        ("--scales=0", "--scales must be positive, got 0"),
        ("--scales=1.1", "--scales must be at most 1, got 1.1"),
        ("--scales=", "--scales must name at least one"),
        ("--batch_sizes=4,4", "--batch_sizes names one twice"),
        ("--batch_sizes=1", "--batch_sizes must be at least 2"),
        ("--batch_sizes=5000", "at most --num_observations=4096"),
        ("--num_draws=0", "--num_draws must be at least 1"),
        ("--seed=-1", "--seed must be at least 0"),
    ],
)
def test_wrong_input_is_one_message_before_the_work(
    argument: str, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run_command(minibatch_bias, f"--workdir={folder}", argument) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("results.json", '{"results": []}'), ("results.json", "{"), ("scale_00.json", "{}")],
)
def test_a_damaged_file_is_named(
    name: str,
    content: str,
    finished: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        minibatch_bias.run(CONFIG, tmp_path)
