"""Reading images, through `datasets.load`."""

from __future__ import annotations

import gzip
import pathlib
import shutil
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from tests.testing.bernoulli import assert_bernoulli
from tests.testing.mnist import MNIST_FILES, mnist_dir
from tfp_surgery import datasets

# The bundled digits


def test_digits_are_scikit_learns() -> None:
    train = datasets.load("digits", binarization="none")
    test = datasets.load("digits", "test", binarization="none")
    assert (len(train), len(test)) == (1500, 297)
    assert train.event_shape == test.event_shape == (8, 8, 1)
    levels = np.concatenate([train.observations(), test.observations()])[..., 0] * 16
    np.testing.assert_array_equal(levels, load_digits().images)


def test_digits_errors() -> None:
    with pytest.raises(ValueError, match="'train' and 'test', got 'validation'"):
        datasets.load("digits", "validation", binarization="fixed")
    with pytest.raises(ValueError, match="got 'static'"):
        datasets.load("digits", binarization="static")
    with pytest.raises(TypeError, match="seed must be an integer"):
        datasets.load("digits", binarization="fixed", seed="0")
    with pytest.raises(ValueError, match="max_level is 16, got 255"):
        datasets.load("digits", binarization="fixed", max_level=255)
    with pytest.raises(FileNotFoundError, match="manual_dir '/no/such' is not an existing folder"):
        datasets.load("digits", binarization="fixed", manual_dir="/no/such")


# TFDS, without any download: builders of the tests' own


