"""What the README tells a newcomer to type works."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

import tfp_surgery
from experiments import learned_priors
from experiments.priors.config import PriorsConfig
from tests.testing.mnist import mnist_dir

ROOT = Path(__file__).absolute().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXPERIMENT_COMMANDS = re.findall(
    r"^ {4}(?:\S*/)?(python -m experiments\.[^\n\\]*(?:\\\n[^\n\\]*)*)", README, re.M
)


def test_the_examples_run_in_order() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 2
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=path.stem, marks=[pytest.mark.slow] * (path.stem == "models-of-others")
        )
        for path in sorted((ROOT / "docs").glob("*.md"))
    ],
)
def test_the_examples_of_the_documentation_run(path: Path) -> None:
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
        exec(compile(block, path.name, "exec"), namespace)


def test_models_of_others_are_tested_with_the_lines_of_the_page() -> None:
    """What the page shows to write beside a model is what the tests write beside theirs."""
    folder = ROOT / "tests" / "models_of_others"
    if not folder.is_dir():
        pytest.skip("Bazel copies no tests of another folder to where tests run")
    tested = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*_test.py"))
    page = (ROOT / "docs" / "models-of-others.md").read_text(encoding="utf-8")
    glue = r"tfs\.networks\.|from_arrays\(l|model\.decode\(z|tf\.transpose\(qz|code\(\[|scores"
    shown = re.compile(rf"^ *(.*(?:{glue}).*)$", re.M)
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    lines = {line for block in blocks for line in shown.findall(block)}
    assert len(lines) >= 9
    assert {line for line in lines if line not in tested} == set()


def test_the_names_it_uses_are_public() -> None:
    names = set(re.findall(r"\btfs\.(\w+)", README))
    assert names
    assert names <= set(tfp_surgery.__all__)


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"make ([a-z-]+)", README)) - {"sure"}
    assert named
    assert named <= targets


def test_continuous_integration_runs_the_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for target in ("demo", "test", "test-slow", "check", "bazel-test"):
        assert re.search(rf"^make {target}\b", script, re.M), target


# In place of hours; what a command says last counts.
SMALL = {
    "experiments.elbo_surgery": ("--epochs=1", "--latent_sizes=2", "--training_seeds=0,1"),
    "experiments.log_evidence": (
        "--latent_size=2",
        "--num_images=3",
        "--num_temperatures=5",
        "--num_simulated=3",
        "--num_refinement_steps=5",
    ),
    "experiments.importance_weighting": ("--latent_size=2", "--num_images=2"),
    "experiments.learned_priors": (
        "--priors=standard,mog:2",
        "--latent_sizes=2",
        "--epochs=1",
        "--fit_steps=5",
        "--num_images=3",
        "--num_importance_samples=5",
        "--hidden_sizes=16",
    ),
    "experiments.minibatch_bias": ("--num_observations=64", "--batch_sizes=16"),
}


def test_the_priors_it_names_exist() -> None:
    commands = [line for line in EXPERIMENT_COMMANDS if "learned_priors" in line]
    assert len(commands) >= 3
    for command in commands:
        values = flags.FlagValues()  # type: ignore[no-untyped-call]
        learned_priors.COMMAND.define_flags(values)
        values(shlex.split(command.replace("\\\n", " "))[2:])
        assert PriorsConfig.from_flags(values).plan


@pytest.mark.slow
def test_commands_of_the_results_run(tmp_path: Path) -> None:
    """The exact commands, in order, with small numbers and folders of the test's own."""
    assert len(EXPERIMENT_COMMANDS) >= len(SMALL)
    for command in EXPERIMENT_COMMANDS:
        line = command.replace("\\\n", " ").replace("=runs/", f"={tmp_path}/")
        arguments = shlex.split(line)[1:]
        arguments = [part for part in arguments if not part.startswith("--manual_dir")]
        arguments += SMALL[arguments[1]]
        if "minibatch_bias" not in line:
            arguments += [f"--manual_dir={mnist_dir()}", f"--data_dir={tmp_path / 'tfds'}"]
        subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
            check=True,
        )
        folder = Path(next(part for part in arguments if part.startswith("--workdir="))[10:])
        assert json.loads((folder / "results.json").read_text())
