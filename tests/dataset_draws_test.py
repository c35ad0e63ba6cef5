from __future__ import annotations

import dataclasses

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
