"""Tests of the rule by which a step takes as many rows as fit in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tfp_surgery.components.batch_size import (
    bytes_of_parameters,
    bytes_of_row,
    checked_batch_size,
    equal_steps,
    rows_of_a_step,
)
from tfp_surgery.components.encoding import encode
from tfp_surgery.measurement.prepared_model import PreparedModel, prepared_model

tfd = tfp.distributions

MIB = 2**20


def _model(
    event_size: int, latent_size: int, prior: tfd.Distribution | None = None
) -> tuple[Any, Any, Any, Any]:
    x = np.zeros([5, event_size], np.float32)

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.tile(x[:, :1], [1, latent_size]), tf.ones(latent_size))

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.tile(z[:, :1], [1, event_size]), tf.ones(event_size))

    prior = prior or tfd.MultivariateNormalDiag(tf.zeros(latent_size))
    return x, encoder, decoder, prior


def _prepared(
    x: Any, encoder: Any, decoder: Any, prior: Any, batch_size: int | None = None
) -> PreparedModel:
    return prepared_model(x, encoder, decoder, prior, 0, batch_size)


def test_bytes_of_a_row_are_those_of_its_dense_values() -> None:
    assert bytes_of_row(np.zeros([7, 3, 2], np.float64)) == 48
    assert bytes_of_row({"a": tf.zeros([7, 5]), "b": (np.zeros([7], np.int16), None)}) == 22
    assert bytes_of_row(scipy.sparse.csr_matrix((7, 100), dtype=np.float32)) == 400
    ragged = tf.ragged.constant([[1.0], [1.0, 2.0, 3.0]])
    assert bytes_of_row(ragged) == 8  # two values on average
    assert bytes_of_row(None) == bytes_of_row(()) == 0


def test_bytes_of_parameters_reach_into_wrapped_distributions() -> None:
    normal = tfd.Normal(tf.zeros([10]), tf.ones([10]))
    assert bytes_of_parameters(normal) == 80
    assert bytes_of_parameters(tfd.Independent(normal, 1)) == 80
    shifted = tfp.bijectors.Shift(tf.zeros([10]))(normal)
    assert bytes_of_parameters(shifted) >= 120
    shared = tf.zeros([10])
    assert bytes_of_parameters(tfd.Uniform(shared, shared)) == 40  # one tensor, held once
    assert bytes_of_parameters(None) == 0


def test_a_mixture_costs_all_its_components_and_a_streamed_one_a_single_one() -> None:
    components = tfd.MultivariateNormalDiag(tf.zeros([500, 8]), tf.ones([500, 8]))
    logits = tfd.Categorical(logits=tf.zeros([500]))
    mixture = bytes_of_parameters(tfd.MixtureSameFamily(logits, components))
    streamed = bytes_of_parameters(tfs.AggregatePosterior(components))
    assert mixture >= 500 * 2 * 8 * 4
    assert streamed < mixture / 100


def test_larger_rows_make_smaller_steps_that_stay_in_the_budget() -> None:
    sizes = [0, 10**3, 10**5, 10**7, 10**9]
    rows = [rows_of_a_step(size) for size in sizes]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] == 1
    assert all(row * size <= 32 * MIB for row, size in zip(rows[:-1], sizes[:-1], strict=True))
    assert rows_of_a_step(10**5, passes=4) <= rows[2] / 4 < rows_of_a_step(10**5, passes=4) + 1


@pytest.mark.parametrize(("total", "limit"), [(1, 1), (7, 3), (60000, 3920), (10, 100), (12, 4)])
def test_equal_steps_are_as_few_as_the_limit_allows(total: int, limit: int) -> None:
    size = equal_steps(total, limit)
    assert 1 <= size <= min(total, limit)
    assert -(-total // size) == -(-total // limit)


def test_every_part_of_a_code_makes_its_steps_smaller() -> None:
    base = _prepared(*_model(4, 2)).code_batch_size
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(logits=tf.zeros([300])), tfd.MultivariateNormalDiag(tf.zeros([300, 2]))
    )
    for other in (_model(4000, 2), _model(4, 2000), _model(4, 2, mixture)):
        assert _prepared(*other).code_batch_size < base / 2


def test_large_observations_are_encoded_in_smaller_batches() -> None:
    sizes: list[int] = []
    for event_size in (1, 10**6):
        shown: list[int] = []

        def encoder(x: tf.Tensor, shown: list[int] = shown) -> tfd.Distribution:
            shown.append(len(x))
            return tfd.MultivariateNormalDiag(x[:, :1], [1.0])

        encode(encoder, np.zeros([30, event_size], np.float32))
        sizes.append(max(shown))
        assert sum(shown) == 30 + 4  # and two again, twice, to see that they come out the same
    assert sizes[0] == 30
    assert 1 < sizes[1] < 10


def test_a_given_batch_size_is_taken_as_it_is() -> None:
    prepared = _prepared(*_model(4, 2), batch_size=3)
    assert (prepared.batch_size, prepared.code_batch_size) == (3, 3)
    assert checked_batch_size(3) == 3
    assert checked_batch_size(None) is None
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        checked_batch_size(0)
    with pytest.raises(TypeError, match="batch_size must be an integer"):
        checked_batch_size(2.5)
