"""minibatch_log_prob against enumeration, quadrature and closed forms, all in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

from tests.testing.minibatches import NUM, expected_information, misplaced_weights, weights_of
from tests.testing.oracles import CASES, gaussian_case, gaussian_log_densities, log_prob_and_entropy
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.information.minibatch_log_prob import (
    METHODS,
    minibatch_log_prob,
    minibatch_marginal_log_prob,
    mutual_information_ceiling,
)

tfd = tfp.distributions

SIZE = 3
MINIBATCHES = [list(chosen) for chosen in itertools.permutations(range(NUM), SIZE)]


def posteriors(loc: np.ndarray, scale: np.ndarray) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(loc, scale)


# -- what is summed


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_weighted_sum(method: str, case: str) -> None:
    size, num_observations, dim = 6, 6 if method == "full" else 50, 3
    loc, scale = gaussian_case(case, size, dim)
    z = loc + scale * np.random.default_rng(1).standard_normal((2, 4, size, dim))
    weights = np.log(weights_of(method, size, num_observations))
    every = stats.norm.logpdf(z[..., :, np.newaxis, :], loc, scale)  # [2, 4, B, B, D]
    found = minibatch_log_prob(z, posteriors(loc, scale), num_observations, method)
    assert found.dtype == tf.float64
    np.testing.assert_allclose(
        found, special.logsumexp(every.sum(axis=-1) + weights, axis=-1), rtol=1e-12, atol=1e-12
    )
    marginal = minibatch_marginal_log_prob(z, posteriors(loc, scale), num_observations, method)
    np.testing.assert_allclose(
        marginal,
        special.logsumexp(every + weights[..., np.newaxis], axis=-2),
        rtol=1e-12,
        atol=1e-12,
    )


def test_events_may_be_of_any_rank_and_of_any_family() -> None:
    weights = np.log(weights_of("mss", 4, 9))
    rate = np.array([0.5, 1.0, 2.0, 4.0])
    scalar = tfd.Exponential(rate)
    z = scalar.sample(3, seed=(1, 2))  # [3, 4]
    every = stats.expon.logpdf(z.numpy()[..., np.newaxis], scale=1 / rate)
    np.testing.assert_allclose(
        minibatch_log_prob(z, scalar, 9), special.logsumexp(every + weights, axis=-1), rtol=1e-12
    )
    matrix = tfd.Independent(tfd.Exponential(rate[:, np.newaxis, np.newaxis] * np.ones((2, 3))), 2)
    z = matrix.sample(seed=(1, 2))  # [4, 2, 3]
    every = stats.expon.logpdf(z.numpy()[:, np.newaxis], scale=1 / rate[:, np.newaxis, np.newaxis])
    np.testing.assert_allclose(
        minibatch_log_prob(z, matrix, 9),
        special.logsumexp(every.sum(axis=(-1, -2)) + weights, axis=-1),
        rtol=1e-12,
    )


def test_correlated_posteriors_that_share_a_scale() -> None:
    rng = np.random.default_rng(0)
    loc, tril = rng.standard_normal((3, 3)), np.tril(rng.uniform(0.5, 1.0, (3, 3)))
    shared = tfd.MultivariateNormalTriL(loc, tril)  # B = D: a batch of scales could look the same
    z = shared.sample(2, seed=(1, 2))
    covariance = tril @ tril.T
    every = np.stack(
        [stats.multivariate_normal(mean, covariance).logpdf(z.numpy()) for mean in loc], axis=-1
    )
    weights = np.log(weights_of("partially_stratified", 3, 7))
    np.testing.assert_allclose(
        minibatch_log_prob(z, shared, 7, "partially_stratified"),
        special.logsumexp(every + weights, axis=-1),
        rtol=1e-10,
    )
    every = stats.norm.logpdf(
        z.numpy()[..., np.newaxis, :], loc, np.sqrt(np.diag(covariance))
    )  # [2, B, B, D]
    np.testing.assert_allclose(
        minibatch_marginal_log_prob(z, shared, 7, "partially_stratified"),
        special.logsumexp(every + weights[..., np.newaxis], axis=-2),
        rtol=1e-10,
    )


@pytest.mark.parametrize("case", CASES)
def test_all_of_the_data_give_the_exact_density(case: str) -> None:
    loc, scale = gaussian_case(case, 20, 2)
    components = posteriors(loc, scale)
    z = components.sample(3, seed=(1, 2))
    aggregate = AggregatePosterior(components)
    for method in ("full", "batch", "partially_stratified"):
        np.testing.assert_allclose(
            minibatch_log_prob(z, components, 20, method), aggregate.log_prob(z), rtol=1e-10
        )
        np.testing.assert_allclose(
            minibatch_marginal_log_prob(z, components, 20, method),
            aggregate.marginals().log_prob(z),
            rtol=1e-10,
            atol=1e-12,
        )


# -- bias


def every_estimate(method: str, case: str, marginal: bool) -> tuple[Any, np.ndarray, np.ndarray]:
    """Estimates of q at fixed codes, by own index n and place b, over all ordered minibatches."""
    loc, scale = gaussian_case(case, NUM, 2)
    z = loc + scale * np.random.default_rng(2).standard_normal((4, NUM, 2))  # [S, N, D]
    estimator = minibatch_marginal_log_prob if marginal else minibatch_log_prob

    @tf.function(autograph=False)
    def estimate(codes: tf.Tensor, means: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
        return estimator(codes, posteriors(means, scales), NUM, method)

    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for chosen in MINIBATCHES:
        log_prob = estimate(z[:, chosen], loc[chosen], scale[chosen]).numpy()  # [S, B] or [S, B, D]
        for place, index in enumerate(chosen):
            found.setdefault((index, place), []).append(log_prob[:, place])
    return found, z, np.stack([loc, scale])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["mss", "partially_stratified"])
def test_stratified_estimates_are_unbiased_for_the_density(method: str, case: str) -> None:
    found, z, (loc, scale) = every_estimate(method, case, marginal=False)
    assert len(found) == NUM * SIZE
    for (index, _), log_probs in found.items():
        exact, _ = log_prob_and_entropy(gaussian_log_densities(z[:, index], loc, scale))
        assert len(log_probs) == 12
        mean = special.logsumexp(log_probs, axis=0) - math.log(len(log_probs))
        np.testing.assert_allclose(mean, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["mss", "partially_stratified"])
def test_stratified_estimates_are_unbiased_for_the_marginal_densities(method: str) -> None:
    found, z, (loc, scale) = every_estimate(method, "overlapping", marginal=True)
    for (index, _), log_probs in found.items():
        mean = special.logsumexp(log_probs, axis=0) - math.log(len(log_probs))
        every = stats.norm.logpdf(z[:, index, np.newaxis], loc, scale)  # [S, N, D]
        exact = special.logsumexp(every, axis=1) - math.log(NUM)
        np.testing.assert_allclose(mean, exact, rtol=0, atol=1e-10)


def test_the_published_weights_are_biased_for_the_density() -> None:
    """The control of the two tests above: the same enumeration finds the mistake."""
    loc, scale = gaussian_case("overlapping", NUM, 2)
    z = loc + scale * np.random.default_rng(2).standard_normal((4, NUM, 2))
    weights = np.log(misplaced_weights(SIZE, NUM))
    biases = []
    for place, index in itertools.product(range(SIZE), range(NUM)):
        density = gaussian_log_densities(z[:, index], loc, scale)  # [S, N]
        log_probs = [
            special.logsumexp(density[:, chosen] + weights[place], axis=-1)
            for chosen in MINIBATCHES
            if chosen[place] == index
        ]
        mean = special.logsumexp(log_probs, axis=0) - math.log(len(log_probs))
        biases.append(mean - log_prob_and_entropy(density)[0])
    assert np.abs(biases).max() > 0.1


@pytest.mark.parametrize("batch_size", [2, 3, 4, 5])
@pytest.mark.parametrize("case", CASES)
def test_the_bias_of_the_information_is_within_what_is_stated(case: str, batch_size: int) -> None:
    log_n, log_b, rounding = math.log(NUM), math.log(batch_size), 1e-7
    bias = {}
    for method in ("batch", "mws", "mss", "partially_stratified"):
        expected, exact, _ = expected_information(method, case, batch_size)
        assert -rounding < exact < log_n + rounding
        assert expected < mutual_information_ceiling(method, batch_size, NUM) + rounding
        bias[method] = expected - exact
    assert log_b - log_n - rounding < bias["batch"] < rounding
    assert log_b - rounding < bias["mws"] < log_n + rounding
    for method in ("mss", "partially_stratified"):
        assert -rounding < bias[method] < log_n - exact + rounding
    if case == "collapsed":
        ends = {"batch": 0.0, "mws": log_n, "mss": 0.0, "partially_stratified": 0.0}
        assert bias == pytest.approx(ends, abs=1e-9)
    if case == "separated":
        ends = {"batch": log_b - log_n, "mws": log_b, "mss": 0.0, "partially_stratified": 0.0}
        assert bias == pytest.approx(ends, abs=1e-9)
    if case == "overlapping" and batch_size == 3:  # and it is a bias, not zero
        assert bias["batch"] < -0.02
        assert bias["mss"] > 0.02
        assert bias["partially_stratified"] > 0.02


def test_the_bias_of_the_minibatch_as_data_set_falls_with_its_size() -> None:
    biases = [
        expected - exact
        for expected, exact, _ in (
            expected_information("batch", "overlapping", size) for size in (1, 2, 3, 4, 5)
        )
    ]
    assert np.all(np.diff(biases) > 1e-6)  # the error of the quadrature
    assert biases[-1] == pytest.approx(0.0, abs=1e-12)


# -- ceilings


@pytest.mark.parametrize("method", METHODS)
def test_separated_posteriors_reach_the_ceiling_and_none_exceed_it(method: str) -> None:
    size, num_observations = 16, 16 if method == "full" else 60000
    ceiling = {
        "batch": math.log(16),
        "mws": math.log(16 * 60000),
        "full": math.log(16),
    }.get(method, math.log(60000))
    assert mutual_information_ceiling(method, size, num_observations) == pytest.approx(ceiling)
    for case in CASES:
        components = posteriors(*gaussian_case(case, size, 4))
        z = components.sample(10, seed=(1, 2))
        ratio = components.log_prob(z) - minibatch_log_prob(z, components, num_observations, method)
        assert np.all(ratio.numpy() < ceiling + 1e-9)
        if case == "separated":
            np.testing.assert_allclose(ratio, np.full([10, size], ceiling), atol=1e-9)
        else:
            assert ratio.numpy().min() < ceiling - 1e-3


# -- as an objective


@pytest.mark.parametrize("method", METHODS)
def test_gradients_have_their_closed_form(method: str) -> None:
    size, num_observations = 5, 5 if method == "full" else 40
    loc, scale = gaussian_case("overlapping", size, 2)
    z = loc + scale * np.random.default_rng(3).standard_normal((3, size, 2))
    upstream = np.random.default_rng(4).standard_normal((3, size))
    variables = [tf.constant(value) for value in (z, loc, scale)]
    with tf.GradientTape() as tape:
        tape.watch(variables)
        components = posteriors(variables[1], variables[2])
        log_prob = minibatch_log_prob(variables[0], components, num_observations, method)
        loss = tf.reduce_sum(upstream * log_prob)
    found = tape.gradient(loss, variables)
    difference = (z[..., :, np.newaxis, :] - loc) / scale  # [S, B, B, D]
    every = stats.norm.logpdf(difference).sum(-1) - np.log(scale).sum(-1)
    shares = special.softmax(every + np.log(weights_of(method, size, num_observations)), axis=-1)
    shares = (upstream[..., np.newaxis] * shares)[..., np.newaxis]
    expected = [
        (-shares * difference / scale).sum(axis=-2),
        (shares * difference / scale).sum(axis=(0, 1)),
        (shares * (difference**2 - 1) / scale).sum(axis=(0, 1)),
    ]
    for gradient, closed_form in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, closed_form, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", ["mws", "mss"])
def test_it_compiles_with_its_gradient(method: str) -> None:
    loc, scale = gaussian_case("overlapping", 6, 2)
    z = loc + scale * np.random.default_rng(3).standard_normal((2, 6, 2))

    def objective(codes: tf.Tensor, means: tf.Tensor, scales: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(means)
            components = posteriors(means, scales)
            joint = minibatch_log_prob(codes, components, 100, method)
            marginal = minibatch_marginal_log_prob(codes, components, 100, method)
            total_correlation = tf.reduce_mean(joint - tf.reduce_sum(marginal, axis=-1))
        return joint, marginal, tape.gradient(total_correlation, means)

    arguments = [tf.constant(value) for value in (z, loc, scale)]
    expected = objective(*arguments)
    assert np.all(np.isfinite(expected[-1]))
    compiled = tf.function(objective, jit_compile=True, autograph=False)
    unknown = tf.function(
        objective,
        autograph=False,
        input_signature=[
            tf.TensorSpec(shape, tf.float64) for shape in ([2, None, 2], [None, 2], [None, 2])
        ],
    )
    for function in (compiled, unknown):
        for found, value in zip(function(*arguments), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-10, atol=1e-12)
    if method == "mss":  # the last minibatch of an epoch may be one code
        joint, *_ = unknown(z[:, :1], loc[:1], scale[:1])
        own = gaussian_log_densities(z[:, 0], loc[:1], scale[:1]) - math.log(100)
        np.testing.assert_allclose(joint, own, rtol=1e-12)


def test_half_precision_is_widened() -> None:
    loc, scale = gaussian_case("overlapping", 6, 2)
    half = tfd.MultivariateNormalDiag(tf.cast(loc, tf.float16), tf.cast(scale, tf.float16))
    z = half.sample(seed=(1, 2))
    assert z.dtype == tf.float16
    found = minibatch_log_prob(z, half, 60000)
    assert found.dtype == tf.float32
    wide = tfd.MultivariateNormalDiag(
        tf.cast(half.loc, tf.float64), tf.cast(half.stddev(), tf.float64)
    )
    np.testing.assert_allclose(
        found, minibatch_log_prob(tf.cast(z, tf.float64), wide, 60000), atol=1e-4
    )


# -- what is refused


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "stratified"}, ValueError, "method must be one of full, batch"),
        ({"num_observations": 2}, ValueError, "minibatch of 4 exceeds num_observations = 2"),
        ({"num_observations": 10.0}, TypeError, "num_observations must be an integer"),
        (
            {"num_observations": 0, "method": "batch"},
            ValueError,
            "num_observations must be at least 1",
        ),
        ({"method": "full"}, ValueError, "all N = 10 observations, got a minibatch of 4"),
        ({"z": np.zeros([3, 2])}, ValueError, r"\(3, 2\) does not end in \(4, 2\)"),
        ({"z": np.zeros([4])}, ValueError, "does not end in"),
        (
            {"components": tfd.MultivariateNormalDiag(np.zeros(2))},
            ValueError,
            "batch of posteriors",
        ),
        ({"components": np.zeros([4, 2])}, TypeError, "must be a tfd.Distribution"),
        (
            {
                "z": np.zeros([1, 2]),
                "components": tfd.MultivariateNormalDiag(np.zeros([1, 2])),
            },
            ValueError,
            '"mss" needs a larger minibatch',
        ),
    ],
)
@pytest.mark.parametrize("function", [minibatch_log_prob, minibatch_marginal_log_prob])
def test_wrong_input_is_refused(
    function: Any, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {
        "z": np.zeros([4, 2]),
        "components": tfd.MultivariateNormalDiag(np.zeros([4, 2]), np.ones([4, 2])),
        "num_observations": 10,
        "method": "mss",
    }
    with pytest.raises(error, match=message):
        function(**{**arguments, **change})


def test_a_minibatch_of_unknown_size_is_no_full_data_set() -> None:
    spec = tf.TensorSpec([None, 2], tf.float64)

    @tf.function(input_signature=[spec, spec], autograph=False)
    def full(z: tf.Tensor, means: tf.Tensor) -> tf.Tensor:
        components = tfd.MultivariateNormalDiag(means, tf.ones_like(means))
        return minibatch_log_prob(z, components, 6, "full")

    with pytest.raises(ValueError, match="got a minibatch of unknown size"):
        full(np.zeros([6, 2]), np.zeros([6, 2]))
