"""Tests of the main job, on the bundled digits and in seconds."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from experiments import elbo_surgery
from experiments.common import training
from experiments.common.config import Config
from tests.testing.runs import (
    Counts,
    error_line,
    run_command,
    snapshot,
    strict_json,
    with_checkpoint,
)
from tfp_surgery import datasets
from tfp_surgery.priors.base import StandardNormalPrior
from tfp_surgery.surgery.elbo_surgery import elbo_surgery as surgery_of
from tfp_surgery.surgery.elbo_surgery_result import PARTS, ElboSurgery
from tfp_surgery.training.checkpoint import load_checkpoint

CONFIG = Config(
    dataset="digits",
    latent_sizes=(2, 3),
    binarization="fixed",
    epochs=3,
    batch_size=500,
    learning_rate=1e-3,
    hidden_sizes=(8,),
    num_samples=2,
    seed=1,
)
TWO_SEEDS = dataclasses.replace(CONFIG, latent_sizes=(2,), training_seeds=(0, 1))
TIMES = ("training_seconds", "surgery_seconds")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    elbo_surgery.run(CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def of_two_seeds(
    finished: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, str]:
    """A run that was stopped in its second seed and went on, and what it printed then.

    The VAE of the first seed is trained already, by another run: its checkpoint was put there.
    """
    folder = tmp_path_factory.mktemp("runs") / "two_seeds"
    checkpoint = finished / "training_seed_0" / "latent_02" / "checkpoint.keras"
    with_checkpoint(folder, "elbo_surgery", TWO_SEEDS, checkpoint)
    carve, calls = elbo_surgery.carve, []

    def stop_in_the_second_seed(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:  # training and test set of the first
            raise KeyboardInterrupt
        return carve(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(elbo_surgery, "carve", stop_in_the_second_seed)
        with pytest.raises(KeyboardInterrupt):
            elbo_surgery.run(TWO_SEEDS, folder)
    assert not (folder / "results.json").exists()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        elbo_surgery.run(TWO_SEEDS, folder)
    return folder, printed.getvalue()


def estimates(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The records without what differs from run to run: the times."""
    records = strict_json(folder / "results.json")["results"]
    return [
        {name: entry for name, entry in record.items() if name not in TIMES} for record in records
    ]


def test_leaves_all_its_files(finished: pathlib.Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    events = {name for name in files if "events.out.tfevents" in name}
    assert files - events == {
        "config.json",
        "results.json",
        "results.csv",
        "figures/terms.png",
        "figures/training_seed_0/codes_latent_02.png",
        *(
            f"{folder}latent_{latent_size}{ending}"
            for latent_size in ("02", "03")
            for folder, ending in (
                ("figures/training_seed_0/reconstructions_", ".png"),
                ("figures/training_seed_0/samples_", ".png"),
                ("training_seed_0/", "/checkpoint.keras"),
                ("training_seed_0/", "/record.json"),
            )
        ),
    }
    assert {tuple(name.split("/")[:2]) for name in events} == {
        ("training_seed_0", "latent_02"), ("training_seed_0", "latent_03")
    }  # fmt: skip
    for name in files:
        if name.endswith(".png"):
            assert (finished / name).read_bytes().startswith(b"\x89PNG")


def test_results_name_settings_data_and_software(finished: pathlib.Path) -> None:
    config, results = (strict_json(finished / name) for name in ("config.json", "results.json"))
    for content in (config, results):
        assert content["config"] == CONFIG.to_dict()
        assert content["dataset"]["train"]["num_observations"] == 1500
        assert content["dataset"]["test"]["num_observations"] == 297
        assert content["dataset"]["train"]["binarization"] == "fixed"
        assert content["versions"]["tensorflow"] == tf.__version__


def test_results_have_a_record_for_each_latent_size(finished: pathlib.Path) -> None:
    records = strict_json(finished / "results.json")["results"]
    assert [record["latent_size"] for record in records] == [2, 3]
    fields = {field.name for field in dataclasses.fields(ElboSurgery)} - set(PARTS)
    for record in records:
        assert record["epochs"] == CONFIG.epochs
        assert record["num_parameters"] > 1000
        assert all(record[name] > 0 for name in TIMES)
        for surgery, size in ((record, 1500), (record["test"], 297)):
            assert fields <= set(surgery)
            assert surgery["num_observations"] == surgery["num_query"] == size
            assert surgery["log_num_observations"] == pytest.approx(math.log(size))
            assert {"value", "standard_error"} <= set(surgery["elbo"])
            assert surgery["elbo"]["standard_error"] > 0
            # Two routes to the average KL; 4 standard errors.
            error = surgery["average_kl_sampled"]["standard_error"]
            difference = surgery["average_kl"]["value"] - surgery["average_kl_sampled"]["value"]
            assert abs(difference) < 4 * error
        assert record["cross_term"] is None
        assert record["test"]["cross_term"]["standard_error"] > 0


def test_results_are_the_surgery_of_the_checkpoint(finished: pathlib.Path) -> None:
    record = strict_json(finished / "results.json")["results"][1]
    vae = load_checkpoint(finished / "training_seed_0" / "latent_03" / "checkpoint.keras").model
    train = datasets.load("digits", "train", binarization="fixed", seed=CONFIG.seed)
    surgery = surgery_of(
        train, vae.encoder, vae.decoder, vae.prior, num_samples=2, seed=CONFIG.seed
    ).to_dict()
    assert {name: record[name] for name in surgery} == surgery


def test_csv_holds_the_same_numbers(finished: pathlib.Path) -> None:
    records = strict_json(finished / "results.json")["results"]
    with (finished / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["latent_size"], row["split"]) for row in rows] == [
        ("2", "train"), ("2", "test"), ("3", "train"), ("3", "test")
    ]  # fmt: skip
    surgeries = [surgery for record in records for surgery in (record, record["test"])]
    for row, surgery in zip(rows, surgeries, strict=True):
        for name in ("elbo", "marginal_kl", "index_code_mutual_information", "average_kl_sampled"):
            assert float(row[name]) == surgery[name]["value"]
            assert float(row[f"{name}_standard_error"]) == surgery[name]["standard_error"]
        assert row["data"] == surgery["data"]
        assert "binarization" in row["data"]
    assert "absent" not in rows[0]
    assert rows[0]["cross_term"] == ""
    assert float(rows[1]["cross_term"]) == surgeries[1]["cross_term"]["value"]


