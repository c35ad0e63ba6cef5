"""Tests of the pass over posteriors that are encoded again: each observation is encoded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors
from tfp_surgery.log_density import reencoded_pass

tfd = tfp.distributions

N = 10
LOC = np.random.default_rng(0).normal(size=N)
QUERIES = np.random.default_rng(1).normal(size=7)


@pytest.mark.parametrize("cells", [1, 12, 2**21])
def test_each_observation_is_encoded_once_however_queries_are_cut(
    cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reencoded_pass, "_CELLS", cells)
    shown: list[int] = []

    def encode_rows(rows: Any) -> tfd.Distribution:
        shown.extend(np.asarray(rows).tolist())
        return tfd.Normal(tf.gather(tf.constant(LOC), rows), np.float64(0.7))

    components = ReencodedPosteriors(tf.range(N), encode_rows, batch_size=4)
    shown.clear()
    weights = np.random.default_rng(2).dirichlet(np.ones(N))
    excluded = tf.constant([0, -1, 3, 9, -1, 5, 5])
    log_prob, entropy = reencoded_pass.log_prob_and_index_entropy(
        components, tf.constant(np.log(weights)), tf.constant(QUERIES), excluded
    )
    assert shown == list(range(N))
    scores = stats.norm.logpdf(QUERIES[:, None], LOC, 0.7) + np.log(weights)
    scores[excluded.numpy()[:, None] == np.arange(N)] = -np.inf
    np.testing.assert_allclose(log_prob, special.logsumexp(scores, axis=1), rtol=1e-12)
    expected = special.entr(special.softmax(scores, axis=1)).sum(1)
    np.testing.assert_allclose(entropy, expected, rtol=1e-9)
