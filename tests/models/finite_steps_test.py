from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.decoders import MLPDecoder
from tfp_surgery.networks.encoders import MLPEncoder
from tfp_surgery.networks.likelihoods import GaussianLikelihood
from tfp_surgery.priors.base import StandardNormalPrior
from tfp_surgery.training.checkpoint import CheckpointCallback, load_checkpoint
from tfp_surgery.training.objectives import ObjectiveTerms, elbo

tfd = tfp.distributions

# 20 batches of 2; the marked observation stands in batch BAD, counted from 0.
BAD = 13
X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
X[2 * BAD + 1] = 0.0

MODES: dict[str, dict[str, Any]] = {
    "joined": {"jit_compile": True},
    "joined graph": {"jit_compile": False},
    "given": {"jit_compile": True, "steps_per_execution": 3},
    "single": {"jit_compile": False, "steps_per_execution": 1},
    "eager": {"run_eagerly": True},
}


@keras.saving.register_keras_serializable(package="finite_steps_test")
class Root(MLPEncoder):
    """An encoder whose gradient, and not whose value, is NaN at an observation of zeros."""

    def call(self, x: tf.Tensor) -> tfd.Distribution:
        posterior = super().call(x)
        norm = tf.sqrt(tf.reduce_sum(tf.square(x * tf.exp(self.output_layer.bias[0])), axis=-1))
        return tfd.MultivariateNormalDiag(
            posterior.mean() + 0.01 * norm[:, tf.newaxis], posterior.stddev()
        )


def marked(x: tf.Tensor) -> tf.Tensor:
    """0 for an observation of zeros, 1 for others."""
    return tf.cast(tf.reduce_any(x != 0, axis=-1), x.dtype)


class Objective:
    """The ELBO with a factor on one of its terms, of the observations."""

    def __init__(self, term: str, factor: Callable[[tf.Tensor], tf.Tensor]) -> None:
        self.term = term
        self.factor = factor

    def __call__(self, x: tf.Tensor, *arguments: Any) -> ObjectiveTerms:
        terms = elbo()(x, *arguments)
        terms = terms._replace(**{self.term: getattr(terms, self.term) * self.factor(x)})
        return terms._replace(objective=terms.reconstruction - terms.kl)


class Penalized(MLPEncoder):
    """Adds two penalties to the loss; the second is not a number at an observation of zeros."""

    def call(self, x: tf.Tensor) -> tfd.Distribution:
        kernel = tf.reduce_sum(self.output_layer.kernel**2)
        self.add_loss(1e-3 * kernel)
        self.add_loss(tf.reduce_sum(kernel * 0.0 / marked(x)))
        return super().call(x)


def make_vae(
    encoder: type[MLPEncoder] = MLPEncoder,
    objective: Any = None,
    optimizer: Any = None,
    **kwargs: Any,
) -> VAE:
    keras.utils.set_random_seed(0)
    decoder = MLPDecoder((3,), (4,), likelihood=GaussianLikelihood(1.0))
    vae = VAE(encoder(2, (4,)), decoder, StandardNormalPrior(2), objective)
    if optimizer is None:
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    vae.compile(optimizer, **kwargs)
    return vae


def batches(x: np.ndarray = X) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(x).batch(2)


def state(vae: VAE) -> list[np.ndarray]:
    metrics = [v for metric in vae.metrics for v in metric.variables]
    return [v.numpy() for v in (*vae.weights, *vae.optimizer.variables, *metrics)]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert all(np.all(np.isfinite(value)) for value in found)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_stops_before_the_bad_step(make: Callable[[], VAE], message: str) -> None:
    """Against a run of the same steps that ends there: weights, optimizer and metrics."""
    vae = make()
    with pytest.raises(FloatingPointError, match=f"training step {BAD + 1} was stopped: {message}"):
        vae.fit(batches(), verbose=0)
    expected = make()
    expected.fit(batches(X[: 2 * BAD]), verbose=0)
    assert_same(state(vae), state(expected))


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_that_is_not_finite_stops_at_its_step(mode: str) -> None:
    path = r"the loss is \d.*with respect to \S*root\S*/bias \[4\] is not finite"
    assert_stops_before_the_bad_step(lambda: make_vae(Root, **MODES[mode]), path)


@pytest.mark.parametrize(
    ("encoder", "objective", "message"),
    [
        (
            MLPEncoder,
            Objective("reconstruction", lambda x: 1.0 / marked(x)),
            r"the reconstruction log p\(x\|z\) is not finite \(-inf\) for 1 of its 2",
        ),
        (
            MLPEncoder,
            Objective("kl", lambda x: 1.0 / marked(x)),
            r"the KL divergence .* \(inf\) for 1 of",
        ),
        (
            MLPEncoder,
            Objective("kl", lambda x: marked(x) / marked(x)),
            r"the KL divergence .* \(nan\) for 1 of",
        ),
        (Penalized, None, r"penalty 2 of the 2 .* not finite \(nan\)"),
    ],
)
def test_the_term_that_is_not_finite_first_is_named(
    encoder: Any, objective: Any, message: str
) -> None:
    assert_stops_before_the_bad_step(
        lambda: make_vae(encoder, objective, run_eagerly=True), message
    )


