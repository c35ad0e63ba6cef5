"""Tests of the flags of the main job."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from absl import flags
from absl.testing import flagsaver

import experiments.elbo_surgery  # noqa: F401 - defines --workdir
from experiments.common.config import Config
from experiments.common.config_flags import config_from_flags


@pytest.fixture(autouse=True)
def restored_flags() -> Iterator[None]:
    with flagsaver.flagsaver():
        yield
    flags.FLAGS.unparse_flags()


def parsed(*arguments: str) -> Config:
    flags.FLAGS(["experiment", "--workdir=unused", *arguments])
    return config_from_flags()


def test_defaults_serve_the_bundled_digits() -> None:
    config = parsed()
    assert config.dataset == "digits"
    assert config.latent_sizes == (2, 10, 20)
    assert config.binarization == "fixed"
    assert config.hidden_sizes == (500, 500)
    assert config.batch_size == 128
    assert config.learning_rate == 1e-3


def test_the_number_of_epochs_goes_with_the_data_set() -> None:
    assert parsed("--dataset=mnist").epochs == 80
    assert parsed("--dataset=digits").epochs == 100
    assert parsed("--dataset=mnist", "--epochs=7").epochs == 7


def test_flags_set_every_setting() -> None:
    config = parsed(
        "--dataset=mnist", "--latent_sizes=3,4", "--binarization=threshold", "--epochs=5",
        "--batch_size=6", "--learning_rate=0.01", "--hidden_sizes=7,8", "--num_samples=9",
        "--seed=10",
    )  # fmt: skip
    assert config == Config("mnist", (3, 4), "threshold", 5, 6, 0.01, (7, 8), 9, 10)


@pytest.mark.parametrize(
    "argument", ["--latent_sizes=2,ten", "--latent_sizes=2.5", "--hidden_sizes=x"]
)
def test_says_that_sizes_are_integers(argument: str) -> None:
    with pytest.raises(ValueError, match="takes integers with commas"):
        parsed(argument)


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(flags.UnrecognizedFlagError):
        parsed("--latent_size=2")
