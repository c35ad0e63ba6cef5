"""Tests of the register of random streams."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery import dataset_draws, seeds

ROOT = Path(__file__).parent.parent
NAMES = sorted(seeds.STREAMS)


@pytest.mark.parametrize("seed", [0, 1, seeds.MAX_SEED, (0, 0), (0, 1), (1, 0), (-1, 2**31 - 1)])
def test_no_two_names_share_noise(seed: seeds.Seed) -> None:
    keys = {tuple(seeds.key(seed, name).numpy()) for name in NAMES}
    assert len(keys) == len(NAMES)
    draws = [tf.random.stateless_normal([2000], seeds.key(seed, name)).numpy() for name in NAMES]
    draws += [seeds.generator(seed, name).normal(size=2000) for name in NAMES]
    correlations = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
    assert np.abs(correlations).max() < 6 / np.sqrt(2000)  # six standard errors of each


def test_seeds_share_no_noise() -> None:
    """An int is not the pair that ends or begins with it."""
    given: list[seeds.Seed] = [0, 1, 2, (0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (-1, 0)]
    keys = {tuple(seeds.key(seed, "probe").numpy()) for seed in given}
    assert len(keys) == len(given)


def test_steps_share_no_noise() -> None:
    keys = [
        tuple(seeds.key(seed, name, *numbers).numpy())
        for seed in (0, 1)
        for name in NAMES
        for numbers in [(), *itertools.product(range(5)), *itertools.product(range(3), range(3))]
    ]
    assert len(set(keys)) == len(keys)
    draws = [
        seeds.generator(0, "probe", *numbers).integers(2**62)
        for numbers in [(), (0,), (0, 0), (1,), (0, 1), (1, 0)]
    ]
    assert len(set(draws)) == len(draws)


def test_no_name_is_a_number_of_the_draws_of_data_sets() -> None:
    numbers = {dataset_draws.of_name(name) for name in NAMES}
    assert len(numbers) == len(NAMES)
    assert not numbers & set(range(16))


def test_a_step_may_be_a_tensor_in_a_graph() -> None:
    @tf.function
    def step(number: tf.Tensor) -> tf.Tensor:
        return seeds.key(7, "training/step", number)

    np.testing.assert_array_equal(step(tf.constant(3)), seeds.key(7, "training/step", 3))


def test_a_pair_is_handed_on_and_an_integer_has_a_stream() -> None:
    @tf.function
    def in_a_graph(given: tf.Tensor) -> tf.Tensor:
        return seeds.pair(given, "probe")

    for given in ((1, 2), [1, 2], tf.constant([1, 2])):
        np.testing.assert_array_equal(seeds.pair(given, "probe"), [1, 2])
    np.testing.assert_array_equal(in_a_graph(tf.constant([1, 2])), [1, 2])
    np.testing.assert_array_equal(seeds.pair(3, "probe"), seeds.key(3, "probe"))
    with pytest.raises(TypeError, match="seed must be an integer or a pair"):
        seeds.pair(None, "probe")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (3, 3),
        (np.int64(3), 3),
        ((1, 2), (1, 2)),
        ([1, -2], (1, -2)),
        (np.array([1, 2], np.int32), (1, 2)),
        (tf.constant([1, 2]), (1, 2)),
    ],
)
def test_an_int_or_a_pair_is_a_seed(given: Any, expected: seeds.Seed) -> None:
    assert seeds.checked_seed(given) == expected


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (None, TypeError),
        (True, TypeError),
        (1.0, TypeError),
        ("1", TypeError),
        ((1, 2, 3), TypeError),
        ((1.0, 2.0), TypeError),
        (-1, ValueError),
        (2**31, ValueError),
        ((0, 2**31), ValueError),
    ],
)
def test_what_is_no_seed_is_refused(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="my_seed"):
        seeds.checked_seed(given, "my_seed")


def test_each_stream_is_used_in_one_place() -> None:
    used = []
    for folder in ("tfp_surgery", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in ("key", "pair", "generator")
                    and getattr(node.func.value, "id", None) == "seeds"
                ):
                    assert isinstance(node.args[1], ast.Constant), (path, node.lineno)
                    used.append(str(node.args[1].value))
    names = [name for name in used if name != "probe"]  # whose draws are only looked at
    assert sorted(names) == sorted(seeds.STREAMS - {"probe"})