def test_an_infinite_objective_of_finite_terms_is_named() -> None:
    def objective(x: tf.Tensor, *arguments: Any) -> ObjectiveTerms:
        terms = elbo()(x, *arguments)
        return terms._replace(objective=terms.objective - (1.0 / marked(x) - 1.0))

    assert_stops_before_the_bad_step(
        lambda: make_vae(objective=objective, run_eagerly=True), r"the objective .* \(-inf\)"
    )


def test_what_the_objective_does_not_need_may_be_unknown() -> None:
    def objective(x: tf.Tensor, *arguments: Any) -> ObjectiveTerms:
        terms = elbo()(x, *arguments)
        return terms._replace(kl=terms.kl * float("nan"))

    history = make_vae(objective=objective, run_eagerly=True).fit(batches(), verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert np.isnan(history["average_kl"][0])


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3),
        lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=4),
        lambda: keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0),
        lambda: keras.optimizers.Lion(0.001),
    ],
)
def test_every_optimizer_is_left_as_it_was(optimizer: Any) -> None:
    def make() -> VAE:
        return make_vae(Root, optimizer=optimizer(), jit_compile=False)

    vae = make()
    with pytest.raises(FloatingPointError, match="was stopped: the loss is"):
        vae.fit(batches(), verbose=0)
    expected = make()
    # One by one: fit ends by exchanging the weights for their averages.
    expected.build((None, 3))
    expected.reset_metrics()
    expected.make_train_function()
    for batch in batches(X[: 2 * BAD]):
        expected.train_function(iter([batch]))
    assert_same(state(vae), state(expected))


def test_an_infinite_gradient_that_an_optimizer_takes_the_sign_of() -> None:
    """Lion makes a finite update of it, and keeps an infinite moment for ever."""

    class Steep(MLPEncoder):
        def call(self, x: tf.Tensor) -> tfd.Distribution:
            loc = self.output_layer.bias[:2]
            root = tf.sqrt(tf.nn.relu(loc - loc + tf.reduce_sum(x, axis=-1)[:, tf.newaxis] ** 2))
            posterior = super().call(x)
            return tfd.MultivariateNormalDiag(posterior.mean() + root, posterior.stddev())

    optimizer = keras.optimizers.Lion(0.001)
    vae = make_vae(Steep, optimizer=optimizer, jit_compile=False)
    with pytest.raises(FloatingPointError, match=f"step {BAD + 1} was stopped: the loss is"):
        vae.fit(batches(), verbose=0)
    assert all(np.all(np.isfinite(value)) for value in state(vae))


