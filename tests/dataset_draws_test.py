from __future__ import annotations

import dataclasses
import itertools
import zlib
from typing import Any

import numpy as np
import pytest

from tests.testing.image_sets import assert_unrelated, epochs, make_dataset
from tfp_surgery import dataset_draws
from tfp_surgery.datasets import Dataset


@pytest.mark.parametrize(
    ("part", "whole", "first_row"),
    [
        ("train", "train", 0),
        ("train[:500]", "train", 0),
        ("train[1_500:2000]", "train", 1500),
        ("train[7:]", "train", 7),
        ("my split[3:-2]", "my split", 3),
        ("train[:5%]", "train", 0),
    ],
)
def test_the_place_of_a_part_is_read_from_its_name(part: str, whole: str, first_row: int) -> None:
    assert dataset_draws.whole_split(part) == (whole, first_row)
    assert not dataset_draws.has_draws_of_its_own(part)


@pytest.mark.parametrize("part", ["train[5%:]", "train[-5:]", "train[:5]+test", "train[3shard]"])
def test_or_is_not(part: str) -> None:
    assert dataset_draws.whole_split(part) == (part, 0)
    assert dataset_draws.has_draws_of_its_own(part)


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train[:500]", slice(500)),
        ("train[500:]", slice(500, None)),
        ("train[1000:2_100]", slice(1000, 2100)),  # over the edges of two blocks
        ("train[1024:1025]", slice(1024, 1025)),
        ("train[:-7]", slice(-7)),
        ("train[:10%]", slice(300)),
    ],
)
@pytest.mark.parametrize("binarization", ["fixed", "stochastic"])
def test_a_part_has_the_draws_of_its_rows(split: str, rows: slice, binarization: str) -> None:
    whole = make_dataset(binarization, 3000)
    part = Dataset("random", split, whole.intensities[rows], binarization, 0)
    np.testing.assert_array_equal(
        part.observations(draw_seed=4), whole.observations(draw_seed=4)[rows]
    )
    assert "draws of its own" not in part.describe(draw_seed=4)


@pytest.mark.parametrize("split", ["train[10%:]", "train[-500:]", "train+test", "train[:9]+test"])
def test_other_parts_say_that_their_draws_are_their_own(split: str) -> None:
    p = make_dataset("none").observations()
    part = Dataset("random", split, make_dataset("none").intensities, "fixed", 0)
    assert_unrelated(make_dataset("fixed").observations(), part.observations(), p)
    own = "draws of its own, not those of a whole split"
    assert f"(seed 0, {own})" in part.describe()
    stochastic = dataclasses.replace(part, binarization="stochastic")
    assert f"(seed 0, draw 2, {own})" in stochastic.describe(draw_seed=2)
    for text in (
        stochastic.describe(),
        dataclasses.replace(part, binarization="threshold").describe(),
    ):
        assert own not in text


def test_epochs_of_two_parts_share_no_noise() -> None:
    half = np.full((400, 30), 0.5, np.float32)
    first, second = (
        epochs(Dataset("mine", split, half, "stochastic", 0).batches(400, seed=0), 1)[0][0]
        for split in ("train[:400]", "train[400:]")
    )
    assert_unrelated(first, second, half)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, (8838331, 2059951680, 2491602118)),
        (7, (817670051, 2877009401, 680490409)),
        (2**31 - 1, (1558830401, 406583165, 810477334)),
    ],
)
def test_the_draws_of_an_integer_stay_what_they_were(
    seed: int, expected: tuple[int, int, int]
) -> None:
    """The checksums are those of the draws before pairs of integers were taken as seeds."""
    images = np.random.default_rng(5).uniform(size=(3000, 3, 2)).astype(np.float32)
    stochastic = Dataset("random", "train", images, "stochastic", seed)
    found = (
        Dataset("random", "train[5:]", images, "fixed", seed).observations(),
        stochastic.observations(draw_seed=4),
        np.concatenate(epochs(stochastic.batches(100, seed=3, initial_epoch=2), 1)[0]),
    )
    assert tuple(zlib.crc32(draw.tobytes()) for draw in found) == expected


def test_a_pair_is_a_seed_with_draws_of_its_own() -> None:
    p = make_dataset("none", 200).observations()

    def drawn(seed: Any, draw_seed: Any) -> np.ndarray:
        intensities = make_dataset("none", 200).intensities
        dataset = Dataset("random", "train", intensities, "stochastic", seed)
        return dataset.observations(draw_seed=draw_seed)

    given: list[Any] = [
        (1, 2),
        ((1, 2), 3),
        (1, (2, 3)),
        ((1, 2), (3, 0)),
        ((2, 1), 3),
        ((1, -2), 3),
    ]
    found = [drawn(*seeds) for seeds in given]
    for first, second in itertools.combinations(found, 2):
        assert_unrelated(first, second, p)
    for seeds, draw in zip(given, found, strict=True):
        np.testing.assert_array_equal(drawn(*seeds), draw)


def test_no_two_forms_of_seeds_share_entropy() -> None:
    parts: list[Any] = [0, 1, (0, 0), (0, 1), (1, 0)]
    states = {
        tuple(dataset_draws.entropy(use, *numbers).generate_state(4))
        for use in (dataset_draws.STATED_DRAW, dataset_draws.ORDER)
        for length in (1, 2, 3)
        for numbers in itertools.product(parts, repeat=length)
    }
    assert len(states) == 2 * (5 + 25 + 125)
