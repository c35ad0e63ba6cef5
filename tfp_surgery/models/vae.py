"""The variational autoencoder: a Keras model over an encoder, a decoder and a prior."""

from __future__ import annotations

import functools
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
    build_prior,
    check_decoder_output,
    check_encoder_output,
    check_prior,
    unwrap,
)
from tfp_surgery.checks.support import check_support
from tfp_surgery.measurement.model_checks import check_codes_in_support
from tfp_surgery.models.fast_model import FastModel, listed
from tfp_surgery.models.first_not_finite import DifferentiatedLoss, first_not_finite
from tfp_surgery.models.training_input import (
    TrainingInput,
    observations_and_index,
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

    Attributes:
      encoder: As given to the constructor, as are `decoder`, `prior`, `objective` and `seed`.
      event_shape: The shape of one observation, once the model is built.
    """

    def __init__(
        self,
        encoder: Callable[[tf.Tensor], tfd.Distribution],
        decoder: Callable[[tf.Tensor], tfd.Distribution],
        prior: tfd.Distribution | Callable[[], tfd.Distribution],
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
        self._frozen_variables: set[Any] = set()  # that hide in functions
        self._loss = keras.metrics.Mean(name="loss")
        self._reconstruction = keras.metrics.Mean(name="average_reconstruction")
        self._kl = keras.metrics.Mean(name="average_kl")

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics that Keras resets and reports."""
        return [self._loss, self._reconstruction, self._kl]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Runs the networks on zeros: creates their weights, checks what they return.

        Args:
          input_shape: `[B or None, *event_shape]`.

        Raises:
          TypeError: If a network or the prior gives no distribution, or has weights that Keras 3
            cannot train.
          ValueError: If their batch or event shapes do not go together.
        """
        event_shape = tuple(size for size in input_shape[1:] if size is not None)
        if not event_shape or len(event_shape) != len(input_shape) - 1:
            raise ValueError(f"input_shape must be [B, *event_shape], got {tuple(input_shape)}.")
        with tf.init_scope():
            probe = tf.zeros([2, *event_shape], keras.config.floatx())
            code = self._probe_code(probe, build_prior(self.prior))
            check_decoder_output(self.decoder(code), 2, event_shape)
        self.event_shape = event_shape

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Reconstructs: the mean of p(x|z) at the mean of q(z|x), of the shape of `x`."""
        return self.decoder(self.encoder(x).mean()).mean()

    def fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """Trains the model; see `keras.Model.fit`.

        Args:
          x: Array `[N, *event_shape]` or `tf.data.Dataset` of batches `[B, *event_shape]`,
            floating, finite, in the support of the likelihood. Of a `tf.data.Dataset` the first
            batch of each pass is checked for all of that, later ones for NaN and infinity. Its
            elements may also be dicts `{"x": x, "index": index}` with the place of each
            observation in the data set, int32 or int64 `[B]`.
          y: None.
          **kwargs: Of `keras.Model.fit`, without sample and class weights; `validation_data` is
            of the same kind as `x`.

        Returns:
          The history that Keras keeps.

        Raises:
          TypeError: If `x` is of another kind, or a network gives no distribution.
          ValueError: If `x` is empty, not finite or outside the likelihood's support, if shapes
            do not go together, if there are targets, or if the prior needs indices and there are
            none.
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
                self.build(tuple(observations_and_index(x)[0].shape))
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
        x, index = self._unpack(data)
        with tf.GradientTape() as tape:
            step = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int32)
            seed = seeds.key(self.seed, "training/step", step, self._observations_seen())
            terms = self._terms(x, self._training_prior(index), seed, training=True)
            loss = -tf.reduce_mean(terms.objective)
            penalties = [tf.cast(penalty, loss.dtype) for penalty in self.losses]
            for penalty in penalties:
                loss += penalty
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = checked_gradients(
            tape, scaled_loss, self, self._runs(x), self._frozen_variables
        )
        return DifferentiatedLoss(terms, penalties, loss, gradients)

    def _runs(self, x: tf.Tensor) -> dict[str, Callable[[], Any]]:
        """What runs each part of the model by itself, by name."""
        seed = seeds.key(self.seed, "probe")
        return {
            "encoder": lambda: self.encoder(x),
            "decoder": lambda: self.decoder(unwrap(self.encoder(x)).sample(seed=seed)),
            "prior": lambda: build_prior(self.prior),
        }

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """The metrics on a batch."""
        x, _ = self._unpack(data)
        seed = seeds.key(self.seed, "training/evaluation", self._observations_seen())
        return self._updated_metrics(self._terms(x, build_prior(self.prior), seed, training=False))

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
                self.build((None, *checked.event_shape))
        elif checked.event_shape != self.event_shape:
            raise ValueError(
                f"the model was built for observations of shape {list(self.event_shape or ())}, "
                f"but those of x have shape {list(checked.event_shape)}."
            )

        needs_gradient = (
            is_training
            and isinstance(self.objective, (Elbo, Iwae))
            and bool(getattr(self.encoder, "trainable_weights", ()))
        )

        prior = build_prior(self.prior)  # once, and not at the first batch of each epoch

        def check(values: np.ndarray) -> None:
            x = tf.constant(values[:1], keras.config.floatx())
            code = self._probe_code(x, prior)
            check_support(check_decoder_output(self.decoder(code), 1, checked.event_shape), values)
            if needs_gradient:
                check_decoder_gradient(self.decoder, code, x)

        checked.check_values(check)
        batch = tf.zeros([2, *checked.event_shape], keras.config.floatx())
        step = self.train_step if is_training else self.test_step
        self._trace(step, {"x": batch, "index": tf.range(2)})
        return checked

    def _probe_code(self, x: tf.Tensor, prior: tfd.Distribution) -> tf.Tensor:
        """Codes of `x`, once posterior and prior have been checked."""
        posterior = check_encoder_output(self.encoder(x), x.shape[0])
        check_prior(prior, posterior)
        seed = seeds.key(self.seed, "probe")
        check_codes_in_support(prior, posterior.sample(100, seed=seed))
        return posterior.sample(seed=seed)

    def _training_prior(self, index: tf.Tensor | None) -> tfd.Distribution:
        """p(z), or for each observation what is left of it without its own component."""
        if not getattr(self.prior, "leaves_one_out", False):
            return build_prior(self.prior, training=True)
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

    def _terms(
        self, x: tf.Tensor, prior: tfd.Distribution, seed: tf.Tensor, training: bool
    ) -> ObjectiveTerms:
        encoder, decoder = (
            functools.partial(network, training=training)
            if isinstance(network, keras.layers.Layer)
            else network
            for network in (self.encoder, self.decoder)
        )
        return self.objective(x, encoder, decoder, prior, seed)

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

    def _unpack(self, data: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        reject_targets(y=y, sample_weight=sample_weight)
        x, index = observations_and_index(x)
        if not self.built:  # train_on_batch and test_on_batch come here without fit
            self.build(tuple(x.shape))
        return x, index
