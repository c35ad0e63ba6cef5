from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfp_surgery.priors.invertible_linear import InvertibleLinear, WhitenedLinear

D = 4


def assigned() -> tuple[InvertibleLinear, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    loc, matrix = rng.normal(size=D), rng.normal(size=(D, D))
    layer = InvertibleLinear(D, tf.float64)
    layer.assign(loc, matrix)
    return layer, loc, matrix


def test_it_is_the_affine_map_that_was_assigned() -> None:
    layer, loc, matrix = assigned()
    z = np.random.default_rng(1).normal(size=(6, D))
    u = (z - loc) @ matrix.T
    bijector = layer.bijector()
    np.testing.assert_allclose(bijector.inverse(z), u, rtol=1e-10)
    np.testing.assert_allclose(layer.bijector().forward(u), z, rtol=1e-10)
    np.testing.assert_allclose(
        bijector.inverse_log_det_jacobian(z, event_ndims=1),
        np.linalg.slogdet(matrix)[1],
        rtol=1e-10,
    )


def test_it_starts_as_a_rotation() -> None:
    layer = InvertibleLinear(D, tf.float64)
    rows = layer.bijector().inverse(np.eye(D)).numpy()
    np.testing.assert_allclose(rows @ rows.T, np.eye(D), atol=1e-5)  # Orthogonal is float32
    assert np.abs(rows - np.eye(D)).max() > 0.1


def test_whitened_codes_have_mean_zero_and_covariance_one() -> None:
    rng = np.random.default_rng(2)
    codes = rng.normal(size=(500, D)) @ rng.normal(size=(D, D)) + 3.0
    layer = InvertibleLinear(D, tf.float64)
    returned = layer.whiten(codes.astype("float32"))
    u = layer.bijector().inverse(codes).numpy()
    np.testing.assert_allclose(u, returned, atol=1e-5)  # the codes were rounded to float32
    np.testing.assert_allclose(u.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(np.cov(u.T), np.eye(D), atol=1e-5)
    # The first coordinate is that of the largest variance of the standardised codes.
    _, axes = np.linalg.eigh(np.corrcoef(codes.T))
    largest = (codes - codes.mean(axis=0)) / codes.std(axis=0) @ axes[:, -1]
    assert abs(np.corrcoef(largest, u[:, 0])[0, 1]) > 1 - 1e-8


def test_whitening_is_the_same_in_every_unit_of_each_dimension() -> None:
    rng = np.random.default_rng(2)
    codes = rng.normal(size=(500, D)) @ rng.normal(size=(D, D))
    layer = InvertibleLinear(D, tf.float64)
    u = layer.whiten(codes)
    # To the signs of the axes, which are the eigenvectors' own.
    for unit in (1e-3, 1e3, np.array([1.0, 0.02, 5.0, 1e-4])):
        np.testing.assert_allclose(np.abs(layer.whiten(codes * unit + unit)), np.abs(u), atol=1e-8)


def test_what_is_learned_starts_as_the_identity_after_the_whitening() -> None:
    rng = np.random.default_rng(4)
    codes = 1e-3 * rng.normal(size=(500, D)) @ rng.normal(size=(D, D)) + 1.0
    layer, fixed = WhitenedLinear(D, tf.float64), InvertibleLinear(D, tf.float64)
    np.testing.assert_array_equal(layer.bijector().forward(codes), codes)
    layer.lower_upper.assign_add(rng.normal(size=(D, D)))
    np.testing.assert_array_equal(layer.whiten(codes), fixed.whiten(codes))
    u = layer.bijector().inverse(codes)
    np.testing.assert_array_equal(u, fixed.bijector().inverse(codes))
    np.testing.assert_allclose(layer.bijector().forward(u), codes, rtol=1e-12)
    assert [v.path for v in layer.trainable_variables] == [layer.loc.path, layer.lower_upper.path]
    # What is learned acts on whitened codes.
    layer.loc.assign([0.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(layer.bijector().inverse(codes), u - [0.0, 0.0, 0.0, 1.0], atol=1e-9)
    # Freezing and thawing leaves what is fixed fixed.
    layer.trainable = False
    layer.trainable = True
    assert len(layer.trainable_variables) == 2


def test_codes_in_a_plane_stay_finite() -> None:
    codes = np.random.default_rng(3).normal(size=(100, D))
    codes[:, 1] = 2.0 * codes[:, 0]
    layer = InvertibleLinear(D, tf.float32)
    layer.whiten(codes)
    u = layer.bijector().inverse(codes.astype("float32"))
    assert np.all(np.isfinite(u))
    np.testing.assert_allclose(layer.bijector().forward(u), codes, atol=1e-2)
    layer.whiten(np.zeros((5, D)))
    assert np.all(np.isfinite(layer.lower_upper.numpy()))


def test_a_size_of_one() -> None:
    layer = InvertibleLinear(1, tf.float64)
    layer.whiten(np.array([[1.0], [3.0], [5.0]]))
    np.testing.assert_allclose(np.abs(layer.bijector().inverse([[5.0]])), [[1.0]], rtol=1e-10)
