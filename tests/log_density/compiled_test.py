from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.log_density import compiled as module

THREADS = 8


def reductions(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.reduce_logsumexp(x, axis=1), tf.reduce_min(x, axis=0)


def in_threads(function: Any, inputs: list[tf.Tensor]) -> list[Any]:
    results: list[Any] = [None] * len(inputs)
    barrier = threading.Barrier(len(inputs))

    def work(i: int) -> None:
        barrier.wait()
        results[i] = [part.numpy() for part in function(inputs[i])]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("safe", [True, False])
def test_threads_at_once_get_what_one_alone_gets(
    safe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "threads_are_safe", lambda: safe)
    function = module.compiled(reductions)
    for rows in range(300, 304):
        x = np.random.default_rng(rows).normal(size=(THREADS, rows, 256)).astype(np.float32)
        results = in_threads(function, list(tf.constant(x)))
        for result, part in zip(results, x, strict=True):
            alone = [each.numpy() for each in function(tf.constant(part))]
            np.testing.assert_array_equal(result[0], alone[0])
            np.testing.assert_array_equal(result[1], alone[1])
            wide = part.astype(np.float64)
            # 256 exponentials of float32, each off by a few units of rounding
            np.testing.assert_allclose(result[0], np.log(np.exp(wide).sum(1)), rtol=1e-6)
            np.testing.assert_array_equal(result[1], part.min(0))


def test_many_shapes_are_no_retracing(caplog: pytest.LogCaptureFixture) -> None:
    """TensorFlow warns from the fifth on where one tf.function is traced for all."""
    traced = []

    def total(x: tf.Tensor) -> tf.Tensor:
        traced.append(x.shape)
        return tf.reduce_sum(x)

    function = module.compiled(total)
    for size in (*range(1, 9), 1, 8):
        assert int(function(tf.ones([size, 2], tf.int32))) == 2 * size
    assert len(traced) == len(set(traced)) == 8
    assert "retracing" not in caplog.text


@pytest.mark.parametrize("safe", [True, False])
def test_the_function_is_compiled_only_where_that_is_safe(
    safe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "threads_are_safe", lambda: safe)
    # XLA knows no strings.
    function = module.compiled(lambda x: tf.strings.length(tf.strings.as_string(x)))
    if safe:
        with pytest.raises(tf.errors.InvalidArgumentError):
            function(tf.constant(12))
    else:
        assert int(function(tf.constant(12))) == 2


def test_an_uncompiled_function_is_compiled_with_what_its_caller_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "threads_are_safe", lambda: False)
    function = module.compiled(reductions)
    x = tf.reshape(tf.range(12.0), [3, 4])
    plain = function(x)  # traced before the caller's program
    caller = tf.function(lambda x: function(x)[1] + 1.0, jit_compile=True, autograph=False)
    np.testing.assert_array_equal(caller(x), plain[1] + 1.0)
