"""What tests of experiments ask of a run, its folder and its command."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from absl import flags

from experiments.common import training
from experiments.common.config import Config
from experiments.common.workdir import Run
from tfp_surgery import datasets


def strict_json(path: pathlib.Path) -> Any:
    """What a file holds in JSON, which has no NaN and no infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


def snapshot(folder: pathlib.Path) -> dict[str, int]:
    """When each file of a folder was last written, and the folder itself."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in (folder, *folder.rglob("*"))
    }


def error_line(capsys: pytest.CaptureFixture[str], run: Callable[[], int]) -> str:
    """Runs a command that fails and returns its one line of error."""
    assert run() == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def run_command(experiment: ModuleType, *arguments: str) -> int:
    """Runs the command of an experiment in this process."""
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    experiment.COMMAND.define_flags(values)
    code: int = experiment.COMMAND.main(values([experiment.__name__, *arguments]), values)
    return code


def trained_run(folder: pathlib.Path, config: Config) -> pathlib.Path:
    """A run of the main job as far as others read it: settings and first checkpoint."""
    train_set = datasets.load(
        config.dataset, "train", binarization=config.binarization, seed=config.seed
    )
    Run(folder, "elbo_surgery", config.to_dict()).begin({}, "a run for tests")
    latent_size = config.latent_sizes[0]
    own_folder = folder / f"latent_{latent_size:02d}"
    own_folder.mkdir()
    training.train(config, latent_size, train_set, own_folder)
    return folder
