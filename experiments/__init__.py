"""Experiments, one command a file, which start TensorFlow without its start-up lines."""

from __future__ import annotations

import os
import sys
import tempfile


def _start_tensorflow() -> None:
    """Loads TensorFlow and lets it look for GPUs, and shows what it writes only if that fails.

    What TensorFlow writes before its log is set up goes to stderr whatever TF_CPP_MIN_LOG_LEVEL
    says: https://github.com/tensorflow/tensorflow/issues/100442.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices("GPU")
        except BaseException:
            written.seek(0)
            os.write(stderr, written.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") not in ("0", "1"):
    _start_tensorflow()