def test_an_update_that_overflows_is_named() -> None:
    vae = make_vae(optimizer=keras.optimizers.SGD(1e38), run_eagerly=True)
    vae.build((None, 3))
    before = vae.get_weights()
    with pytest.raises(FloatingPointError, match=r"step 1 was stopped: loss .* learning rate"):
        vae.fit(1e4 * X, verbose=0)
    for weight, value in zip(vae.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_weights_that_are_not_finite_from_the_start() -> None:
    vae = make_vae(run_eagerly=True)
    vae.build((None, 3))
    kernel = vae.trainable_weights[0]
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(FloatingPointError, match=r"before training step 1 \S+/kernel .* held"):
        vae.fit(batches(), verbose=0)


def test_later_epochs_callbacks_and_checkpoints(tmp_path: Path) -> None:
    """What a callback changed before stays changed; what it saved before stays saved."""

    class Halve(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.model.optimizer.learning_rate = 0.01 / (1 + epoch)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            kernel = self.model.trainable_weights[0]
            kernel.assign(0.5 * kernel)

    path = tmp_path / "checkpoint.keras"
    saved = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    vae, halve = make_vae(Root, jit_compile=False), Halve()
    vae.fit(batches(X[: 2 * BAD]), epochs=2, verbose=0, callbacks=[halve, CheckpointCallback(path)])
    kept = path.read_bytes()
    with pytest.raises(FloatingPointError, match=f"training step {3 * BAD + 1} was"):
        vae.fit(
            batches(),
            initial_epoch=2,
            epochs=3,
            verbose=0,
            callbacks=[halve, saved, CheckpointCallback(path)],
        )
    assert path.read_bytes() == kept
    assert not (tmp_path / "model.keras").exists()
    expected = make_vae(Root, jit_compile=False)
    expected.fit(batches(X[: 2 * BAD]), epochs=3, verbose=0, callbacks=[Halve()])
    kernel = expected.trainable_weights[0]
    kernel.assign(2.0 * kernel)  # on_epoch_end, which the other run has not come to
    assert_same(state(vae), state(expected))
    resumed = load_checkpoint(path).model
    with pytest.raises(FloatingPointError, match=f"training step {3 * BAD + 1} was"):
        resumed.fit(batches(), initial_epoch=2, epochs=3, verbose=0, callbacks=[Halve()])
    assert_same(state(resumed), state(vae))


def test_training_goes_on_after_it_was_stopped() -> None:
    vae = make_vae(Root, jit_compile=False)
    with pytest.raises(FloatingPointError):
        vae.fit(batches(), verbose=0)
    assert np.isfinite(vae.fit(batches(X[: 2 * BAD]), verbose=0).history["loss"][0])
    assert vae.optimizer.iterations == 2 * BAD


def test_a_single_batch() -> None:
    vae = make_vae(Root, jit_compile=False)
    assert np.isfinite(vae.train_on_batch(X[:5])[0])
    before = state(vae)
    with pytest.raises(FloatingPointError, match="training step 2 was stopped"):
        vae.train_on_batch(X)
    # Keras resets the metrics before the step.
    number = len(vae.weights) + len(vae.optimizer.variables)
    assert_same(state(vae)[:number], before[:number])


@pytest.mark.slow
def test_a_failure_after_more_calls_than_are_kept_together() -> None:
    """16 steps are a call, and the state is kept every 64 of them, of which there are 67."""
    good = np.tile(X[: 2 * BAD], [82, 1])
    vae, expected = (
        make_vae(Root, optimizer=keras.optimizers.SGD(0.01), jit_compile=False) for _ in range(2)
    )
    with pytest.raises(FloatingPointError, match=f"training step {83 * BAD + 1} was stopped"):
        vae.fit(batches(np.concatenate([good, X])), verbose=0)
    expected.fit(batches(np.concatenate([good, X[: 2 * BAD]])), verbose=0)
    assert_same(state(vae), state(expected))


@pytest.mark.parametrize("steps", [1, 4])
def test_a_loss_scale_may_be_found_by_overflow(steps: int) -> None:
    """Steps whose scaled gradient is not finite are passed over by the optimizer, on purpose."""

    def make(scale: float) -> VAE:
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(1e-3), initial_scale=scale
        )
        return make_vae(optimizer=optimizer, jit_compile=False, steps_per_execution=steps)

    vae = make(2.0**127)
    vae.fit(batches(100.0 * X), verbose=0)
    assert 0 < int(vae.optimizer.iterations) < 20  # the first ones were passed over
    assert np.all(np.isfinite(vae.get_weights()[0]))


def test_a_gradient_that_no_loss_scale_makes_finite() -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    vae = make_vae(Root, optimizer=optimizer, jit_compile=False)
    x = np.zeros_like(X[:2])
    with pytest.raises(FloatingPointError, match="gradient with respect to"):
        vae.fit(np.tile(x, [40, 1]), batch_size=2, verbose=0)
    assert vae.optimizer.iterations == 0


def test_a_loss_that_is_not_finite_under_a_loss_scale() -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    objective = Objective("kl", lambda x: 1.0 / marked(x))
    vae = make_vae(objective=objective, optimizer=optimizer, jit_compile=False)
    with pytest.raises(FloatingPointError, match="the KL divergence"):
        vae.fit(batches(), verbose=0)


def test_a_dirichlet_model_stops_where_its_gradient_does() -> None:
    """Draws on the border of the simplex: log q(z|x) has no derivative there."""
    counts = np.random.default_rng(0).poisson(3, size=(64, 8)).astype(np.float32)

    class Encoder(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(
                4, kernel_initializer=keras.initializers.GlorotUniform(seed=0)
            )

        def call(self, x: tf.Tensor) -> tfd.Distribution:
            return tfd.Dirichlet(tf.nn.softplus(self.dense(x)) + 1e-3)

    class Decoder(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(8)

        def call(self, z: tf.Tensor) -> tfd.Distribution:
            return tfd.Independent(tfd.Poisson(log_rate=self.dense(z)), 1)

    vae = VAE(Encoder(), Decoder(), tfd.Dirichlet([0.7] * 4))
    vae.compile("adam", jit_compile=False)
    with pytest.raises(
        FloatingPointError, match=r"its gradient with respect to \S*encoder\S*/dense"
    ):
        vae.fit(counts, epochs=20, verbose=0)
    assert all(np.all(np.isfinite(weight)) for weight in vae.get_weights())
