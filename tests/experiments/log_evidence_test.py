"""Tests of the log evidence experiment, on the bundled digits and in seconds."""

from __future__ import annotations

import copy
import csv
import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from experiments import log_evidence
from experiments.common.config import Config as TrainingConfig
from experiments.common.trained_model import load_trained_models
from experiments.log_evidence import Config
from tests.testing.runs import error_line, run_command, snapshot, strict_json, trained_run
from tfp_surgery.evidence.importance_sampling import log_evidence_by_importance_sampling
from tfp_surgery.training.checkpoint import load_checkpoint

NAMES = [
    "elbo", "iw_5", "iw_50", "iw", "ais", "ais_minus_iw", "optimal_elbo", "refined_iw",
    "ais_minus_refined_iw", "approximation_gap", "amortization_gap", "simulated_lower",
    "simulated_upper", "simulated_gap",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    config = TrainingConfig(
        dataset="digits",
        latent_sizes=(2,),
        binarization="fixed",
        epochs=20,
        batch_size=100,
        learning_rate=3e-3,
        hidden_sizes=(32,),
        num_samples=2,
        seed=1,
        training_seeds=(1,),
    )
    return trained_run(tmp_path_factory.mktemp("runs") / "trained", config)


@pytest.fixture(scope="module")
def config(trained: pathlib.Path) -> Config:
    return Config(
        run=str(trained),
        latent_size=2,
        num_images=20,
        num_importance_samples=1000,
        num_temperatures=50,
        num_chains=16,
        num_leapfrog_steps=2,
        num_simulated=10,
        num_refinement_steps=50,
        seed=3,
    )


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("evidence") / "finished"
    log_evidence.run(config, folder)
    return folder


def test_bounds_are_in_order(finished: pathlib.Path) -> None:
    """ELBO < IW_5 < IW_50 <= IW_1000, and AIS beside the last, each by draws of its own."""
    (found,) = strict_json(finished / "results.json")["estimates"]
    assert list(found) == ["training_seed", *NAMES]

    def difference(larger: str, smaller: str) -> tuple[float, float]:
        errors = [found[name]["standard_error"] for name in (larger, smaller)]
        return found[larger]["value"] - found[smaller]["value"], 4.5 * float(np.hypot(*errors))

    for larger, smaller in (("iw_5", "elbo"), ("iw_50", "iw_5"), ("optimal_elbo", "elbo")):
        value, error = difference(larger, smaller)
        assert value > -error
    value, error = difference("iw", "iw_50")
    assert value > -error
    value, error = difference("ais", "iw")
    assert abs(value) < error
    assert found["ais_minus_iw"]["value"] == pytest.approx(value)
    gap = found["simulated_gap"]
    assert gap["value"] > -4.5 * gap["standard_error"]


def test_results_name_settings_data_and_software(finished: pathlib.Path, config: Config) -> None:
    results = strict_json(finished / "results.json")
    assert results["config"] == config.to_dict()
    assert "20 random images of digits/test, N = 297, binarization fixed" in results["data"]
    assert "tensorflow" in results["versions"]
    assert all(record["seconds"] >= 0 for record in results["results"])
    with (finished / "results.csv").open() as file:
        rows = {row["quantity"]: row for row in csv.DictReader(file)}
    assert list(rows) == NAMES
    (found,) = results["estimates"]
    for name in NAMES:
        entry = found[name]
        assert rows[name]["training_seed"] == "1"
        assert float(rows[name]["value"]) == entry["value"]
        assert float(rows[name]["standard_error"]) == entry["standard_error"]


def test_the_bound_is_that_of_the_checkpoint(
    finished: pathlib.Path, config: Config, trained: pathlib.Path
) -> None:
    vae = load_checkpoint(trained / "training_seed_1" / "latent_02" / "checkpoint.keras").model
    bound = log_evidence_by_importance_sampling(
        load_trained_models(config)[0].x,
        vae.encoder,
        vae.decoder,
        vae.prior,
        num_importance_samples=config.num_importance_samples,
        seed=3,
    )
    records = log_evidence.by_name(strict_json(finished / "results.json")["results"])
    assert records["importance_sampling"]["per_observation"] == list(bound.per_observation)


def test_a_finished_run_is_shown_and_left_alone(
    finished: pathlib.Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(finished)
    results = log_evidence.run(config, finished)
    assert snapshot(finished) == before
    assert results == strict_json(finished / "results.json")["results"]
    printed = capsys.readouterr().out
    for part in ("nothing was changed", "IW_1000", "AIS", "amortization gap"):
        assert part in printed
    with pytest.raises(ValueError, match=r"seed was 3, is 4"):
        log_evidence.run(dataclasses.replace(config, seed=4), finished)
    assert snapshot(finished) == before


def test_several_training_runs_stand_side_by_side(finished: pathlib.Path, config: Config) -> None:
    """The records of a run twice, the second time with other bounds, as of another seed."""
    first = strict_json(finished / "results.json")["results"]
    second = [{**record, "training_seed": 4} for record in copy.deepcopy(first)]
    for name in ("elbo", "iw_5"):
        log_evidence.by_name(second)["small_bounds"][name]["value"] += 2.0
    found = log_evidence.estimates_of_runs([*first, *second])
    assert [run["training_seed"] for run in found] == [1, 4]
    assert found[1]["elbo"]["value"] == found[0]["elbo"]["value"] + 2.0
    text = log_evidence.text_table(config, [*first, *second])
    header, _, elbo = next(
        text.splitlines()[n : n + 3]
        for n, line in enumerate(text.splitlines())
        if "training seed 1" in line
    )
    assert header.split() == ["training", "seed", "1", "training", "seed", "4"]
    assert elbo.split()[0] == "ELBO"
    assert elbo.count("±") == 2
    summary = text[text.index("spread") :].splitlines()
    row = next(line.split() for line in summary if line.split()[0] == "ELBO")
    assert float(row[1]) == pytest.approx(found[0]["elbo"]["value"] + 1.0, abs=0.05)
    assert row[2] == "1.4"  # two numbers 2 apart: sqrt(2)
    assert "spread" not in log_evidence.text_table(config, first)


@pytest.mark.slow
def test_a_stopped_run_goes_on(
    finished: pathlib.Path,
    config: Config,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setitem(log_evidence._MEASUREMENTS, "annealed", stop)
        with pytest.raises(KeyboardInterrupt):
            log_evidence.run(config, tmp_path)
    assert not (tmp_path / "results.json").exists()
    before = snapshot(tmp_path / "training_seed_1" / "small_bounds.json")
    log_evidence.run(config, tmp_path)
    assert snapshot(tmp_path / "training_seed_1" / "small_bounds.json") == before
    assert "training seed 1, D = 2, small bounds: done before" in capsys.readouterr().out
    resumed, uninterrupted = (strict_json(path / "results.json") for path in (tmp_path, finished))
    assert resumed["estimates"] == uninterrupted["estimates"]


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    return error_line(capsys, lambda: run_command(log_evidence, *arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run="], "--run must not be empty"),
        (["--num_chains=1"], "--num_chains must be at least 2"),
        (["--num_images=1000"], "--num_images=1000 exceeds the 297 images"),
        (["more"], "unexpected arguments: more"),
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
    first = [f"--run={trained}", "--latent_size=2", f"--workdir={folder}"]
    assert message in run_main(capsys, *first, *arguments)
    assert not folder.exists()
