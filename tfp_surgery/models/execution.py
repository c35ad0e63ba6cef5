"""How the steps of a model are executed: under XLA or not, and how many in one call."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfp_surgery.models.weight_files import WholeFileModel

# A call from Python costs Keras 1 to 3 ms, a step of a small model takes 5 to 10.
_STEPS_TOGETHER = 16

_BATCH_HOOKS = tuple(
    f"on_{kind}_{moment}"
    for kind in ("batch", "train_batch", "test_batch")
    for moment in ("begin", "end")
)


class FastModel(WholeFileModel):
    """A Keras model that chooses how its steps are executed where the user does not.

    Attributes:
      jit_compile: whether steps run under XLA; what `compile` was given, or False until the first
        `fit` or `evaluate` has chosen.
    """

    _chooses_jit = _chooses_steps = _jit_is_chosen = False
    train_function: Any

    def compile(self, optimizer: Any = "rmsprop", **kwargs: Any) -> None:
        """Prepares the model for `fit`; see `keras.Model.compile`.

        Two defaults differ from those of Keras, which on a CPU runs each step without XLA and by a
        call of its own:

        * `jit_compile="auto"` compiles the steps by XLA, unless they hold an operation that XLA
          does not know (of which it warns), or a convolution on a machine without GPU (there
          XLA's convolutions are slower than TensorFlow's). It is settled, and kept, when `fit` or
          `evaluate` first sees the data. XLA compiles once for each shape of a batch.
        * `steps_per_execution="auto"` lets `fit` execute 16 steps in one call, with the same
          results. It executes one at a time where that could be told apart: where
          `steps_per_epoch` or `validation_steps` is given (Keras would round it up), or a callback
          other than those of Keras has a method for batches. So do `evaluate` and `predict`
          always.

        Args:
          optimizer: as Keras takes it.
          **kwargs: of `keras.Model.compile`, without loss and metrics.
        """
        kwargs = {"jit_compile": "auto", "steps_per_execution": "auto", **kwargs}
        self._chooses_jit = kwargs["jit_compile"] == "auto"
        self._chooses_steps = kwargs["steps_per_execution"] == "auto"
        self._jit_is_chosen = False
        if self._chooses_jit:
            kwargs["jit_compile"] = False
        if self._chooses_steps:
            kwargs["steps_per_execution"] = 1
        super().compile(optimizer, **kwargs)
        self._other_functions = (None, None, None)

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was given, serialized: a loaded model chooses again."""
        config: dict[str, Any] = super().get_compile_config()
        if self._chooses_jit:
            config["jit_compile"] = "auto"
        if self._chooses_steps:
            config["steps_per_execution"] = "auto"
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model from what `get_compile_config` gave."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The outputs of `call` on `x`; see `keras.Model.predict`."""
        with self._many_steps_in_one_call(False):
            return super().predict(x, *args, **kwargs)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes `train_function`; under XLA the steps of one call are one program of XLA."""
        if self.run_eagerly or not self.jit_compile or self.steps_per_execution == 1:
            return super().make_train_function(force)
        if self.train_function is None or force:
            self.train_function = self._joined_steps()
        return self.train_function

    def _joined_steps(self) -> Callable[[Iterator[Any]], Any]:
        """A training function for up to `steps_per_execution` batches.

        Keras calls the program of a step from a loop of TensorFlow's, between whose turns XLA gives
        back all the memory of parameters and moments, and asks for it again.
        """
        steps = self.steps_per_execution
        step = tf.function(self.train_step, autograph=False)

        @tf.function(jit_compile=True, autograph=False)
        def joined_steps(batches: Any, count: tf.Tensor) -> Any:
            def batch(index: Any) -> Any:
                return tf.nest.map_structure(lambda stacked: stacked[index], batches)

            logs = step.get_concrete_function(batch(0)).structured_outputs
            _, logs = tf.while_loop(
                lambda index, _: index < count,
                lambda index, _: (index + 1, step(batch(index))),
                (0, tf.nest.map_structure(lambda log: tf.zeros(log.shape, log.dtype), logs)),
            )
            return logs

        def function(iterator: Iterator[Any]) -> Any:
            batches = list(itertools.islice(iterator, steps))
            if not batches:
                raise StopIteration
            for _, group in itertools.groupby(batches, _shapes):
                same = list(group)
                count = tf.constant(len(same))
                # Filled up, never to be read: one program serves all counts.
                same += same[:1] * (steps - len(same))
                stacked = tf.nest.map_structure(lambda *parts: tf.stack(parts), *same)
                logs = joined_steps(stacked, count)
            return logs

        return function

    def _choose_jit(self, batch: Any) -> None:
        """Settles `jit_compile="auto"` for a built model, from one training step on a batch."""
        if not self._chooses_jit or self._jit_is_chosen or self.run_eagerly:
            return
        step = tf.function(self.train_step, jit_compile=True, autograph=False)
        try:
            lowered = step.experimental_get_compiler_ir(batch)(stage="hlo")
        except Exception as error:  # if it fails without XLA as well, training will say so
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"XLA cannot compile this model, whose steps run without it: {reason or error!r}. "
                "compile(jit_compile=False) chooses that without this warning.",
                stacklevel=2,
            )
            jit_compile = False
        else:
            has_gpu = bool(tf.config.list_physical_devices("GPU"))
            jit_compile = has_gpu or not re.search(r"\bconvolution\(", lowered)
        with warnings.catch_warnings():
            # Keras tells that it does without XLA where operations are to be deterministic.
            warnings.simplefilter("ignore")
            self.jit_compile = jit_compile
        self._jit_is_chosen = True
        self.train_function = self.test_function = self.predict_function = None

    def _can_join_steps(self, callbacks: Any, *step_counts: Any) -> bool:
        """Whether nothing can tell several steps in one call from one."""
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        return all(count is None for count in step_counts) and not any(
            _sees_batches(callback) for callback in tf.nest.flatten(callbacks or [])
        )

    @contextmanager
    def _many_steps_in_one_call(self, many: bool) -> Iterator[None]:
        """Executes many steps in one call, or one, where `compile` left that open."""
        steps = _STEPS_TOGETHER if many else 1
        if not self._chooses_steps or self.run_eagerly or self.steps_per_execution == steps:
            yield
            return
        self._exchange_functions(steps)
        try:
            yield
        finally:
            self._exchange_functions(1 if many else _STEPS_TOGETHER)

    def _exchange_functions(self, steps: int) -> None:
        # A function of Keras is traced for one number of steps.
        self.steps_per_execution = steps
        functions = (self.train_function, self.test_function, self.predict_function)
        self.train_function, self.test_function, self.predict_function = self._other_functions
        self._other_functions = functions


def _shapes(batch: Any) -> list[tf.TensorShape]:
    return [part.shape for part in tf.nest.flatten(batch)]


def _sees_batches(callback: Any) -> bool:
    """Whether a callback has a method for batches that is not one of Keras' own."""
    hooks = (getattr(callback, name, None) for name in _BATCH_HOOKS)
    return any(
        hook is not None and not (getattr(hook, "__module__", None) or "").startswith("keras.")
        for hook in hooks
    )
