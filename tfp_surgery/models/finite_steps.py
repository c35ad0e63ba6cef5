"""FiniteSteps: training steps that stop before the first one that is not finite."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

# Where nothing else can change the state, it is kept once for so many calls, or for batches of so
# many bytes.
_CALLS_TOGETHER = 64
_BATCHES_TOGETHER = 2**26
# Scaling the loss of float16 starts at 2^15. A gradient that is not finite at this scale does not
# become finite by halving it further.
_LEAST_LOSS_SCALE = 2.0**-15
# A gradient that is not finite makes a weight NaN in the same step of these optimizers: their own
# state, two or three times as large, needs no check.
_PASSING_ON = tuple(
    getattr(keras.optimizers, name)
    for name in ("SGD", "Adam", "Nadam", "RMSprop", "Adagrad", "Adadelta", "Adamax")
)


class FiniteSteps:
    """A training function for Keras, of one or several steps a call.

    The program of a call ends with one check: whether the losses and the weights are finite (and
    the state of the optimizer, where a NaN in it may not reach the weights at once). If they are
    not, the state that was kept is put back, and the steps since then are taken again one by one
    until one is not finite. The state from before this step is put back. The steps themselves carry
    no check, and to keep the state costs one reference to each tensor.
    """

    def __init__(self, model: Any, are_only_steps: bool) -> None:
        """Prepares the program; it is traced when it is first called.

        Args:
          model: Built and compiled; its `loss_and_logs(batch)` takes a step, and
            `what_is_not_finite(batch)` says why one cannot be taken.
          are_only_steps: Whether nothing but these steps changes weights, optimizer and metrics
            until `forget` is called, so that the state need not be kept for each call.
        """
        self._model = model
        self._num_steps = int(model.steps_per_execution)
        self._max_calls = _CALLS_TOGETHER if are_only_steps else 1
        if not model.optimizer.built:
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        variables = [*model.variables, *model.optimizer.variables]
        variables += [variable for metric in model.metrics for variable in metric.variables]
        self._variables = list({id(variable): variable for variable in variables}.values())
        self._is_eager = bool(model.run_eagerly)
        step = self._one_step if self._num_steps == 1 else self._several_steps
        self._program: Any = step
        if not self._is_eager:
            self._program = tf.function(
                step,
                autograph=False,
                jit_compile=model.jit_compile,
                reduce_retracing=not model.jit_compile,
            )
        self.forget()

    def __call__(self, iterator: Iterator[Any]) -> Any:
        """Takes up to `steps_per_execution` steps and returns the logs of the last one.

        Args:
          iterator: Of batches.

        Raises:
          FloatingPointError: If a step is not finite. The state is that of before this step.
        """
        batches = [_tensors(batch) for batch in itertools.islice(iterator, self._num_steps)]
        if not batches:
            raise StopIteration
        for _, group in itertools.groupby(batches, _shapes):
            logs = self._checked(list(group))
        return logs

    def forget(self) -> None:
        """Lets go of the state and the batches that were kept."""
        self._kept: list[tf.Tensor] | None = None
        self._batches: list[Any] = []
        self._num_calls = self._num_bytes = 0

    def _checked(self, batches: list[Any]) -> Any:
        if self._kept is None or (
            self._num_calls >= self._max_calls or self._num_bytes >= _BATCHES_TOGETHER
        ):
            self.forget()
            self._kept = self._state()
        self._batches += batches
        self._num_calls += 1
        self._num_bytes += len(batches) * sum(
            part.shape.num_elements() * part.dtype.size
            for part in tf.nest.flatten(batches[0])
            if part is not None
        )
        logs, is_finite = self._run(batches)
        if not is_finite.numpy():
            self._stop()
        if self._max_calls == 1:
            self.forget()
        return logs

    def _stop(self) -> None:
        """Goes back to before the first step that is not finite, and raises."""
        start, batches = self._kept, self._batches
        self.forget()
        self._put_back(start)
        for batch in batches:
            before = self._state()
            _, is_finite = self._run([batch])
            if not is_finite.numpy():
                self._put_back(before)
                raise FloatingPointError(self._model.what_is_not_finite(batch))
        self._put_back(start)  # the steps do not repeat on this device
        raise FloatingPointError(
            f"one of the last {len(batches)} training steps was not finite, and none is when they "
            "are taken again. Weights, optimizer and metrics are those of before these steps."
        )

    def _state(self) -> list[tf.Tensor]:
        # A Tensor that is held is not overwritten: what updates the variable takes another.
        return [variable.value.read_value() for variable in self._variables]

    def _put_back(self, values: Sequence[tf.Tensor] | None) -> None:
        for variable, value in zip(self._variables, values or (), strict=True):
            variable.assign(value)

    def _run(self, batches: list[Any]) -> tuple[Any, tf.Tensor]:
        if self._num_steps == 1:
            return self._program(batches[0])  # type: ignore[no-any-return]
        if self._is_eager:
            return self._eager_steps(batches)
        count = tf.constant(len(batches))
        # The copies are not read: they keep one shape, so that one program serves all counts.
        batches = batches + batches[:1] * (self._num_steps - len(batches))
        stacked = _map(lambda *parts: tf.stack(parts), *batches)
        return self._program(stacked, count)  # type: ignore[no-any-return]

    def _one_step(self, batch: Any) -> tuple[Any, tf.Tensor]:
        loss, logs = self._model.distribute_strategy.run(self._model.loss_and_logs, args=(batch,))
        return logs, self._is_finite(tf.math.is_finite(loss))

    def _eager_steps(self, batches: list[Any]) -> tuple[Any, tf.Tensor]:
        is_finite = tf.constant(True)
        for batch in batches:
            loss, logs = self._model.loss_and_logs(batch)
            is_finite &= tf.math.is_finite(loss)
        return logs, self._is_finite(is_finite)

    def _several_steps(self, batches: Any, count: tf.Tensor) -> tuple[Any, tf.Tensor]:
        """The steps of one call as one program.

        Keras would call the program of one step in a loop of TensorFlow. XLA frees the memory of
        parameters and moments after each call, and allocates it again for the next.
        """
        step = tf.function(self._model.loss_and_logs, autograph=False)

        def batch(index: Any) -> Any:
            return _map(lambda stacked: stacked[index], batches)

        def body(index: tf.Tensor, losses_are_finite: tf.Tensor, _: Any) -> Any:
            loss, logs = step(batch(index))
            return index + 1, losses_are_finite & tf.math.is_finite(loss), logs

        _, logs = step.get_concrete_function(batch(0)).structured_outputs
        _, losses_are_finite, logs = tf.while_loop(
            lambda index, *_: index < count,
            body,
            (
                tf.constant(0),
                tf.constant(True),
                tf.nest.map_structure(lambda log: tf.zeros(log.shape, log.dtype), logs),
            ),
            parallel_iterations=1,
        )
        return logs, self._is_finite(losses_are_finite)

    def _is_finite(self, losses_are_finite: tf.Tensor) -> tf.Tensor:
        optimizer = self._model.optimizer
        parts = [losses_are_finite]
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            # It passes over a step whose gradient is not finite, and scales the next loss less.
            parts.append(tf.convert_to_tensor(optimizer.dynamic_scale) >= _LEAST_LOSS_SCALE)
        variables = [*self._model.trainable_variables]
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if not isinstance(inner, _PASSING_ON) or inner.gradient_accumulation_steps:
            variables += optimizer.variables
        parts += [
            tf.reduce_all(tf.math.is_finite(variable.value))
            for variable in variables
            if variable.value.dtype.is_floating
        ]
        return tf.reduce_all(tf.stack(parts))


def _map(function: Any, *batches: Any) -> Any:
    """`tf.nest.map_structure` that leaves out the None of a batch without targets."""
    return tf.nest.map_structure(
        lambda *parts: None if parts[0] is None else function(*parts), *batches
    )


def _tensors(batch: Any) -> Any:
    return batch if isinstance(batch, tf.Tensor) else _map(tf.convert_to_tensor, batch)


def _shapes(batch: Any) -> list[tf.TensorShape]:
    return [part.shape for part in tf.nest.flatten(batch) if part is not None]
