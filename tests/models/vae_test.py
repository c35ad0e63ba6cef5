from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

from tfp_surgery.datasets import Dataset
from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.decoders import ConvDecoder, MLPDecoder
from tfp_surgery.networks.encoders import ConvEncoder, MLPEncoder
from tfp_surgery.networks.likelihoods import (
    CategoricalLikelihood,
    DiscretizedLogisticLikelihood,
    GaussianLikelihood,
    Likelihood,
)
from tfp_surgery.priors.base import StandardNormalPrior
from tfp_surgery.training.objectives import Elbo, ObjectiveTerms, elbo

tfd = tfp.distributions

EVENT = (4, 3, 1)
LEVELS = np.random.default_rng(0).integers(0, 17, (50, *EVENT)).astype(np.uint8) / np.float32(16)
BINARY = (LEVELS > 0.5).astype(np.float32)
STANDARD_NORMAL = tfd.MultivariateNormalDiag(tf.zeros([2]))


def make_vae(likelihood: Likelihood | None = None, **kwargs: Any) -> VAE:
    encoder = MLPEncoder(2, hidden_sizes=(6,))
    decoder = MLPDecoder(EVENT, hidden_sizes=(6,), likelihood=likelihood)
    return VAE(encoder, decoder, StandardNormalPrior(2), **kwargs)


def compiled(vae: VAE, **kwargs: Any) -> VAE:
    """Compiles a model to run step by step, with no program, unless `jit_compile` is given."""
    kwargs.setdefault("optimizer", keras.optimizers.SGD(0.01, momentum=0.9))
    kwargs.setdefault("run_eagerly", "jit_compile" not in kwargs)
    vae.compile(**kwargs)
    return vae


def initialized(seed: int = 1) -> VAE:
    keras.utils.set_random_seed(seed)
    vae = make_vae()
    vae.build((None, *EVENT))
    return vae


def batches(x: np.ndarray = BINARY, batch_size: int = 16) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(x).batch(batch_size)


@keras.saving.register_keras_serializable(package="vae_test")
class FirstPixel:
    """An objective without noise: the first pixel of each observation, doubled."""

    def __call__(self, x: tf.Tensor, encoder: Any, decoder: Any, prior: Any, seed: Any) -> Any:
        del decoder, prior, seed
        value = x[:, 0, 0, 0] + 0.0 * encoder(x).mean()[:, 0]
        return ObjectiveTerms(2.0 * value, 3.0 * value, value)

    def get_config(self) -> dict[str, Any]:
        return {}


class Recorder:
    """An objective that writes down the seeds of the steps it is asked for."""

    def __init__(self) -> None:
        self.seeds: list[tuple[int, ...]] = []

    def __call__(self, x: tf.Tensor, encoder: Any, decoder: Any, prior: Any, seed: Any) -> Any:
        self.seeds.append(tuple(seed.numpy().tolist()))
        assert seed.dtype == tf.int32
        return elbo()(x, encoder, decoder, prior, seed)


# -- training


