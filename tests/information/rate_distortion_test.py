from __future__ import annotations

import dataclasses
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

from tests.testing.linear_gaussian import ProbabilisticPCA
from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.information.rate_distortion import empirical_entropy, rate_distortion_bounds
from tfp_surgery.surgery.elbo_surgery import elbo_surgery

tfd = tfp.distributions


def _exact(value: float) -> Estimate:
    return Estimate(value, 0.0, 0)


def _within(estimate: Estimate, truth: float) -> None:
    assert abs(estimate.value - truth) <= 4.5 * estimate.standard_error + 1e-9, (estimate, truth)


def test_linear_gaussian_model_closes_the_interval() -> None:
    model = ProbabilisticPCA()
    surgery = elbo_surgery(
        model.x, model.encoder, model.decoder, model.prior, num_samples=10, seed=1
    )
    eigenvalues = np.concatenate([model.retained, np.full(4, model.noise**2)])
    entropy = 0.5 * np.log(2 * np.pi * np.e * eigenvalues).sum()
    bounds = rate_distortion_bounds(
        surgery.elbo, surgery.average_reconstruction, surgery.average_kl, data_entropy=entropy
    )
    assert bounds.lower_bound is not None
    assert bounds.elbo_gap is not None
    assert bounds.lower_bound.ceiling is None
    assert not bounds.lower_bound.at_ceiling
    # Posteriors are exact and q(z) = p(z): both bounds are I(X; Z).
    _within(bounds.lower_bound.estimate, model.average_kl)
    _within(bounds.upper_bound.estimate, model.average_kl)
    _within(bounds.distortion, -model.average_reconstruction)
    assert bounds.elbo_gap.value == pytest.approx(0.0, abs=1e-6)
    low, high = bounds.interval(0.999999)
    assert low < model.average_kl < high
    assert bounds.lower_bound.estimate.standard_error > 0.0


@pytest.mark.parametrize("slope", [0.2, 1.0, -3.0])
@pytest.mark.parametrize("decoder_slope", [0.1, 0.8])
@pytest.mark.parametrize("prior_scale", [0.5, 2.0])
def test_scalar_gaussians_lie_between_the_bounds(
    slope: float, decoder_slope: float, prior_scale: float
) -> None:
    # x ~ N(0, 2), z|x ~ N(slope x, 0.3), x|z ~ N(decoder_slope z, 0.7), z ~ N(0, prior_scale^2).
    information = 0.5 * math.log1p(slope**2 * 2 / 0.3)
    code_variance = slope**2 * 2 + 0.3
    residual = (1 - decoder_slope * slope) ** 2 * 2 + decoder_slope**2 * 0.3
    reconstruction = -0.5 * math.log(2 * math.pi * 0.7) - residual / (2 * 0.7)
    rate = math.log(prior_scale) - 0.5 * math.log(0.3) + code_variance / (2 * prior_scale**2) - 0.5
    entropy = 0.5 * math.log(2 * math.pi * math.e * 2)
    bounds = rate_distortion_bounds(
        _exact(reconstruction - rate), _exact(reconstruction), _exact(rate), data_entropy=entropy
    )
    assert bounds.lower_bound is not None
    assert bounds.elbo_gap is not None
    assert bounds.lower_bound.estimate.value <= information <= bounds.upper_bound.estimate.value
    # The gaps that the bounds name: a KL of Gaussians each.
    gain = slope * 2 / code_variance
    variance = 2 - gain * slope * 2
    lower_gap = 0.5 * (
        math.log(0.7 / variance)
        + (variance + (gain - decoder_slope) ** 2 * code_variance) / 0.7
        - 1
    )
    upper_gap = 0.5 * (
        math.log(prior_scale**2 / code_variance) + code_variance / prior_scale**2 - 1
    )
    assert bounds.lower_bound.estimate.value == pytest.approx(information - lower_gap, abs=1e-12)
    assert bounds.upper_bound.estimate.value == pytest.approx(information + upper_gap, abs=1e-12)
    assert bounds.elbo_gap.value == pytest.approx(lower_gap + upper_gap, abs=1e-12)


def test_discrete_data_with_copies_bound_the_index_code_mutual_information() -> None:
    x = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [1, 1], [1, 1], [1, 1], [0, 1]], np.float64)

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(
            3.0 * x[:, :1] - 1.5 + 0.8 * x[:, 1:], 0.6 * tf.ones_like(x[:, :1])
        )

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        logits = tf.concat([2.0 * z, 0.5 * z], axis=-1)
        return tfd.Independent(tfd.Bernoulli(logits=logits, dtype=tf.float64), 1)

    prior = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))
    surgery = elbo_surgery(x, encoder, decoder, prior, num_samples=2000, seed=2)
    entropy = empirical_entropy(x)
    assert entropy == pytest.approx(stats.entropy([2, 2, 1, 3]), abs=1e-12)
    bounds = rate_distortion_bounds(
        surgery.elbo,
        surgery.average_reconstruction,
        surgery.average_kl,
        data_entropy=entropy,
        discrete=True,
    )
    # Over the four values of X, by quadrature.
    values, counts = np.unique(x, axis=0, return_counts=True)
    p = counts / counts.sum()
    grid = np.linspace(-8, 8, 20001)
    loc = 3.0 * values[:, 0] - 1.5 + 0.8 * values[:, 1]
    densities = stats.norm.pdf(grid, loc[:, None], 0.6)
    mixture = p @ densities
    posterior = p[:, None] * densities / mixture
    likelihood = special.expit((2 * values[:, :1] - 1) * 2.0 * grid) * special.expit(
        (2 * values[:, 1:] - 1) * 0.5 * grid
    )
    information = entropy - np.trapezoid(mixture * special.entr(posterior).sum(0), grid)
    gap = np.trapezoid(mixture * special.rel_entr(posterior, likelihood).sum(0), grid)
    assert bounds.lower_bound is not None
    assert bounds.lower_bound.ceiling == entropy
    _within(surgery.index_code_mutual_information, information)
    _within(bounds.lower_bound.estimate, information - gap)
    _within(
        bounds.upper_bound.estimate,
        information + np.trapezoid(special.rel_entr(mixture, stats.norm.pdf(grid)), grid),
    )
    low, high = bounds.interval()
    assert low < information < high


