from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.checks.networks import check_decoder_output, check_encoder_output
from tfp_surgery.checks.raw_outputs import described, wrapper_hint


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (tf.zeros([5, 3]), "a Tensor of shape [5, 3]"),
        (np.zeros(4), "a value of type ndarray of shape [4]"),
        (
            [tf.zeros([5, 3]), None],
            "a list of 2 (a Tensor of shape [5, 3], an object of type NoneType)",
        ),
        ((), "a tuple of 0"),
        ({"mean": 1}, "an object of type dict"),
    ],
)
def test_what_a_network_returned_is_described(output: Any, expected: str) -> None:
    assert described(output) == expected


def test_a_tensor_of_unknown_rank_is_described() -> None:
    @tf.function(input_signature=[tf.TensorSpec(None)], autograph=False)
    def traced(x: tf.Tensor) -> tf.Tensor:
        assert described(x) == "an object of type SymbolicTensor"
        assert wrapper_hint("encoder", x) == ""
        return x

    traced.get_concrete_function()


MEAN = tf.zeros([2, 3])


@pytest.mark.parametrize(
    ("output", "size"),
    [
        ((MEAN, MEAN), "3"),
        ([MEAN, MEAN, MEAN], "3"),
        (tf.zeros([2, 8]), "4"),
        (np.zeros([2, 8]), "4"),
        (tf.zeros([2, 7]), "D"),
    ],
)
def test_an_encoder_of_tensors_is_shown_its_wrapper(output: Any, size: str) -> None:
    with pytest.raises(TypeError) as caught:
        check_encoder_output(output, 2)
    message = str(caught.value)
    assert message.startswith("the encoder must return a distribution: expected a tfp.dist")
    line = f'tfs.networks.GaussianEncoder(network, latent_size={size}, scale="log_variance")'
    assert line in message
    assert "a function that calls it has no weights that could be trained" in message


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (tf.zeros([2, 4, 4]), "tfs.networks.BernoulliDecoder(network, from_logits=True)"),
        ([tf.zeros([2, 4, 4])], "tfs.networks.GaussianDecoder(network, scale=1.0)"),
        ((MEAN, MEAN), 'tfs.networks.GaussianDecoder(network, scale="log_variance")'),
    ],
)
def test_a_decoder_of_tensors_is_shown_its_wrapper(output: Any, line: str) -> None:
    with pytest.raises(TypeError) as caught:
        check_decoder_output(output, 2, (4, 4))
    assert line in str(caught.value)
    assert "a function that calls it has no weights that could be trained" in str(caught.value)


@pytest.mark.parametrize("output", [None, "x", {"mean": MEAN}, [], (MEAN, None), tf.zeros([])])
@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_what_no_wrapper_takes_gets_no_hint(network: str, output: Any) -> None:
    assert wrapper_hint(network, output) == ""


def test_the_hint_can_be_followed() -> None:
    """The lines of the messages name what `tfs.networks` has."""
    import tfp_surgery as tfs  # the package imports this module

    network = keras.Sequential([keras.layers.Dense(4)])
    encoder = tfs.networks.GaussianEncoder(network, latent_size=2, scale="log_variance")
    assert check_encoder_output(encoder(np.zeros([3, 5])), 3).event_shape == [2]
    for decoder in (
        tfs.networks.BernoulliDecoder(keras.layers.Dense(6), from_logits=True),
        tfs.networks.GaussianDecoder(keras.layers.Dense(6), scale=1.0),
    ):
        assert check_decoder_output(decoder(np.zeros([3, 2])), 3, (6,)).batch_shape == [3]
