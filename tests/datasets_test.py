from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from tests.testing.mnist import MNIST_FILES, mnist_dir
from tfp_surgery import datasets
from tfp_surgery.datasets import BINARIZATIONS, Dataset

# A mean of Bernoulli draws is allowed this many standard errors.
STANDARD_ERRORS = 4.5


def make_dataset(
    binarization: str, num_observations: int = 50, *, split: str = "train", seed: int = 0
) -> Dataset:
    levels = np.random.default_rng(7).integers(0, 256, (num_observations, 4, 3, 1), np.uint8)
    return Dataset("random", split, levels, binarization, seed)


def numbered(num_observations: int, binarization: str = "none") -> Dataset:
    """Observation n is the one number n / 1024, exact in float32."""
    intensities = np.arange(num_observations, dtype=np.float32)[:, np.newaxis] / 1024
    return Dataset("numbered", "train", intensities, binarization, 0)


def epochs(pipeline: tf.data.Dataset, count: int) -> list[list[np.ndarray]]:
    return [list(pipeline.as_numpy_iterator()) for _ in range(count)]


def assert_same_epochs(a: list[list[np.ndarray]], b: list[list[np.ndarray]]) -> None:
    assert len(a) == len(b)
    for epoch_a, epoch_b in zip(a, b, strict=True):
        assert len(epoch_a) == len(epoch_b)
        for batch_a, batch_b in zip(epoch_a, epoch_b, strict=True):
            np.testing.assert_array_equal(batch_a, batch_b)


def assert_bernoulli(draws: np.ndarray, p: np.ndarray) -> None:
    """Per-observation and total means of 0/1 draws lie around those of p."""
    assert set(np.unique(draws)) <= {0.0, 1.0}
    for axes in (tuple(range(1, p.ndim)), None):
        error = np.sqrt(np.sum(p * (1 - p), axis=axes))
        difference = np.abs(np.sum(draws - p, axis=axes, dtype=np.float64))
        assert np.all(difference <= STANDARD_ERRORS * error)


# Binarization


def test_none_gives_the_intensities() -> None:
    dataset = make_dataset("none")
    np.testing.assert_array_equal(
        dataset.observations(), dataset.intensities.astype(np.float32) / np.float32(255)
    )
    assert dataset.observations().dtype == np.float32


def test_threshold_cuts_above_one_half() -> None:
    levels = np.array([[0, 127, 128, 255]], np.uint8)
    dataset = Dataset("mine", "train", levels, "threshold", 0)
    np.testing.assert_array_equal(dataset.observations(), [[0, 0, 1, 1]])
    floats = np.array([[0.0, 0.5, 0.50001, 1.0]])
    dataset = Dataset("mine", "train", floats, "threshold", 0)
    np.testing.assert_array_equal(dataset.observations(), [[0, 0, 1, 1]])


@pytest.mark.parametrize("binarization", ["fixed", "stochastic"])
def test_draws_have_the_intensities_as_means(binarization: str) -> None:
    dataset = make_dataset(binarization, 3000)  # more than one block of the draw
    assert_bernoulli(dataset.observations(draw_seed=3), dataset.intensities / 255)


def test_epoch_draws_have_the_intensities_as_means() -> None:
    intensities = np.repeat(np.linspace(0, 1, 50, dtype=np.float32)[:, np.newaxis], 400, axis=1)
    pipeline = Dataset("mine", "train", intensities, "stochastic", 0).batches(50, seed=1)
    (batch,) = next(iter(epochs(pipeline, 1)))
    # The epoch is shuffled; p = 0 and p = 1 are certain, so sorting by means finds the rest.
    ordered = batch[np.argsort(batch.mean(axis=1))]
    assert not ordered[0].any()
    assert ordered[-1].all()
    p = intensities[:, 0].astype(np.float64)
    error = np.sqrt(np.sum(p * (1 - p)) / 400) / 50
    assert abs(batch.mean(dtype=np.float64) - p.mean()) < STANDARD_ERRORS * error
    # The order statistics of 400-pixel means stay within the same bound of the sorted p.
    bound = STANDARD_ERRORS * 0.5 / np.sqrt(400)
    np.testing.assert_allclose(ordered.mean(axis=1), p, atol=bound)


