"""Inputs that structure, coinciding shapes or broadcasting could have turned into a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs

tfd = tfp.distributions

N = 2  # as many observations as dimensions, and as parts of a pair
X = np.random.default_rng(0).normal(size=(N, N)).astype(np.float32)
LABELS = np.array([0, 1])
PRIOR = tfd.MultivariateNormalDiag(tf.zeros(N), tf.ones(N))


def encoder(x: Any) -> tfd.Distribution:
    x = tf.convert_to_tensor(x)
    return tfd.MultivariateNormalDiag(x, tf.ones_like(x))


def decoder(z: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(z, tf.ones(N))


def stacking(x: Any) -> tfd.Distribution:
    """Takes a pair of arrays for one array of two rows."""
    return encoder(tf.reduce_mean(tf.convert_to_tensor(x), axis=-1))


@pytest.mark.parametrize(
    ("x", "parts", "message"),
    [
        ((X, X), (stacking, decoder, PRIOR), r"batch shape \[3\] for 3 observations"),
        (X, (lambda x: encoder(tf.transpose(x)), decoder, PRIOR), r"batch shape \[3\] for 3"),
        (X, (lambda x: encoder(x[:2]), decoder, PRIOR), r"batch shape \[3\] for 3"),
        (X, (lambda x: tfd.Normal(x, 1.0), decoder, PRIOR), r"batch shape of .* is \[2, 2\]"),
        (X, (encoder, lambda z: tfd.Independent(tfd.Normal(z, 1.0), 2), PRIOR), "event shape"),
        (X, (encoder, decoder, encoder(X)), r"batch shape \[2\]"),
        (X, (encoder(X[:1]), decoder, PRIOR), r"batch shape \[2\] for 2 observations"),
        (X, (tfs.AggregatePosterior(encoder(np.zeros([3, 2], np.float32))), decoder, PRIOR), "3 "),
        (X.T[:, :1], (encoder(X), decoder, PRIOR), "event shape"),
        (None, (tfd.Normal(X, 1.0), None, PRIOR), r"must have batch shape \[N\]"),
    ],
    ids=[
        "a pair that is stacked",
        "a transposed batch",
        "two rows whatever is shown",
        "an event in the batch",
        "a batch in the event",
        "a prior for each observation",
        "posteriors of fewer observations",
        "the aggregate of others",
        "another x",
        "a batch of two dimensions",
    ],
)
def test_shapes_that_coincide_are_told_apart(x: Any, parts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tfs.elbo_surgery(x, *parts)


def test_a_pair_is_one_observation_for_an_encoder_that_takes_it() -> None:
    pair = lambda x: encoder(0.5 * (x[0] + x[1]))  # noqa: E731
    surgery = tfs.elbo_surgery((X, X), pair, None, PRIOR)
    assert surgery.num_observations == N
    alone = tfs.elbo_surgery(X, encoder, None, PRIOR)
    assert surgery.average_kl == alone.average_kl


def test_labels_are_no_weights() -> None:
    posteriors = encoder(X)
    for labels in (LABELS, tf.constant(LABELS), LABELS.astype(bool)):
        with pytest.raises(TypeError, match="labels are no weights"):
            tfs.AggregatePosterior(posteriors, labels)
        with pytest.raises(TypeError, match="labels are no weights"):
            tfs.AggregatePosterior.from_arrays(loc=X, scale=np.ones_like(X), weights=labels)
    q_z = tfs.AggregatePosterior(posteriors, [1, 3])  # a list of Python numbers
    np.testing.assert_allclose(q_z.mean(), 0.25 * X[0] + 0.75 * X[1], rtol=1e-6)


def test_labels_are_no_encoder_and_no_batch_size() -> None:
    with pytest.raises(TypeError, match="encoder must be a callable"):
        tfs.elbo_surgery(X, LABELS, decoder, PRIOR)
    with pytest.raises(TypeError, match="batch_size must be an integer"):
        tfs.AggregatePosterior.from_encoder(encoder, X, LABELS)  # type: ignore[arg-type]


def test_levels_of_images_are_no_categories() -> None:
    levels = np.array([[0, 200], [3, 255]], np.uint8)
    for_ten = lambda z: tfd.Independent(  # noqa: E731
        tfd.Categorical(logits=tf.zeros([len(z), 2, 10])), 1
    )
    with pytest.raises(ValueError, match=r"0 to 255, expected whole numbers from 0 to 9"):
        tfs.elbo_surgery(levels, lambda x: encoder(tf.cast(x, tf.float32)), for_ten, PRIOR)
    one_hot = lambda z: tfd.OneHotCategorical(logits=tf.zeros([len(z), 2]))  # noqa: E731
    with pytest.raises(ValueError, match="a single 1 among 0s"):
        tfs.elbo_surgery(levels, lambda x: encoder(tf.cast(x, tf.float32)), one_hot, PRIOR)


def test_a_pipeline_of_pairs_is_data_and_labels() -> None:
    pipeline = tf.data.Dataset.from_tensor_slices((X, X + 1.0)).batch(2)
    surgery = tfs.elbo_surgery(pipeline, encoder, decoder, PRIOR)
    assert surgery.elbo == tfs.elbo_surgery(X, encoder, decoder, PRIOR).elbo
    assert "(x, y), of which y is left out" in str(surgery)
