"""The precision in which networks hand numbers to distributions."""

from __future__ import annotations

import tensorflow as tf


def at_least_float32(x: tf.Tensor) -> tf.Tensor:
    """Casts half precision to float32, and leaves wider floating types as they are.

    Under a mixed precision policy a network computes in float16 or bfloat16; a log-density that
    sums hundreds of terms in these is off by whole nats.
    """
    return tf.cast(x, tf.float32) if x.dtype.size < 4 else x