class SurgeryTestDots(tfds.core.GeneratorBasedBuilder):
    """Eleven black images with one dot of level 1, in two splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(4, 5, 1))
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, "place": np.int64}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples(11), "validation": self._generate_examples(2)}

    def _generate_examples(self, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for place in range(count):
            image = np.zeros((4, 5, 1), np.uint8)
            image.flat[place] = 1
            yield place, {"image": image, "place": place}


class SurgeryTestDark(SurgeryTestDots):
    """Images of 8 bits whose "train" holds the levels 0 and 1 alone."""

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        bright = ((place, self._bright(image)) for place, image in self._generate_examples(3))
        return {"train": self._generate_examples(5), "validation": bright}

    def _bright(self, example: dict[str, Any]) -> dict[str, Any]:
        return {**example, "image": example["image"] * np.uint8(200)}


class SurgeryTestFourBits(SurgeryTestDark):
    """Images of the levels 0 to 15."""

    def _bright(self, example: dict[str, Any]) -> dict[str, Any]:
        return {**example, "image": example["image"] * np.uint8(15)}


class SurgeryTestMixedSizes(SurgeryTestDots):
    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3))})
        return tfds.core.DatasetInfo(builder=self, features=features)


class SurgeryTestDeepImages(SurgeryTestDots):
    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(4, 5, 1), dtype=np.uint16)
        features = tfds.features.FeaturesDict({"image": image})
        return tfds.core.DatasetInfo(builder=self, features=features)


class SurgeryTestTexts(SurgeryTestDots):
    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "image": np.float32})
        return tfds.core.DatasetInfo(builder=self, features=features)


@pytest.fixture(scope="module")
def dots_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("dots")


def test_tfds_images_arrive_whole(
    dots_dir: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dots = datasets.load("surgery_test_dots", binarization="none", data_dir=dots_dir)
    assert dots.intensities.dtype == np.uint8
    x = dots.observations()
    # Levels 0 and 1 are intensities 0 and 1; each of the eleven images has its own dot.
    np.testing.assert_array_equal(x.reshape(11, -1).sum(axis=1), np.ones(11))
    np.testing.assert_array_equal(x.sum(axis=0).ravel(), np.arange(20) < 11)
    part = datasets.load("surgery_test_dots", "train[:4]", binarization="none", data_dir=dots_dir)
    np.testing.assert_array_equal(part.observations(), x[:4])
    assert (
        part.describe() == "surgery_test_dots/train[:4], N = 4, binarization none, levels 0 and 1"
    )
    assert part.max_level == 1
    validation = datasets.load(
        "surgery_test_dots", "validation", binarization="fixed", data_dir=dots_dir
    )
    assert len(validation) == 2
    assert "examples" not in capfd.readouterr().out


def test_levels_are_decided_by_the_whole_data_set(tmp_path: pathlib.Path) -> None:
    """A dark split, or a part of one, is not taken for a binary data set."""
    for split in ("train", "train[:1]", "validation", "train+validation"):
        dark = datasets.load("surgery_test_dark", split, binarization="none", data_dir=tmp_path)
        assert dark.max_level == 255
        assert dark.describe().endswith("level 255 is intensity 1")
        highest = 200 if "validation" in split else 1
        assert dark.observations().max() == np.float32(highest) / np.float32(255)
    message = "surgery_test_four_bits: the levels go from 0 to 15, .*max_level=15"
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match=message):
            datasets.load("surgery_test_four_bits", split, binarization="none", data_dir=tmp_path)
        four_bits = datasets.load(
            "surgery_test_four_bits",
            split,
            binarization="none",
            data_dir=tmp_path,
            max_level=15,
        )
        highest = 15 if split == "validation" else 1
        assert four_bits.observations().max() == np.float32(highest) / np.float32(15)
    with pytest.raises(ValueError, match=r"levels must be in \[0, 15\].* to 200"):
        datasets.load(
            "surgery_test_dark",
            "validation",
            binarization="none",
            data_dir=tmp_path,
            max_level=15,
        )


def test_fixed_bits_of_the_digits_stay_what_they_are() -> None:
    """The numbers of the README rest on them."""
    for split, checksum in (("train", 367737035), ("test", 134990217)):
        x = datasets.load("digits", split, binarization="fixed").observations()
        assert zlib.crc32(np.packbits(x.astype(bool)).tobytes()) == checksum


def test_tfds_split_errors(dots_dir: pathlib.Path) -> None:
    for split in ("test", "train[", "train[:10%"):
        with pytest.raises(ValueError, match="the splits train, validation, got "):
            datasets.load("surgery_test_dots", split, binarization="none", data_dir=dots_dir)
    with pytest.raises(ValueError, match=r"no images in the split 'train\[:0\]'"):
        datasets.load("surgery_test_dots", "train[:0]", binarization="none", data_dir=dots_dir)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("surgery_test_mixed_sizes", r"uint8 and of one size, got the shape \(None, None, 3\)"),
        ("surgery_test_deep_images", "uint8 and of one size.* uint16"),
        ("surgery_test_texts", r"not an image data set: it has the features \['image', 'text'\]"),
        ("mnits", r"no data set 'mnits'; did you mean .*mnist.*digits \(bundled"),
    ],
)
def test_tfds_names_that_are_no_images(name: str, message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.load(name, binarization="none", data_dir=tmp_path)
    assert not any(tmp_path.iterdir())


def test_prepared_data_that_is_broken(dots_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    datasets.load("surgery_test_dots", binarization="none", data_dir=dots_dir)
    copy = tmp_path / "copy"
    shutil.copytree(dots_dir, copy)
    folder = copy / "surgery_test_dots" / "1.0.0"
    (folder / "dataset_info.json").unlink()
    with pytest.raises(OSError, match="no finished data set"):
        datasets.load("surgery_test_dots", binarization="none", data_dir=copy)
    a_file = tmp_path / "file"
    a_file.touch()
    with pytest.raises(NotADirectoryError, match=r"data_dir .* is a file"):
        datasets.load("surgery_test_dots", binarization="none", data_dir=a_file)


def test_manual_dir_that_lacks_files(tmp_path: pathlib.Path) -> None:
    manual_dir = tmp_path / "manual"
    manual_dir.mkdir()
    for name in MNIST_FILES[1:]:
        (manual_dir / name).touch()
    with pytest.raises(FileNotFoundError, match=f"lacks {MNIST_FILES[0]}; mnist is made from"):
        datasets.load("mnist", binarization="fixed", data_dir=tmp_path, manual_dir=manual_dir)


def test_no_network(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(url: str, timeout: float) -> None:
        raise urllib.error.URLError(f"cannot reach {url} in {timeout} s")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    message = r"cannot reach.*train-images-idx3-ubyte\.gz.*--manual_dir.*--dataset=digits"
    with pytest.raises(ConnectionError, match=message):
        datasets.load("mnist", binarization="fixed", data_dir=tmp_path)


def test_manual_files_are_verified(tmp_path: pathlib.Path) -> None:
    for name in MNIST_FILES:
        (tmp_path / name).write_bytes(gzip.compress(b"something else"))
    with pytest.raises(OSError, match="not the original"):
        datasets.load("mnist", binarization="fixed", data_dir=tmp_path, manual_dir=tmp_path)


# Real MNIST


@pytest.fixture(scope="module")
def mnist_data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A data_dir with MNIST prepared from the original files.

    Another data set's extracted files of the same names lie in TFDS's shared folder beforehand.
    """
    manual_dir = mnist_dir()
    data_dir = tmp_path_factory.mktemp("tfds")
    extracted = data_dir / "downloads" / "extracted"
    extracted.mkdir(parents=True)
    for name in MNIST_FILES:
        (extracted / f"GZIP.{name}").write_bytes(b"fashion")
    datasets.load("mnist", binarization="none", data_dir=data_dir, manual_dir=manual_dir)
    return data_dir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "file", "size"), [("train", MNIST_FILES[2], 60000), ("test", MNIST_FILES[0], 10000)]
)
def test_mnist_is_the_original(
    mnist_data_dir: pathlib.Path, split: str, file: str, size: int
) -> None:
    mnist = datasets.load("mnist", split, binarization="none", data_dir=mnist_data_dir)
    assert mnist.intensities.shape == (size, 28, 28, 1)
    assert mnist.intensities.dtype == np.uint8
    with gzip.open(mnist_dir() / file) as stream:
        original = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(size, 784)
    # TFDS keeps the images in an order of its own.
    images = [array.tobytes() for array in mnist.intensities]
    assert sorted(images) == sorted(array.tobytes() for array in original)


@pytest.mark.slow
def test_mnist_binarized(mnist_data_dir: pathlib.Path) -> None:
    mnist = datasets.load("mnist", binarization="fixed", data_dir=mnist_data_dir)
    p = mnist.intensities[:5000] / 255
    assert_bernoulli(mnist[:5000], p)
    assert mnist.observations().mean(dtype=np.float64) == pytest.approx(0.1307, abs=1e-3)
    assert int(mnist.batches(128, seed=0).cardinality()) == 469
