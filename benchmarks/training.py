"""One epoch of the same VAE in three ways: `tfs.VAE.fit`, a hand-written loop, PyTorch.

Encoder and decoder have ReLU layers and mirror each other, the posterior is a diagonal Gaussian
with scale softplus(raw) + 1e-5, the prior N(0, I), pixels are Bernoulli, the KL is closed, the
optimizer Adam.
"""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import codes
from benchmarks.measure import Method, UnavailableError, num_cores

BATCH_SIZE = 128
_LEARNING_RATE, _BETA_1, _BETA_2, _EPSILON = 1e-3, 0.9, 0.999, 1e-7
_SCALE_FLOOR = 1e-5


def fit(
    run: str,
    latent_size: int,
    hidden_sizes: Sequence[int],
    data_dir: str | None,
    manual_dir: str | None,
) -> Method:
    """`tfs.VAE.fit` as its defaults have it; timed are the epochs, not the start of `fit`."""
    import keras

    import tfp_surgery as tfs
    from tfp_surgery.networks.decoders import MLPDecoder
    from tfp_surgery.networks.encoders import MLPEncoder
    from tfp_surgery.priors.base import StandardNormalPrior

    dataset = codes.training_set(Path(run), data_dir, manual_dir)
    keras.utils.set_random_seed(0)
    vae = tfs.VAE(
        MLPEncoder(latent_size, hidden_sizes),
        MLPDecoder(dataset.event_shape, hidden_sizes[::-1]),
        StandardNormalPrior(latent_size),
    )
    vae.compile(keras.optimizers.Adam(_LEARNING_RATE))
    batches, epochs = dataset.batches(BATCH_SIZE, seed=0), itertools.count()

    times: dict[str, float] = {}
    clock = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_, **__: times.update(begin=time.perf_counter()),
        on_epoch_end=lambda *_, **__: times.update(end=time.perf_counter()),
    )

    def epoch(_: int) -> dict[str, Any]:
        number = next(epochs)
        history = vae.fit(
            batches, initial_epoch=number, epochs=number + 1, verbose=0, callbacks=[clock]
        )
        return {"loss": history.history["loss"][0], "seconds": times["end"] - times["begin"]}

    return Method(epoch)


def hand_written(
    run: str,
    latent_size: int,
    hidden_sizes: Sequence[int],
    data_dir: str | None,
    manual_dir: str | None,
) -> Method:
    """A `tf.function` under XLA with nothing in it but this VAE, on the same batches."""
    import tensorflow as tf

    dataset = codes.training_set(Path(run), data_dir, manual_dir)
    num_pixels = int(np.prod(dataset.event_shape))
    rng = np.random.default_rng(0)

    def layers(sizes: Sequence[int]) -> list[Any]:
        made = []
        for inputs, outputs in itertools.pairwise(sizes):
            limit = np.sqrt(6 / (inputs + outputs))
            kernel = rng.uniform(-limit, limit, (inputs, outputs)).astype(np.float32)
            made.append((tf.Variable(kernel), tf.Variable(tf.zeros(outputs))))
        return made

    encoder = layers([num_pixels, *hidden_sizes, 2 * latent_size])
    decoder = layers([latent_size, *hidden_sizes[::-1], num_pixels])
    weights = [weight for layer in (*encoder, *decoder) for weight in layer]
    first = [tf.Variable(tf.zeros_like(weight)) for weight in weights]
    second = [tf.Variable(tf.zeros_like(weight)) for weight in weights]
    iteration, total = tf.Variable(0), tf.Variable(0.0)

    def network(made: Sequence[Any], inputs: tf.Tensor) -> tf.Tensor:
        for kernel, bias in made[:-1]:
            inputs = tf.nn.relu(inputs @ kernel + bias)
        kernel, bias = made[-1]
        return inputs @ kernel + bias

    @tf.function(jit_compile=True, reduce_retracing=True)
    def step(x: tf.Tensor) -> None:
        x = tf.reshape(x, [-1, num_pixels])  # [B, *event_shape] -> [B, pixels]
        with tf.GradientTape() as tape:
            loc, raw = tf.split(network(encoder, x), 2, axis=-1)
            scale = tf.nn.softplus(raw) + _SCALE_FLOOR
            noise = tf.random.stateless_normal(tf.shape(loc), tf.stack([0, iteration]))
            logits = network(decoder, loc + scale * noise)
            distortion = tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=logits)
            kl = 0.5 * (scale**2 + loc**2 - 1) - tf.math.log(scale)
            losses = tf.reduce_sum(distortion, axis=-1) + tf.reduce_sum(kl, axis=-1)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, weights)
        iteration.assign_add(1)
        count = tf.cast(iteration, tf.float32)
        rate = _LEARNING_RATE * tf.sqrt(1 - _BETA_2**count) / (1 - _BETA_1**count)
        for weight, gradient, m, v in zip(weights, gradients, first, second, strict=True):
            m.assign_add((gradient - m) * (1 - _BETA_1))
            v.assign_add((gradient**2 - v) * (1 - _BETA_2))
            weight.assign_sub(rate * m / (tf.sqrt(v) + _EPSILON))
        total.assign_add(tf.reduce_sum(losses))

    batches = dataset.batches(BATCH_SIZE, seed=0)

    def epoch(_: int) -> dict[str, Any]:
        total.assign(0.0)
        for x in batches:
            step(x)
        return {"loss": float(total) / len(dataset)}

    return Method(epoch)


