"""Tests of settings that are flags."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from absl import flags

from experiments.common.settings import Settings, seed_setting, setting, training_seeds_setting


@dataclasses.dataclass(frozen=True)
class Walk(Settings):
    """Settings of each kind."""

    path: str = setting(dataclasses.MISSING, "where")
    pace: str = setting("slow", "how fast", choices=("slow", "fast"))
    days: tuple[int, ...] = setting((1, 2), "when", distinct=True)
    loads: tuple[float, ...] = setting((0.5,), "how heavy")
    dogs: tuple[str, ...] = setting((), "with whom")
    rests: int | None = setting(None, "how many")
    steps: int = setting(10, "how far", minimum=2, maximum=20)
    slope: float = setting(0.1, "how steep")
    seed: int = seed_setting("of all of it")
    again: tuple[int, ...] | None = training_seeds_setting(None, "with other seeds")


def parsed(*arguments: str) -> Walk:
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    Walk.define_flags(values)
    values(["walk", *arguments])
    return Walk.from_flags(values)


def test_a_flag_that_is_not_given_has_its_default() -> None:
    assert parsed("--path=here") == Walk(path="here")
    with pytest.raises(flags.IllegalFlagValueError, match="--path must have a value"):
        parsed()


def test_flags_set_every_setting() -> None:
    given = parsed(
        "--path=there", "--pace=fast", "--days=3,4", "--loads=1,2.5", "--dogs=a,b", "--rests=7",
        "--steps=8", "--slope=9", "--seed=10", "--again=0,2",
    )  # fmt: skip
    assert given == Walk("there", "fast", (3, 4), (1.0, 2.5), ("a", "b"), 7, 8, 9.0, 10, (0, 2))
    assert json.loads(json.dumps(given.to_dict())) == given.to_dict()
    assert given.to_dict()["days"] == [3, 4]
    assert given.to_dict()["again"] == [0, 2]
    assert Walk("here").to_dict()["again"] is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--days=2,x", "--days takes integers with commas between them, got 2,x"),
        ("--days=2.5", "--days takes integers"),
        ("--again=2,2", "--again names one twice: 2,2"),
        ("--again=", "--again must name at least one"),
        ("--again=-1", "--again must be at least 0"),
        ("--days=2,2", "--days names one twice: 2,2"),
        ("--days=2,0", "--days must be at least 1, got 0"),
        ("--days=", "--days must name at least one"),
        ("--loads=x", "--loads takes numbers"),
        ("--loads=1,-1", "--loads must be positive, got 1.0,-1.0"),
        ("--path=", "--path must not be empty"),
        ("--steps=1", "--steps must be at least 2"),
        ("--steps=21", "at most 20, got 21"),
        ("--slope=nan", "--slope must be positive"),
        ("--seed=-1", "--seed must be at least 0"),
        ("--seed=2147483648", "at most 2147483647"),
    ],
)
def test_says_which_flag_is_wrong(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed("--path=here", argument)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"pace": "run"}, ValueError, "--pace must be one of slow, fast, got run"),
        ({"steps": 2.5}, TypeError, "--steps must be an integer, got 2.5"),
        ({"rests": 0}, ValueError, "--rests must be at least 1"),
        ({"steps": None}, TypeError, "--steps must be an integer"),
    ],
)
def test_says_which_setting_is_wrong(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Walk(path="here", **wrong)


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(flags.UnrecognizedFlagError):
        parsed("--path=here", "--pase=slow")
