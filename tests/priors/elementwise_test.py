from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.priors.elementwise import affine, spline

tfb = tfp.bijectors

BOUND, NUM_BINS = 2.0, 4
MAPS: dict[str, tuple[int, Callable[[tf.Tensor], tfb.Bijector]]] = {
    "affine": (2, affine),
    "spline": (3 * NUM_BINS - 1, lambda params: spline(params, BOUND)),
}


@pytest.mark.parametrize("kind", MAPS)
def test_zeros_give_the_identity(kind: str) -> None:
    size, make = MAPS[kind]
    x = np.linspace(-3.0, 3.0, 13)
    bijector = make(tf.zeros([13, size], tf.float64))
    np.testing.assert_allclose(bijector.forward(x), x, atol=1e-12)
    np.testing.assert_allclose(bijector.forward_log_det_jacobian(x, event_ndims=0), 0.0, atol=1e-12)


@pytest.mark.parametrize("kind", MAPS)
def test_inverse_and_derivative(kind: str) -> None:
    """The inverse undoes the map, and the log-determinant is the log of the derivative."""
    size, make = MAPS[kind]
    x = tf.constant(np.linspace(-1.9, 1.9, 40))
    params = 2.0 * np.random.default_rng(0).normal(size=(40, size))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = make(params).forward(x)
    np.testing.assert_allclose(make(params).inverse(y), x, atol=1e-9)
    derivative = tape.gradient(y, x)
    assert np.all(derivative > 0)
    assert np.abs(np.log(derivative)).max() > 0.1
    np.testing.assert_allclose(
        make(params).forward_log_det_jacobian(x, event_ndims=0), np.log(derivative), atol=1e-9
    )


def test_the_scale_of_the_affine_map_is_bounded() -> None:
    for raw, bound in ((1e4, 3.0), (-1e4, -3.0)):
        log_det = affine(tf.constant([0.0, raw])).forward_log_det_jacobian(1.0, event_ndims=0)
        np.testing.assert_allclose(log_det, bound, rtol=1e-6)


def test_the_spline_has_the_knots_that_its_parameters_say() -> None:
    params = np.random.default_rng(0).normal(size=3 * NUM_BINS - 1)

    def knots(raw: np.ndarray) -> np.ndarray:
        parts = 1e-3 + (1 - NUM_BINS * 1e-3) * np.exp(raw) / np.exp(raw).sum()
        result: np.ndarray = -BOUND + 2 * BOUND * np.cumsum(parts)[:-1]
        return result

    x, y = knots(params[:NUM_BINS]), knots(params[NUM_BINS : 2 * NUM_BINS])
    bijector = spline(tf.constant(params), BOUND)
    np.testing.assert_allclose(bijector.forward(x), y, rtol=1e-10)
    slopes = np.log1p(np.exp(params[2 * NUM_BINS :] + np.log(np.expm1(1 - 1e-3)))) + 1e-3
    np.testing.assert_allclose(
        bijector.forward_log_det_jacobian(x, event_ndims=0), np.log(slopes), rtol=1e-8
    )


def test_the_tails_of_the_spline_are_the_identity() -> None:
    params = np.random.default_rng(0).normal(size=3 * NUM_BINS - 1)
    x = np.array([-50.0, -2.1, 2.1, 50.0])
    bijector = spline(tf.constant(params), BOUND)
    np.testing.assert_array_equal(bijector.forward(x), x)
    np.testing.assert_array_equal(bijector.inverse(x), x)