def torch_compiled(observations: str, latent_size: int, hidden_sizes: Sequence[int]) -> Method:
    """PyTorch with `torch.compile` and the fused Adam, on the observations of an `.npy` file."""
    torch: Any = importlib.import_module("torch")
    nn: Any = importlib.import_module("torch.nn")
    functional: Any = importlib.import_module("torch.nn.functional")
    torch.set_num_threads(num_cores())
    torch.manual_seed(0)
    data = torch.from_numpy(np.load(observations))
    x = data.reshape(len(data), -1)  # [N, *event_shape] -> [N, pixels]

    def network(*sizes: int) -> Any:
        pairs = list(itertools.pairwise(sizes))
        made = [part for pair in pairs for part in (nn.Linear(*pair), nn.ReLU())]
        return nn.Sequential(*made[:-1])

    encoder = network(x.shape[1], *hidden_sizes, 2 * latent_size)
    decoder = network(latent_size, *hidden_sizes[::-1], x.shape[1])
    weights = [*encoder.parameters(), *decoder.parameters()]
    adam = torch.optim.Adam(
        weights, lr=_LEARNING_RATE, betas=(_BETA_1, _BETA_2), eps=_EPSILON, fused=True
    )

    def objective(batch: Any) -> Any:
        loc, raw = encoder(batch).chunk(2, -1)
        scale = functional.softplus(raw) + _SCALE_FLOOR
        logits = decoder(loc + scale * torch.randn_like(loc))
        distortion = functional.binary_cross_entropy_with_logits(logits, batch, reduction="none")
        kl = 0.5 * (scale**2 + loc**2 - 1) - scale.log()
        return distortion.sum(-1) + kl.sum(-1)

    # The smaller last batch is compiled as well: with dynamic shapes every step would be slower.
    compiled = torch.compile(objective, dynamic=False)

    def epoch(_: int) -> dict[str, Any]:
        order, total = torch.randperm(len(x)), torch.zeros(())
        for start in range(0, len(x), BATCH_SIZE):
            adam.zero_grad()
            losses = compiled(x[order[start : start + BATCH_SIZE]])
            losses.mean().backward()
            adam.step()
            total += losses.detach().sum()
        return {"loss": float(total) / len(x)}

    try:
        compiled(x[:BATCH_SIZE])
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UnavailableError(f"torch.compile does not work here ({reason})") from error
    return Method(epoch)
