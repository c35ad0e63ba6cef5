from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tfp_surgery.components import named_component

tfd = tfp.distributions

LOC = np.random.default_rng(0).normal(size=(2, 3, 5))  # [B, B, N]
INDEX = np.random.default_rng(1).integers(5, size=(4, 2, 3))  # [S, B, B]


def _chosen(values: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values[None], INDEX[..., None], axis=-1)[..., 0]


def test_each_query_gets_the_value_it_names() -> None:
    gathered = named_component.gather(tf.constant(LOC), tf.constant(INDEX, tf.int32))
    np.testing.assert_array_equal(gathered, _chosen(LOC))


def test_each_query_gets_the_density_of_the_component_it_names() -> None:
    components = tfd.Normal(LOC, np.ones_like(LOC))
    z = np.random.default_rng(2).normal(size=(4, 2, 3))
    log_prob = named_component.log_prob(components, tf.constant(z), tf.constant(INDEX, tf.int32))
    np.testing.assert_allclose(log_prob, stats.norm.logpdf(z, _chosen(LOC)), rtol=1e-12)


def test_vector_events_broadcast() -> None:
    loc = np.random.default_rng(0).normal(size=(5, 3))
    components = tfd.MultivariateNormalDiag(loc, np.ones_like(loc))
    index = np.array([4, 0])
    log_prob = named_component.log_prob(components, tf.zeros([3], tf.float64), tf.constant(index))
    np.testing.assert_allclose(log_prob, stats.norm.logpdf(loc[index]).sum(axis=-1), rtol=1e-12)


def test_bad_indices_are_refused() -> None:
    with pytest.raises(TypeError, match="float32"):
        named_component.checked_index([1.0], 5)
    with pytest.raises(ValueError, match=r"\[0, 5\).*0 to 5"):
        named_component.checked_index([0, 5], 5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="index must be < N"):
        named_component.assertions(tf.constant([7]), tf.constant(5))