def test_certain_pixels_never_flip() -> None:
    levels = np.tile(np.array([0, 255], np.uint8), (4000, 8))
    for binarization in BINARIZATIONS:
        dataset = Dataset("mine", "train", levels, binarization, 0)
        np.testing.assert_array_equal(dataset.observations(draw_seed=0), levels / 255)


def test_fixed_draw_is_one_per_seed_and_split() -> None:
    x = make_dataset("fixed").observations()
    np.testing.assert_array_equal(x, make_dataset("fixed").observations())
    np.testing.assert_array_equal(x, make_dataset("fixed").observations(draw_seed=9))
    for other in (make_dataset("fixed", seed=1), make_dataset("fixed", split="test")):
        np.testing.assert_array_equal(other.intensities, make_dataset("fixed").intensities)
        assert_unrelated(x, other.observations(), other.intensities / 255)


def assert_unrelated(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> None:
    """Independent draws disagree with probability 2 p (1 - p) at each pixel."""
    disagree = 2 * p * (1 - p)
    error = np.sqrt(np.sum(disagree * (1 - disagree)))
    assert abs(np.sum(a != b) - np.sum(disagree)) < STANDARD_ERRORS * error


def test_stochastic_draws_are_named_by_their_seed() -> None:
    dataset = make_dataset("stochastic")
    x = dataset.observations(draw_seed=3)
    np.testing.assert_array_equal(x, make_dataset("stochastic").observations(draw_seed=3))
    p = dataset.intensities / 255
    assert_unrelated(x, dataset.observations(draw_seed=4), p)
    assert_unrelated(x, make_dataset("stochastic", seed=1).observations(draw_seed=3), p)
    assert_unrelated(dataset.observations(draw_seed=0), make_dataset("fixed").observations(), p)


def test_blocks_of_a_draw_are_unrelated() -> None:
    half = np.full((2 * datasets._DRAW_BLOCK, 5), 0.5, np.float32)
    x = Dataset("mine", "train", half, "fixed", 0).observations()
    first, second = np.split(x, 2)
    assert_unrelated(first, second, half[: len(first)])


def test_stochastic_observations_need_a_draw_seed() -> None:
    with pytest.raises(ValueError, match=r"random/train.*draw_seed=<integer>"):
        make_dataset("stochastic").observations()


# Indexing and description


@pytest.mark.parametrize("binarization", ["fixed", "threshold", "none"])
def test_indexing_gives_rows_of_the_observations(binarization: str) -> None:
    dataset = make_dataset(binarization)
    x = dataset.observations()
    indices: list[Any] = [3, -1, slice(2, 9, 3), [4, 4, 0], np.arange(50) % 2 == 0, np.int64(5)]
    for index in indices:
        np.testing.assert_array_equal(dataset[index], x[index], strict=True)


def test_indexing_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="cannot be indexed"):
        make_dataset("stochastic")[0]
    with pytest.raises(TypeError, match="tuple"):
        make_dataset("fixed")[0, 1]
    with pytest.raises(IndexError):
        make_dataset("fixed")[50]


def test_description_and_dict() -> None:
    dataset = make_dataset("fixed", seed=5)
    assert dataset.num_observations == len(dataset) == 50
    assert dataset.event_shape == (4, 3, 1)
    assert dataset.describe() == "random/train, N = 50, binarization fixed (seed 5)"
    assert make_dataset("none").describe() == "random/train, N = 50, binarization none"
    stochastic = make_dataset("stochastic")
    assert stochastic.describe().endswith("stochastic (seed 0, a new draw each epoch)")
    assert stochastic.describe(draw_seed=8).endswith("stochastic (seed 0, draw 8)")
    assert json.loads(json.dumps(dataset.to_dict())) == {
        "name": "random",
        "split": "train",
        "num_observations": 50,
        "event_shape": [4, 3, 1],
        "binarization": "fixed",
        "seed": 5,
    }


