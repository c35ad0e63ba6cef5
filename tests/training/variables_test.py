from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

import tfp_surgery as tfs
from tests.testing import small_aggregates
from tests.testing.learned_priors import GaussianPrior
from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.decoders import MLPDecoder
from tfp_surgery.networks.encoders import MLPEncoder
from tfp_surgery.networks.likelihoods import GaussianLikelihood
from tfp_surgery.priors.base import StandardNormalPrior

tfd = tfp.distributions

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def gaussian(h: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(h[:, :2], tf.nn.softplus(h[:, 2:4]))


def network() -> keras.Sequential:
    return keras.Sequential([keras.layers.Dense(4, name="hidden_dense")])


def decoder() -> MLPDecoder:
    return MLPDecoder((3,), (4,), likelihood=GaussianLikelihood(1.0))


def vae_of(run_eagerly: bool = True, **parts: Any) -> VAE:
    fitting = {
        "encoder": MLPEncoder(2, (4,)),
        "decoder": decoder(),
        "prior": StandardNormalPrior(2),
    }
    vae = VAE(**{**fitting, **parts})
    vae.compile(keras.optimizers.Adam(0.01), jit_compile=False, run_eagerly=run_eagerly)
    return vae


class Encodes:
    def __init__(self, net: Any) -> None:
        self.net = net

    def __call__(self, x: tf.Tensor) -> tfd.Distribution:
        return gaussian(self.net(x))

    def encode(self, x: tf.Tensor) -> tfd.Distribution:
        return self(x)


def through(net: Any, x: tf.Tensor) -> tfd.Distribution:
    return gaussian(net(x))


class SetBeforeInit(keras.layers.Layer):
    """Keras does not see what is in a closure."""

    def __init__(self) -> None:
        super().__init__()
        nets = [network()]

        def run(x: tf.Tensor) -> tf.Tensor:
            return nets[0](x)

        self.run = run

    def call(self, x: tf.Tensor) -> tfd.Distribution:
        return gaussian(self.run(x))


class Module(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(tf.ones([3, 4]), name="module_weight")

    def __call__(self, x: tf.Tensor) -> tfd.Distribution:
        return gaussian(x @ self.w)


def of_variable(kind: Callable[..., Any]) -> Callable[[tf.Tensor], tfd.Distribution]:
    w = kind(tf.ones([3, 4]), name="lone_weight")
    return lambda x: gaussian(x @ tf.convert_to_tensor(w))


def made_when_called() -> Callable[[tf.Tensor], tfd.Distribution]:
    layers: list[Any] = []

    def encode(x: tf.Tensor) -> tfd.Distribution:
        if not layers:
            layers.append(keras.layers.Dense(4, name="hidden_dense"))
        return gaussian(layers[0](x))

    return encode


ENCODERS: dict[str, tuple[Callable[[], Any], str]] = {
    "lambda": (lambda: Encodes(network()).__call__, "hidden_dense/kernel"),
    "partial": (lambda: functools.partial(through, network()), "hidden_dense/kernel"),
    "bound method": (lambda: Encodes(network()).encode, "hidden_dense/kernel"),
    "object": (lambda: Encodes(network()), "hidden_dense/kernel"),
    "layer": (SetBeforeInit, "hidden_dense/kernel"),
    "tf.Module": (Module, "module_weight"),
    "tf.Variable": (lambda: of_variable(tf.Variable), "lone_weight"),
    "keras.Variable": (lambda: of_variable(keras.Variable), "lone_weight"),
    "first call": (made_when_called, "hidden_dense/kernel"),
    "tf_keras": (
        lambda: Encodes(tf_keras.Sequential([tf_keras.layers.Dense(4, name="tf_dense")])),
        "tf_dense/kernel",
    ),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_that_hides_its_weights_is_refused_before_training(kind: str) -> None:
    make, name = ENCODERS[kind]
    vae = vae_of(run_eagerly=False, encoder=make())
    vae.build((None, 3))
    before = vae.get_weights()
    with pytest.raises(TypeError, match=rf"the encoder has \d trainable .*{name}\S* \[3, 4\]"):
        vae.fit(X, verbose=0, callbacks=[Untouched()])
    vae.compile("adam", run_eagerly=True)
    with pytest.raises(TypeError, match="the encoder has"):
        vae.train_on_batch(X)
    for weight, value in zip(vae.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    assert np.isfinite(vae.evaluate(X, verbose=0)[0])  # a measurement


class Untouched(keras.callbacks.Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        raise AssertionError


@pytest.mark.slow
def test_decoders_priors_and_objectives_hide_weights_too() -> None:
    hidden_decoder: Any = decoder()
    layer: Any = GaussianPrior(2)
    discriminator = keras.layers.Dense(1, name="discriminator")
    discriminator.build((None, 3))

    def objective(x: tf.Tensor, *arguments: Any) -> Any:
        terms = tfs.objectives.elbo()(x, *arguments)
        return terms._replace(objective=terms.objective + discriminator(x)[:, 0])

    for name, part, path in (
        ("decoder", functools.partial(hidden_decoder), "mlp_decoder"),
        ("prior", functools.partial(layer), r"\[2, 2\]"),
        ("prior", tfd.MultivariateNormalDiag(tf.Variable(tf.zeros(2), name="loose")), "loose"),
        ("objective", objective, "discriminator/kernel"),
    ):
        parts: dict[str, Any] = {name: part}
        with pytest.raises(TypeError, match=rf"the {name} has \d trainable .*{path}"):
            vae_of(**parts).fit(X, verbose=0)
    both = vae_of(encoder=Encodes(network()), decoder=functools.partial(hidden_decoder))
    with pytest.raises(TypeError, match=r"the encoder has 2 .* and the decoder has 4 "):
        both.fit(X, verbose=0)


@pytest.mark.parametrize("kind", ["keras", "tf_keras", "stopped", "constant"])
def test_what_is_not_to_be_trained_may_hide(kind: str) -> None:
    net: Any = network()
    if kind == "tf_keras":
        net = tf_keras.Sequential([tf_keras.layers.Dense(4)])
    elif kind == "constant":
        w = tf.Variable(tf.ones([3, 4]), trainable=False)

        def net(x: tf.Tensor) -> tf.Tensor:
            return x @ w
    else:
        net(X)
    if kind == "stopped":
        encoder: Any = lambda x: gaussian(tf.stop_gradient(net(x)))  # noqa: E731
    else:
        encoder = Encodes(net)
        encoder(X)
        if kind != "constant":
            net.trainable = False
    for settings in ({"jit_compile": False}, {"run_eagerly": True}):
        vae = vae_of(encoder=encoder)
        vae.compile(keras.optimizers.Adam(0.01), **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            losses = vae.fit(X, epochs=2, verbose=0).history["loss"]
        assert np.all(np.isfinite(losses))
    if kind == "keras":
        net.trainable = True
        vae = vae_of(encoder=encoder)
        with pytest.raises(TypeError, match="the encoder has 2"):
            vae.fit(X, verbose=0)


class NumpyEncoder(MLPEncoder):
    def call(self, x: tf.Tensor) -> tfd.Distribution:
        posterior = super().call(x)
        loc = tf.numpy_function(lambda value: value, [posterior.mean()], tf.float32)
        return tfd.MultivariateNormalDiag(tf.ensure_shape(loc, [x.shape[0], 2]), [1.0, 1.0])


def numpy_decoder(z: tf.Tensor) -> tfd.Distribution:
    loc = tf.numpy_function(lambda value: value @ np.ones([2, 3], np.float32), [z], tf.float32)
    return tfd.MultivariateNormalDiag(tf.ensure_shape(loc, [z.shape[0], 3]))


def test_a_network_without_a_gradient_is_refused() -> None:
    vae = vae_of(encoder=NumpyEncoder(2, (4,)))
    vae.compile("adam")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none about XLA, which is not the cause
        with pytest.raises(ValueError, match="none of the 4 trainable weights of the encoder has"):
            vae.fit(X, verbose=0)
    for data in (X, tf.data.Dataset.from_tensor_slices(X).batch(4)):
        vae = vae_of(run_eagerly=False, decoder=numpy_decoder)
        with pytest.raises(
            TypeError, match="changes with the codes, but TensorFlow finds no gradient"
        ):
            vae.fit(data, verbose=0)
    assert np.isfinite(vae.evaluate(X, verbose=0)[0])
    ignores_z = vae_of(decoder=lambda z: tfd.MultivariateNormalDiag(tf.zeros([tf.shape(z)[0], 3])))
    assert np.isfinite(ignores_z.fit(X, verbose=0).history["loss"][0])


def own_elbo(*arguments: Any) -> Any:
    return tfs.objectives.elbo()(*arguments)


def test_the_own_error_of_a_network_is_raised() -> None:
    def untraceable(z: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.constant(z.numpy() @ np.ones([2, 3], np.float32)))

    class OnlyFloat64(MLPEncoder):
        def call(self, x: tf.Tensor) -> tfd.Distribution:
            if not tf.executing_eagerly():
                raise TypeError("I want a pony")
            return super().call(x)

    for parts, error, message in (
        ({"encoder": OnlyFloat64(2, (4,))}, TypeError, "I want a pony"),
        (
            {"decoder": untraceable},
            TypeError,
            "the encoder learns from the reconstruction by gradients",
        ),
        (
            {"decoder": untraceable, "objective": own_elbo},
            AttributeError,
            "numpy",
        ),
    ):
        vae = vae_of(**parts)
        vae.compile("adam")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(error, match=message):
                vae.fit(X, verbose=0)


def test_a_weight_that_is_not_used_is_left_to_keras() -> None:
    class Unused(MLPEncoder):
        def build(self, input_shape: Any) -> None:
            super().build(input_shape)
            self.unused = self.add_weight(shape=(2,), name="unused")

    vae = vae_of(encoder=Unused(2, (4,)))
    with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
        vae.fit(X, verbose=0)


def test_nothing_to_train() -> None:
    w = np.ones([3, 2], np.float32)
    vae = vae_of(
        encoder=lambda x: tfd.MultivariateNormalDiag(x @ w),
        decoder=lambda z: tfd.MultivariateNormalDiag(z @ w.T),
        prior=tfd.MultivariateNormalDiag(tf.zeros(2)),
    )
    vae.compile("adam")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(vae.evaluate(X, verbose=0)[0])
        with pytest.raises(
            ValueError,
            match=r"encoder, decoder and prior have no weights that Keras 3 could train; "
            r"tfp_surgery\.elbo_surgery takes them as they are",
        ):
            vae.fit(X, verbose=0, callbacks=[Untouched()])


class Hiding(GaussianPrior):
    """A prior whose location comes from a layer that Keras does not see."""

    def __init__(self) -> None:
        super().__init__(2)
        layers = [keras.layers.Dense(2, name="hidden_dense")]
        layers[0].build((None, 2))
        self.shift: Any = lambda loc: layers[0](loc[tf.newaxis])[0]

    def call(self, condition: Any = None) -> tfd.Distribution:
        base = super().call(condition)
        return tfd.MultivariateNormalDiag(self.shift(base.mean() + 1.0), base.stddev())


def test_fit_prior_refuses_weights_that_the_prior_does_not_own() -> None:
    q_z = small_aggregates.aggregate("overlapping")
    prior = Hiding()
    before = [v.numpy() for v in prior.variables]
    with pytest.raises(
        TypeError, match=r"the prior has 2 .*hidden_dense/bias \[2\].*kernel \[2, 2"
    ):
        tfs.fit_prior(q_z, prior, num_steps=1, verbose=False)
    for variable, value in zip(prior.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_fit_prior_leaves_the_encoder_of_a_prior_alone() -> None:
    """Whether it is a layer or a function: its weights are not the prior's."""
    q_z = small_aggregates.aggregate("overlapping")
    net: Any = keras.layers.Dense(4)
    net.build((None, 3))
    for encoder in (MLPEncoder(2, (4,)), lambda x: gaussian(net(x))):
        prior = tfs.priors.VampPrior(2, encoder, observation_shape=(3,), num_components=3)
        before = net.get_weights()
        tfs.fit_prior(q_z, prior, num_steps=2, batch_size=8, initialize=False, verbose=False)
        for weight, value in zip(net.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, value)