@pytest.mark.parametrize(
    ("likelihood", "x"),
    [
        (None, BINARY),
        (GaussianLikelihood(0.5), LEVELS),
        (GaussianLikelihood("shared"), LEVELS),
        (GaussianLikelihood("per_pixel"), LEVELS),
        (CategoricalLikelihood(17), LEVELS),
        (DiscretizedLogisticLikelihood(17), LEVELS),
    ],
)
def test_training_lowers_the_loss_and_moves_every_weight(
    likelihood: Likelihood | None, x: np.ndarray
) -> None:
    keras.utils.set_random_seed(0)
    vae = compiled(make_vae(likelihood))
    vae.build((None, *EVENT))
    before = vae.get_weights()
    losses = vae.fit(x, batch_size=25, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for weight, old in zip(vae.weights, before, strict=True):
        assert np.any(weight.numpy() != old), weight.path
    reconstruction = vae.predict(x, verbose=0)
    assert reconstruction.shape == x.shape
    assert np.all(np.isfinite(reconstruction))


def test_convolutional_networks_train() -> None:
    decoder = ConvDecoder(EVENT, filters=(4,), hidden_sizes=(4,))
    encoder = ConvEncoder(2, filters=(4,), hidden_sizes=(4,))
    vae = compiled(VAE(encoder, decoder, StandardNormalPrior(2)))
    losses = vae.fit(BINARY, batch_size=25, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_compiled_training_with_several_steps_an_execution() -> None:
    vae = compiled(make_vae(), jit_compile=True, steps_per_execution=2)
    history = vae.fit(
        batches(BINARY[:48]), epochs=2, verbose=0, validation_data=batches(BINARY[:16])
    ).history
    assert vae.optimizer.iterations == 6
    assert all(np.all(np.isfinite(values)) for values in history.values())
    assert {name for name in history if not name.startswith("val_")} == {
        "loss",
        "average_reconstruction",
        "average_kl",
    }
    np.testing.assert_allclose(
        history["loss"],
        np.subtract(history["average_kl"], history["average_reconstruction"]),
        rtol=1e-5,
    )


def test_metrics_count_each_observation_once() -> None:
    vae = compiled(make_vae(GaussianLikelihood(), objective=FirstPixel()))
    assert len(LEVELS) % 16 != 0
    mean = LEVELS[:, 0, 0, 0].mean()
    for x in (LEVELS, batches(LEVELS)):
        found = vae.evaluate(x, batch_size=None, return_dict=True, verbose=0)
        assert found["loss"] == pytest.approx(-2 * mean, rel=1e-5)
        assert found["average_reconstruction"] == pytest.approx(3 * mean, rel=1e-5)
        assert found["average_kl"] == pytest.approx(mean, rel=1e-5)


def test_the_first_step_is_gradient_descent_on_the_objective() -> None:
    vae = compiled(initialized(), optimizer=keras.optimizers.SGD(0.1))
    recorder = Recorder()
    vae.objective = recorder
    start = vae.get_weights()
    vae.fit(BINARY, batch_size=50, shuffle=False, verbose=0)
    stepped = vae.get_weights()
    vae.set_weights(start)
    with tf.GradientTape() as tape:
        terms = elbo()(tf.constant(BINARY), vae.encoder, vae.decoder, vae.prior, recorder.seeds[0])
        bound = tf.reduce_mean(terms.objective)
    gradients = tape.gradient(bound, vae.trainable_weights)
    for old, gradient, new in zip(start, gradients, stepped, strict=True):
        np.testing.assert_allclose(new, old + 0.1 * gradient.numpy(), rtol=1e-5, atol=1e-6)


def test_penalties_of_layers_count_in_training_and_not_in_the_metrics() -> None:
    class Penalized(MLPEncoder):
        def call(self, x: tf.Tensor) -> tfd.Distribution:
            self.add_loss(1e3 * tf.reduce_sum(self.output_layer.kernel**2))
            return super().call(x)

    sizes = []
    for kind in (MLPEncoder, Penalized):
        keras.utils.set_random_seed(2)
        encoder = kind(2, (6,))
        vae = VAE(encoder, MLPDecoder(EVENT, (6,)), StandardNormalPrior(2))
        compiled(vae, optimizer=keras.optimizers.Adam(0.01))
        loss = vae.fit(BINARY, epochs=5, verbose=0).history["loss"][0]
        assert loss < 20.0
        sizes.append(np.sum(encoder.output_layer.kernel.numpy() ** 2))
    assert sizes[1] < 0.9 * sizes[0]


def test_dropout_acts_in_training_alone() -> None:
    calls: list[Any] = []

    class Inner(keras.layers.Layer):
        def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
            calls.append(training)
            return x

    class Outer(MLPEncoder):
        def __init__(self) -> None:
            super().__init__(2, (3,))
            self.inner = Inner()

        def call(self, x: tf.Tensor) -> tfd.Distribution:
            return super().call(self.inner(x))

    vae = VAE(Outer(), MLPDecoder(EVENT, (3,)), StandardNormalPrior(2))
    compiled(vae)
    vae.build((None, *EVENT))
    calls.clear()
    vae.train_on_batch(BINARY)
    assert calls == [True]
    calls.clear()
    vae.test_on_batch(BINARY)
    vae(BINARY)
    assert calls == [False, False]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_precision_policies(policy: str) -> None:
    before = keras.config.dtype_policy().name
    floatx = keras.config.floatx()
    keras.config.set_dtype_policy(policy)
    if policy == "float64":
        keras.config.set_floatx("float64")
    try:
        seen: list[tf.DType] = []

        def objective(x: tf.Tensor, *arguments: Any) -> ObjectiveTerms:
            terms = elbo()(x, *arguments)
            seen.extend(term.dtype for term in terms)
            return terms

        keras.utils.set_random_seed(0)
        vae = compiled(make_vae(objective=objective), jit_compile=False)
        is_scaled = isinstance(vae.optimizer, keras.optimizers.LossScaleOptimizer)
        assert is_scaled == (policy == "mixed_float16")
        losses = vae.fit(BINARY, epochs=20, verbose=0).history["loss"]
        assert losses[-1] < losses[0] - 0.1
        assert set(seen) == {tf.float64 if policy == "float64" else tf.float32}
        if is_scaled:  # a step whose scaled gradient overflows is skipped, and the scale halved
            assert int(vae.optimizer.iterations) > 30
    finally:
        keras.config.set_dtype_policy(before)
        keras.config.set_floatx(floatx)


def test_parts_that_are_no_layers() -> None:
    """A learned encoder, a decoder that is a function, a prior that TFP has no divergence to."""
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(tf.zeros([3])), tfd.MultivariateNormalDiag(tf.random.normal([3, 2]))
    )

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        logits = tf.tile(tf.reduce_sum(z, axis=-1)[:, None, None, None], [1, *EVENT])
        return tfd.Independent(tfd.Bernoulli(logits=logits), 3)

    for prior in (mixture, lambda: mixture):
        vae = compiled(VAE(MLPEncoder(2, (4,)), decoder, prior))
        assert np.isfinite(vae.fit(BINARY, verbose=0, batch_size=50).history["loss"][0])
        assert len(vae.trainable_weights) == 4


def test_networks_of_tf_keras_serve_frozen_and_are_refused_trainable() -> None:
    encoder = tf_keras.Sequential(
        [
            tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(5),
            tfp.layers.MultivariateNormalTriL(2),
        ]
    )
    vae = compiled(VAE(encoder, MLPDecoder(EVENT, (4,)), STANDARD_NORMAL))
    with pytest.raises(TypeError, match="the encoder has 2 trainable variables"):
        vae.fit(BINARY, verbose=0)
    encoder.trainable = False
    kernel = encoder.weights[0].numpy()
    losses = vae.fit(BINARY, verbose=0, epochs=5).history["loss"]
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(encoder.weights[0], kernel)
    prior = tfd.MultivariateNormalDiag(tf.Variable(tf.zeros([2])))
    with pytest.raises(TypeError, match="the prior has 1 trainable variables"):
        compiled(VAE(MLPEncoder(2, (4,)), MLPDecoder(EVENT, (4,)), prior)).fit(BINARY)


# -- noise


def test_every_step_has_noise_of_its_own() -> None:
    recorder = Recorder()
    vae = compiled(make_vae(objective=recorder, seed=7))
    vae.fit(BINARY, batch_size=16, epochs=3, verbose=0)
    training = list(recorder.seeds)
    assert len(set(training)) == len(training) == 12
    recorder.seeds.clear()
    for _ in range(2):
        vae.evaluate(BINARY, batch_size=16, verbose=0)
    evaluation = recorder.seeds[:4]
    assert recorder.seeds[4:] == evaluation  # each evaluation draws the same
    assert len(set(evaluation)) == 4
    assert not set(training) & set(evaluation)


def test_accumulated_gradients_have_noise_of_their_own() -> None:
    recorder = Recorder()
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    vae = compiled(make_vae(objective=recorder), optimizer=optimizer)
    vae.fit(BINARY, batch_size=10, verbose=0, epochs=2)
    assert len(set(recorder.seeds)) == 10


def test_the_seed_decides_the_run() -> None:
    def run(seed: int) -> Any:
        vae = initialized()
        vae.seed = seed
        compiled(vae).fit(batches(), epochs=2, verbose=0)
        return vae.get_weights()

    first, again, other = run(3), run(3), run(4)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(first, other, strict=True))


