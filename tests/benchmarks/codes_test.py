from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import tfp_surgery as tfs
from benchmarks import codes
from benchmarks.codes import Source
from experiments.common.config import Config
from experiments.common.workdir import Run
from tfp_surgery.training.checkpoint import CheckpointCallback


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "codes.npz"
    codes.write_synthetic(path, 4000, 3)
    return Source(str(path), 4000, 4000)


def test_queries_are_drawn_from_their_own_posteriors(source: Source) -> None:
    loc, scale, z = source.load()
    assert (loc.dtype, scale.dtype, z.dtype) == 3 * (np.dtype(np.float32),)
    whitened = (z - loc) / scale
    # A mean of 12000 standard normals, and of their squares (variance 2).
    assert abs(whitened.mean()) < 4.5 / np.sqrt(12000)
    assert abs((whitened**2).mean() - 1) < 4.5 * np.sqrt(2 / 12000)
    for first, again in zip(source.load(), (loc, scale, z), strict=True):
        np.testing.assert_array_equal(first, again)


def test_narrower_posteriors_have_codes_of_their_own(source: Source) -> None:
    loc, scale, z = source.load()
    narrow = dataclasses.replace(source, shrink=1000.0, seed=1, num_queries=100).load()
    np.testing.assert_array_equal(narrow.loc, loc)
    np.testing.assert_allclose(narrow.scale, scale / 1000, rtol=1e-6)
    whitened = (narrow.z.astype(np.float64) - loc[:100]) / narrow.scale[:100]
    assert abs((whitened**2).mean() - 1) < 4.5 * np.sqrt(2 / 300)
    assert not np.allclose(whitened, ((z - loc) / scale)[:100], atol=0.1)


def test_an_image_moves_with_zeros_at_the_edges() -> None:
    rng = np.random.default_rng(0)
    images = rng.uniform(0.1, 1.0, size=(3, 7, 6, 2)).astype(np.float32)
    assert len(set(codes.SHIFTS)) == len(codes.SHIFTS) == 17
    for down, right in codes.SHIFTS:
        expected = np.roll(images, (down, right), axis=(1, 2))
        rows, columns = np.arange(7) - down, np.arange(6) - right  # where a pixel comes from
        inside = ((rows >= 0) & (rows < 7))[:, None] & ((columns >= 0) & (columns < 6))
        expected = expected * inside[None, :, :, None]
        np.testing.assert_array_equal(codes.shifted(images, down, right), expected)
        assert max(abs(down), abs(right)) <= 2


def test_the_posteriors_of_shifted_images_are_written(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.keras"
    images = np.random.default_rng(0).integers(2, size=(20, 4, 4, 1)).astype(np.float32)
    vae = tfs.VAE(
        tfs.networks.MLPEncoder(latent_size=2, hidden_sizes=[3]),
        tfs.networks.MLPDecoder(event_shape=(4, 4, 1), hidden_sizes=[3]),
        tfs.priors.StandardNormalPrior(event_size=2),
    )
    vae.compile(optimizer="adam")
    vae.fit(images, epochs=1, verbose=0, callbacks=[CheckpointCallback(checkpoint)])
    path = tmp_path / "codes.npz"
    codes.write_encoded(path, checkpoint, images, codes.SHIFTS)
    moved = np.concatenate([codes.shifted(images, *shift) for shift in codes.SHIFTS])
    posterior = vae.encoder(moved)
    with np.load(path) as file:
        assert file["loc"].shape == (17 * 20, 2)
        for name, expected in (("loc", posterior.mean()), ("scale", posterior.stddev())):
            in_order = np.sort(expected, axis=0)
            np.testing.assert_allclose(np.sort(file[name], axis=0), in_order, rtol=1e-4, atol=1e-5)
            assert np.abs(file[name] - expected).max() > 1e-3  # in another order


def test_dimensions_can_be_left_out(source: Source) -> None:
    one = dataclasses.replace(source, dimensions=1).load()
    for array, whole in zip(one, source.load(), strict=True):
        np.testing.assert_array_equal(array, whole[:, :1])


def test_codes_are_those_of_the_first_training_seed_of_a_run(tmp_path: Path) -> None:
    config = Config(latent_sizes=(2,), training_seeds=(4, 0))
    Run(tmp_path / "run", "elbo_surgery", config.to_dict()).begin({}, "a run for tests")
    expected = tmp_path / "run" / "training_seed_4" / "latent_02" / "checkpoint.keras"
    assert codes.checkpoint_of(tmp_path / "run", 2) == expected
    with pytest.raises(ValueError, match="holds no run of experiments"):
        codes.checkpoint_of(tmp_path, 2)
