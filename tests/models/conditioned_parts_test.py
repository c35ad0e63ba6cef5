"""Conditional models in `VAE`: what they are trained on is what they are measured by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

import tfp_surgery as tfs
from tfp_surgery.models.conditioned_parts import ConditionedParts
from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.decoders import MLPDecoder
from tfp_surgery.networks.encoders import MLPEncoder
from tfp_surgery.priors.base import StandardNormalPrior
from tfp_surgery.priors.mixture import MixturePrior
from tfp_surgery.training.callbacks import ElboSurgeryCallback
from tfp_surgery.training.objectives import elbo, iwae

tfd = tfp.distributions

N, EVENT, CODE, GIVEN = 23, 3, 2, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, EVENT)).astype(np.float32)
C = RNG.normal(size=(N, GIVEN)).astype(np.float32)
DATA = {"x": X, "condition": C}


@keras.saving.register_keras_serializable(package="conditioned_parts_test")
class LinearGaussian(keras.layers.Layer):
    """N(inputs K + condition L + b, diag(exp(r))^2); a prior where input_size is 0."""

    def __init__(self, input_size: int, size: int, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.arguments = {"input_size": input_size, "size": size, "seed": seed}
        rng = np.random.default_rng(seed)
        self.calls: list[Any] = []

        def weight(name: str, *shape: int) -> keras.Variable:
            made = self.add_weight(shape=shape, initializer="zeros", name=name)
            made.assign(0.5 * rng.normal(size=shape))
            return made

        self.kernel, self.given = weight("kernel", input_size, size), weight("given", GIVEN, size)
        self.bias, self.log_scale = weight("bias", size), weight("log_scale", size)
        if not input_size:
            self.kernel.trainable = False

    def call(self, inputs: Any = None, condition: Any = None) -> tfd.MultivariateNormalDiag:
        self.calls.append((inputs, condition))
        loc = tf.matmul(condition, self.given) + self.bias
        if inputs is not None:
            loc += tf.matmul(inputs, self.kernel)
        return tfd.MultivariateNormalDiag(loc, tf.exp(self.log_scale) * tf.ones_like(loc))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.arguments}

    def loc_and_scale(self, inputs: Any, condition: Any) -> tuple[np.ndarray, np.ndarray]:
        kernel, given, bias, log_scale = (
            np.asarray(w) for w in (self.kernel, self.given, self.bias, self.log_scale)
        )
        return inputs @ kernel + condition @ given + bias, np.exp(log_scale)

    def log_prob(self, value: Any, inputs: Any, condition: Any) -> float:
        loc, scale = self.loc_and_scale(inputs, condition)
        return float(np.sum(stats.norm.logpdf(value, loc, scale)))


def linear(objective: Any = None, code_size: int = CODE, prior: Any = None) -> Any:
    if prior is None:
        prior = LinearGaussian(0, code_size, 3)
    encoder, decoder = LinearGaussian(EVENT, code_size, 1), LinearGaussian(code_size, EVENT, 2)
    return VAE(encoder, decoder, prior, objective)


def compiled(vae: Any, optimizer: Any = None, **kwargs: Any) -> Any:
    vae.compile(optimizer or keras.optimizers.SGD(0.05), **kwargs)
    return vae


@pytest.fixture
def float64() -> Iterator[None]:
    floatx = keras.config.floatx()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)


# -- against numpy, observation by observation


def expected_terms(vae: Any, draws: list[np.ndarray], batch_size: int, kl: Any) -> Any:
    """Means of reconstruction and KL over N, from the codes [S B, D] that each batch decoded."""
    reconstruction, divergence = [], []
    for start, flat in zip(range(0, N, batch_size), draws, strict=True):
        rows = range(start, min(start + batch_size, N))
        codes = flat.reshape(-1, len(rows), CODE)
        for place, n in enumerate(rows):
            z = codes[:, place]
            reconstruction.append(np.mean([vae.decoder.log_prob(X[n], each, C[n]) for each in z]))
            divergence.append(kl(n, z))
    return np.mean(reconstruction), np.mean(divergence)


def set_regime(vae: Any, regime: str) -> None:
    if regime == "collapsed":  # q(z|x, c) = p(z|c)
        vae.encoder.kernel.assign(np.zeros([EVENT, CODE]))
        if isinstance(vae.prior, LinearGaussian):
            for name in ("given", "bias", "log_scale"):
                getattr(vae.encoder, name).assign(getattr(vae.prior, name))
    if regime == "separated":
        vae.encoder.kernel.assign(30.0 * np.asarray(vae.encoder.kernel))
        vae.encoder.log_scale.assign(np.full([CODE], -4.0))


def evaluated(vae: Any) -> tuple[dict[str, float], list[np.ndarray]]:
    """The metrics, and the codes that each batch decoded; step by step, with no program."""
    compiled(vae, run_eagerly=True)
    vae.build({"x": (None, EVENT), "condition": tf.TensorSpec([None, GIVEN], C.dtype)})
    vae.decoder.calls.clear()
    data = {"x": X.astype(np.float64), "condition": C.astype(np.float64)}
    metrics = vae.evaluate(data, batch_size=9, verbose=0, return_dict=True)
    calls = vae.decoder.calls[-3:]  # of 9, 9 and 5 observations, after the check of the data
    return metrics, [codes.numpy() for codes, _ in calls]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("regime", ["collapsed", "overlapping", "separated"])
def test_the_elbo_given_a_gaussian_prior(regime: str) -> None:
    vae = linear(elbo(4))
    set_regime(vae, regime)
    metrics, draws = evaluated(vae)

    def kl(n: int, _: np.ndarray) -> float:
        loc, scale = vae.encoder.loc_and_scale(X[n], C[n])
        prior_loc, prior_scale = vae.prior.loc_and_scale(np.zeros(0), C[n])
        ratio = (scale / prior_scale) ** 2
        shift = ((loc - prior_loc) / prior_scale) ** 2
        return float(np.sum(ratio + shift - 1.0 - np.log(ratio)) / 2.0)

    reconstruction, divergence = expected_terms(vae, draws, 9, kl)
    assert metrics["average_reconstruction"] == pytest.approx(reconstruction, rel=1e-10)
    assert metrics["average_kl"] == pytest.approx(divergence, rel=1e-10, abs=1e-12)
    assert metrics["loss"] == pytest.approx(divergence - reconstruction, rel=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("regime", ["overlapping", "separated"])
def test_the_elbo_given_a_conditional_mixture(regime: str) -> None:
    keras.utils.set_random_seed(0)
    prior = MixturePrior(CODE, 3, condition_size=GIVEN)
    vae = linear(elbo(4), prior=prior)
    set_regime(vae, regime)
    rng = np.random.default_rng(4)
    kernels = {weight.name: weight for weight in prior.weights if "kernel" in weight.name}
    for weight in kernels.values():
        weight.assign(rng.normal(size=weight.shape))
    metrics, draws = evaluated(vae)

    def parameter(name: str, n: int) -> np.ndarray:
        kernel = np.asarray(kernels[f"{name}_kernel"])
        return np.asarray(getattr(prior, name)) + np.tensordot(C[n], kernel, 1)

    def kl(n: int, z: np.ndarray) -> float:
        weights = special.log_softmax(parameter("logits", n))
        loc, scale = parameter("loc", n), np.logaddexp(0.0, parameter("raw_scale", n)) + 1e-5
        log_prior = [
            special.logsumexp(weights + stats.norm.logpdf(each, loc, scale).sum(axis=-1))
            for each in z
        ]
        log_posterior = [vae.encoder.log_prob(each, X[n], C[n]) for each in z]
        return float(np.mean(np.subtract(log_posterior, log_prior)))

    reconstruction, divergence = expected_terms(vae, draws, 9, kl)
    assert metrics["average_reconstruction"] == pytest.approx(reconstruction, rel=1e-10)
    assert metrics["average_kl"] == pytest.approx(divergence, rel=1e-10)


def exact(objective: Any) -> tuple[Any, np.ndarray]:
    """A model whose q(z|x, c) is the posterior, and its log p(x|c), float64 [N].

    z is one number; x|c is normal with mean E[z|c] K + c L + b and covariance t^2 K^T K + S.
    """
    vae = linear(objective, code_size=1)
    (kernel,), given = np.asarray(vae.decoder.kernel), np.asarray(vae.decoder.given)
    bias, noise = np.asarray(vae.decoder.bias), np.exp(2.0 * np.asarray(vae.decoder.log_scale))
    prior_given, prior_bias = np.asarray(vae.prior.given), np.asarray(vae.prior.bias)
    prior_variance = np.exp(2.0 * np.asarray(vae.prior.log_scale)).item()

    variance = 1.0 / (1.0 / prior_variance + np.sum(kernel**2 / noise))
    to_code = variance * kernel / noise  # [event]
    vae.encoder.kernel.assign(to_code[:, None])
    vae.encoder.given.assign(variance * prior_given / prior_variance - (given @ to_code)[:, None])
    vae.encoder.bias.assign(variance * prior_bias / prior_variance - bias @ to_code)
    vae.encoder.log_scale.assign([np.log(variance) / 2.0])

    mean = (C @ prior_given + prior_bias) * kernel + C @ given + bias
    covariance = prior_variance * np.outer(kernel, kernel) + np.diag(noise)
    marginal = stats.multivariate_normal(np.zeros(EVENT), covariance)
    return vae, marginal.logpdf(X - mean)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "settings",
    [
        {"run_eagerly": True},
        {"jit_compile": False},
        {"jit_compile": True, "steps_per_execution": 2},
    ],
)
def test_with_the_exact_posterior_the_bound_is_the_evidence(settings: dict[str, Any]) -> None:
    """Each log p(x, z|c) - log q(z|x, c) is then log p(x|c), whatever z is."""
    vae, log_evidence = exact(iwae(3))
    compiled(vae, keras.optimizers.SGD(0.0), **settings)
    data = tf.data.Dataset.from_tensor_slices(DATA).batch(9)  # the last batch has 5
    history = vae.fit(data, verbose=0, validation_data=DATA).history
    assert history["loss"] == pytest.approx([-np.mean(log_evidence)], rel=1e-10)
    assert history["val_loss"] == pytest.approx([-np.mean(log_evidence)], rel=1e-10)


@pytest.mark.usefixtures("float64")
def test_at_the_exact_posterior_decoder_and_prior_alone_are_trained() -> None:
    """The doubly reparameterized gradient of an exact posterior is zero for any draws."""
    vae, _ = exact(iwae(3, "doubly_reparameterized"))
    layers = {"encoder": vae.encoder, "decoder": vae.decoder, "prior": vae.prior}
    before = {name: [w.numpy() for w in each.trainable_weights] for name, each in layers.items()}
    compiled(vae, run_eagerly=True).train_on_batch(DATA)
    for name, layer in layers.items():
        for weight, old in zip(layer.trainable_weights, before[name], strict=True):
            moved = np.max(np.abs(weight.numpy() - old))
            assert (moved < 1e-12) == (name == "encoder"), (weight.path, moved)


# -- training


def test_a_conditional_prior_is_trained_beside_networks_that_take_no_condition() -> None:
    keras.utils.set_random_seed(1)
    likelihood = tfs.networks.GaussianLikelihood(0.5)
    decoder = MLPDecoder((EVENT,), hidden_sizes=(4,), likelihood=likelihood)
    prior = MixturePrior(CODE, 3, condition_size=GIVEN)
    vae = VAE(MLPEncoder(CODE, hidden_sizes=(4,)), decoder, prior)
    compiled(vae, run_eagerly=True)
    vae.build({"x": (None, EVENT), "condition": tf.TensorSpec([None, GIVEN], tf.float32)})
    before = [w.numpy() for w in vae.trainable_weights]
    losses = vae.fit(DATA, batch_size=8, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for weight, old in zip(vae.trainable_weights, before, strict=True):
        assert np.any(weight.numpy() != old), weight.path
    assert sum("kernel" in weight.path for weight in prior.trainable_weights) == 3


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_programs_train_as_steps_without_one(steps_per_execution: int) -> None:
    """XLA has other draws: see the exact posterior above."""
    program = {"jit_compile": False, "steps_per_execution": steps_per_execution}
    histories = []
    for settings in ({"run_eagerly": True}, program):
        vae = compiled(linear(elbo(3)), **settings)
        data = tf.data.Dataset.from_tensor_slices(DATA).batch(9)
        fitted = vae.fit(data, epochs=3, verbose=0, validation_data=DATA)
        histories.append(fitted.history)
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-4)


@pytest.mark.slow
def test_surgery_of_a_trained_model_agrees_with_its_evaluation() -> None:
    rng = np.random.default_rng(5)
    n = 400
    given = rng.normal(size=(n, GIVEN)).astype(np.float32)
    codes = 2.0 * given + 0.5 * rng.normal(size=(n, CODE))
    x = (codes @ rng.normal(size=(CODE, EVENT)) + 0.3 * rng.normal(size=(n, EVENT))).astype("f")
    vae = compiled(linear(elbo(2)), keras.optimizers.Adam(0.03))
    data = {"x": x, "condition": given}
    looks = ElboSurgeryCallback(x, condition=given, num_query=100, every=10)
    vae.fit(data, epochs=10, batch_size=50, verbose=0, callbacks=[looks])
    before, after = (
        tfs.elbo_surgery(x, model.encoder, model.decoder, model.prior, condition=given)
        for model in (linear(), vae)
    )
    assert after.elbo.value > before.elbo.value + 4.0 * before.elbo.standard_error
    # Both averages are over the same observations: the draws alone tell them apart.
    error = np.sqrt(2.0) * after.elbo.standard_error
    assert -vae.evaluate(data, verbose=0)[0] == pytest.approx(after.elbo.value, abs=4.0 * error)
    assert looks.result is not None
    assert looks.result.elbo.value == pytest.approx(after.elbo.value, abs=4.0 * error)
    [(_, look)] = looks.history
    assert look.elbo.value == pytest.approx(after.elbo.value, abs=6.0 * look.elbo.standard_error)


def test_nested_conditions_with_indices_and_labels() -> None:
    class Encoder(MLPEncoder):
        def call(self, x: tf.Tensor, condition: Any = None) -> tfd.Distribution:
            scale, label = condition["scale"], tf.one_hot(condition["more"][0], 4)
            return super().call(tf.concat([x, scale, label], axis=-1))

        def build(self, input_shape: Any) -> None:
            super().build((None, EVENT + GIVEN + 4))

    labels = np.arange(N) % 4
    data = {
        "x": X,
        "condition": {"scale": C.astype(np.float64), "more": (labels,)},
        "index": np.arange(N),
    }
    decoder = MLPDecoder((EVENT,), (4,), likelihood=tfs.networks.GaussianLikelihood(1.0))
    vae = VAE(Encoder(CODE, (4,)), decoder, StandardNormalPrior(CODE))
    compiled(vae, run_eagerly=True)
    vae.fit(tf.data.Dataset.from_tensor_slices(data).batch(8), verbose=0)
    del data["index"]
    vae.fit(data, verbose=0)
    metrics = vae.train_on_batch(data)
    assert np.all(np.isfinite(metrics))
    assert vae.predict(data, verbose=0).shape == X.shape


def test_a_reconstruction_is_given_the_condition() -> None:
    vae = linear()
    vae.build({"x": (None, EVENT), "condition": tf.TensorSpec([None, GIVEN], tf.float32)})
    codes = [vae.encoder.loc_and_scale(x, c)[0] for x, c in zip(X, C, strict=True)]
    means = [vae.decoder.loc_and_scale(z, c)[0] for z, c in zip(codes, C, strict=True)]
    np.testing.assert_allclose(vae(DATA), means, rtol=1e-4, atol=1e-5)


# -- save, load, resume


@pytest.mark.parametrize("structure", ["array", "tuple"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, structure: str) -> None:
    condition: Any = C if structure == "array" else (C[:, 0], C[:, 1])

    def pipeline() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices({"x": X, "condition": condition}).batch(9)

    def made() -> Any:
        vae = linear(elbo(2), prior=MixturePrior(CODE, 3, condition_size=GIVEN))
        if structure == "tuple":
            encoder, decoder, prior = map(Joined, (vae.encoder, vae.decoder, vae.prior))
            vae = VAE(encoder, decoder, prior, elbo(2))
        return compiled(vae, keras.optimizers.Adam(0.02), run_eagerly=True)

    keras.utils.set_random_seed(2)
    whole = made()
    whole.fit(pipeline(), epochs=4, verbose=0)
    keras.utils.set_random_seed(2)
    first = made()
    first.fit(pipeline(), epochs=2, verbose=0)
    first.save(tmp_path / "vae.keras")
    resumed = keras.models.load_model(tmp_path / "vae.keras")
    assert resumed.built
    assert resumed.condition_spec == first.condition_spec
    resumed.fit(pipeline(), initial_epoch=2, epochs=4, verbose=0)
    variables = zip(
        [*resumed.weights, *resumed.optimizer.variables],
        [*whole.weights, *whole.optimizer.variables],
        strict=True,
    )
    for found, expected in variables:
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
    resumed.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    data = {"x": X, "condition": condition}
    assert again.evaluate(data, verbose=0) == resumed.evaluate(data, verbose=0)


@keras.saving.register_keras_serializable(package="conditioned_parts_test")
class Joined(keras.layers.Layer):
    """A layer whose condition is a tuple of two columns."""

    def __init__(self, inner: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, inputs: Any = None, condition: Any = None) -> tfd.Distribution:
        first, second = condition
        given = {} if inputs is None else {"inputs": inputs}
        return self.inner(**given, condition=tf.stack([first, second], axis=-1))

    def get_config(self) -> dict[str, Any]:
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), "inner": inner}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Joined:
        inner = keras.saving.deserialize_keras_object(config.pop("inner"))
        return cls(inner, **config)


# -- what is refused before training


def unconditional() -> VAE:
    return VAE(MLPEncoder(CODE, (3,)), MLPDecoder((EVENT,), (3,)), StandardNormalPrior(CODE))


@pytest.mark.parametrize(
    ("make", "data", "error", "message"),
    [
        (unconditional, DATA, TypeError, "none of encoder, decoder, prior takes it"),
        (
            lambda: linear(prior=MixturePrior(CODE, 2, condition_size=GIVEN)),
            X,
            TypeError,
            'prior needs condition=.* trained and evaluated on {"x": x, "condition": condition}',
        ),
        (linear, {"x": X, "condition": C[:-1]}, ValueError, "one row an observation, 23,.* has 22"),
        (linear, {"x": X, "condition": C * np.nan}, ValueError, "condition must be finite"),
        (linear, {"x": X, "condition": tf.ragged.constant([[1.0]] * N)}, ValueError, "be dense"),
        (linear, {"x": X, "c": C}, TypeError, "Conditions go beside x"),
        (linear, {"x": X, "condition": C, "index": np.arange(N)}, TypeError, "got a dict"),
        (linear, {"x": {"a": X}, "condition": C}, TypeError, "x must be observations alone"),
    ],
)
def test_what_cannot_be_trained_on(
    make: Any, data: Any, error: type[Exception], message: str
) -> None:
    vae = compiled(make())
    with pytest.raises(error, match=message):
        vae.fit(data, verbose=0)
    assert int(vae.optimizer.iterations) == 0


def test_a_built_model_takes_conditions_of_its_shape_alone() -> None:
    vae = compiled(linear(), run_eagerly=True)
    vae.fit(DATA, verbose=0)
    steps = int(vae.optimizer.iterations)
    for call in (vae.fit, vae.evaluate, vae.train_on_batch, vae.test_on_batch, vae.predict):
        with pytest.raises(ValueError, match=r"a condition of shape \[None, 2\].*no condition"):
            call(X)
        # One column would be spread over two.
        with pytest.raises(ValueError, match=r"comes with a condition of shape \[None, 1\]"):
            call({"x": X, "condition": C[:, :1]})
    with pytest.raises(ValueError, match=r"x comes with a condition of shape {'c': "):
        vae.fit(DATA, verbose=0, validation_data={"x": X, "condition": {"c": C}})
    for call in (vae.train_on_batch, vae.test_on_batch):
        with pytest.raises(ValueError, match="one row an observation, 23, but it has 1"):
            call({"x": X, "condition": C[:1]})
    assert int(vae.optimizer.iterations) == steps


def test_later_batches_are_checked_too() -> None:
    late = np.where(np.arange(N)[:, None] == N - 1, np.float32(np.nan), C)
    data = tf.data.Dataset.from_tensor_slices({"x": X, "condition": late}).batch(9)
    with pytest.raises(ValueError, match="holds NaN or infinite values in x or condition"):
        compiled(linear()).fit(data, verbose=0)

    def one_for_all(batch: dict[str, Any]) -> dict[str, Any]:
        x = batch["x"]
        rows = tf.where(tf.shape(x)[0] == 9, 9, 1)  # of the last batch of 5
        return {"x": x, "condition": batch["condition"][:rows]}

    data = tf.data.Dataset.from_tensor_slices(DATA).batch(9).map(one_for_all)
    with pytest.raises(ValueError, match="not one condition an observation"):
        compiled(linear()).fit(data, verbose=0)


def test_networks_that_hide_in_a_function_are_told() -> None:
    net = keras.layers.Dense(EVENT)
    net.build((None, CODE + GIVEN))

    def decoder(z: tf.Tensor, condition: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Normal(net(tf.concat([z, condition], axis=-1)), 1.0), 1)

    vae = compiled(VAE(LinearGaussian(EVENT, CODE), decoder, StandardNormalPrior(CODE)))
    with pytest.raises(TypeError, match="the decoder has 2 trainable variables"):
        vae.fit(DATA, verbose=0)
    net.trainable = False
    vae.fit(DATA, verbose=0)


def test_a_model_is_built_from_specs() -> None:
    with pytest.raises(ValueError, match="a conditional model is built by fit"):
        linear()(DATA)

    def needing(x: Any, condition: Any) -> Any:
        raise NotImplementedError

    vae = VAE(needing, needing, MixturePrior(CODE, 2, condition_size=GIVEN))
    with pytest.raises(TypeError, match="encoder, decoder and prior need condition="):
        vae.build((None, EVENT))


def test_other_numbers_of_codes_are_refused() -> None:
    parts = ConditionedParts(linear(), tf.constant(C))
    assert parts.decoder(tf.zeros([2 * N, CODE])).batch_shape == [2 * N]
    with pytest.raises(ValueError, match="no whole number of draws"):
        parts.decoder(tf.zeros([2 * N - 1, CODE]))