# -- save, load, resume


def full_state(vae: VAE) -> list[Any]:
    return [v.numpy() for v in [*vae.weights, *vae.optimizer.variables]]


def assert_same_state(vae: VAE, other: VAE) -> None:
    for a, b in zip(full_state(vae), full_state(other), strict=True):
        np.testing.assert_array_equal(a, b)


def shuffled(initial_epoch: int = 0) -> tf.data.Dataset:
    """Another order and another binarization in each epoch, a partial last batch."""
    dataset = Dataset("random", "train", LEVELS, "stochastic", 0)
    return dataset.batches(16, seed=5, initial_epoch=initial_epoch)


def scheduled_adam() -> keras.optimizers.Optimizer:
    schedule = keras.optimizers.schedules.CosineDecay(0.02, decay_steps=16)
    return keras.optimizers.Adam(schedule, use_ema=True, ema_momentum=0.8)


def run_and_resume(tmp_path: Path, **settings: Any) -> None:
    whole = compiled(initialized(), optimizer=scheduled_adam(), **settings)
    whole.fit(shuffled(), epochs=4, verbose=0, validation_data=batches())

    first = compiled(initialized(), optimizer=scheduled_adam(), **settings)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "vae.keras")
    first.fit(shuffled(), epochs=2, verbose=0, callbacks=[checkpoint])
    keras.backend.clear_session()

    resumed = keras.models.load_model(tmp_path / "vae.keras")
    assert resumed.optimizer.iterations == 8
    assert resumed.jit_compile == settings.get("jit_compile", False)
    resumed.fit(shuffled(2), initial_epoch=2, epochs=4, verbose=0)
    assert_same_state(resumed, whole)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    run_and_resume(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one_compiled(
    tmp_path: Path, steps_per_execution: int
) -> None:
    run_and_resume(tmp_path, jit_compile=True, steps_per_execution=steps_per_execution)


@pytest.mark.slow
def test_weights_alone_resume_a_model_that_keras_cannot_write(tmp_path: Path) -> None:
    def functional() -> VAE:
        keras.utils.set_random_seed(1)
        vae = VAE(MLPEncoder(2, (6,)), MLPDecoder(EVENT, (6,)), STANDARD_NORMAL)
        return compiled(vae, optimizer=scheduled_adam())

    whole = functional()
    whole.fit(shuffled(), epochs=4, verbose=0)
    first = functional()
    file = tmp_path / "vae.weights.h5"
    checkpoint = keras.callbacks.ModelCheckpoint(file, save_weights_only=True)
    first.fit(shuffled(), epochs=2, verbose=0, callbacks=[checkpoint])
    with pytest.raises(ValueError, match="a VAE whose prior is a MultivariateNormalDiag cannot"):
        first.save(tmp_path / "vae.keras")
    resumed = functional()
    resumed.build((None, *EVENT))
    resumed.load_weights(file)
    resumed.fit(shuffled(2), initial_epoch=2, epochs=4, verbose=0)
    assert_same_state(resumed, whole)


@pytest.mark.slow
def test_backup_and_restore_after_an_interruption(tmp_path: Path) -> None:
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 3:
                raise KeyboardInterrupt

    whole = compiled(initialized(), optimizer=scheduled_adam())
    whole.fit(shuffled(), epochs=4, verbose=0)

    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    first = compiled(initialized(), optimizer=scheduled_adam())
    with pytest.raises(KeyboardInterrupt):
        first.fit(shuffled(), epochs=4, verbose=0, callbacks=[backup, Interrupt()])
    resumed = compiled(initialized(seed=9), optimizer=scheduled_adam())
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    history = resumed.fit(shuffled(3), epochs=4, verbose=0, callbacks=[backup])
    assert history.epoch == [3]
    assert_same_state(resumed, whole)


class CountedPrior(StandardNormalPrior):
    """Counts how often it is built outside of a graph."""

    num_built = 0

    def call(self, condition: Any = None) -> tfd.Distribution:
        self.num_built += tf.executing_eagerly()
        return super().call(condition)


@pytest.mark.parametrize("epochs", [1, 4])
def test_the_prior_is_built_for_the_checks_once_whatever_the_number_of_epochs(epochs: int) -> None:
    prior = CountedPrior(2)
    vae = compiled(VAE(MLPEncoder(2, (6,)), MLPDecoder(EVENT, (6,)), prior), jit_compile=False)
    vae.build((None, *EVENT))
    assert prior.num_built == 1
    vae.fit(batches(), epochs=epochs, verbose=0)
    assert prior.num_built == 2


def test_a_loaded_model_is_the_saved_one(tmp_path: Path) -> None:
    likelihood = GaussianLikelihood("shared")
    vae = compiled(make_vae(likelihood, objective=elbo(3), seed=(11, -12)))
    vae.fit(LEVELS, verbose=0)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    assert isinstance(loaded, VAE)
    assert loaded.seed == (11, -12)
    assert isinstance(loaded.objective, Elbo)
    assert loaded.objective.num_samples == 3
    assert isinstance(loaded.decoder, MLPDecoder)
    assert isinstance(loaded.decoder.likelihood, GaussianLikelihood)
    assert loaded.decoder.likelihood.scale == "shared"
    assert loaded.event_shape == EVENT
    assert_same_state(loaded, vae)
    np.testing.assert_array_equal(loaded.predict(LEVELS, verbose=0), vae.predict(LEVELS, verbose=0))
    assert loaded.evaluate(LEVELS, verbose=0) == vae.evaluate(LEVELS, verbose=0)


# -- what a user gets wrong


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (LEVELS, "outside the support of the likelihood Bernoulli: .* from 0 to 1.*Binarize"),
        (np.full_like(BINARY, math.nan), "x must be finite, but .* of its values are NaN"),
        (BINARY[:0], "x holds no observations"),
        (BINARY[:, 0, 0, 0], r"x must have shape \[N, \*event_shape\]"),
        (BINARY[:, :, :2], r"event shape of .* is \[4, 3, 1\]|built for"),
    ],
)
def test_bad_data(x: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compiled(make_vae()).fit(x, verbose=0)
    with pytest.raises(ValueError, match=message):
        compiled(make_vae()).evaluate(x, verbose=0)
    if x.ndim == 4 and len(x):
        with pytest.raises(ValueError, match=message):
            compiled(make_vae()).fit(batches(x), verbose=0)
        with pytest.raises(ValueError, match=message):
            compiled(make_vae()).fit(BINARY, verbose=0, validation_data=batches(x))
        with pytest.raises(ValueError, match=message):
            compiled(make_vae()).fit(BINARY, verbose=0, validation_data=x)


def test_bad_data_in_the_last_row_of_an_array_is_found() -> None:
    x = BINARY.copy()
    x[-1, -1] = 0.5
    with pytest.raises(ValueError, match="outside the support"):
        compiled(make_vae()).fit(x, verbose=0)


def test_another_shape_than_the_model_was_built_for() -> None:
    vae = compiled(initialized())
    with pytest.raises(ValueError, match=r"built for .* \[4, 3, 1\], but .* \[3, 4, 1\]"):
        vae.fit(BINARY.reshape(-1, 3, 4, 1), verbose=0)


def test_bad_kinds_of_data() -> None:
    vae = compiled(make_vae())
    with pytest.raises(TypeError, match=r"x must be floating.*uint8"):
        vae.fit(BINARY.astype(np.uint8))
    with pytest.raises(ValueError, match="takes no y"):
        vae.fit(BINARY, BINARY)
    with pytest.raises(ValueError, match="takes no sample_weight"):
        vae.fit(BINARY, sample_weight=np.ones(50))
    with pytest.raises(ValueError, match="observations alone"):
        vae.fit(batches().map(lambda x: (x, x)))
    with pytest.raises(ValueError, match="takes no y"):
        vae.train_on_batch(BINARY, BINARY)


def wrong_batch(x: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(tf.zeros([5, 2]) * tf.reduce_sum(x))


def wrong_event(x: tf.Tensor) -> tfd.Distribution:
    return tfd.Normal(tf.zeros([tf.shape(x)[0], 2]), 1.0)


def decodes_pixels_apart(z: tf.Tensor) -> tfd.Distribution:
    return tfd.Bernoulli(logits=tf.zeros([tf.shape(z)[0], *EVENT]))


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"encoder": wrong_batch}, ValueError, r"encoder .* batch shape \[2\] .* is \[5\]"),
        ({"encoder": wrong_event}, ValueError, r"encoder .* batch shape \[2\] .* is \[2, 2\]"),
        ({"encoder": lambda x: x}, TypeError, "encoder must return a distribution"),
        ({"decoder": lambda z: z}, TypeError, "decoder must return a distribution"),
        ({"decoder": decodes_pixels_apart}, ValueError, r"shape \[4, 3, 1\].*Bernoulli is \[\]"),
        ({"prior": StandardNormalPrior(3)}, ValueError, r"codes of shape \[2\].*\[3\]"),
        ({"prior": lambda: 0.0}, TypeError, "did not give a distribution"),
    ],
)
def test_parts_that_do_not_fit(parts: dict[str, Any], error: Any, message: str) -> None:
    fitting = {
        "encoder": MLPEncoder(2, (4,)),
        "decoder": MLPDecoder(EVENT, (4,)),
        "prior": StandardNormalPrior(2),
    }
    for data in (BINARY, batches()):
        with pytest.raises(error, match=message):
            compiled(VAE(**{**fitting, **parts})).fit(data, verbose=0)


