"""FastModel: a Keras model that chooses how its steps run: by XLA or not, how many in a call."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfp_surgery.models.finite_steps import FiniteSteps
from tfp_surgery.models.whole_file_model import WholeFileModel

# A call from Python costs Keras 1 to 3 ms, a step of a small model takes 5 to 10.
_STEPS_TOGETHER = 16

_BATCH_HOOKS = tuple(
    f"on_{kind}_{moment}"
    for kind in ("batch", "train_batch", "test_batch")
    for moment in ("begin", "end")
)


class FastModel(WholeFileModel):
    """A Keras model that chooses `jit_compile` and `steps_per_execution` where they are left open.

    Attributes:
      jit_compile: Whether XLA compiles the steps: what `compile` was given, or else False until
        the first `fit` or `evaluate` chooses.
    """

    _chooses_jit = _chooses_steps = False
    # The step that decided jit_compile: True for training, False for evaluation.
    _jit_chosen_by: bool | None = None
    _other_functions: tuple[Any, Any, Any] = (None, None, None)
    train_function: Any

    def compile(self, optimizer: Any = "rmsprop", **kwargs: Any) -> None:
        """Prepares the model for `fit`; see `keras.Model.compile`.

        Two defaults differ from those of Keras:

        * `jit_compile="auto"` compiles the steps by XLA. It does not where XLA does not know one of
          their operations (with a warning), nor for convolutions on a machine without GPU, where
          those of TensorFlow are faster. The choice is made when `fit` or `evaluate` first sees
          data, and kept. XLA compiles once for each shape of a batch.
        * `steps_per_execution="auto"` runs 16 steps of `fit` in one call, with the same results.
          It runs one step a call where the difference would show: where `steps_per_epoch` or
          `validation_steps` is given (Keras would round it up), or where a callback that is not
          one of Keras has a method for batches. `evaluate` and `predict` run one step a call.

        Under a strategy of `tf.distribute` there is no XLA, and one step a call.

        Args:
          optimizer: As Keras takes it.
          **kwargs: Of `keras.Model.compile`, without loss and metrics.
        """
        kwargs = {"jit_compile": "auto", "steps_per_execution": "auto", **kwargs}
        self._chooses_jit = kwargs["jit_compile"] == "auto"
        self._chooses_steps = kwargs["steps_per_execution"] == "auto"
        self._jit_chosen_by = None
        if self._chooses_jit:
            kwargs["jit_compile"] = False
        if self._chooses_steps:
            kwargs["steps_per_execution"] = 1
        with self.distribute_strategy.scope():  # of the variables of an optimizer given by name
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
        """Makes `train_function`, whose steps stop before the first that is not finite."""
        if self.train_function is None or force:
            are_only_steps = self._chooses_steps and self.steps_per_execution > 1
            self.train_function = FiniteSteps(self, are_only_steps)
        return self.train_function

    def reset_metrics(self) -> None:
        """Resets the metrics; see `keras.Model.reset_metrics`."""
        super().reset_metrics()
        self._forget_steps()

    def _forget_steps(self) -> None:
        if isinstance(self.train_function, FiniteSteps):
            self.train_function.forget()

    def loss_and_logs(self, batch: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Takes one training step.

        Args:
          batch: What the model is trained on, as the pipeline gives it.

        Returns:
          The loss that was differentiated, with penalties, a scalar; and the metrics.
        """
        raise NotImplementedError

    def what_is_not_finite(self, batch: Any) -> str:
        """Says what the first thing is that is not finite in a training step on `batch`."""
        raise NotImplementedError

    def _trace(self, step: Callable[[Any], Any], batch: Any) -> None:
        """Traces a step of a built model on a batch, and by it decides `jit_compile="auto"`.

        An error of the step itself is raised as it is, before the model has changed.
        """
        is_training = step == self.train_step
        if self.run_eagerly or self._is_distributed:
            return
        is_chosen = not self._chooses_jit or self._jit_chosen_by in (is_training, True)
        # For either number of steps in one call.
        is_traced = self.train_function is not None or self._other_functions[0] is not None
        if is_chosen and (is_traced or not is_training):
            return
        if is_training and not self.optimizer.built:
            # A function that makes variables while it is traced is traced once more.
            self.optimizer.build(self.trainable_variables)
        program = tf.function(step, jit_compile=True, autograph=False)
        program.get_concrete_function(batch)
        if is_chosen:
            return
        try:
            lowered = program.experimental_get_compiler_ir(batch)(stage="hlo")
        except Exception as error:
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
            # Keras warns that it turns XLA off where operations must be deterministic.
            warnings.simplefilter("ignore")
            self.jit_compile = jit_compile
        self._jit_chosen_by = is_training
        self.train_function = self.test_function = self.predict_function = None

    @property
    def _is_distributed(self) -> bool:
        """Whether the model is made or used under a strategy of `tf.distribute`."""
        return self._distribute_strategy is not None or tf.distribute.has_strategy()

    def _can_join_steps(self, callbacks: Iterable[Any], *step_counts: Any) -> bool:
        """Whether several steps in one call look to everything like one step a call."""
        return all(count is None for count in step_counts) and not any(
            _sees_batches(callback) for callback in callbacks
        )

    @contextmanager
    def _many_steps_in_one_call(self, many: bool) -> Iterator[None]:
        """Within the block, runs many steps in one call or one, where `compile` left that open."""
        many = many and not self._is_distributed
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
        # Keras traces a function for one number of steps: there is a set for each.
        self.steps_per_execution = steps
        functions = (self.train_function, self.test_function, self.predict_function)
        self.train_function, self.test_function, self.predict_function = self._other_functions
        self._other_functions = functions


def listed(callbacks: Any) -> list[Any]:
    """The callbacks that `fit` was given: one, nested lists of them, or a `CallbackList`."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    return tf.nest.flatten(callbacks or [])  # type: ignore[no-any-return]


def _sees_batches(callback: Any) -> bool:
    """Whether a callback has a method for batches that is not one of Keras' own."""
    hooks = (getattr(callback, name, None) for name in _BATCH_HOOKS)
    return any(
        hook is not None and not (getattr(hook, "__module__", None) or "").startswith("keras.")
        for hook in hooks
    )
