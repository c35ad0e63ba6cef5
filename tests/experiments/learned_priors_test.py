"""Tests of the audit of learned priors, on the bundled digits and with few steps."""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
from typing import Any

import keras
import numpy as np
import pytest

from experiments import learned_priors
from experiments.priors import audit
from experiments.priors.config import PriorsConfig
from experiments.priors.families import FAMILIES
from tests.testing.runs import (
    Counts,
    error_line,
    run_command,
    snapshot,
    strict_json,
    with_checkpoint,
)
from tfp_surgery import datasets
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.priors.base import StandardNormalPrior
from tfp_surgery.priors.mixture import MixturePrior
from tfp_surgery.training.checkpoint import load_checkpoint

STANDARD_ERRORS = 4.5
ROUNDING = 2e-4  # of differences of means of float32 terms of some 30 nats
CONFIG = PriorsConfig(
    dataset="digits",
    binarization="fixed",
    latent_sizes=(2,),
    priors=("standard", "mog_full:10", "aggregate"),
    mode=("joint", "posthoc"),
    hidden_sizes=(16,),
    epochs=30,
    fit_steps=200,
    learning_rate=1e-2,
    batch_size=250,
    num_samples=4,
    num_images=10,
    num_importance_samples=20,
    seed=2,
    training_seeds=(2,),
)
POSTHOC = dataclasses.replace(CONFIG, mode=("posthoc",))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runs") / "posthoc"
    learned_priors.run(POSTHOC, folder)
    return folder