def test_bad_arguments() -> None:
    encoder, decoder, prior = MLPEncoder(2, (4,)), MLPDecoder(EVENT, (4,)), StandardNormalPrior(2)
    with pytest.raises(TypeError, match="encoder must be callable"):
        VAE(3, decoder, prior)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prior must be a distribution or build one"):
        VAE(encoder, decoder, None)
    with pytest.raises(TypeError, match="seed must be an integer or a pair"):
        VAE(encoder, decoder, prior, seed=1.5)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        VAE(encoder, decoder, prior, seed=2**31)
    with pytest.raises(ValueError, match=r"input_shape must be \[B, \*event_shape\]"):
        VAE(encoder, decoder, prior).build((None, 4, None, 1))
    for settings in ({"loss": "mse"}, {"metrics": ["mse"]}):
        with pytest.raises(ValueError, match="compile a VAE with an optimizer alone"):
            compiled(VAE(encoder, decoder, prior), **settings).fit(BINARY)


def test_an_evaluation_that_is_not_finite_is_told() -> None:
    vae = compiled(make_vae(GaussianLikelihood()))
    vae.fit(LEVELS, verbose=0)
    huge = np.where(np.arange(10)[:, None, None, None] == 3, np.float32(1e30), LEVELS[:10])
    with pytest.warns(UserWarning, match="the loss of an evaluation is not finite"):
        vae.fit(LEVELS, verbose=0, validation_data=huge)
    with pytest.warns(UserWarning, match="the loss of an evaluation is not finite"):
        vae.evaluate(huge, verbose=0)
    with pytest.raises(TypeError, match=r"Give x in the place of \(x, x\) or \(x, y\)"):
        vae.fit(LEVELS, verbose=0, validation_data=(LEVELS, LEVELS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mirrored", "one device"])
def test_a_strategy_of_one_replica(kind: str, tmp_path: Path) -> None:
    """Trains as without it, and as Keras can there: one step a call, without XLA."""
    strategy: Any = tf.distribute.OneDeviceStrategy("/cpu:0")
    if kind == "mirrored":
        strategy = tf.distribute.MirroredStrategy(["/cpu:0"])

    def trained(scope: Any, **settings: Any) -> tuple[VAE, Any]:
        keras.utils.set_random_seed(1)
        with scope:
            vae = make_vae()
            vae.compile(keras.optimizers.Adam(0.01), **settings)
        return vae, vae.fit(batches(), epochs=2, verbose=0, validation_data=BINARY[:8]).history

    vae, history = trained(strategy.scope())
    assert (vae.jit_compile, vae.steps_per_execution, vae.optimizer.iterations) == (False, 1, 8)
    alone, expected = trained(contextlib.nullcontext(), jit_compile=False)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5)
    assert vae.evaluate(BINARY, verbose=0) == pytest.approx(alone.evaluate(BINARY, verbose=0), 1e-5)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    for weight, value in zip(loaded.get_weights(), vae.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, value)
    kernel = vae.trainable_weights[0]
    kernel.assign(np.full(kernel.shape, np.inf))
    before = vae.get_weights()
    with pytest.raises(FloatingPointError, match="before training step 9"):
        vae.fit(BINARY, verbose=0)
    for weight, value in zip(vae.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="TensorFlow backend, and it runs on 'jax'"):
        make_vae()


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # its size is unknown to Keras
def test_a_pipeline_is_read_once_an_epoch() -> None:
    passes: list[int] = []

    def generate() -> Iterator[np.ndarray]:
        passes.append(len(passes))
        yield from np.split(BINARY, 2)

    signature = tf.TensorSpec([None, *EVENT], tf.float32)
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    compiled(make_vae()).fit(dataset, epochs=3, verbose=0)
    assert passes == [0, 1, 2]


def test_codes_outside_the_support_of_the_prior_are_refused() -> None:
    """TFP's density of an Exponential is finite at -1, and the KL would be a number."""
    model = VAE(
        MLPEncoder(2, hidden_sizes=(4,)),
        MLPDecoder((3,), hidden_sizes=(4,)),
        tfd.Independent(tfd.Exponential([1.0, 1.0]), 1),
    )
    with pytest.raises(ValueError, match="lie outside the support of the prior"):
        model.build((None, 3))
