from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tests.testing.distribution_conformance import DistributionConformance
from tests.testing.encoder_priors import EVENT_SHAPE, binary_data, make_encoder
from tfp_surgery.priors.base import Prior, StandardNormalPrior

tfd = tfp.distributions


def test_the_standard_normal() -> None:
    prior = StandardNormalPrior(3)
    distribution = prior()
    assert isinstance(distribution, tfd.MultivariateNormalDiag)
    assert distribution.batch_shape == []
    assert distribution.event_shape == [3]
    assert prior.weights == []
    z = np.array([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]], np.float32)
    expected = -0.5 * (z**2).sum(axis=-1) - 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(distribution.log_prob(z), expected, rtol=1e-6)


class TestStandardNormalConformance(DistributionConformance):
    """It has no weights, and its density is that of test_the_standard_normal."""

    lacks: ClassVar[dict[str, str]] = {"cdf": "codes are no scalars"}

    def distribution(self) -> tfd.Distribution:
        return StandardNormalPrior(2)()

    def test_gradients_to_parameters(self) -> None:
        assert StandardNormalPrior(2).fitted_variables == []


@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("float32", tf.float32), ("mixed_float16", tf.float32), ("float64", tf.float64)],
)
def test_densities_are_never_half_precision(policy: str, dtype: tf.DType) -> None:
    assert StandardNormalPrior(2, dtype=policy)().dtype == dtype


def test_config_round_trip() -> None:
    prior = StandardNormalPrior(3, name="p")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(prior))
    assert isinstance(again, StandardNormalPrior)
    assert again.get_config() == prior.get_config()


def test_an_empty_code_is_refused() -> None:
    with pytest.raises(ValueError, match="event_size must be at least 1, got 0"):
        StandardNormalPrior(0)


X = binary_data()
CODES = np.random.default_rng(0).normal(size=(2000, 2))
SEEDED: dict[str, Callable[[Any], Prior]] = {
    "mixture": lambda _: tfs.priors.MixturePrior(2, 20),
    "vamp": lambda seed: tfs.priors.VampPrior(2, make_encoder(), EVENT_SHAPE, 6, seed=seed),
    "exemplar": lambda seed: tfs.priors.ExemplarPrior(2, make_encoder(), X, 20, seed=seed),
    "resampled": lambda seed: tfs.priors.ResampledPrior(
        2, 5, (4,), num_normalizer_samples=50, seed=seed
    ),
}


@pytest.mark.parametrize("kind", SEEDED)
def test_an_integer_or_a_pair_of_int32_is_a_seed(kind: str) -> None:
    """Each has results of its own, through a configuration in JSON too."""

    def log_prob(seed: Any, written: bool = False) -> np.ndarray:
        keras.utils.set_random_seed(0)
        prior = SEEDED[kind](seed)
        if written:
            config = json.loads(json.dumps(keras.saving.serialize_keras_object(prior)))
            again = keras.saving.deserialize_keras_object(config)
            again.set_weights(prior.get_weights())
            prior = again
        prior.initialize(CODES, seed)
        return np.asarray(prior().log_prob(CODES[:50].astype(np.float32)))

    found = [log_prob(seed) for seed in (1, 2, (1, 2), (2, 1), (0, 1))]
    for first, second in itertools.combinations(found, 2):
        assert np.abs(first - second).max() > 1e-4
    for seed in ([1, 2], np.array([1, 2]), tf.constant([1, 2])):
        np.testing.assert_array_equal(log_prob(seed), found[2])
    np.testing.assert_array_equal(log_prob((1, 2), written=True), found[2])


@pytest.mark.parametrize("size", [(500, 10), (10, 500)])
def test_numbers_in_each_others_place_are_named_where_codes_meet_them(
    size: tuple[int, int],
) -> None:
    """The message names the size that the prior has and the one that the codes have."""
    event_size, other = size
    for prior in (
        tfs.priors.MixturePrior(event_size, other),
        tfs.priors.AutoregressivePrior(event_size, other, (8,)),
    ):
        with pytest.raises(ValueError, match=rf"\[M, {event_size}\] .* got \[600, {other}\]"):
            prior.initialize(np.zeros([600, other]))
        zeros = tf.zeros([3, other])
        q_z = tfs.AggregatePosterior(tfd.MultivariateNormalDiag(zeros, zeros + 1.0))
        with pytest.raises(ValueError, match=rf"shape \[{other}\].* event shape \[{event_size}\]"):
            tfs.fit_prior(q_z, prior)
    mixture = tfs.priors.MixturePrior(event_size, other)
    encoder = tfs.networks.MLPEncoder(other, (4,))
    vae = tfs.VAE(encoder, tfs.networks.MLPDecoder((3,), (4,)), mixture)
    with pytest.raises(ValueError, match=rf"has {other} components: event_size comes before"):
        vae.build((None, 3))
    with pytest.raises(TypeError, match="event_size must be an integer"):
        tfs.priors.VampPrior(make_encoder(), 2, EVENT_SHAPE, 6)  # type: ignore[arg-type]
