"""Reads images of scikit-learn's bundled digits and of TensorFlow Datasets."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from tfp_surgery.intensities import LARGEST_OF_SEVEN_BITS, decided_max_level

_DIGITS_TRAIN_SIZE = 1500
_READ_BATCH = 1024


def read_digits(split: str) -> np.ndarray:
    """Returns intensities of scikit-learn's digits, float32 `[N, 8, 8, 1]`; see `datasets.load`."""
    rows = {"train": slice(_DIGITS_TRAIN_SIZE), "test": slice(_DIGITS_TRAIN_SIZE, None)}
    if split not in rows:
        raise ValueError(f"digits has the splits 'train' and 'test', got {split!r}.")
    levels = load_digits().images[rows[split]]
    return np.asarray(levels / 16, np.float32)[..., np.newaxis]  # [N, 8, 8, 1]


def read_tfds(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    manual_dir: str | os.PathLike[str] | None,
    max_level: int | None,
) -> tuple[np.ndarray, int]:
    """Reads an image data set of TFDS; see `datasets.load`.

    Args:
      name: See `datasets.load`.
      split: See `datasets.load`.
      data_dir: See `datasets.load`.
      manual_dir: See `datasets.load`.
      max_level: See `datasets.load`.

    Returns:
      levels: Array of uint8, shape `[N, H, W, C]`.
      max_level: The level of intensity 1.

    Raises:
      ValueError: See `datasets.load`.
      OSError: See `datasets.load`.
    """
    if data_dir is not None and Path(data_dir).is_file():
        raise NotADirectoryError(f"data_dir {os.fspath(data_dir)!r} is a file, not a folder.")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        names = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, ["digits", *names], n=5)
        raise ValueError(
            f"there is no data set {name!r}"
            + (f"; did you mean {' or '.join(close)}?" if close else ".")
            + " There are digits (bundled, needs no network), mnist, fashion_mnist, omniglot and "
            f"the other image data sets among the {len(names)} that "
            "tensorflow_datasets.list_builders() lists."
        ) from None
    except (AssertionError, ImportError) as error:  # unknown version, missing dependency
        raise ValueError(f"TFDS cannot build {name!r}: {error}") from error
    image_shape = _image_shape(builder)
    if not builder.data_path.exists():
        _prepare(builder, manual_dir)
    if not builder.info.splits:
        raise OSError(f"{builder.data_dir} holds no finished data set: delete it and try again.")
    try:
        size = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{name} has the splits {', '.join(sorted(builder.info.splits))}, got {split!r}."
        ) from error
    if size == 0:
        raise ValueError(f"{name} has no images in the split {split!r}.")
    levels = np.empty((size, *image_shape), np.uint8)
    filled = 0
    for images in _batches(builder, split):
        levels[filled : filled + len(images)] = images
        filled += len(images)
    if filled != size:
        raise OSError(f"{builder.data_dir} holds {filled} images of {split!r} instead of {size}.")
    low, high = levels.min(), levels.max()
    if max_level is None and high <= LARGEST_OF_SEVEN_BITS:
        # The split may be a dark part of the data set.
        low, high = _range_of_all(builder, split, int(low), int(high))
    try:
        return levels, decided_max_level(levels.dtype, low, high, max_level)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _batches(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[np.ndarray]:
    """Yields batches of the images of a split, in order."""
    batches = builder.as_dataset(
        split=split,
        batch_size=_READ_BATCH,
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
        decoders=tfds.decode.PartialDecoding({"image": True}),
    )
    for batch in batches.as_numpy_iterator():
        yield batch["image"]


def _range_of_all(
    builder: tfds.core.DatasetBuilder, known: str, low: int, high: int
) -> tuple[int, int]:
    """Returns the smallest and largest level of all splits, or stops once a level needs 8 bits.

    Args:
      builder: Builder of the data set.
      known: A split that is already read.
      low: Smallest level of that split.
      high: Largest level of that split.

    Returns:
      The smallest and the largest level.
    """
    for split, info in builder.info.splits.items():
        if info.num_examples and split != known:
            for images in _batches(builder, split):
                low, high = min(low, int(images.min())), max(high, int(images.max()))
                if high > LARGEST_OF_SEVEN_BITS:
                    return low, high
    return low, high


def _image_shape(builder: tfds.core.DatasetBuilder) -> tuple[int, ...]:
    features = dict(getattr(builder.info.features, "items", dict)())
    image = features.get("image")
    if not isinstance(image, tfds.features.Image):
        raise ValueError(
            f"{builder.name} is not an image data set: it has the features {sorted(features)}, and "
            "none of them is an image called 'image'."
        )
    if None in image.shape or image.np_dtype != np.uint8:
        raise ValueError(
            f"the images of {builder.name} must be uint8 and of one size, got the shape "
            f"{tuple(image.shape)} and {np.dtype(image.np_dtype).name}."
        )
    return tuple(image.shape)


def _prepare(builder: tfds.core.DatasetBuilder, manual_dir: str | os.PathLike[str] | None) -> None:
    download_dir = Path(builder.data_dir_root) / "downloads"
    files = Path(manual_dir) if manual_dir is not None else download_dir / "manual"
    # TFDS looks for files by their recorded names, and downloads those that it does not find.
    names = {url: info.filename or url for url, info in (builder.url_infos or {}).items()}
    missing = [url for url, name in names.items() if not (files / name).is_file()]
    if manual_dir is not None and missing and not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise FileNotFoundError(
            f"manual_dir {os.fspath(manual_dir)!r} lacks "
            f"{', '.join(sorted(names[url] for url in missing))}; {builder.name} is made from "
            f"{', '.join(sorted(names.values()))}."
        )
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir,
        # TFDS names extracted files after their archives, and the archives of mnist and
        # fashion_mnist have the same names: with one folder, the second would read the first.
        extract_dir=download_dir / "extracted" / builder.name,
    )
    try:
        with contextlib.ExitStack() as output:
            if missing:
                _check_network(missing[0])
            else:
                output.enter_context(contextlib.redirect_stdout(io.StringIO()))
                output.enter_context(contextlib.redirect_stderr(io.StringIO()))
            builder.download_and_prepare(download_config=config)
    except (ConnectionError, TimeoutError, urllib.error.URLError, tfds.download.DownloadError) as e:
        raise ConnectionError(
            f"{builder.name} could not be downloaded ({e}). Without network, put its original "
            f"files ({', '.join(sorted(names.values()))}) into a folder and pass it as manual_dir "
            "(--manual_dir), or use the bundled digits (--dataset=digits)."
        ) from e
    except tfds.download.download_manager.NonMatchingChecksumError as e:
        raise OSError(f"a file of {builder.name} is not the original one: {e}") from e
    except AssertionError as e:
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise
        raise FileNotFoundError(f"{builder.name} needs files in manual_dir: {e}") from e


def _check_network(url: str) -> None:
    """Fails at once without network, where TFDS would retry for minutes."""
    # Any answer means that there is a network; TFDS reports errors of the server.
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(url, timeout=20).close()
