from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing.prior_fitting import scattered_weights
from tfp_surgery.priors.autoregressive import AutoregressivePrior
from tfp_surgery.priors.base import Prior
from tfp_surgery.priors.condition import check_codes, check_condition
from tfp_surgery.priors.flow import KINDS, FlowPrior

tfd = tfp.distributions

C = 3
CONDITIONS = np.array([[0.0, 0.0, 0.0], [1.0, -1.0, 0.5], [-1.5, 0.3, 1.0]])


def flow(kind: str) -> Prior:
    arguments: dict[str, Any] = {
        "num_layers": 2,
        "hidden_sizes": (8,),
        "num_bins": 4,
        "activation": "tanh",
    }
    return scattered_weights(
        lambda: FlowPrior(2, kind, condition_size=C, dtype="float64", **arguments)
    )


def autoregressive() -> Prior:
    return scattered_weights(
        lambda: AutoregressivePrior(2, 3, (8, 8), condition_size=C, dtype="float64")
    )


PRIORS: dict[str, Callable[[], Prior]] = {
    **{kind: (lambda kind=kind: flow(kind)) for kind in KINDS},  # type: ignore[misc]
    "autoregressive": autoregressive,
}


@pytest.mark.parametrize("kind", PRIORS)
def test_each_condition_has_a_density_and_draws_of_its_own(kind: str) -> None:
    """p(z|c) integrates to one for each c, and the densities are far apart.

    Draws follow the density of their own condition, by a Kolmogorov-Smirnov test.
    """
    prior = PRIORS[kind]()(CONDITIONS)
    assert prior.batch_shape == [3]
    assert prior.event_shape == [2]
    axis, step = np.linspace(-14, 14, 561, retstep=True)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    density = np.exp(np.concatenate([prior.log_prob(p) for p in np.array_split(points, 10)]))
    mass = density * step**2  # [G, 3]
    np.testing.assert_allclose(mass.sum(axis=0), 1.0, atol=2e-3)  # of the sum over the grid
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert 0.5 * np.abs(mass[:, i] - mass[:, j]).sum() > 0.02  # total variation

    draws = prior.sample(4000, seed=(1, 2)).numpy()
    assert draws.shape == (4000, 3, 2)
    marginals = mass.reshape(561, 561, 3).sum(axis=1)  # of the first coordinate
    for i in range(3):
        cumulative = np.cumsum(marginals[:, i]) / marginals[:, i].sum()
        test = scipy.stats.kstest(
            draws[:, i, 0], lambda t, cdf=cumulative: np.interp(t, axis + step / 2, cdf)
        )
        assert test.pvalue > 1e-4, (i, test)


@pytest.mark.parametrize("kind", PRIORS)
def test_batches(kind: str) -> None:
    """A batch of conditions is what each of them gives alone."""
    layer = PRIORS[kind]()
    rng = np.random.default_rng(0)
    z = rng.normal(size=(5, 3, 2))
    together = layer(CONDITIONS)
    log_prob = together.log_prob(z)
    assert log_prob.shape == [5, 3]
    for i in range(3):
        alone = layer(CONDITIONS[i : i + 1])
        np.testing.assert_allclose(log_prob[:, i], alone.log_prob(z[:, i, None])[:, 0], rtol=1e-9)
        np.testing.assert_allclose(
            log_prob[:, i], layer(CONDITIONS[i]).log_prob(z[:, i]), rtol=1e-9
        )
    # One code against all conditions, and codes that line up with them.
    np.testing.assert_allclose(together.log_prob(z[0]), log_prob[0], rtol=1e-9)
    np.testing.assert_allclose(
        together.log_prob(z[0, 0]), together.log_prob(np.tile(z[0, 0], (3, 1))), rtol=1e-9
    )


@pytest.mark.parametrize("kind", PRIORS)
def test_gradients_reach_the_condition_and_every_weight(kind: str) -> None:
    layer = PRIORS[kind]()
    condition = tf.constant(CONDITIONS)
    z = np.random.default_rng(0).normal(size=(50, 3, 2))
    with tf.GradientTape() as tape:
        tape.watch(condition)
        loss = tf.reduce_mean(layer(condition).log_prob(z))
    variables = layer.fitted_variables
    gradients = tape.gradient(loss, [condition, *(variable.value for variable in variables)])
    assert np.all(np.any(gradients[0] != 0, axis=-1))
    for variable, gradient in zip(variables, gradients[1:], strict=True):
        assert gradient is not None, variable.path
        assert np.any(gradient != 0), variable.path


@pytest.mark.parametrize("kind", ["maf", "autoregressive"])
def test_an_unknown_batch_size_under_xla(kind: str) -> None:
    layer = PRIORS[kind]()

    @tf.function(
        jit_compile=True, autograph=False, input_signature=[tf.TensorSpec([None, C], tf.float64)]
    )
    def draw_and_score(condition: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        prior = layer(condition)
        z = prior.sample(4, seed=tf.constant([1, 2]))
        return z, prior.log_prob(z)

    z, log_prob = draw_and_score(CONDITIONS)
    assert z.shape == [4, 3, 2]
    np.testing.assert_allclose(log_prob, layer(CONDITIONS).log_prob(z), rtol=1e-6)


@pytest.mark.parametrize("kind", PRIORS)
def test_a_missing_condition(kind: str) -> None:
    with pytest.raises(ValueError, match=r"call it with a condition of shape \[B, 3\]"):
        PRIORS[kind]()()


def test_conditions_that_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes no condition; got one of shape \[2, 3\]"):
        check_condition(np.zeros((2, 3)), None)
    for shape in ([2, 4], []):
        with pytest.raises(ValueError, match=r"the condition must have shape \[B, 3\], got"):
            check_condition(np.zeros(shape), 3)
    assert check_condition(None, None) is None


def test_codes_that_are_refused() -> None:
    bad: list[Any] = [np.zeros((4, 3)), np.zeros((1, 2)), np.zeros(2)]
    for codes in bad:
        with pytest.raises(ValueError, match=r"codes must have shape \[M, 2\] with M at least 2"):
            check_codes(codes, 2)
    with pytest.raises(ValueError, match="codes must be finite"):
        check_codes([[0.0, np.nan], [1.0, 2.0]], 2)