def test_perfect_reconstruction_of_discrete_data_is_at_the_ceiling() -> None:
    bounds = rate_distortion_bounds(
        _exact(-5.0), _exact(-0.001), _exact(4.999), data_entropy=math.log(100), discrete=True
    )
    assert bounds.lower_bound is not None
    assert bounds.lower_bound.at_ceiling


def test_lower_bound_is_that_of_tfp() -> None:
    log_likelihood = np.random.default_rng(0).normal(size=(3, 8)) - 2.0
    reconstruction = stratified_estimate(log_likelihood, 8)
    bounds = rate_distortion_bounds(
        _exact(-9.0), reconstruction, _exact(7.0), data_entropy=Estimate(4.0, 0.3, 10)
    )
    assert bounds.lower_bound is not None
    estimate = bounds.lower_bound.estimate
    expected = tfp.vi.mutual_information.lower_bound_barber_agakov(
        tf.constant(log_likelihood.reshape(-1)), tf.constant(4.0, tf.float64)
    )
    assert estimate.value == pytest.approx(float(expected), abs=1e-12)
    assert estimate.standard_error == pytest.approx(math.hypot(0.3, reconstruction.standard_error))


def test_without_an_entropy_only_the_rate_bounds() -> None:
    bounds = rate_distortion_bounds(_exact(-9.0), _exact(-2.0), Estimate(7.0, 0.1, 10))
    assert bounds.lower_bound is None
    assert bounds.elbo_gap is None
    assert bounds.data_entropy is None
    assert set(bounds.absent) == {"lower_bound", "elbo_gap", "data_entropy"}
    low, high = bounds.interval()
    assert low == 0.0
    assert high == pytest.approx(7.0 + 1.959964 * 0.1)
    record = json.loads(json.dumps(bounds.to_dict(), allow_nan=False))
    assert record["lower_bound"] is None
    assert "unknown" in record["absent"]["lower_bound"]
    assert "absent: the entropy of the data is unknown" in str(bounds)
    with pytest.raises(dataclasses.FrozenInstanceError):
        bounds.rate = _exact(0.0)  # type: ignore[misc]


def test_table_and_record() -> None:
    bounds = rate_distortion_bounds(
        Estimate(-9.0, 0.1, 10), Estimate(-2.0, 0.2, 10), Estimate(7.0, 0.1, 10), data_entropy=8
    )
    table = str(bounds)
    for text in ("6.00 ± 0.20 (lower)", "7.00 ± 0.10 (upper)", "D + R - H", "1.00 ± 0.10"):
        assert text in table
    record = json.loads(json.dumps(bounds.to_dict(), allow_nan=False))
    assert record["lower_bound"]["value"] == 6.0
    assert record["distortion"] == {"value": 2.0, "standard_error": 0.2}


def test_a_negative_gap_is_reported() -> None:
    with pytest.warns(UserWarning, match="negative") as caught:
        bounds = rate_distortion_bounds(_exact(-9.0), _exact(-2.0), _exact(7.0), data_entropy=9.1)
    assert caught[0].filename == __file__
    assert "WARNING: D + R - H = -0.1" in str(bounds)
    assert bounds.to_dict()["warnings"] == list(bounds.warnings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rate_distortion_bounds(Estimate(-9.0, 0.1, 9), _exact(-2.0), _exact(7.0), data_entropy=9.4)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"elbo": -9.0}, TypeError, "elbo must be an Estimate"),
        ({"average_kl": _exact(math.nan)}, ValueError, "average_kl must be finite"),
        ({"data_entropy": "empirical"}, TypeError, "data_entropy must be a number"),
        ({"data_entropy": True}, TypeError, "data_entropy must be a number"),
        ({"data_entropy": math.inf}, ValueError, "data_entropy must be finite"),
        ({"data_entropy": -1.0, "discrete": True}, ValueError, "never negative"),
        ({"average_reconstruction": _exact(2.0), "discrete": True}, ValueError, "density"),
    ],
)
def test_bad_input_is_refused(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {
        "elbo": _exact(-9.0),
        "average_reconstruction": _exact(-2.0),
        "average_kl": _exact(7.0),
        **changed,
    }
    with pytest.raises(error, match=message):
        rate_distortion_bounds(**given)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8, np.bool_])
def test_empirical_entropy_is_that_of_the_counts(dtype: type) -> None:
    x: np.ndarray = np.random.default_rng(0).integers(0, 2, size=(200, 3, 2)).astype(dtype)
    counts = np.unique(x.reshape(200, -1), axis=0, return_counts=True)[1]
    assert counts.max() > 1
    assert empirical_entropy(x) == pytest.approx(stats.entropy(counts), abs=1e-12)


def test_empirical_entropy_of_distinct_and_of_equal_observations() -> None:
    assert empirical_entropy(np.arange(50.0)) == pytest.approx(math.log(50), abs=1e-12)
    assert empirical_entropy(np.zeros([50, 2])) == 0.0
    assert empirical_entropy(np.array([0.0, -0.0])) == 0.0
    with pytest.raises(ValueError, match="no observations"):
        empirical_entropy(np.zeros([0, 3]))