def test_events_hold_objective_and_terms_of_the_epochs(finished: pathlib.Path) -> None:
    (path,) = (finished / "training_seed_0" / "latent_02" / "events" / "train").iterdir()
    steps: dict[str, list[int]] = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            steps.setdefault(value.tag, []).append(event.step)
    assert steps["epoch_average_kl"] == [0, 1, 2]
    assert steps["epoch_surgery_marginal_kl"] == [0, 1, 2]


def test_a_finished_run_is_shown_and_left_alone(
    finished: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(finished)
    records = elbo_surgery.run(CONFIG, finished)
    assert snapshot(finished) == before
    assert records == strict_json(finished / "results.json")["results"]
    printed = capsys.readouterr().out
    assert "nothing was changed" in printed
    assert "log N" in printed
    assert f"{records[0]['elbo']['value']:.1f}"[:4] in printed


def test_another_run_is_left_alone(finished: pathlib.Path) -> None:
    before = snapshot(finished)
    with pytest.raises(ValueError, match=r"seed was 1, is 2"):
        elbo_surgery.run(dataclasses.replace(CONFIG, seed=2), finished)
    assert snapshot(finished) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "binarization", ["fixed", pytest.param("stochastic", marks=pytest.mark.slow)]
)
def test_a_stopped_run_goes_on_and_equals_the_uninterrupted_one(
    binarization: str,
    finished: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = dataclasses.replace(CONFIG, binarization=binarization)
    reference, folder = finished, tmp_path / "stopped"
    if binarization != CONFIG.binarization:
        reference = tmp_path / "uninterrupted"
        elbo_surgery.run(config, reference)
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    on_epoch_end = training.Progress.on_epoch_end

    def stop_in_the_middle_of_the_second(self: Any, epoch: int, logs: Any = None) -> None:
        on_epoch_end(self, epoch, logs)
        if (folder / "training_seed_0" / "latent_03").exists() and epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training.Progress, "on_epoch_end", stop_in_the_middle_of_the_second)
        with pytest.raises(KeyboardInterrupt):
            elbo_surgery.run(config, folder)
    assert not (folder / "results.json").exists()
    assert (
        load_checkpoint(folder / "training_seed_0" / "latent_03" / "checkpoint.keras").num_epochs
        == 2
    )
    before = snapshot(folder / "training_seed_0" / "latent_02")
    capsys.readouterr()

    elbo_surgery.run(config, folder)
    assert snapshot(folder / "training_seed_0" / "latent_02") == before
    printed = capsys.readouterr().out
    assert "D = 2: done before" in printed
    assert "D = 3: goes on after epoch 2" in printed
    assert estimates(folder) == estimates(reference)


