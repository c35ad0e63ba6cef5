from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.checks.gradients import check_gradient, check_graph, compiled

Z = tf.constant(np.random.default_rng(0).normal(size=[4, 2]), tf.float32)
MESSAGE = "this moves codes by gradients; that does not"

LogProb = Callable[[tf.Tensor], tf.Tensor]


def _squares(z: tf.Tensor) -> tf.Tensor:
    return -tf.reduce_sum(z**2, axis=-1)


def _through_numpy(z: tf.Tensor) -> tf.Tensor:
    return tf.constant(_squares(tf.constant(z.numpy())).numpy())


def _numpy_function(z: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(
        tf.numpy_function(lambda a: -np.sum(a**2, axis=-1), [z], tf.float32), [None]
    )


def _of_unknown_shape(z: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.zeros(list(_numpy_function(z).shape)))


def _in_a_loop(z: tf.Tensor) -> tf.Tensor:
    return tf.map_fn(lambda row: tf.py_function(lambda a: -np.sum(a**2), [row], tf.float32), z)


def _branching(z: tf.Tensor) -> tf.Tensor:
    return _squares(z) if tf.reduce_sum(z) > 0 else 2 * _squares(z)


def _without_gradient(z: tf.Tensor) -> tf.Tensor:
    return tf.unique(tf.reshape(z, [-1]))[0]


def _constant(z: tf.Tensor) -> tf.Tensor:
    return tf.zeros(tf.shape(z)[:1])


def _rounded(z: tf.Tensor) -> tf.Tensor:
    return _squares(tf.round(3 * z))


@pytest.mark.parametrize("log_prob", [_squares, _constant, _rounded])
def test_graphs_of_tensorflow_operations_pass(log_prob: LogProb) -> None:
    check_graph(MESSAGE, log_prob, Z)


@pytest.mark.parametrize(
    ("log_prob", "cause"),
    [
        (_through_numpy, "cannot trace it: 'SymbolicTensor' object has no attribute 'numpy'"),
        (_branching, "cannot trace it: Using a symbolic"),
        (_numpy_function, r"runs Python code \(PyFunc"),
        (_of_unknown_shape, r"runs Python code \(PyFunc"),
        (_in_a_loop, r"runs Python code \(EagerPyFunc"),
    ],
)
def test_what_is_no_graph_is_named(log_prob: LogProb, cause: str) -> None:
    with pytest.raises(TypeError, match=f"{MESSAGE}. .*{cause}"):
        check_graph(MESSAGE, log_prob, Z)


@pytest.mark.parametrize("log_prob", [_squares, _constant])
def test_gradients_are_asked_of_what_changes_with_the_codes(log_prob: LogProb) -> None:
    check_gradient(MESSAGE, log_prob, Z)


@pytest.mark.parametrize("log_prob", [_through_numpy, _numpy_function, _rounded])
def test_a_gradient_that_is_missing_is_named(log_prob: LogProb) -> None:
    with pytest.raises(TypeError, match=f"{MESSAGE}. .*finds no gradient"):
        check_gradient(MESSAGE, log_prob, Z)


def test_an_operation_without_gradient_is_named() -> None:
    with pytest.raises(TypeError, match=f"{MESSAGE}. TensorFlow has no gradient: .*Unique"):
        check_gradient(MESSAGE, _without_gradient, Z)


def test_what_xla_cannot_compile_is_named() -> None:
    program = tf.function(lambda z: tf.strings.to_number(tf.strings.as_string(z)), jit_compile=True)
    message = f"{MESSAGE}. XLA cannot compile it: .*AsString"
    with pytest.raises(TypeError, match=message), compiled(MESSAGE):
        program(Z)


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError), compiled(MESSAGE):
        tf.debugging.assert_positive(tf.constant(-1.0))
