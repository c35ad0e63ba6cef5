"""Tests of the stream of importance weights: every draw once, in order, of its own observation."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing.linear_gaussian import LinearGaussianModel
from tfp_surgery.evidence.importance_weights import log_weight_chunks
from tfp_surgery.measurement.prepared_model import prepared_model

tfd = tfp.distributions

MODEL = LinearGaussianModel(np.array([[1.0, 0.4], [-0.3, 0.8], [0.5, 0.5]]), 0.8)


@pytest.mark.parametrize(
    ("num_observations", "num_samples", "batch_size", "steps"),
    [(7, 11, 3, 33), (7, 11, 20, 6), (5, 1, 100, 1), (1, 50, 8, 7), (6, 4, 5, 8)],
)
def test_every_draw_of_every_observation_comes_once(
    num_observations: int, num_samples: int, batch_size: int, steps: int
) -> None:
    x = MODEL.simulate(num_observations)
    decoded: list[np.ndarray] = []

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        decoded.append(z.numpy())
        return MODEL.decoder(z)

    encoder = MODEL.perturbed_encoder(0.5, 1.5)
    model = prepared_model(x, encoder, decoder, MODEL.prior, 0, batch_size)
    posteriors = model.posteriors
    decoded.clear()  # what was decoded to look at the model
    found = np.full([num_samples, num_observations], np.nan)
    stops = np.zeros(num_observations, int)
    chunks = log_weight_chunks(model, posteriors, num_samples, tf.constant([1, 2]))
    for draws, rows, log_weights in chunks:
        assert log_weights.dtype == np.float64
        assert log_weights.shape == (draws.stop - draws.start, rows.stop - rows.start)
        assert np.all(stops[rows] == draws.start)
        assert np.isnan(found[draws, rows]).all()
        found[draws, rows] = log_weights
        stops[rows] = draws.stop
    assert np.all(stops == num_samples)
    assert chunks.decoding == "eagerly"  # the decoder reads its codes in Python
    assert len(decoded) == steps
    assert len({len(codes) for codes in decoded}) == 1
    assert len(decoded[0]) <= batch_size
    # Each is the weight of a code that was decoded, with its own observation, and of no other.
    z = np.concatenate(decoded)
    q = posteriors.log_prob(z[:, None]).numpy()
    joint = MODEL.prior.log_prob(z) + MODEL.decoder(z).log_prob(x[:, None])  # [N, S]
    known = joint.numpy().T - q
    for n in range(num_observations):
        distances = np.abs(found[:, n, None] - known[None, :, n])
        assert np.all(distances.min(axis=1) < 1e-9)
        assert len(set(distances.argmin(axis=1))) == num_samples
