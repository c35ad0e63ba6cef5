"""log q(z) as other libraries compute it; none of them gives H[q(n|z)] beside it.

scikit-learn has nothing to compare: its KernelDensity knows one bandwidth for all components, and
its GaussianMixture has to be fitted.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from benchmarks.codes import Source
from benchmarks.measure import Method, num_cores

CHUNK = 20  # queries; at D = 50 and N = 60000 an array [20, N, D] takes 240 MB
_JAX_QUERIES, _JAX_COMPONENTS = 1000, 1000


def tfd_mixture(source: Source) -> Method:
    """`tfd.MixtureSameFamily`, compiled by XLA."""
    import tensorflow as tf
    import tensorflow_probability as tfp

    tfd = tfp.distributions
    data = source.load()

    @tf.function(jit_compile=True)
    def log_prob(z: tf.Tensor, loc: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        return tfd.MixtureSameFamily(
            tfd.Categorical(logits=tf.zeros(len(data.loc))), tfd.MultivariateNormalDiag(loc, scale)
        ).log_prob(z)

    def run(num_queries: int) -> dict[str, Any]:
        loc, scale = tf.constant(data.loc), tf.constant(data.scale)
        parts = [
            log_prob(tf.constant(data.z[start : start + CHUNK]), loc, scale).numpy()
            for start in range(0, num_queries, CHUNK)
        ]
        return {"log_prob": np.concatenate(parts)}

    return Method(run, len(data.z), CHUNK)


def torch_mixture(source: Source) -> Method:
    """`torch.distributions.MixtureSameFamily`."""
    torch: Any = importlib.import_module("torch")
    distributions: Any = importlib.import_module("torch.distributions")
    torch.set_num_threads(num_cores())
    data = source.load()

    def run(num_queries: int) -> dict[str, Any]:
        loc, scale, z = map(torch.from_numpy, (data.loc, data.scale, data.z))
        mixture = distributions.MixtureSameFamily(
            distributions.Categorical(logits=torch.zeros(len(loc))),
            distributions.Independent(distributions.Normal(loc, scale), 1),
        )
        with torch.inference_mode():
            parts = [
                mixture.log_prob(z[start : start + CHUNK]) for start in range(0, num_queries, CHUNK)
            ]
            return {"log_prob": torch.cat(parts).numpy()}

    return Method(run, len(data.z), CHUNK)


def jax_streamed(source: Source) -> Method:
    """A streamed log-sum-exp as one writes it in JAX: a scan over blocks of components."""
    jax: Any = importlib.import_module("jax")
    jnp: Any = importlib.import_module("jax.numpy")
    data = source.load()
    num, size = data.loc.shape
    padding = -num % _JAX_COMPONENTS
    log_normalizer = 0.5 * size * math.log(2 * math.pi) + math.log(num)

    def blocks(array: np.ndarray, fill: float) -> Any:
        padded = np.concatenate([array, np.full((padding, size), fill, np.float32)])
        return jnp.asarray(padded.reshape(-1, _JAX_COMPONENTS, size))

    @jax.jit
    def log_prob(z: Any, loc: Any, scale: Any, is_real: Any) -> Any:
        def step(carry: Any, block: Any) -> Any:
            highest, total = carry
            mu, sigma, real = block
            scores = -0.5 * (((z[:, None] - mu) / sigma) ** 2).sum(-1) - jnp.log(sigma).sum(-1)
            scores = jnp.where(real, scores, -jnp.inf)
            new = jnp.maximum(highest, scores.max(axis=1))
            total = total * jnp.exp(highest - new) + jnp.exp(scores - new[:, None]).sum(axis=1)
            return (new, total), None

        start = (jnp.full(len(z), -jnp.inf), jnp.zeros(len(z)))
        (highest, total), _ = jax.lax.scan(step, start, (loc, scale, is_real))
        return highest + jnp.log(total) - log_normalizer

    def run(num_queries: int) -> dict[str, Any]:
        loc, scale = blocks(data.loc, 0.0), blocks(data.scale, 1.0)
        is_real = jnp.asarray((np.arange(num + padding) < num).reshape(-1, _JAX_COMPONENTS))
        parts = [
            np.asarray(log_prob(data.z[start : start + _JAX_QUERIES], loc, scale, is_real))
            for start in range(0, num_queries, _JAX_QUERIES)
        ]
        return {"log_prob": np.concatenate(parts)}

    return Method(run, len(data.z), _JAX_QUERIES)


def scipy_logsumexp(source: Source) -> Method:
    """`scipy.special.logsumexp` of the whole array `[chunk, N]`, in float32."""
    from scipy import special

    data = source.load()
    num, size = data.loc.shape
    log_normalizer = 0.5 * size * math.log(2 * math.pi) + math.log(num)

    def run(num_queries: int) -> dict[str, Any]:
        log_volume = np.log(data.scale).sum(axis=1) + log_normalizer
        parts = []
        for start in range(0, num_queries, CHUNK):
            whitened = (data.z[start : start + CHUNK, None] - data.loc) / data.scale
            scores = -0.5 * np.square(whitened).sum(axis=-1) - log_volume
            parts.append(special.logsumexp(scores, axis=1))
        return {"log_prob": np.concatenate(parts)}

    return Method(run, len(data.z), CHUNK)
