"""Tests of refined posteriors against the best Gaussians of linear-Gaussian models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing.linear_gaussian import LinearGaussianModel
from tfp_surgery.evidence.importance_sampling import log_evidence_by_importance_sampling
from tfp_surgery.evidence.refined_posteriors import refined_posteriors

tfd = tfp.distributions

STANDARD_ERRORS = 4.5
MODEL = LinearGaussianModel(np.array([[1.0, 0.8], [-0.3, 0.4], [0.5, 0.5]]), 0.7)


# One of little posterior correlation: the weights from its best independent Gaussians have a
# variance, which takes correlations below 1/2.
MILD_MODEL = LinearGaussianModel(np.array([[1.0, 0.5], [0.5, -0.7], [0.0, 0.0]]), 0.7)


def test_they_are_the_best_gaussians_with_independent_dimensions() -> None:
    """KL(q || posterior) is least at the posterior mean, with the precisions of its diagonal."""
    x = MODEL.simulate(7)
    # Batches of 2 observations, the last of which repeats some.
    q = refined_posteriors(
        x,
        MODEL.perturbed_encoder(1.5, 0.5),
        MODEL.decoder,
        MODEL.prior,
        num_steps=400,
        batch_size=9,
    )
    assert q.batch_shape == [7]
    assert q.dtype == tf.float64
    precision = np.linalg.inv(MODEL.posterior_covariance)
    posterior = tfd.MultivariateNormalFullCovariance(
        MODEL.posterior_mean(x), MODEL.posterior_covariance
    )
    best = tfd.MultivariateNormalDiag(MODEL.posterior_mean(x), 1 / np.sqrt(np.diag(precision)))
    excess = tfd.kl_divergence(q, posterior) - tfd.kl_divergence(best, posterior)
    assert np.all(excess.numpy() > -1e-12)
    assert np.mean(excess) < 2e-3  # what the optimiser leaves, as in the test of the gaps


def test_as_proposals_they_reach_the_log_evidence_where_the_encoder_does_not() -> None:
    x = MILD_MODEL.simulate(30)
    bad = MILD_MODEL.perturbed_encoder(3.0, 0.5)
    truth = MILD_MODEL.log_evidence(x)
    q = refined_posteriors(x, bad, MILD_MODEL.decoder, MILD_MODEL.prior, num_steps=400)
    with pytest.warns(UserWarning, match="effective sample size"):
        amortized = log_evidence_by_importance_sampling(
            x, bad, MILD_MODEL.decoder, MILD_MODEL.prior, num_importance_samples=500
        )
    refined = log_evidence_by_importance_sampling(
        x, q, MILD_MODEL.decoder, MILD_MODEL.prior, num_importance_samples=500
    )
    assert amortized.estimate.value < truth.mean() - 1.0
    estimate = refined.estimate
    # Half the variance of each is the bias.
    bias = float(np.mean(refined.standard_errors**2)) / 2
    assert abs(estimate.value - truth.mean()) < STANDARD_ERRORS * estimate.standard_error + 2 * bias
    assert estimate.standard_error < 0.05
    assert refined.effective_sample_sizes.min() > 50


def test_seeds_repeat_and_scalars_stay_scalars() -> None:
    model = LinearGaussianModel(np.array([[1.0], [0.5]]), 0.5)
    inner = model.perturbed_encoder(1.5, 1.0)
    x = model.simulate(5)

    def refined(seed: int) -> tfd.Distribution:
        return refined_posteriors(
            x,
            lambda x: tfd.Normal(inner(x).mean()[:, 0], inner(x).stddev()[:, 0]),
            lambda z: model.decoder(z[:, None]),
            tfd.Normal(np.float64(0), np.float64(1)),
            num_steps=200,
            seed=seed,
        )

    q, again, other = (refined(seed) for seed in (3, 3, 4))
    assert isinstance(q, tfd.Normal)
    np.testing.assert_array_equal(q.loc, again.loc)
    assert np.all(q.loc.numpy() != other.loc.numpy())
    # The family contains the posterior: no noise is left.
    deviation = math.sqrt(model.posterior_covariance[0, 0])
    np.testing.assert_allclose(q.loc, model.posterior_mean(x)[:, 0], atol=0.01 * deviation)
    np.testing.assert_allclose(q.scale, np.full(5, deviation), rtol=0.01)


def test_without_news_from_the_decoder_the_best_posterior_is_the_prior() -> None:
    """A decoder that does not look at the codes has no gradient, and needs none."""
    likelihood = tfd.MultivariateNormalDiag(np.zeros([1, 3]), np.ones(3))
    q = refined_posteriors(
        MODEL.simulate(2),
        MODEL.perturbed_encoder(0.0, 1.0),
        lambda z: tfd.BatchBroadcast(likelihood, z.shape[:1]),
        lambda: MODEL.prior,
        num_steps=300,
    )
    np.testing.assert_allclose(q.mean(), np.zeros([2, 2]), atol=0.01)
    np.testing.assert_allclose(q.stddev(), np.ones([2, 2]), rtol=0.01)


def _numpy_function(z: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.numpy_function(lambda a: a, [z], tf.float64), [None, 2])


def _strings(z: tf.Tensor) -> tf.Tensor:
    return z + tf.strings.to_number(tf.strings.as_string(tf.stop_gradient(z)), tf.float64)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"decoder": lambda z: MODEL.decoder(z.numpy())},
            TypeError,
            "decoder, which must be made of TensorFlow operations; importance .*cannot trace it",
        ),
        ({"decoder": lambda z: MODEL.decoder(_numpy_function(z))}, TypeError, "Python code"),
        ({"decoder": lambda z: MODEL.decoder(tf.round(9 * z))}, TypeError, "finds no gradient"),
        ({"decoder": lambda z: MODEL.decoder(_strings(z))}, TypeError, "XLA cannot compile it"),
        (
            {"prior": tfd.Sample(tfd.Gamma(np.float64(2), np.float64(1)), 2), "num_steps": 20},
            ValueError,
            "posteriors of . of 2 observations .* are not finite",
        ),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate must be positive"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"seed": 2**31}, ValueError, "seed must be at least 0"),
        ({"encoder": MODEL.exact_encoder}, TypeError, "independent dimensions.*TriL"),
        ({"x": np.zeros([2, 4])}, ValueError, "failed|observations of shape"),
    ],
)
def test_wrong_input_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {
        "x": MODEL.simulate(2),
        "encoder": MODEL.perturbed_encoder(0.0, 1.0),
        "decoder": MODEL.decoder,
        "prior": MODEL.prior,
        **changes,
    }
    with pytest.raises(error, match=message):
        refined_posteriors(**arguments)
