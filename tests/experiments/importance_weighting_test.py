"""Tests of the ladder of bounds, on the bundled digits and in seconds."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import pathlib
from typing import Any

import pytest

from experiments import importance_weighting
from experiments.common.config import Config as TrainingConfig
from experiments.common.trained_model import load_trained_models
from experiments.importance_weighting import Config
from tests.testing.runs import error_line, run_command, snapshot, trained_run
from tfp_surgery.evidence.importance_weighted_elbo import importance_weighted_elbo

TRAINING = TrainingConfig(
    dataset="digits",
    latent_sizes=(2,),
    binarization="fixed",
    epochs=3,
    batch_size=250,
    learning_rate=1e-2,
    hidden_sizes=(16,),
    num_samples=2,
    seed=1,
    training_seeds=(0, 3),
)
STANDARD_ERRORS = 4.5


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return trained_run(tmp_path_factory.mktemp("runs") / "trained", TRAINING)


@pytest.fixture(scope="module")
def config(trained: pathlib.Path) -> Config:
    return Config(
        run=str(trained),
        latent_size=2,
        num_images=20,
        num_importance_samples=(1, 5, 50),
        num_draws=500,
        seed=2,
    )


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runs") / "ladder"
    importance_weighting.run(config, folder)
    return folder


def records_of(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The records without what differs from run to run: the time."""
    records = json.loads((folder / "results.json").read_text())["results"]
    return [
        {name: part for name, part in record.items() if name != "seconds"} for record in records
    ]


def test_leaves_its_files(finished: pathlib.Path, config: Config) -> None:
    assert {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()} == {
        "config.json",
        "results.json",
        "results.csv",
        "summary.csv",
        *(f"figures/training_seed_{k}/ladder.png" for k in (0, 3)),
        *(
            f"training_seed_{k}/importance_samples_{m:06d}.json"
            for k in (0, 3)
            for m in config.num_importance_samples
        ),
    }
    figure = finished / "figures" / "training_seed_3" / "ladder.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    results = json.loads((finished / "results.json").read_text())
    assert results["config"] == config.to_dict()
    assert results["versions"]["keras"]
    assert results["data"].startswith("20 random images of digits/test, N = 297, binarization")


def test_the_rungs_rise(finished: pathlib.Path) -> None:
    records = records_of(finished)
    assert [record["training_seed"] for record in records] == [0, 0, 0, 3, 3, 3]
    for own in (records[:3], records[3:]):
        assert [record["num_importance_samples"] for record in own] == [1, 5, 50]
        assert [record["num_samples"] for record in own] == [500, 100, 10]
        estimates = [record["importance_weighted_elbo"] for record in own]
        for lower, upper in itertools.pairwise(estimates):
            error = math.hypot(lower["standard_error"], upper["standard_error"])
            assert upper["value"] - lower["value"] > STANDARD_ERRORS * error


def test_the_summary_is_of_both_training_runs(finished: pathlib.Path) -> None:
    records = records_of(finished)
    with (finished / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["num_importance_samples"] for row in rows] == ["1", "5", "50"]
    for number, row in enumerate(rows):
        a, b = (records[place]["importance_weighted_elbo"] for place in (number, number + 3))
        assert row["quantity"] == "importance_weighted_elbo"
        assert float(row["mean"]) == pytest.approx((a["value"] + b["value"]) / 2)
        assert float(row["spread"]) == pytest.approx(abs(a["value"] - b["value"]) / math.sqrt(2))
        error = math.hypot(a["standard_error"], b["standard_error"]) / math.sqrt(2)
        assert float(row["standard_error"]) == pytest.approx(error)


def test_one_of_the_training_runs_alone(
    finished: pathlib.Path, config: Config, tmp_path: pathlib.Path
) -> None:
    one = dataclasses.replace(config, training_seeds=(3,), num_importance_samples=(5,))
    importance_weighting.run(one, tmp_path / "one")
    assert records_of(tmp_path / "one") == records_of(finished)[4:5]
    assert not (tmp_path / "one" / "summary.csv").exists()


