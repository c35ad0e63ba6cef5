"""Codes in several layers or steps of time, whose posteriors are encoded again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_surgery as tfs
from tests.testing.brute_force import check_surgery

tfd = tfp.distributions

NUM, PIXELS = 20, 4
pytestmark = pytest.mark.parametrize("dtype", ["float32", "float64"])


def observations(dtype: str) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(NUM, PIXELS)).astype(dtype)


def weights(seed: int, *shape: int, dtype: str) -> tf.Tensor:
    return tf.constant(0.5 * np.random.default_rng(seed).normal(size=shape), dtype)


def wide(tensor: Any) -> np.ndarray:
    return np.asarray(tensor, np.float64)


def normal(x: Any, loc: Any, scale: Any) -> np.ndarray:
    return np.asarray(stats.norm.logpdf(x, loc, scale).sum(axis=-1))


def test_a_ladder_of_two_codes(dtype: str) -> None:
    """q(z1|x) q(z2|z1) and p(z2) p(z1|z2), as in deep latent Gaussian models."""
    up1, up2 = weights(1, PIXELS, 2, dtype=dtype), weights(2, 2, 1, dtype=dtype)
    down2, down1 = weights(3, 1, 2, dtype=dtype), weights(4, 2, PIXELS, dtype=dtype)

    def constant(value: float) -> tf.Tensor:
        return tf.constant(value, dtype)

    def gaussian(loc: Any, scale: float) -> tfd.Distribution:
        return tfd.Independent(tfd.Normal(loc, constant(scale)), 1)

    def inference(x: Any) -> tfd.Distribution:
        return tfd.JointDistributionNamed(
            {"z1": gaussian(x @ up1, 0.6), "z2": lambda z1: gaussian(tf.tanh(z1 @ up2), 0.4)}
        )

    generative = tfd.JointDistributionNamed(
        {
            "z2": gaussian(tf.zeros([1], dtype), 1.0),
            "z1": lambda z2: gaussian(tf.linalg.matvec(tf.transpose(down2), z2), 0.8),
        }
    )
    decoder = lambda z: gaussian(z["z1"] @ down1, 0.5)  # noqa: E731

    x = observations(dtype)

    def posteriors(z: np.ndarray) -> np.ndarray:
        z1, z2 = z[:, :, None, :2], z[:, :, None, 2:]
        of_z1 = normal(z1, wide(x) @ wide(up1), 0.6)
        return np.asarray(of_z1 + normal(z2, np.tanh(z1 @ wide(up2)), 0.4))

    surgery = check_surgery(
        *(x, inference, decoder, generative),
        posteriors=posteriors,
        log_prior=lambda z: (
            normal(z[..., 2:], 0.0, 1.0) + normal(z[..., :2], z[..., 2:] @ wide(down2), 0.8)
        ),
        log_likelihood=lambda z: normal(x, z[..., :2] @ wide(down1), 0.5),
        reencode=True,
    )
    assert surgery.per_part is not None
    with pytest.raises(TypeError, match="reencode=True"):
        tfs.elbo_surgery(x, inference, decoder, generative)


def test_a_markov_chain_of_states(dtype: str) -> None:
    """Codes [T, D] of a sequence, with features of x in the closure of the transition.

    With as many draws as transitions, features [T - 1, B, D] broadcast with codes [T - 1, S, B, D],
    and give the densities of other steps.
    """
    num_steps = PIXELS
    inward, dynamics = weights(1, 1, 2, dtype=dtype), weights(2, 2, 2, dtype=dtype)
    outward = weights(3, 2, 1, dtype=dtype)

    def state(loc: Any, scale: float) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(loc, tf.fill([2], tf.constant(scale, dtype)))

    def encoder(x: Any) -> tfd.Distribution:
        h = tf.transpose(x)[..., tf.newaxis] @ inward  # [T, B, 2]
        return tfd.MarkovChain(
            initial_state_prior=state(h[0], 0.7),
            transition_fn=lambda step, z: state(
                tf.tanh(z @ dynamics) + tf.gather(h, step + 1), 0.5
            ),
            num_steps=num_steps,
        )

    prior = tfd.MarkovChain(
        initial_state_prior=state(tf.zeros([2], dtype), 1.0),
        transition_fn=lambda _, z: state(0.5 * z, 0.9),
        num_steps=num_steps,
    )
    decoder = lambda z: tfd.Independent(  # noqa: E731
        tfd.Normal((z @ outward)[..., 0], tf.constant(0.5, dtype)), 1
    )
    x = observations(dtype)

    def posteriors(z: np.ndarray) -> np.ndarray:
        h = wide(x)[..., None] @ wide(inward)  # [N, T, 2]
        z = z[:, :, None]
        moved = np.tanh(z[..., :-1, :] @ wide(dynamics)) + h[:, 1:]
        later = normal(z[..., 1:, :], moved, 0.5).sum(axis=-1)
        return np.asarray(normal(z[..., 0, :], h[:, 0], 0.7) + later)

    check_surgery(
        *(x, encoder, decoder, prior),
        posteriors=posteriors,
        log_prior=lambda z: (
            normal(z[..., 0, :], 0.0, 1.0)
            + normal(z[..., 1:, :], 0.5 * z[..., :-1, :], 0.9).sum(axis=-1)
        ),
        log_likelihood=lambda z: normal(x, (z @ wide(outward))[..., 0], 0.5),
        reencode=True,
        num_samples=num_steps - 1,
    )


@pytest.mark.parametrize("num_samples", [2, PIXELS - 1])
def test_a_recurrent_prior_of_controls(dtype: str, num_samples: int) -> None:
    """p(z|u) of a sequence with known controls u, which the transitions take from a closure."""
    controls = np.random.default_rng(5).normal(size=(NUM, PIXELS, 2)).astype(dtype)
    outward = weights(3, 2, 1, dtype=dtype)

    def state(loc: Any, scale: float) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(loc, tf.fill([2], tf.constant(scale, dtype)))

    def prior(condition: Any) -> tfd.Distribution:
        u = tf.transpose(condition, [1, 0, 2])  # [T, B, 2]
        return tfd.MarkovChain(
            initial_state_prior=state(u[0], 1.0),
            transition_fn=lambda step, z: state(0.5 * z + tf.gather(u, step + 1), 0.9),
            num_steps=PIXELS,
        )

    def encoder(x: Any, condition: Any) -> tfd.Distribution:
        loc = condition + x[..., tf.newaxis]
        return tfd.Independent(tfd.Normal(loc, tf.constant(0.5, dtype)), 2)

    def decoder(z: Any) -> tfd.Distribution:
        return tfd.Independent(tfd.Normal((z @ outward)[..., 0], tf.constant(0.5, dtype)), 1)

    x = observations(dtype)
    u, loc = wide(controls), wide(controls) + wide(x)[..., None]

    def log_prior(z: np.ndarray) -> np.ndarray:
        later = normal(z[..., 1:, :], 0.5 * z[..., :-1, :] + u[:, 1:], 0.9).sum(axis=-1)
        return np.asarray(normal(z[..., 0, :], u[:, 0], 1.0) + later)

    surgery = check_surgery(
        *(x, encoder, decoder, prior),
        posteriors=lambda z: normal(z[:, :, None], loc, 0.5).sum(axis=-1),
        log_prior=log_prior,
        log_likelihood=lambda z: normal(x, (z @ wide(outward))[..., 0], 0.5),
        condition=controls,
        num_samples=num_samples,
    )
    assert surgery.conditional_prior_term is not None


def test_a_linear_gaussian_state_space_model(dtype: str) -> None:
    """Posterior and prior are paths of a state-space model, whose densities the filter gives."""
    num_steps = PIXELS

    def paths(initial_mean: Any, transition_noise: float) -> tfd.Distribution:
        """Batch [B] for means [B, 2]; a path is of shape [T, 1]."""
        eye = tf.eye(2, dtype=dtype)
        return tfd.LinearGaussianStateSpaceModel(
            num_timesteps=num_steps,
            transition_matrix=tf.linalg.LinearOperatorFullMatrix(
                tf.constant([[1.0, 0.5], [0.0, 0.8]], dtype)
            ),
            transition_noise=tfd.MultivariateNormalDiag(
                scale_diag=tf.fill([2], tf.constant(transition_noise, dtype))
            ),
            observation_matrix=tf.linalg.LinearOperatorFullMatrix(tf.constant([[1.0, 0.0]], dtype)),
            observation_noise=tfd.MultivariateNormalDiag(scale_diag=tf.constant([0.3], dtype)),
            initial_state_prior=tfd.MultivariateNormalTriL(initial_mean, 0.5 * eye),
        )

    def dense(mean: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
        move, see = np.array([[1.0, 0.5], [0.0, 0.8]]), np.array([1.0, 0.0])
        means = np.stack(
            [mean @ np.linalg.matrix_power(move, t).T @ see for t in range(num_steps)], -1
        )
        # y_t = H (A^t u + sum_{s<=t} A^(t-s) noise w_s) + 0.3 v_t
        of_state = np.stack([see @ np.linalg.matrix_power(move, t) for t in range(num_steps)])
        factor = [0.5 * of_state, 0.3 * np.eye(num_steps)]
        for s in range(1, num_steps):
            late = np.zeros([num_steps, 2])
            late[s:] = noise * of_state[: num_steps - s]
            factor.append(late)
        stacked = np.concatenate(factor, axis=1)
        return means, stacked @ stacked.T

    weight = weights(1, PIXELS, 2, dtype=dtype)
    x = observations(dtype)
    encoder = lambda x: paths(x @ weight, 0.4)  # noqa: E731
    decoder = lambda z: tfd.Independent(tfd.Normal(z[..., 0], tf.constant(0.5, dtype)), 1)  # noqa: E731
    prior = paths(tf.zeros([2], dtype), 0.9)

    def posteriors(z: np.ndarray) -> np.ndarray:
        means, covariance = dense(wide(x) @ wide(weight), 0.4)
        gap = z[:, :, None, :, 0] - means
        return np.asarray(stats.multivariate_normal.logpdf(gap, np.zeros(num_steps), covariance))

    def log_prior(z: np.ndarray) -> np.ndarray:
        mean, covariance = dense(np.zeros(2), 0.9)
        return np.asarray(stats.multivariate_normal.logpdf(z[..., 0], mean, covariance))

    check_surgery(
        *(x, encoder, decoder, prior),
        posteriors=posteriors,
        log_prior=log_prior,
        log_likelihood=lambda z: normal(x, z[..., 0], 0.5),
        reencode=True,
    )
