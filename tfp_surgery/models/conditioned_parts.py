"""ConditionedParts: encoder, decoder and prior of a model, given the conditions of a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import build_prior, unwrap, unwrap_output
from tfp_surgery.checks.takes_condition import check_condition_is_taken
from tfp_surgery.observations import repeated
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions

Network = Callable[..., tfd.Distribution]


class ConditionedParts:
    """What an objective takes: the parts of a model as functions of x, of z and of nothing.

    Those of them that take a condition get that of the batch, the decoder repeated in step with the
    flat batch of codes `[S * B, *code_shape]`, which follows the draws.

    Attributes:
      encoder: x -> q(z|x) or q(z|x, c).
      decoder: z -> p(x|z) or p(x|z, c).
      is_prior_conditional: Whether `prior()` is p(z|c), batch shape `[B]`.
    """

    def __init__(self, model: Any, condition: Any = None, training: bool | None = None) -> None:
        """Binds the condition.

        Args:
          model: With `encoder`, `decoder` and `prior`.
          condition: `Tensor`s `[B, ...]` in any structure; None for none.
          training: What Keras layers are called with; None to leave it to Keras.

        Raises:
          TypeError: If no part takes the condition, or a part needs one and there is none.
        """
        networks = {"encoder": model.encoder, "decoder": model.decoder, "prior": model.prior}
        try:
            taking = check_condition_is_taken(condition, **networks)
        except TypeError as error:
            hint = (
                ' A VAE is trained and evaluated on {"x": x, "condition": condition}, which builds '
                'it too, as does build({"x": [None, *event_shape], "condition": '
                "tf.TensorSpec([None, ...], dtype)})."
            )
            raise TypeError(f"{error}{hint if condition is None else ''}") from None

        def given(name: str) -> Network:
            network = networks[name]
            if training is not None and isinstance(network, keras.layers.Layer):
                network = functools.partial(network, training=training)
            if name not in taking:
                return network  # type: ignore[no-any-return]
            return lambda *inputs: network(*inputs, condition=_in_step(condition, *inputs))

        self.encoder, self.decoder = given("encoder"), given("decoder")
        self.is_prior_conditional = "prior" in taking
        self._prior = given("prior") if self.is_prior_conditional else model.prior
        self._training = bool(training)

    def prior(self) -> tfd.Distribution:
        """Builds p(z), or p(z|c) of the batch.

        Raises:
          TypeError: If the prior gives no distribution.
        """
        if self.is_prior_conditional:
            return unwrap_output(self._prior(), "prior")
        return build_prior(self._prior, self._training)

    def runs(self, x: tf.Tensor, seed: tf.Tensor) -> dict[str, Callable[[], Any]]:
        """Returns what runs each part by itself, by name.

        Args:
          x: Observations, `[B, *event_shape]`.
          seed: Pair of int32, of the codes that the decoder is run on.
        """
        return {
            "encoder": lambda: self.encoder(x),
            "decoder": lambda: self.decoder(unwrap(self.encoder(x)).sample(seed=seed)),
            "prior": self.prior,
        }


def _in_step(condition: Any, inputs: Any = None) -> Any:
    """Repeats the condition of a batch as often as the inputs of a network hold this batch."""
    if inputs is None:
        return condition
    rows = ps.shape(tf.nest.flatten(inputs)[0])[0]
    batch_size = ps.shape(tf.nest.flatten(condition)[0])[0]
    if tf.is_tensor(rows) or tf.is_tensor(batch_size):
        return repeated(condition, rows // batch_size)
    if rows % batch_size:
        raise ValueError(
            f"a network that takes the condition of {batch_size} observations is called on {rows} "
            "inputs, which is no whole number of draws for each."
        )
    return condition if rows == batch_size else repeated(condition, rows // batch_size)