def test_a_run_stopped_after_its_training_is_not_trained_again(
    finished: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = tmp_path / "stopped", dataclasses.replace(CONFIG, latent_sizes=(2,))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(elbo_surgery, "carve", stop)
        with pytest.raises(KeyboardInterrupt):
            elbo_surgery.run(config, folder)
    checkpoint = folder / "training_seed_0" / "latent_02" / "checkpoint.keras"
    before = checkpoint.stat().st_mtime_ns
    elbo_surgery.run(config, folder)
    assert checkpoint.stat().st_mtime_ns == before
    assert estimates(folder) == estimates(finished)[:1]


def test_every_observation_is_encoded_once_and_the_prior_built_once(
    finished: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, latent_sizes=(2,))
    checkpoint = finished / "training_seed_0" / "latent_02" / "checkpoint.keras"
    with_checkpoint(tmp_path, "elbo_surgery", config, checkpoint)
    counts = Counts(monkeypatch, StandardNormalPrior)
    counts.start_after(elbo_surgery, "train")
    elbo_surgery.run(config, tmp_path)
    (encoded,) = counts.encoded
    assert 1797 <= encoded <= 1797 + 16
    assert counts.built == [1]
    assert estimates(tmp_path) == estimates(finished)[:1]


def test_a_run_of_two_seeds_goes_on_with_the_one_it_was_at(
    finished: pathlib.Path, of_two_seeds: tuple[pathlib.Path, str]
) -> None:
    folder, printed = of_two_seeds
    assert "training seed 0, D = 2: done before" in printed
    assert "training seed 1, D = 2: epoch" not in printed  # trained before it was stopped
    first, second = estimates(folder)
    assert [first["training_seed"], second["training_seed"]] == [0, 1]
    assert first == estimates(finished)[0]


def test_the_training_seed_decides_the_model_and_not_the_data(
    finished: pathlib.Path, of_two_seeds: tuple[pathlib.Path, str]
) -> None:
    folder, _ = of_two_seeds
    first, second = estimates(folder)
    assert first["data"] == second["data"] == estimates(finished)[0]["data"]
    assert first["seed"] == second["seed"] == CONFIG.seed
    # Trained anew in the way of a model's own seed, on the same data.
    train_set = datasets.load("digits", "train", binarization="fixed", seed=CONFIG.seed)
    keras.utils.set_random_seed(1)
    vae = training.build_vae(CONFIG, 1, 2, train_set.event_shape)
    steps = CONFIG.epochs * train_set.num_batches(CONFIG.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(CONFIG.learning_rate, steps, alpha=0.01)
    vae.compile(optimizer=keras.optimizers.Adam(schedule), jit_compile=True)
    vae.fit(train_set.batches(CONFIG.batch_size, seed=1), epochs=CONFIG.epochs, verbose=0)
    trained, other = (
        load_checkpoint(
            folder / f"training_seed_{training_seed}" / "latent_02" / "checkpoint.keras"
        ).model
        for training_seed in (1, 0)
    )
    for weights, expected, different in zip(
        trained.trainable_variables, vae.trainable_variables, other.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(weights, expected)
        assert not np.array_equal(weights, different)


def test_the_summary_is_of_the_runs(
    finished: pathlib.Path, of_two_seeds: tuple[pathlib.Path, str]
) -> None:
    folder, printed = of_two_seeds
    records = strict_json(folder / "results.json")["results"]
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "latent_size", "split", "quantity", "num_runs", "mean", "spread", "standard_error"
    ]  # fmt: skip
    found = {(row["split"], row["quantity"]): row for row in rows}
    assert len(found) == len(rows)
    assert ("test", "cross_term") in found
    assert ("train", "cross_term") not in found
    for split, quantity in (("train", "elbo"), ("test", "marginal_kl"), ("test", "cross_term")):
        row = found[split, quantity]
        a, b = ((r if split == "train" else r["test"])[quantity] for r in records)
        assert row["latent_size"] == "2"
        assert row["num_runs"] == "2"
        assert float(row["mean"]) == pytest.approx((a["value"] + b["value"]) / 2)
        # Of two numbers: their distance over the square root of 2.
        assert float(row["spread"]) == pytest.approx(abs(a["value"] - b["value"]) / math.sqrt(2))
        error = math.hypot(a["standard_error"], b["standard_error"]) / math.sqrt(2)
        assert float(row["standard_error"]) == pytest.approx(error)
    summary = strict_json(folder / "results.json")["summary"]
    assert [str(row["mean"]) for row in summary] == [row["mean"] for row in rows]
    header = next(line for line in printed.splitlines() if "spread" in line)
    assert header.split()[:5] == ["D", "split", "term", "mean", "spread"]
    assert "standard error of one run" in header
    assert "training seed" in printed

    assert not (finished / "summary.csv").exists()
    assert "summary" not in strict_json(finished / "results.json")
    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["training_seed"], row["split"]) for row in table] == [
        ("0", "train"), ("0", "test"), ("1", "train"), ("1", "test")
    ]  # fmt: skip


