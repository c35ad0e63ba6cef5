"""Published mistakes in minibatch estimates of the ELBO's terms, as controls beside the right ones.

Each is written out as it was published and must fail where the right estimate holds: additivity
of the terms does not tell them apart, the exact values do.
"""

from __future__ import annotations

import gzip
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

from tests.testing.minibatches import misplaced_weights
from tests.testing.mnist import MNIST_FILES, mnist_dir
from tests.testing.oracles import gaussian_case
from tfp_surgery.components import components as components_lib
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate
from tfp_surgery.information.minibatch_log_prob import (
    minibatch_log_prob,
    minibatch_marginal_log_prob,
)
from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.decoders import MLPDecoder
from tfp_surgery.networks.encoders import MLPEncoder
from tfp_surgery.priors.base import StandardNormalPrior
from tfp_surgery.surgery.elbo_surgery import elbo_surgery

tfd = tfp.distributions


def dimension_log_densities(z: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """log q(z_bj|x_b'), `[B, B, D]`."""
    densities: np.ndarray = stats.norm.logpdf(z[:, np.newaxis], loc, scale)
    return densities


def misplaced(every: np.ndarray, num_observations: int) -> tuple[np.ndarray, np.ndarray]:
    """log q(z_b) and sum_j log q(z_bj) with misplaced weights."""
    weights = np.log(misplaced_weights(len(every), num_observations))
    joint = special.logsumexp(every.sum(axis=-1) + weights, axis=-1)
    product = special.logsumexp(every + weights[..., np.newaxis], axis=1).sum(axis=-1)
    return joint, product


def weighted_by_dimension(
    every: np.ndarray, num_observations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Likewise, with the weight added to every dimension before the sum over dimensions."""
    every = every + np.log(misplaced_weights(len(every), num_observations))[..., np.newaxis]
    joint = special.logsumexp(every.sum(axis=-1), axis=-1)
    product = special.logsumexp(every, axis=1).sum(axis=-1)
    return joint, product


def own_log_density(every: np.ndarray) -> np.ndarray:
    own: np.ndarray = np.einsum("bbd->b", every)
    return own


def minibatch_and_seed(
    rng: np.random.Generator, num: int, size: int
) -> tuple[tf.Tensor, tf.Tensor]:
    seed = rng.integers(2**31, size=2).astype(np.int32)
    return tf.constant(rng.choice(num, size, replace=False)), tf.constant(seed)


def over_batches(values: list[float]) -> Estimate:
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return Estimate(float(np.mean(values)), float(error), len(values))


def test_misplaced_weights_cap_the_information_below_its_value() -> None:
    """Posteriors that do not overlap: I(n; z) = log N = 11.00, and log(B - 1) = 4.14 is found."""
    size, num_observations = 64, 60000
    loc, scale = gaussian_case("separated", size, 2)
    z = loc + scale * np.random.default_rng(0).standard_normal(loc.shape)
    every = dimension_log_densities(z, loc, scale)
    own = own_log_density(every)
    wrong = own - misplaced(every, num_observations)[0]
    # All but two of the B observations have the weight 1/(B-1).
    np.testing.assert_allclose(np.median(wrong), math.log(size - 1), atol=1e-9)
    assert wrong.mean() < math.log(size - 1) + 0.12
    for method in ("mss", "partially_stratified"):
        right = own - minibatch_log_prob(
            z, tfd.MultivariateNormalDiag(loc, scale), num_observations, method
        )
        np.testing.assert_allclose(right, np.full(size, math.log(num_observations)), atol=1e-9)


def test_a_weight_for_each_dimension_leaves_the_sum_right_and_the_terms_wrong() -> None:
    """D = 10, no overlap: I(n; z) = log N = 11.00; D log(B - 1) = 41.43 is found at B = 64."""
    size, num_observations, dim = 64, 60000, 10
    loc, scale = gaussian_case("separated", size, dim)
    z = loc + scale * np.random.default_rng(0).standard_normal(loc.shape)
    every = dimension_log_densities(z, loc, scale)
    own = own_log_density(every)
    joint, product = weighted_by_dimension(every, num_observations)
    information, total_correlation = own - joint, joint - product
    assert np.median(information) == pytest.approx(dim * math.log(size - 1))
    assert information.mean() > 3 * math.log(num_observations)
    # The sum of both does not know: the weights cancel in it.
    sound = own - misplaced(every, num_observations)[1]
    np.testing.assert_allclose(information + total_correlation, sound, rtol=1e-10)
    components = tfd.MultivariateNormalDiag(loc, scale)
    right = own - minibatch_log_prob(z, components, num_observations)
    np.testing.assert_allclose(right, np.full(size, math.log(num_observations)), atol=1e-9)


def test_the_minibatch_as_data_set_saturates() -> None:
    size, num = 64, 2000
    loc, scale = gaussian_case("separated", num, 2)
    components = tfd.MultivariateNormalDiag(loc, scale)
    z = components.sample(seed=(1, 2))
    exact = components.log_prob(z) - AggregatePosterior(components).log_prob(z)
    np.testing.assert_allclose(exact, np.full(num, math.log(num)), atol=1e-9)
    every = dimension_log_densities(z.numpy()[:size], loc[:size], scale[:size])
    as_data_set = special.logsumexp(every.sum(axis=-1), axis=-1) - math.log(size)
    np.testing.assert_allclose(
        own_log_density(every) - as_data_set, np.full(size, math.log(size)), atol=1e-9
    )


def test_mws_overestimates_total_correlation_where_posteriors_coincide() -> None:
    """I(n; z) = TC = 0, and log N and (D - 1) log N are found."""
    size, num_observations, dim = 64, 60000, 10
    components = tfd.MultivariateNormalDiag(*gaussian_case("collapsed", size, dim))
    z = components.sample(seed=(1, 2))
    for method, information, correlation in (
        ("mws", math.log(num_observations), (dim - 1) * math.log(num_observations)),
        ("mss", 0.0, 0.0),
        ("partially_stratified", 0.0, 0.0),
        ("batch", 0.0, 0.0),
    ):
        joint = minibatch_log_prob(z, components, num_observations, method)
        marginals = minibatch_marginal_log_prob(z, components, num_observations, method)
        found = components.log_prob(z) - joint, joint - marginals.numpy().sum(axis=-1)
        np.testing.assert_allclose(found[0], np.full(size, information), atol=1e-9)
        np.testing.assert_allclose(found[1], np.full(size, correlation), atol=1e-9)


def test_a_minibatch_total_correlation_can_be_negative() -> None:
    """Right weights do not mend it: log q(z) is underestimated, and that of one dimension less."""
    num, dim, size = 2000, 4, 16
    loc = np.random.default_rng(0).standard_normal((num, dim))
    components = tfd.MultivariateNormalDiag(loc, np.full((num, dim), 0.5))
    z = components.sample(seed=(1, 2))
    aggregate = AggregatePosterior(components)
    exact = aggregate.log_prob(z) - aggregate.marginals().log_prob(z).numpy().sum(axis=-1)
    assert exact.numpy().mean() > 0.0
    methods = ("mss", "partially_stratified")

    @tf.function(autograph=False)
    def one_batch(indices: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
        minibatch = components_lib.gather(components, indices)
        codes = minibatch.sample(seed=seed)
        return [
            tf.reduce_mean(
                minibatch_log_prob(codes, minibatch, num, method)
                - tf.reduce_sum(minibatch_marginal_log_prob(codes, minibatch, num, method), axis=-1)
            )
            for method in methods
        ]

    rng = np.random.default_rng(1)
    found = [
        [float(value) for value in one_batch(*minibatch_and_seed(rng, num, size))]
        for _ in range(40)
    ]
    for values in np.transpose(found):
        estimate = over_batches(list(values))
        assert estimate.value < -4.5 * estimate.standard_error


@pytest.mark.slow
def test_on_mnist_the_exact_information_stays_below_log_n_and_the_miscoded_one_does_not() -> None:
    """A VAE with 10 latents on 12000 images; the miscoded terms add up as well as the exact."""
    num, dim, size = 12000, 10, 64
    with gzip.open(mnist_dir() / MNIST_FILES[2]) as stream:
        pixels = np.frombuffer(stream.read(16 + num * 784), np.uint8, offset=16)
    x = (pixels.reshape(num, 28, 28, 1) > 127).astype(np.float32)
    keras.utils.set_random_seed(0)
    vae = VAE(MLPEncoder(dim, (256,)), MLPDecoder((28, 28, 1), (256,)), StandardNormalPrior(dim))
    vae.compile(optimizer=keras.optimizers.Adam(2e-3), jit_compile=True)
    vae.fit(x, batch_size=100, epochs=8, verbose=0)

    surgery = elbo_surgery(x, vae.encoder, vae.decoder, vae.prior, num_samples=2, seed=1)
    exact = surgery.index_code_mutual_information
    # A trained model: most codes tell their observation.
    assert 0.7 * math.log(num) < exact.value <= math.log(num) + 4.5 * exact.standard_error

    aggregate = AggregatePosterior.from_encoder(vae.encoder, x)
    rng = np.random.default_rng(2)
    terms: dict[str, list[tuple[float, float, float, float]]] = {"miscoded": [], "mss": []}
    for _ in range(50):
        chosen, seed = minibatch_and_seed(rng, num, size)
        minibatch = components_lib.gather(aggregate.components_distribution, chosen)
        z = minibatch.sample(seed=seed)
        loc, scale, codes = (
            part.numpy().astype(np.float64) for part in (minibatch.mean(), minibatch.stddev(), z)
        )
        every = dimension_log_densities(codes, loc, scale)
        own, log_prior = own_log_density(every), stats.norm.logpdf(codes).sum(axis=-1)
        right = tfd.MultivariateNormalDiag(loc, scale)
        estimates = {
            "miscoded": weighted_by_dimension(every, num),
            "mss": (
                minibatch_log_prob(codes, right, num).numpy(),
                minibatch_marginal_log_prob(codes, right, num).numpy().sum(axis=-1),
            ),
        }
        for name, (joint, product) in estimates.items():
            parts = (own - joint, joint - product, product - log_prior, own - log_prior)
            terms[name].append(tuple(part.mean() for part in parts))
    for name, values in terms.items():
        information, correlation, dimension_wise, average_kl = (
            over_batches(list(column)) for column in np.transpose(values)
        )
        # Additivity holds for both, and both average KLs are that of the surgery.
        total = information.value + correlation.value + dimension_wise.value
        assert total == pytest.approx(average_kl.value, rel=1e-9)
        error = math.hypot(average_kl.standard_error, surgery.average_kl.standard_error)
        assert abs(average_kl.value - surgery.average_kl.value) < 4.5 * error
        if name == "miscoded":
            assert information.value > 3 * math.log(num)
            assert correlation.value < -10.0
        else:
            # An upper bound of I(n; z) in expectation, below log N at every draw.
            assert exact.value - 4.5 * exact.standard_error < information.value <= math.log(num)
