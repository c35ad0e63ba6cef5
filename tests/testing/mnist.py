"""Where the tests find the four original MNIST files."""

from __future__ import annotations

import os
import pathlib

import pytest

MNIST_FILES = (
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
)


def mnist_dir() -> pathlib.Path:
    """The folder with MNIST's original files; skips the calling test where there is none.

    The environment variable TFP_SURGERY_MNIST_DIR names it, otherwise it is `../shared/mnist`
    beside the checkout.
    """
    beside_checkout = pathlib.Path(__file__).resolve().parents[3] / "shared" / "mnist"
    folder = pathlib.Path(os.environ.get("TFP_SURGERY_MNIST_DIR") or beside_checkout)
    missing = [name for name in MNIST_FILES if not (folder / name).is_file()]
    if missing:
        pytest.skip(
            f"real MNIST is not at {folder} (lacks {', '.join(missing)}); "
            "set TFP_SURGERY_MNIST_DIR to the folder with the four original files"
        )
    return folder