def test_a_foreign_checkpoint_is_not_gone_on_with(
    finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "checkpoint.keras").write_bytes(
        (finished / "training_seed_0" / "latent_03" / "checkpoint.keras").read_bytes()
    )
    train = datasets.load("digits", "train", binarization="fixed")
    with pytest.raises(ValueError, match="another model than the VAE of latent size 2"):
        training.train(CONFIG, 0, 2, train, tmp_path)
    with pytest.raises(ValueError, match="training seed 0 in the place of that of 1"):
        training.train(CONFIG, 1, 3, train, tmp_path)


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs the command in this process and returns its one line of error."""
    return error_line(capsys, lambda: run_command(elbo_surgery, *arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--binarization=none"], "Bernoulli"),
        (["--latent_sizes=2,x"], "takes integers"),
        (["--training_seeds=0,0"], "--training_seeds names one twice: 0,0"),
        (["--training_seeds=-1"], "--training_seeds must be at least 0"),
        (["--epochs=0"], "--epochs must be at least 1"),
        (["--dataset=mnits"], "did you mean mnist"),
        (["--dataset=mnist", "--manual_dir=/no/such/folder"], "/no/such/folder"),
    ],
)
def test_wrong_input_is_one_message_before_the_work(
    arguments: list[str],
    message: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    error = run_main(capsys, f"--workdir={folder}", f"--data_dir={tmp_path / 'tfds'}", *arguments)
    assert message in error
    assert not folder.exists()


def test_a_foreign_or_impossible_workdir_is_one_message(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds no run of elbo_surgery" in run_main(capsys, f"--workdir={tmp_path}")
    assert "is a file" in run_main(capsys, f"--workdir={tmp_path / 'notes.txt'}")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("content", ["{}", '{"results": []}', '{"results": [{}]}', "[1]", "{"])
def test_a_damaged_result_is_one_message(
    content: str,
    tmp_path: pathlib.Path,
    finished: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    (tmp_path / "results.json").write_text(content)
    arguments = ["--latent_sizes=2,3", "--epochs=3", "--batch_size=500", "--hidden_sizes=8"]
    arguments += ["--num_samples=2", "--seed=1", f"--workdir={tmp_path}"]
    assert "results.json is damaged" in run_main(capsys, *arguments)


_WITH_FREQUENT_CHECKPOINTS = """
import runpy
from experiments.common import training
training.SECONDS_BETWEEN_CHECKPOINTS = 0.0
runpy.run_module("experiments.elbo_surgery", run_name="__main__")
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path: pathlib.Path) -> None:
    """Processes of their own, killed without a chance to tidy up; checkpoints after every epoch."""
    root = pathlib.Path(__file__).resolve().parents[2]

    def start(folder: pathlib.Path) -> subprocess.Popen[str]:
        command = [
            sys.executable, "-c", _WITH_FREQUENT_CHECKPOINTS, "--dataset=digits",
            f"--workdir={folder}", "--latent_sizes=2", "--epochs=20", "--hidden_sizes=64,64",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
        return subprocess.Popen(
            command, cwd=root, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    process = start(uninterrupted)
    output, _ = process.communicate()
    assert process.returncode == 0, output

    checkpoint = killed / "training_seed_0" / "latent_02" / "checkpoint.keras"
    process = start(killed)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert 0 < load_checkpoint(checkpoint).num_epochs < 20
    assert not (killed / "results.json").exists()

    process = start(killed)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "goes on after epoch" in output
    assert estimates(killed) == estimates(uninterrupted)
    np.testing.assert_array_less(0, estimates(killed)[0]["elbo"]["standard_error"])
