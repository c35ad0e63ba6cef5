"""LikelihoodSteps: log p(x|z) of many steps, by a graph of the decoder where it can be traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_surgery.checks.gradients import python_operations
from tfp_surgery.measurement.log_likelihood import log_likelihood
from tfp_surgery.measurement.prepared_model import PreparedModel
from tfp_surgery.measurement.traced import pays

GRAPH, EAGER = "by a graph", "eagerly"


class LikelihoodSteps:
    """log p(x|z) of the steps of one measurement, which all have one shape.

    Decoder and likelihood are traced as one graph on the first step, whose values are also computed
    eagerly. The graph serves all further steps if it gives the same values but for rounding, and if
    it runs no Python code: what is not TensorFlow (`z.numpy()`, `tf.numpy_function`), or depends on
    whether it is traced, stays as it is. What a decoder holds in Python is read anew by each
    measurement.

    XLA does not compile the graph. On CPUs, a multilayer perceptron and a convolutional decoder of
    MNIST took as long or longer compiled, and half a second more for the compilation; and XLA drops
    assertions (`validate_args`) and moves an index out of range to the nearest in range.

    Attributes:
      evaluation: How values are computed, in words: "by a graph" or "eagerly".
    """

    def __init__(self, model: PreparedModel, num_steps: int) -> None:
        """Takes the model; calls nothing.

        Args:
          model: The model, with a decoder.
          num_steps: Number of calls to come. Few are not worth a graph.
        """
        self._model = model
        self._decide = pays(num_steps)
        self._graph: Callable[..., Any] | None = None
        self._shapes: list[tf.TensorShape] = []
        self.evaluation = EAGER

    def __call__(self, z: tf.Tensor, rows: Any) -> tf.Tensor:
        """Returns log p(x_b|z_sb) of observations given their codes.

        Args:
          z: Codes, shape `[S, B, *code_shape]`.
          rows: The B observations, as a slice or an array of indices.

        Returns:
          Floating `Tensor`, shape `[S, B]`, in nats.
        """
        x, condition = self._model.observations.rows(rows), self._model.condition(rows)
        inputs = (x,) if condition is None else (x, condition)
        leaves = [z, *tf.nest.flatten(inputs)]
        if self._graph is not None and [leaf.shape for leaf in leaves] == self._shapes:
            return self._graph(*leaves)
        values = self._eager(z, *inputs)
        if self._decide:
            self._decide = False
            self._trace(leaves, inputs, values)
        return values

    def _eager(self, z: tf.Tensor, x: Any, condition: Any = None) -> tf.Tensor:
        if self._model.decoder is None:
            raise ValueError("the model has no decoder.")
        return log_likelihood(self._model.decoder, z, x, condition)

    def _trace(self, leaves: list[Any], inputs: Any, expected: tf.Tensor) -> None:
        """Takes a graph if there is one that gives the expected values."""
        if not all(isinstance(leaf, tf.Tensor) for leaf in leaves):  # ragged rows change in shape
            return

        def function(z: tf.Tensor, *flat: tf.Tensor) -> tf.Tensor:
            return self._eager(z, *tf.nest.pack_sequence_as(inputs, flat))

        specs = [tf.TensorSpec(leaf.shape, leaf.dtype) for leaf in leaves]
        try:
            graph = tf.function(function, autograph=False).get_concrete_function(*specs)
            if python_operations(graph.graph):
                return
            found = graph(*leaves)
        except Exception:  # of a decoder that is no graph, which the eager call has served
            return
        if _are_equal(found.numpy(), expected.numpy()):
            self._graph, self._shapes = graph, [leaf.shape for leaf in leaves]
            self.evaluation = GRAPH


def _are_equal(found: np.ndarray, expected: np.ndarray) -> bool:
    """Returns whether values agree in half of the digits of their dtype, NaN with NaN."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    half = float(np.sqrt(np.finfo(expected.dtype).eps))
    return np.allclose(found, expected, rtol=half, atol=half, equal_nan=True)
