"""The variational autoencoder: a Keras model over an encoder, a decoder and a prior."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.networks import (
    check_decoder_output,
    check_encoder_output,
    check_prior,
)
from tfp_surgery.checks.support import check_support
from tfp_surgery.measurement.model_checks import check_codes_in_support
from tfp_surgery.models.condition_spec import (
    check_same_condition,
    checked_condition,
    joined_shape,
    read_spec,
    split_shape,
    written_spec,
    zero_condition,
)
from tfp_surgery.models.conditioned_parts import ConditionedParts
from tfp_surgery.models.fast_model import FastModel, listed
from tfp_surgery.models.first_not_finite import DifferentiatedLoss, first_not_finite
from tfp_surgery.models.training_input import (
    BatchParts,
    TrainingInput,
    batch_parts,
    reject_targets,
)
from tfp_surgery.training.objectives import Elbo, Iwae, ObjectiveTerms, elbo
from tfp_surgery.training.variables import check_decoder_gradient, checked_gradients

tfd = tfp.distributions


@keras.saving.register_keras_serializable(package="tfp_surgery")
class VAE(FastModel):
    """A model p(z) p(x|z) with an amortized posterior q(z|x), trained by `fit`.

    Compile it with an optimizer and without loss or metrics: the objective is the model's own.
    The metrics, means over the observations in nats, are `loss` (the negative objective, without
    penalties that layers add), `average_reconstruction` and `average_kl`.

    The noise of a training step is a function of `seed`, of the optimizer's step and of the number
    of observations seen in the epoch. That of `evaluate` is a function of `seed` and this number:
    each evaluation has the same draws. A run that is saved, loaded and continued therefore equals
    the uninterrupted run, weight for weight on a CPU, on two conditions. The data must go on from
    the right epoch, as `dataset.batches(..., initial_epoch=...)` does; `fit` shuffles arrays by a
    generator that is not saved. With an optimizer that averages the weights (`use_ema`), the model
    must be saved by a callback: `fit` ends by overwriting the weights with their averages.

    A prior made of the training data may leave each observation's own component out of training.
    Where its attribute `leaves_one_out` is true, a training step uses `prior.leave_one_out(index)`
    in its place, one distribution for each observation. `fit` then needs a pipeline that gives
    their indices, such as `dataset.batches(..., indexed=True)`. The metrics of training are those
    of this prior, the metrics of `evaluate` and validation those of the prior itself.

    A conditional model has an encoder, decoder or prior with a keyword argument `condition`, for
    instance a prior made with a `condition_size`. Those that have it get the conditions of the
    batch, the decoder repeated in step with its flat batch of codes `[S * B, *code_shape]`. If the
    prior has it, `average_kl` is KL(q(z|x) || p(z|c)). Train the model on
    `{"x": x, "condition": condition}`, and measure it by
    `elbo_surgery(x, vae.encoder, vae.decoder, vae.prior, condition=condition)`.

    Attributes:
      encoder: As given to the constructor, as are `decoder`, `prior`, `objective` and `seed`.
      event_shape: The shape of one observation, once the model is built.
      condition_spec: `tf.TensorSpec`s `[None, ...]` of the conditions, once it is built; None if
        there are none.
    """

    def __init__(
        self,
        encoder: Callable[..., tfd.Distribution],
        decoder: Callable[..., tfd.Distribution],
        prior: tfd.Distribution | Callable[..., tfd.Distribution],
        objective: Callable[..., ObjectiveTerms] | None = None,
        seed: Any = 0,
        **kwargs: Any,
    ):
        """Makes the model.

        Weights are trained if they belong to Keras 3 layers. Anything may stand in for a layer
        that has no weights to train: a function, a distribution, a fitted model of another
        library. A network that returns Tensors goes in as `networks.GaussianEncoder`,
        `networks.BernoulliDecoder` or `networks.GaussianDecoder` of it.

        Args:
          encoder: Callable from x `[B, *event_shape]` to q(z|x) with batch shape `[B]`.
          decoder: Callable from z `[B, *code_shape]` to p(x|z) with batch shape `[B]`.
          prior: p(z), or a callable without arguments that builds it; a layer with weights
            defines `call(self, condition=None)`.
          objective: What to maximise, from `tfp_surgery.objectives`; `elbo()` if None.
          seed: Integer in [0, 2**31) or pair of int32, of the noise in training and evaluation.
          **kwargs: Of `keras.Model`.

        Raises:
          RuntimeError: If Keras runs on another backend than TensorFlow.
          TypeError: If an argument is of the wrong kind.
          ValueError: If `seed` is out of range.
        """
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                "tfp_surgery needs Keras with the TensorFlow backend, and it runs on "
                f"{keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow before the first "
                "import of keras."
            )
        super().__init__(**kwargs)
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            if not callable(part):
                raise TypeError(f"{name} must be callable, got {type(part).__name__}.")
        if not (isinstance(prior, tfd.Distribution) or callable(prior)):
            raise TypeError(f"prior must be a distribution or build one, got {prior!r}.")
        self.encoder = encoder
        self.decoder = decoder
        self.prior: Any = prior
        self.objective = elbo() if objective is None else objective
        self.seed = seeds.checked_seed(seed)
        self.event_shape: tuple[int, ...] | None = None
        self.condition_spec: Any = None
        self._frozen_variables: set[Any] = set()  # that hide in functions
        self._loss = keras.metrics.Mean(name="loss")
        self._reconstruction = keras.metrics.Mean(name="average_reconstruction")
        self._kl = keras.metrics.Mean(name="average_kl")

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics that Keras resets and reports."""
        return [self._loss, self._reconstruction, self._kl]

    def build(self, input_shape: Any) -> None:
        """Runs the networks on zeros: creates their weights, checks what they return.

        Args:
          input_shape: `[B or None, *event_shape]`. Of a conditional model `{"x": input_shape,
            "condition": specs}`, with `tf.TensorSpec`s `[None, ...]` in the structure of the
            condition.

        Raises:
          TypeError: If a network or the prior gives no distribution, or has weights that Keras 3
            cannot train, or if no part takes the condition, or one needs it and there is none.
          ValueError: If their batch or event shapes do not go together.
        """
        event_shape, spec = split_shape(input_shape)
        with tf.init_scope():
            probe = tf.zeros([2, *event_shape], keras.config.floatx())
            parts = ConditionedParts(self, zero_condition(spec, 2))
            code = self._probe_code(probe, parts, parts.prior())
            check_decoder_output(parts.decoder(code), 2, event_shape)
        self.event_shape, self.condition_spec = event_shape, spec

    def get_build_config(self) -> dict[str, Any] | None:
        """What the model was built for, as JSON."""
        if self.condition_spec is None:
            return super().get_build_config()  # type: ignore[no-any-return]
        shape = [None, *(self.event_shape or ())]
        return {"input_shape": shape, "condition": written_spec(self.condition_spec)}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the model from what `get_build_config` gave."""
        if "condition" in config:
            spec = read_spec(config["condition"])
            config = {"input_shape": joined_shape(config["input_shape"], spec)}
        super().build_from_config(config)

    def call(self, x: Any) -> tf.Tensor:
        """Reconstructs: the mean of p(x|z) at the mean of q(z|x), of the shape of the observations.

        Args:
          x: Observations `[B, *event_shape]`, or a dict as for `fit`.
        """
        x, _, condition = batch_parts(x)
        parts = self._given(x, condition)
        return parts.decoder(parts.encoder(x).mean()).mean()

    def fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """Trains the model; see `keras.Model.fit`.

        Args:
          x: Array `[N, *event_shape]` or `tf.data.Dataset` of batches `[B, *event_shape]`,
            floating, finite, in the support of the likelihood. Of a `tf.data.Dataset` the first
            batch of each pass is checked for all of that, later ones for NaN and infinity. Its
            elements may also be dicts `{"x": x, "index": index}` with the place of each
            observation in the data set, int32 or int64 `[B]`. A conditional model takes
            `{"x": x, "condition": condition}`, of arrays or as elements (then with `"index"` too),
            where the condition is an array `[N, ...]` or `[B, ...]`, or a dict or tuple of these.
          y: None.
          **kwargs: Of `keras.Model.fit`, without sample and class weights; `validation_data` is
            of the same kind as `x`.

        Returns:
          The history that Keras keeps.

        Raises:
          TypeError: If `x` is of another kind, a network gives no distribution, no part takes the
            condition, or one needs it and there is none.
          ValueError: If `x` is empty, not finite or outside the likelihood's support, if shapes
            or numbers do not go together, if there are targets, or if the prior needs indices and
            there are none.
        """
        reject_targets(
            y=y,
            sample_weight=kwargs.pop("sample_weight", None),
            class_weight=kwargs.pop("class_weight", None),
        )
        training = self._checked_input(x, is_training=True)
        self._check_indices(training.is_indexed)
        if isinstance(training.data, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # Keras warns that it cannot
        validation_data = kwargs.pop("validation_data", None)
        if validation_data is None:
            return self._fit(training, nullcontext(), **kwargs)
        validation = self._checked_input(validation_data)
        return self._fit(
            training, validation.failures_raised(), validation_data=validation.data, **kwargs
        )

    def _fit(self, training: TrainingInput, validating: Any, **kwargs: Any) -> Any:
        callbacks = listed(kwargs.get("callbacks"))
        joined = self._can_join_steps(
            callbacks, kwargs.get("steps_per_epoch"), kwargs.get("validation_steps")
        )
        with training.failures_raised(), validating, self._many_steps_in_one_call(joined):
            try:
                return super().fit(training.data, **kwargs)
            finally:
                self._forget_steps()

    def evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """The metrics on `x`; see `keras.Model.evaluate`, and `fit` for what `x` may be."""
        if kwargs.get("_use_cached_eval_dataset"):  # validation inside fit, which has checked it
            return self._evaluated(x, **kwargs)
        reject_targets(y=y, sample_weight=kwargs.pop("sample_weight", None))
        checked = self._checked_input(x)
        with checked.failures_raised(), self._many_steps_in_one_call(False):
            return self._evaluated(checked.data, **kwargs)

    def _evaluated(self, x: Any, **kwargs: Any) -> Any:
        result = super().evaluate(x, **kwargs)
        if not np.isfinite(self._loss.result()):
            warnings.warn(
                "the loss of an evaluation is not finite: at least one observation has a "
                "reconstruction, KL divergence or objective that is not.",
                stacklevel=3,
            )
        return result

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """One step of the optimizer on a batch; see `keras.Model.train_on_batch`."""
        if not self.built:
            with self.distribute_strategy.scope():
                self._build_for(x)
        return super().train_on_batch(x, *args, **kwargs)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of the optimizer on a batch."""
        return self.loss_and_logs(data)[1]

    def loss_and_logs(self, data: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """One step of the optimizer on a batch: the loss with penalties, and the metrics."""
        step = self._differentiated(data)
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(step.gradients, weights, strict=True))
        return step.loss, self._updated_metrics(step.terms)

    def what_is_not_finite(self, batch: Any) -> str:
        """Says what the first thing is that is not finite in a training step on `batch`."""

        def step(batch: Any) -> DifferentiatedLoss:
            return self._differentiated(batch)

        if not self.run_eagerly:
            step = tf.function(step, autograph=False, jit_compile=self.jit_compile)
        return first_not_finite(self, step(batch))

    def _differentiated(self, data: Any) -> DifferentiatedLoss:
        """The loss on a batch and its gradient, once they are known to train what they should."""
        x, index, condition = self._unpack(data)
        parts = self._given(x, condition, training=True)
        with tf.GradientTape() as tape:
            step = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int32)
            seed = seeds.key(self.seed, "training/step", step, self._observations_seen())
            prior = self._training_prior(parts, index)
            terms = self.objective(x, parts.encoder, parts.decoder, prior, seed)
            loss = -tf.reduce_mean(terms.objective)
            penalties = [tf.cast(penalty, loss.dtype) for penalty in self.losses]
            for penalty in penalties:
                loss += penalty
            scaled_loss = self.optimizer.scale_loss(loss)
        runs = parts.runs(x, seeds.key(self.seed, "probe"))
        gradients = checked_gradients(tape, scaled_loss, self, runs, self._frozen_variables)
        return DifferentiatedLoss(terms, penalties, loss, gradients)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """The metrics on a batch."""
        x, _, condition = self._unpack(data)
        parts = self._given(x, condition, training=False)
        seed = seeds.key(self.seed, "training/evaluation", self._observations_seen())
        terms = self.objective(x, parts.encoder, parts.decoder, parts.prior(), seed)
        return self._updated_metrics(terms)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, serialized.

        Raises:
          ValueError: If one of them is nothing that Keras can write.
        """
        config = super().get_config()
        for name in ("encoder", "decoder", "prior", "objective"):
            part = getattr(self, name)
            if not hasattr(part, "get_config"):
                raise ValueError(
                    f"a VAE whose {name} is a {type(part).__name__} cannot be written to a .keras "
                    "file: make it a keras.layers.Layer with get_config, or use save_weights and "
                    "load_weights."
                )
            config[name] = keras.saving.serialize_keras_object(part)
        if getattr(self.prior, "encoder", None) is self.encoder:
            config["prior"]["config"]["encoder"] = None  # one object: see from_config
        return {**config, "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> VAE:
        """The model from what `get_config` gave; a prior that uses its encoder does so again."""
        parts: dict[str, Any] = {}
        for name in ("encoder", "decoder", "prior", "objective"):
            part = config[name]
            if name == "prior" and part["config"].get("encoder", part) is None:
                part = {**part, "config": {**part["config"], "encoder": parts["encoder"]}}
            parts[name] = keras.saving.deserialize_keras_object(part, custom_objects=custom_objects)
        return cls(**{**config, **parts})

    def _checked_input(self, x: Any, is_training: bool = False) -> TrainingInput:
        """Builds the model for `x`, checks it, and returns what Keras is to read."""
        self._frozen_variables.clear()
        if self.loss is not None or any(m.name == "compile_metrics" for m in super().metrics):
            raise ValueError(
                "compile a VAE with an optimizer alone: its loss and metrics are its own, and the "
                "loss or metrics given to compile would be ignored."
            )
        if self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError("a VAE trains on one device; a tf.distribute strategy is not served.")
        checked = TrainingInput(x)
        if not self.built:
            with self.distribute_strategy.scope():
                self.build(joined_shape((None, *checked.event_shape), checked.condition_spec))
        elif checked.event_shape != self.event_shape:
            raise ValueError(
                f"the model was built for observations of shape {list(self.event_shape or ())}, "
                f"but those of x have shape {list(checked.event_shape)}."
            )

        check_same_condition(checked.condition_spec, self.condition_spec)
        needs_gradient = (
            is_training
            and isinstance(self.objective, (Elbo, Iwae))
            and bool(getattr(self.encoder, "trainable_weights", ()))
        )

        zeros = zero_condition(checked.condition_spec, 2)
        parts_of_zeros = ConditionedParts(self, zeros)
        prior = None  # if unconditional, once, and not at the first batch of each epoch
        if not parts_of_zeros.is_prior_conditional:
            prior = parts_of_zeros.prior()

        def check(values: np.ndarray, condition: Any) -> None:
            x = tf.constant(values[:1], keras.config.floatx())
            first = tf.nest.map_structure(
                lambda leaf: None if leaf is None else leaf[:1], condition
            )
            parts = self._given(x, first)
            code = self._probe_code(x, parts, parts.prior() if prior is None else prior)
            check_support(check_decoder_output(parts.decoder(code), 1, checked.event_shape), values)
            if needs_gradient:
                check_decoder_gradient(parts.decoder, code, x)

        checked.check_values(check)
        x_of_zeros = tf.zeros([2, *checked.event_shape], keras.config.floatx())
        given = {} if zeros is None else {"condition": zeros}
        batch = {"x": x_of_zeros, "index": tf.range(2), **given}
        self._trace(self.train_step if is_training else self.test_step, batch)
        return checked

    def _probe_code(
        self, x: tf.Tensor, parts: ConditionedParts, prior: tfd.Distribution
    ) -> tf.Tensor:
        """Codes of `x`, once posterior and prior have been checked."""
        posterior = check_encoder_output(parts.encoder(x), x.shape[0])
        check_prior(prior, posterior, conditional=parts.is_prior_conditional)
        seed = seeds.key(self.seed, "probe")
        check_codes_in_support(prior, posterior.sample(100, seed=seed))
        return posterior.sample(seed=seed)

    def _training_prior(self, parts: ConditionedParts, index: tf.Tensor | None) -> tfd.Distribution:
        """p(z), or for each observation what is left of it without its own component."""
        if not getattr(self.prior, "leaves_one_out", False):
            return parts.prior()
        self._check_indices(index is not None)
        return self.prior.leave_one_out(index)

    def _check_indices(self, are_given: bool) -> None:
        if getattr(self.prior, "leaves_one_out", False) and not are_given:
            raise ValueError(
                f"{type(self.prior).__name__} leaves the component of each observation out while "
                'it is trained, and must be told which: train on {"x": x, "index": index}, as '
                "dataset.batches(..., indexed=True) gives them, or make the prior with "
                "leave_one_out=False, to train on its plain density."
            )

    def _observations_seen(self) -> tf.Tensor:
        """How many there were in this epoch or evaluation.

        It tells apart the batches of an evaluation, and those of one step where an optimizer
        accumulates gradients.
        """
        return tf.cast(tf.convert_to_tensor(self._loss.count), tf.int32)

    def _updated_metrics(self, terms: ObjectiveTerms) -> dict[str, tf.Tensor]:
        self._loss.update_state(-terms.objective)
        self._reconstruction.update_state(terms.reconstruction)
        self._kl.update_state(terms.kl)
        return {metric.name: metric.result() for metric in self.metrics}

    def _unpack(self, data: Any) -> BatchParts:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        reject_targets(y=y, sample_weight=sample_weight)
        if not self.built:  # train_on_batch and test_on_batch come here without fit
            self._build_for(x)
        return batch_parts(x)

    def _build_for(self, batch: Any) -> None:
        """Builds the model for batches like this one."""
        x, _, condition = batch_parts(batch)
        self.build(joined_shape(x.shape, condition))

    def _given(self, x: tf.Tensor, condition: Any, training: Any = None) -> ConditionedParts:
        """The parts of the model, given the conditions of observations."""
        condition = checked_condition(condition, x, self.condition_spec)
        return ConditionedParts(self, condition, training)
