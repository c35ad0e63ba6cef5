"""Tests of the settings of the main job."""

from __future__ import annotations

import json
from typing import Any

import pytest

from experiments.common.config import Config
from experiments.priors.config import PriorsConfig

VALID: dict[str, Any] = {
    "dataset": "digits",
    "latent_sizes": (2, 10),
    "binarization": "fixed",
    "epochs": 3,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "hidden_sizes": (500, 500),
    "num_samples": 4,
    "seed": 0,
    "training_seeds": (0, 1, 2),
}


def test_survives_json() -> None:
    config = Config(**VALID)
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert config.to_dict()["latent_sizes"] == [2, 10]


def test_defaults_serve_the_bundled_digits() -> None:
    config = Config()
    assert config == Config("digits", (2, 10, 20), "fixed", 100, 128, 1e-3, (500, 500), 4, 0, (0,))


def test_the_number_of_epochs_goes_with_the_data_set() -> None:
    assert Config(dataset="mnist").epochs == 80
    assert Config(dataset="digits").epochs == 100
    assert Config(dataset="mnist", epochs=7).epochs == 7
    assert PriorsConfig(dataset="mnist").epochs == 12


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dataset", "", "--dataset must not be empty"),
        ("latent_sizes", (), "--latent_sizes must name at least one"),
        ("latent_sizes", (2, 0), "--latent_sizes must be at least 1"),
        ("latent_sizes", (2, 2), "--latent_sizes names one twice"),
        ("hidden_sizes", (0,), "--hidden_sizes must be at least 1"),
        ("binarization", "dither", "--binarization must be one of"),
        ("binarization", "none", "Bernoulli"),
        ("epochs", 0, "--epochs must be at least 1, got 0"),
        ("batch_size", 0, "--batch_size must be at least 1"),
        ("num_samples", 1, "--num_samples must be at least 2"),
        ("training_seeds", (), "--training_seeds must name at least one"),
        ("training_seeds", (1, 1), "--training_seeds names one twice"),
        ("training_seeds", (0, 2**31), "at most 2147483647"),
        ("seed", -1, "--seed must be at least 0"),
        ("seed", 2**31, "at most 2147483647"),
        ("learning_rate", 0.0, "--learning_rate must be positive"),
        ("learning_rate", float("nan"), "--learning_rate must be positive"),
    ],
)
def test_says_which_setting_is_wrong(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**{**VALID, name: value})