def test_dataset_is_frozen() -> None:
    intensities = np.full((3, 2), 0.25)
    dataset = Dataset("mine", "train", intensities, "none", 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.binarization = "fixed"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        dataset.intensities[0] = 1
    intensities[:] = 1  # the caller's array stays the caller's
    np.testing.assert_array_equal(dataset.observations(), np.full((3, 2), 0.25))
    dataset.observations()[:] = 7
    dataset[:][:] = 7
    np.testing.assert_array_equal(dataset.observations(), np.full((3, 2), 0.25))


@pytest.mark.parametrize(
    ("intensities", "error", "message"),
    [
        (np.zeros((0, 4), np.uint8), ValueError, r"at least one observation.*\[0, 4\]"),
        (np.zeros((4, 0), np.float32), ValueError, r"got \[4, 0\]"),
        (np.zeros(4, np.uint8), ValueError, r"event dimension.*got \[4\]"),
        (np.array([[0.5, np.nan]]), ValueError, "finite"),
        (np.array([[0.5, np.inf]]), ValueError, "finite"),
        (np.array([[0.5, 1.5]]), ValueError, r"\[0, 1\].*0\.5 to 1\.5"),
        (np.array([[-0.5, 0.5]]), ValueError, r"\[0, 1\]"),
        (np.zeros((2, 2), np.int64), TypeError, "int64"),
        (np.zeros((2, 2), bool), TypeError, "bool"),
        ([[0.5, 0.5]], TypeError, "numpy array, got list"),
    ],
)
def test_bad_intensities_are_refused(
    intensities: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Dataset("mine", "train", intensities, "none", 0)


def test_bad_fields_are_refused() -> None:
    x = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match=r"stochastic, fixed, threshold, none, got 'dynamic'"):
        Dataset("mine", "train", x, "dynamic", 0)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        Dataset("mine", "train", x, "fixed", -1)
    with pytest.raises(ValueError, match="at most 2147483647"):
        Dataset("mine", "train", x, "fixed", 2**31)
    for seed in (0.5, True, None):
        with pytest.raises(TypeError, match="seed must be an integer"):
            Dataset("mine", "train", x, "fixed", seed)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name must be a string"):
        Dataset(3, "train", x, "fixed", 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split must not be empty"):
        Dataset("mine", "", x, "fixed", 0)


# Batches


@pytest.mark.parametrize("batch_size", [1, 7, 50, 10**12])
@pytest.mark.parametrize("seed", [None, 3])
def test_an_epoch_is_every_observation_once(batch_size: int, seed: int | None) -> None:
    dataset = numbered(50)
    pipeline = dataset.batches(batch_size, seed=seed)
    expected = dataset.num_batches(batch_size)
    assert expected == int(np.ceil(50 / batch_size))
    assert int(pipeline.cardinality()) == expected
    assert pipeline.element_spec == tf.TensorSpec([None, 1], tf.float32)
    orders = []
    for epoch in epochs(pipeline, 3):
        assert [len(batch) for batch in epoch[:-1]] == [min(batch_size, 50)] * (expected - 1)
        orders.append(np.concatenate(epoch)[:, 0] * 1024)
        np.testing.assert_array_equal(np.sort(orders[-1]), np.arange(50))
    in_order = [np.array_equal(order, np.arange(50)) for order in orders]
    assert in_order == [seed is None] * 3
    assert (seed is None) == np.array_equal(orders[0], orders[1])


def test_shuffling_depends_on_the_seed_alone() -> None:
    first = epochs(numbered(50).batches(8, seed=3), 2)
    assert_same_epochs(first, epochs(numbered(50).batches(8, seed=3), 2))
    other = epochs(numbered(50).batches(8, seed=4), 2)
    assert not np.array_equal(np.concatenate(first[0]), np.concatenate(other[0]))


def test_shuffling_reaches_across_the_whole_data() -> None:
    size = 1000
    for epoch in epochs(numbered(size).batches(300, seed=0), 3):
        order = np.concatenate(epoch)[:, 0] * 1024
        # Moments of sum_n |order_n - n| (Spearman's footrule) over uniform permutations.
        mean = (size**2 - 1) / 3
        error = np.sqrt((size + 1) * (2 * size**2 + 7) / 45)
        footrule = np.abs(order - np.arange(size)).sum()
        assert abs(footrule - mean) < STANDARD_ERRORS * error


@pytest.mark.parametrize("binarization", ["fixed", "threshold", "none"])
def test_batches_in_order_are_the_observations(binarization: str) -> None:
    dataset = make_dataset(binarization)
    for epoch in epochs(dataset.batches(16), 2):
        np.testing.assert_array_equal(np.concatenate(epoch), dataset.observations(), strict=True)


@pytest.mark.parametrize("binarization", BINARIZATIONS)
def test_resuming_equals_going_on(binarization: str) -> None:
    dataset = make_dataset(binarization)
    uninterrupted = epochs(dataset.batches(16, seed=2), 5)
    resumed = make_dataset(binarization).batches(16, seed=2, initial_epoch=2)
    assert_same_epochs(uninterrupted[2:], epochs(resumed, 3))


def test_stochastic_epochs_are_new_draws() -> None:
    half = np.full((40, 30), 0.5, np.float32)
    dataset = Dataset("mine", "train", half, "stochastic", 0)
    runs = {seed: epochs(dataset.batches(10, seed=seed), 2) for seed in (0, 1)}
    batches = [batch for run in runs.values() for epoch in run for batch in epoch]
    for i, a in enumerate(batches):
        for b in batches[:i]:
            assert_unrelated(a, b, half[:10])


def test_draws_do_not_depend_on_the_order_of_threads() -> None:
    dataset = make_dataset("stochastic", 2000)
    serial = dataset.batches(3, seed=0)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    assert_same_epochs(
        epochs(serial.with_options(options), 2), epochs(dataset.batches(3, seed=0), 2)
    )


def test_an_unread_iterator_uses_up_no_epoch() -> None:
    pipeline = numbered(20).batches(5, seed=1)
    expected = epochs(numbered(20).batches(5, seed=1), 1)
    iter(pipeline)
    assert_same_epochs(expected, epochs(pipeline, 1))


class Recorder(keras.Model):
    """Keeps what `fit` feeds it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = keras.layers.Dense(1)
        self.seen: list[np.ndarray] = []

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.scale.build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.scale(x)

    def train_step(self, data: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.numpy_function(self.seen.append, [data], [])
        return {"loss": tf.reduce_mean(self(data))}


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_keras_fit_sees_each_epoch_in_turn(steps_per_execution: int) -> None:
    model = Recorder()
    model.build((None, 1))
    model.compile(optimizer="sgd", steps_per_execution=steps_per_execution)
    model.fit(numbered(22).batches(5, seed=1), epochs=3, verbose=0)
    model.fit(
        numbered(22).batches(5, seed=1, initial_epoch=3), epochs=5, initial_epoch=3, verbose=0
    )
    expected = epochs(numbered(22).batches(5, seed=1), 5)
    assert_same_epochs([model.seen], [[batch for epoch in expected for batch in epoch]])


def test_bad_batch_arguments_are_refused() -> None:
    dataset = make_dataset("stochastic")
    with pytest.raises(ValueError, match=r"stochastic.*seed=<integer>"):
        dataset.batches(8)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        dataset.batches(0, seed=0)
    with pytest.raises(TypeError, match=r"batch_size must be an integer, got 2\.5"):
        dataset.num_batches(2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="initial_epoch must be at least 0"):
        dataset.batches(8, seed=0, initial_epoch=-1)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        dataset.batches(8, seed=-1)


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
        datasets.load("digits", binarization="fixed", seed="0")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="manual_dir '/no/such' is not an existing folder"):
        datasets.load("digits", binarization="fixed", manual_dir="/no/such")


# TFDS, without any download: builders of the tests' own


# As a script this file is imported again by pytest, and TFDS registers a name once only.
AS_SCRIPT = __name__ == "__main__"


class SurgeryTestDots(tfds.core.GeneratorBasedBuilder, skip_registration=AS_SCRIPT):  # type: ignore[call-arg]
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


class SurgeryTestMixedSizes(SurgeryTestDots, skip_registration=AS_SCRIPT):  # type: ignore[call-arg]
    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3))})
        return tfds.core.DatasetInfo(builder=self, features=features)


class SurgeryTestDeepImages(SurgeryTestDots, skip_registration=AS_SCRIPT):  # type: ignore[call-arg]
    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(4, 5, 1), dtype=np.uint16)
        features = tfds.features.FeaturesDict({"image": image})
        return tfds.core.DatasetInfo(builder=self, features=features)


class SurgeryTestTexts(SurgeryTestDots, skip_registration=AS_SCRIPT):  # type: ignore[call-arg]
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
    assert part.describe() == "surgery_test_dots/train[:4], N = 4, binarization none"
    validation = datasets.load(
        "surgery_test_dots", "validation", binarization="fixed", data_dir=dots_dir
    )
    assert len(validation) == 2
    assert "examples" not in capfd.readouterr().out


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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-m", "not slow"]))