def records_of(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The records by the name of the prior, without what differs from run to run: the time."""
    records = strict_json(folder / "results.json")["results"]
    found = {}
    for record in records:
        kept = {name: part for name, part in record.items() if not name.endswith("seconds")}
        if kept["fit"] is not None:
            del kept["fit"]["seconds"]
        found[f"{record['mode']} {record['prior']}"] = kept
    return found


def value(record: dict[str, Any], split: str, name: str) -> float:
    found: float = record[split][name]["value"]
    return found


def test_leaves_its_files(finished: pathlib.Path) -> None:
    names = ("joint_standard", "posthoc_mog_full_10", "posthoc_aggregate")
    expected = {
        "config.json",
        "results.json",
        "results.csv",
        "figures/training_seed_2/samples_latent_02.png",
        "figures/training_seed_2/marginal_kl_latent_02.png",
        "training_seed_2/latent_02/joint_standard/checkpoint.keras",
        "training_seed_2/latent_02/posthoc_mog_full_10/model.keras",
        *(
            f"training_seed_2/latent_02/{name}/{file}"
            for name in names
            for file in ("record.json", "samples.npy")
        ),
    }
    left = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert expected <= left
    results = strict_json(finished / "results.json")
    assert results["config"] == POSTHOC.to_dict()
    assert list(records_of(finished)) == [
        "joint standard",
        *(f"posthoc {name}" for name in POSTHOC.priors[1:]),
    ]


def test_a_prior_fitted_afterwards_changes_the_marginal_kl_alone(finished: pathlib.Path) -> None:
    records = records_of(finished)
    standard = records.pop("joint standard")
    for name, record in records.items():
        for split in ("train", "test"):
            of_same_draws = "index_code_mutual_information_sampled"
            assert value(record, split, of_same_draws) == value(standard, split, of_same_draws)
            # Control variates depend on what is known of the prior, and draws do not.
            for unchanged in ("average_reconstruction", "index_code_mutual_information"):
                error = math.hypot(
                    *(r[split][unchanged]["standard_error"] for r in (record, standard))
                )
                moved = abs(value(record, split, unchanged) - value(standard, split, unchanged))
                assert moved < STANDARD_ERRORS * error, (name, unchanged)
            fall = value(standard, split, "marginal_kl") - value(record, split, "marginal_kl")
            rise = value(record, split, "elbo") - value(standard, split, "elbo")
            error = math.hypot(*(r[split]["elbo"]["standard_error"] for r in (record, standard)))
            error += math.hypot(
                *(r[split]["marginal_kl"]["standard_error"] for r in (record, standard))
            )
            assert abs(rise - fall) < STANDARD_ERRORS * error, (name, split)
            gain = record[f"{split}_gain"]
            error = math.hypot(
                gain["standard_error"],
                *(r[split]["marginal_kl"]["standard_error"] for r in (record, standard)),
            )
            assert abs(gain["value"] - fall) < STANDARD_ERRORS * error, (name, split)


def test_a_fit_gains(finished: pathlib.Path) -> None:
    record = records_of(finished)["posthoc mog_full:10"]
    gain = record["train_gain"]
    assert gain["value"] > STANDARD_ERRORS * gain["standard_error"]
    assert record["fit"]["best_step"] <= CONFIG.fit_steps


def test_the_aggregate_posterior_as_prior_shows_what_it_remembers(finished: pathlib.Path) -> None:
    record = records_of(finished)["posthoc aggregate"]
    assert abs(value(record, "train", "marginal_kl")) < ROUNDING
    test = record["test"]["marginal_kl"]
    assert test["value"] > STANDARD_ERRORS * test["standard_error"]
    left_out = record["leave_one_out_marginal_kl"]
    assert left_out["value"] > STANDARD_ERRORS * left_out["standard_error"]
    assert record["memorisation_gap"]["value"] == pytest.approx(
        test["value"] - value(record, "train", "marginal_kl")
    )
    assert record["num_parameters"] == 0


def test_parameters_are_those_of_the_prior_alone(finished: pathlib.Path) -> None:
    records = records_of(finished)
    counts = {name: record["num_parameters"] for name, record in records.items()}
    assert counts["joint standard"] == 0
    assert counts["posthoc mog_full:10"] == 10 + 10 * 2 + 10 * 3
    assert counts["posthoc aggregate"] == 0


def test_csv_holds_the_same_numbers(finished: pathlib.Path) -> None:
    with (finished / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, records_of(finished).values(), strict=True):
        assert row["prior"] == record["prior"]
        for name in ("log_evidence", "log_evidence_gain", "test_gain"):
            assert float(row[name]) == record[name]["value"]
            assert float(row[f"{name}_standard_error"]) == record[name]["standard_error"]
        assert float(row["test_marginal_kl"]) == value(record, "test", "marginal_kl")


def test_the_saved_model_has_the_fitted_prior(finished: pathlib.Path) -> None:
    folder = finished / "training_seed_2" / "latent_02"
    model = keras.saving.load_model(folder / "posthoc_mog_full_10" / "model.keras", compile=False)
    standard = load_checkpoint(folder / "joint_standard" / "checkpoint.keras").model
    test_set = datasets.load("digits", "test", binarization="fixed", seed=CONFIG.seed)
    aggregate = AggregatePosterior.from_encoder(standard.encoder, test_set)
    gain = audit.gain(model.prior(), audit.codes(aggregate, "test", CONFIG.seed))
    assert gain.to_dict() == records_of(finished)["posthoc mog_full:10"]["test_gain"]


def test_a_finished_run_is_shown_and_left_alone(
    finished: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(finished)
    learned_priors.run(POSTHOC, finished)
    printed = capsys.readouterr().out
    assert "nothing was changed" in printed
    assert "against standard" in printed
    with pytest.raises(ValueError, match=r"num_images was 10, is 11"):
        learned_priors.run(dataclasses.replace(POSTHOC, num_images=11), finished)
    assert snapshot(finished) == before


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_prior_it_was_at(
    finished: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, audit_model = tmp_path / "stopped", audit.audit
    config = dataclasses.replace(POSTHOC, priors=("mog_full:10", "aggregate"))
    calls = []

    def stop_in_the_third(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return audit_model(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(audit, "audit", stop_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            learned_priors.run(config, folder)
    assert not (folder / "results.json").exists()
    learned_priors.run(config, folder)
    assert "D = 2, posthoc mog_full:10: done before" in capsys.readouterr().out
    records, whole = records_of(folder), records_of(finished)
    assert list(records) == ["joint standard", "posthoc mog_full:10", "posthoc aggregate"]
    assert all(records[name] == whole[name] for name in records)


@pytest.mark.slow
def test_a_run_of_two_seeds_goes_on_and_pairs_gains_within_a_seed(
    finished: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, audit_model = tmp_path / "run", audit.audit
    config = dataclasses.replace(POSTHOC, priors=("mog_full:10",), training_seeds=(2, 3))
    checkpoint = finished / "training_seed_2" / "latent_02" / "joint_standard" / "checkpoint.keras"
    with_checkpoint(folder, "learned_priors", config, checkpoint)
    calls = []

    def stop_in_the_second_seed(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 4:  # N(0, I) and the mixture, of each seed
            raise KeyboardInterrupt
        return audit_model(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(audit, "audit", stop_in_the_second_seed)
        with pytest.raises(KeyboardInterrupt):
            learned_priors.run(config, folder)
    learned_priors.run(config, folder)
    results = strict_json(folder / "results.json")
    records = results["results"]
    assert [(record["training_seed"], record["prior"]) for record in records] == [
        (2, "standard"), (2, "mog_full:10"), (3, "standard"), (3, "mog_full:10")
    ]  # fmt: skip
    assert records[1]["test_gain"] == records_of(finished)["posthoc mog_full:10"]["test_gain"]
    values = [np.array(record["log_evidence"]["per_observation"]) for record in records]
    gains = [np.mean(values[1] - values[0]), np.mean(values[3] - values[2])]
    expected = {
        "log_evidence_gain": gains,
        "test_gain": [records[number]["test_gain"]["value"] for number in (1, 3)],
        "train_marginal_kl": [value(records[number], "train", "marginal_kl") for number in (1, 3)],
    }
    with (folder / "summary.csv").open() as file:
        rows = {
            row["quantity"]: row for row in csv.DictReader(file) if row["prior"] == "mog_full:10"
        }
    for name, numbers in expected.items():
        assert float(rows[name]["mean"]) == pytest.approx(np.mean(numbers))
        assert float(rows[name]["spread"]) == pytest.approx(np.std(numbers, ddof=1))
        assert rows[name]["mode"] == "posthoc"
        assert rows[name]["num_runs"] == "2"


def test_a_model_is_encoded_once_and_each_prior_built_once(
    finished: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(POSTHOC, priors=("mog_full:10",))
    checkpoint = finished / "training_seed_2" / "latent_02" / "joint_standard" / "checkpoint.keras"
    with_checkpoint(tmp_path, "learned_priors", config, checkpoint)
    counts = Counts(monkeypatch, StandardNormalPrior, MixturePrior)
    counts.start_after(learned_priors, "train")
    counts.start_after(learned_priors, "fit_prior")
    learned_priors.run(config, tmp_path)
    before_fit, after_fit = counts.encoded
    assert 1797 <= before_fit <= 1797 + 16
    assert before_fit + after_fit <= 1797 + 16
    # N(0, I), with one prior more to check the model that is fitted; then the fitted one.
    assert counts.built == [2, 1]
    name = "posthoc mog_full:10"
    assert records_of(tmp_path)[name] == records_of(finished)[name]


@pytest.mark.slow
def test_every_family_in_both_modes(tmp_path: pathlib.Path) -> None:
    priors = tuple(
        f"{name}:4" if family.num_components else name for name, family in FAMILIES.items()
    )
    # A RealNVP that starts at random explodes at a learning rate of 1e-2, with most seeds.
    config = dataclasses.replace(CONFIG, priors=priors, epochs=2, fit_steps=10, learning_rate=1e-3)
    records = learned_priors.run(config, tmp_path / "run")
    assert [record["prior"] for record in records].count("standard") == 1
    expected = sum(len(family.modes) for family in FAMILIES.values())
    assert len(records) == expected
    # Of the components at four observations, nothing but their width is the prior's.
    counts = {f"{record['mode']} {record['prior']}": record["num_parameters"] for record in records}
    assert counts["posthoc exemplar:4"] == 1
    assert counts["posthoc sklearn:4"] == 4 - 1 + 4 * 2 + 4 * 2
    for record in records:
        assert math.isfinite(record["log_evidence"]["value"]), record["prior"]
        assert math.isfinite(record["test"]["marginal_kl"]["value"]), record["prior"]
        assert np.isfinite(record["train_gain"]["standard_error"]), record["prior"]
        has_components_of_data = record["family"] in ("exemplar", "exemplar_self", "aggregate")
        assert (record["leave_one_out_marginal_kl"] is not None) == has_components_of_data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--priors=mog:x"], "after the colon stands the number of components"),
        (["--priors=realnvp:3"], "after the colon stands the number of components"),
        (["--priors=gaussian"], "none of standard, mog"),
        (["--priors=mog:3,mog:3"], "names one twice"),
        (["--priors=sklearn", "--mode=joint"], "--mode leaves nothing to do"),
        (["--mode=both"], "--mode must be one of joint, posthoc, got both"),
        (["--latent_sizes=2,x"], "--latent_sizes takes integers"),
        (["--latent_sizes=0"], "--latent_sizes must be at least 1"),
        (
            ["--latent_sizes=2,1", "--priors=mog,realnvp"],
            "--priors=realnvp needs codes of size 2 or more, and --latent_sizes has 1",
        ),
        (["--latent_sizes=1", "--priors=spline"], "--priors=spline needs codes of size 2"),
        (["--priors=exemplar:1"], "exemplar takes at least 2"),
        (["--priors=exemplar_self:1"], "exemplar_self takes at least 2"),
        # Of 1500 observations, a twelfth is held out of the fit.
        (["--priors=mog:1376", "--mode=posthoc"], "of which it is fitted to 1375"),
        (["--num_images=298"], "exceeds the 297 images of digits/test"),
        (["--priors=vamp:1501"], "more components than digits/train"),
        (["--fit_steps=0"], "--fit_steps must be at least 1"),
        (["--num_samples=1"], "--num_samples must be at least 2"),
        (["--seed=2147483648"], "--seed must be at least 0 and at most 2147483647"),
        (["5"], "unexpected arguments: 5"),
    ],
)
def test_wrong_input_is_one_message_before_the_work(
    arguments: list[str],
    message: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    error = error_line(
        capsys, lambda: run_command(learned_priors, f"--workdir={folder}", *arguments)
    )
    assert message in error
    assert not folder.exists()