def test_results_are_those_of_the_checkpoint(finished: pathlib.Path, config: Config) -> None:
    _, model = load_trained_models(config)
    bound = importance_weighted_elbo(
        model.x,
        model.vae.encoder,
        model.vae.decoder,
        model.vae.prior,
        num_importance_samples=5,
        num_samples=100,
        seed=2,
    )
    record = records_of(finished)[4]
    assert record["importance_weighted_elbo"] == bound.estimate.to_dict()
    assert record["least_effective_sample_size"] == bound.effective_sample_sizes.min()


def test_csv_holds_the_same_numbers(finished: pathlib.Path) -> None:
    with (finished / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, records_of(finished), strict=True):
        estimate = record["importance_weighted_elbo"]
        assert int(row["num_importance_samples"]) == record["num_importance_samples"]
        assert float(row["importance_weighted_elbo"]) == estimate["value"]
        error = float(row["importance_weighted_elbo_standard_error"])
        assert error == estimate["standard_error"]
        assert row["data"] == record["data"]


def test_a_finished_run_is_shown_and_left_alone(
    finished: pathlib.Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(finished)
    importance_weighting.run(config, finished)
    printed = capsys.readouterr().out
    assert "nothing was changed" in printed
    assert "mean ESS" in printed
    with pytest.raises(ValueError, match=r"num_images was 20, is 10"):
        importance_weighting.run(dataclasses.replace(config, num_images=10), finished)
    assert snapshot(finished) == before


def test_a_stopped_run_goes_on_with_the_rung_it_was_in(
    finished: pathlib.Path,
    config: Config,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, rung = tmp_path / "stopped", importance_weighting.rung

    def stop_in_the_last(*arguments: Any) -> Any:
        if arguments[1].training_seed == 3 and arguments[-1] == 50:
            raise KeyboardInterrupt
        return rung(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(importance_weighting, "rung", stop_in_the_last)
        with pytest.raises(KeyboardInterrupt):
            importance_weighting.run(config, folder)
    assert not (folder / "results.json").exists()
    importance_weighting.run(config, folder)
    assert "training seed 3, D = 2, m = 5: done before" in capsys.readouterr().out
    assert records_of(folder) == records_of(finished)


def main_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    return error_line(capsys, lambda: run_command(importance_weighting, *arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_importance_samples=5,x"], "takes integers"),
        (["--num_importance_samples=5,0"], "--num_importance_samples must be at least 1, got 0"),
        (["--num_importance_samples=5,5"], "names one twice"),
        (["--num_images=0"], "--num_images must be at least 1"),
        (["--num_images=298"], "exceeds the 297 images of digits/test"),
        (["--seed=-1"], "--seed must be at least 0"),
        (["--seed=2147483648"], "--seed must be at least 0 and at most 2147483647"),
        (["--training_seeds=3,4"], "training seeds [0, 3], none of --training_seeds=4"),
        (["--run=/no/such/folder"], "holds no run of experiments.elbo_surgery"),
        (["5"], "unexpected arguments: 5"),
    ],
)
def test_wrong_input_is_one_message_before_the_work(
    arguments: list[str],
    message: str,
    trained: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    error = main_error(
        capsys, f"--workdir={folder}", f"--run={trained}", "--latent_size=2", *arguments
    )
    assert message in error
    assert not folder.exists()


def test_folders_of_something_else_are_refused(
    finished: pathlib.Path,
    trained: pathlib.Path,
    config: Config,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--latent_size=2", f"--workdir={tmp_path / 'new'}"]
    assert "other than a run of elbo_surgery" in main_error(capsys, f"--run={finished}", *arguments)
    error = main_error(capsys, f"--run={trained}", "--latent_size=2", f"--workdir={trained}")
    assert "holds something other than a run of importance_weighting" in error
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    for damaged in ("{}", '{"results": [{}]}', "[1]", "{"):
        (tmp_path / "results.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"results\.json is damaged"):
            importance_weighting.run(config, tmp_path)
