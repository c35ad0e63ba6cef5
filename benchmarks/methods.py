"""The methods of tfp_surgery. Every call makes the aggregate posterior anew, its tree as well."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from benchmarks import codes
from benchmarks.measure import Method
from tfp_surgery.training.checkpoint import load_checkpoint

tfd = tfp.distributions

_WARM_UP_QUERIES = 1000
_BATCH_SIZE = 2000  # of the networks alone; 1000, 5000 and 10000 were no faster


def aggregate(data: codes.Codes) -> tfs.AggregatePosterior:
    """q(z) of codes."""
    return tfs.AggregatePosterior(tfd.MultivariateNormalDiag(data.loc, data.scale))


def evaluation(source: codes.Source, tolerance: float | None = None) -> Method:
    """log q(z) and H[q(n|z)], exactly or by the tree."""
    data = source.load()

    def run(num_queries: int) -> dict[str, Any]:
        q_z = aggregate(data)
        z = tf.constant(data.z[:num_queries])
        result = q_z.evaluate(z) if tolerance is None else q_z.evaluate(z, tolerance=tolerance)
        return {
            "log_prob": result.log_prob.numpy(),
            "index_entropy": result.index_entropy.numpy(),
            "mean_visited": float(np.mean(result.num_visited)),
        }

    return Method(run, len(data.z))


def compilation(source: codes.Source, tolerance: float) -> Method:
    """The same by the tree, in a process whose numba finds no cache: the first call compiles."""
    folder = tempfile.TemporaryDirectory()
    os.environ["NUMBA_CACHE_DIR"] = folder.name  # before numba is imported
    method = evaluation(source, tolerance)

    def run(num_queries: int) -> Mapping[str, Any]:
        Path(folder.name).mkdir(exist_ok=True)  # keeps the folder while the process lives
        return method.run(num_queries)

    return Method(run, method.num_queries)


def gradient(source: codes.Source) -> Method:
    """The forward pass, and the gradients to queries, means and standard deviations."""
    data = source.load()

    def run(num_queries: int) -> dict[str, Any]:
        parts = codes.Codes(*map(tf.constant, (data.loc, data.scale, data.z[:num_queries])))
        with tf.GradientTape() as tape:
            tape.watch(parts)
            log_prob = aggregate(parts).evaluate(parts.z).log_prob
            total = tf.reduce_sum(log_prob)
        gradients = tape.gradient(total, list(parts))
        for part in gradients:
            if not np.isfinite(part.numpy()).all():
                raise ValueError("a gradient is not finite.")
        return {"log_prob": log_prob.numpy()}

    return Method(run, len(data.z))


def marginals(source: codes.Source, tolerance: float | None = None) -> Method:
    """log q(z_j) in all dimensions of the source, exactly or interpolated."""
    data = source.load()

    def run(num_queries: int) -> dict[str, Any]:
        q_z = aggregate(data).marginals()
        z = tf.constant(data.z[:num_queries])
        log_prob = q_z.log_prob(z) if tolerance is None else q_z.log_prob(z, tolerance=tolerance)
        return {"log_prob": log_prob.numpy()}

    return Method(run, len(data.z))


def whole_surgery(
    checkpoint: str,
    run_folder: str,
    num_samples: int,
    data_dir: str | None,
    manual_dir: str | None,
    tolerance: float | None = None,
) -> Method:
    """`elbo_surgery` over a training set, with its default batch size."""
    dataset = codes.training_set(Path(run_folder), data_dir, manual_dir)
    model = load_checkpoint(checkpoint).model

    def run(_: int) -> dict[str, Any]:
        surgery = tfs.elbo_surgery(
            dataset,
            model.encoder,
            model.decoder,
            model.prior,
            num_samples=num_samples,
            seed=0,
            tolerance=tolerance,
        )
        return {"elbo": surgery.elbo.value, "num_observations": surgery.num_observations}

    return Method(run)


def networks(
    checkpoint: str, run_folder: str, num_samples: int, data_dir: str | None, manual_dir: str | None
) -> Method:
    """What `elbo_surgery` does with networks, under XLA: encode each x, decode and score each code.

    The two programs are compiled in the first call, once for each size of a batch.
    """
    dataset = codes.training_set(Path(run_folder), data_dir, manual_dir)
    model = load_checkpoint(checkpoint).model

    @tf.function(jit_compile=True, autograph=False)
    def encoded(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        posterior = model.encoder(x)
        return posterior.mean(), posterior.stddev()

    @tf.function(jit_compile=True, autograph=False)
    def scored(z: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(z, [-1, z.shape[-1]])  # [S, B, D] -> [S B, D]
        shown = tf.tile(x, [num_samples, *[1] * (x.shape.rank - 1)])
        return model.decoder(flat).log_prob(shown)

    def run(_: int) -> dict[str, Any]:
        stochastic = dataset.binarization == "stochastic"
        x = dataset.observations(draw_seed=0 if stochastic else None)
        starts = range(0, len(x), _BATCH_SIZE)
        parts = [encoded(tf.constant(x[start : start + _BATCH_SIZE])) for start in starts]
        loc, scale = (tf.concat(part, axis=0) for part in zip(*parts, strict=True))
        noise = tf.random.stateless_normal([num_samples, *loc.shape], (0, 1), dtype=loc.dtype)
        z = loc + scale * noise  # [S, N, D]
        step = _BATCH_SIZE // num_samples
        log_prob = [
            scored(z[:, start : start + step], tf.constant(x[start : start + step]))
            for start in range(0, len(x), step)
        ]
        average = tf.reduce_mean(tf.cast(tf.concat(log_prob, axis=0), tf.float64))
        return {"average_reconstruction": float(average)}

    return Method(run)
