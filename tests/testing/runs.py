"""What tests of experiments ask of a run, its folder and its command."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from absl import flags

from experiments.common import training
from experiments.common.config import Config
from experiments.common.workdir import Run
from tfp_surgery import datasets
from tfp_surgery.networks.encoders import MLPEncoder
from tfp_surgery.priors.base import Prior


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
    """A run of the main job as far as others read it: settings, checkpoints of the first size."""
    train_set = datasets.load(
        config.dataset, "train", binarization=config.binarization, seed=config.seed
    )
    Run(folder, "elbo_surgery", config.to_dict()).begin({}, "a run for tests")
    latent_size = config.latent_sizes[0]
    for training_seed in config.training_seeds:
        own_folder = folder / f"training_seed_{training_seed}" / f"latent_{latent_size:02d}"
        own_folder.mkdir(parents=True)
        training.train(config, training_seed, latent_size, train_set, own_folder)
    return folder


def with_checkpoint(
    folder: pathlib.Path, experiment: str, config: Config, path: pathlib.Path
) -> None:
    """Begins a run of which a model is trained already: its checkpoint, below another run."""
    Run(folder, experiment, config.to_dict()).begin({}, "a run for tests")
    start = next(n for n, part in enumerate(path.parts) if part.startswith("training_seed_"))
    target = folder.joinpath(*path.parts[start:])
    target.parent.mkdir(parents=True)
    shutil.copy(path, target)


class Counts:
    """How many observations encoders saw, and how often priors were built, after some functions.

    Attributes:
      encoded: numbers of observations, from the return of such a function to the next call of one.
      built: numbers of calls, likewise.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *priors: type[Prior]) -> None:
        """Counts the calls of `MLPEncoder`, and of some kinds of priors."""
        self._counts = False
        self.encoded: list[int] = []
        self.built: list[int] = []
        self._monkeypatch = monkeypatch
        self._count(MLPEncoder, self.encoded, len)
        for prior in priors:
            self._count(prior, self.built, lambda _: 1)

    def start_after(self, module: ModuleType, name: str) -> None:
        """Counts anew when a function of a module has returned, and nothing while it runs."""
        function = getattr(module, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            self._counts = False
            returned = function(*arguments, **named)
            self._counts = True
            self.encoded.append(0)
            self.built.append(0)
            return returned

        self._monkeypatch.setattr(module, name, wrapped)

    def _count(self, layer: Any, counts: list[int], number: Callable[[Any], int]) -> None:
        call, owner = layer.call, self

        @functools.wraps(call)  # Keras looks at the signature
        def counted(self: Any, inputs: Any = None) -> Any:
            if owner._counts:
                counts[-1] += number(inputs)
            return call(self, inputs)

        self._monkeypatch.setattr(layer, "call", counted)
