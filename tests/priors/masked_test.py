from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.priors.masked import MaskedDense, MaskedNetwork


def autoregressive(event_size: int, **kwargs: Any) -> MaskedNetwork:
    degrees = range(1, event_size + 1)
    arguments: dict[str, Any] = {"params_size": 3, "hidden_sizes": (40, 40, 30), **kwargs}
    network = MaskedNetwork(degrees, degrees, dtype="float64", **arguments)
    rng = np.random.default_rng(0)
    for weight in network.weights:  # biases too, so that no unit is at the bend of the activation
        weight.assign(rng.normal(size=weight.shape))
    return network


def jacobian(network: MaskedNetwork, z: np.ndarray, condition: Any = None) -> np.ndarray:
    """Where outputs depend on inputs, `[outputs, inputs]`, over all points and parameters."""
    x = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(x)
        params = network(x, condition)
    derivatives = tape.batch_jacobian(params, x).numpy()  # [points, outputs, P, inputs]
    depends: np.ndarray = np.any(derivatives != 0, axis=(0, 2))
    return depends


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("event_size", [2, 3, 7])
def test_an_output_depends_on_all_coordinates_before_it_and_no_other(
    event_size: int, activation: str
) -> None:
    network = autoregressive(event_size, activation=activation)
    z = np.random.default_rng(1).normal(size=(20, event_size))
    expected = np.tril(np.ones((event_size, event_size), bool), -1)
    np.testing.assert_array_equal(jacobian(network, z), expected)


def test_equal_degrees_mask_nothing() -> None:
    network = MaskedNetwork([1] * 3, [2] * 4, 2, (16, 16), "tanh", dtype="float64")
    z = np.random.default_rng(1).normal(size=(20, 3))
    assert network(z).shape == [20, 4, 2]
    assert jacobian(network, z).all()


@pytest.mark.parametrize("event_size", [1, 4])
def test_every_output_depends_on_the_condition(event_size: int) -> None:
    network = autoregressive(event_size, condition_size=2, activation="tanh")
    rng = np.random.default_rng(1)
    z, condition = rng.normal(size=(20, event_size)), tf.constant(rng.normal(size=(20, 2)))
    with tf.GradientTape() as tape:
        tape.watch(condition)
        params = network(z, condition)
    derivatives = tape.batch_jacobian(params, condition).numpy()  # [20, D, P, C]
    assert np.any(derivatives != 0, axis=0).all()
    if event_size > 1:
        expected = np.tril(np.ones((event_size, event_size), bool), -1)
        np.testing.assert_array_equal(jacobian(network, z, condition), expected)


def test_the_condition_broadcasts_over_samples() -> None:
    network = autoregressive(3, condition_size=2)
    rng = np.random.default_rng(1)
    z, condition = rng.normal(size=(5, 4, 3)), rng.normal(size=(4, 2))
    params = network(z, condition)
    assert params.shape == [5, 4, 3, 3]
    for s in range(5):
        np.testing.assert_allclose(params[s], network(z[s], condition), rtol=1e-12)
    # A single code against all conditions, and a single condition.
    np.testing.assert_allclose(
        network(z[0, 0], condition), network(np.tile(z[0, 0], (4, 1)), condition), rtol=1e-12
    )
    np.testing.assert_allclose(
        network(z[0, 0], condition[0]), network(z[0, :1], condition[:1])[0], rtol=1e-12
    )


def test_the_network_computes_what_its_weights_say() -> None:
    """Two hidden layers of one width, the second added to the first, against NumPy."""
    network = autoregressive(2, hidden_sizes=(4, 4), activation="tanh")
    z = np.random.default_rng(1).normal(size=(6, 2))

    def dense(layer: MaskedDense, x: np.ndarray) -> np.ndarray:
        result: np.ndarray = x @ (layer.kernel.numpy() * layer.mask) + layer.bias.numpy()
        return result

    hidden = dense(network.hidden_layers[0], z)
    hidden = hidden + dense(network.hidden_layers[1], np.tanh(hidden))
    expected = dense(network.output_layer, np.tanh(hidden)).reshape(6, 2, 3)
    np.testing.assert_allclose(network(z), expected, rtol=1e-12)


def test_a_mask_removes_weights() -> None:
    layer = MaskedDense([[True, False], [False, True]], dtype="float64")
    layer.kernel.assign([[2.0, 3.0], [4.0, 5.0]])
    np.testing.assert_array_equal(layer(np.ones((1, 2))), [[2.0, 5.0]])


def test_the_output_is_no_half_precision() -> None:
    network = MaskedNetwork([1, 2], [1, 2], 3, (4,), dtype="mixed_bfloat16")
    assert network(np.zeros((2, 2), np.float32)).dtype == tf.float32


def test_the_batch_may_be_unknown() -> None:
    network = autoregressive(2)
    signature = [tf.TensorSpec([None, 2], tf.float64)]
    outputs = tf.function(network, input_signature=signature)(np.zeros((3, 2)))
    np.testing.assert_allclose(outputs, network(np.zeros((3, 2))), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_sizes": ()}, r"hidden_sizes must be one or more sizes of at least 1, got \(\)"),
        ({"hidden_sizes": (3, 0)}, r"got \(3, 0\)"),
        ({"condition_size": 0}, "condition_size must be at least 1 or None, got 0"),
    ],
)
def test_bad_sizes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        autoregressive(2, **arguments)
