from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tests.testing import oracles
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.log_density import generic_scores
from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.decoders import MLPDecoder
from tfp_surgery.networks.encoders import MLPEncoder

tfb = tfp.bijectors
tfd = tfp.distributions

N, D = 7, 3


def _normal(*shape: int, seed: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


FAMILIES = {
    "diag": lambda: tfd.MultivariateNormalDiag(_normal(N, D), tf.exp(_normal(D))),
    "tril": lambda: tfd.MultivariateNormalTriL(
        _normal(N, D), tf.linalg.band_part(_normal(N, D, D), -1, 0) + 3 * tf.eye(D)
    ),
    "independent normal": lambda: tfd.Independent(tfd.Normal(_normal(N, D), 1.0), 1),
    "scalar normal": lambda: tfd.Normal(_normal(N), 1.0),
    "transformed": lambda: tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(_normal(N, D)), tfb.Exp()
    ),
    "log-normal": lambda: tfd.LogNormal(_normal(N), 1.0),
    "dirichlet": lambda: tfd.Dirichlet(tf.exp(_normal(N, D))),
    "von Mises-Fisher": lambda: tfd.VonMisesFisher(
        tf.math.l2_normalize(_normal(N, D), axis=-1), 2.0
    ),
    "one-hot": lambda: tfd.OneHotCategorical(logits=_normal(N, D)),
    "independent Bernoulli": lambda: tfd.Independent(tfd.Bernoulli(logits=_normal(N, D)), 1),
    "batch of diag": lambda: tfd.MultivariateNormalDiag(_normal(2, N, D), tf.exp(_normal(D))),
    "batch of dirichlet": lambda: tfd.Dirichlet(tf.exp(_normal(2, N, D))),
    "batch of scalars": lambda: tfd.Normal(_normal(2, N), 1.0),
}
UNEVEN = np.array([0.1, 3.0, 0.0, 1.0, 1.0, 0.5, 2.0])
WEIGHTS: dict[str, np.ndarray | None] = {"uniform": None, "weighted": UNEVEN}


def _dense(
    components: tfd.Distribution, z: tf.Tensor, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    scores = components.log_prob(tf.expand_dims(z, -1 - components.event_shape.rank))
    shape = scores.shape
    flat = scores.numpy().reshape(-1, N)  # [S..., B..., N] -> [S B, N]
    log_prob, entropy = oracles.log_prob_and_entropy(flat, weights)
    return log_prob.reshape(shape[:-1]), entropy.reshape(shape[:-1])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_agrees_with_the_dense_mixture(
    family: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generic_scores, "_BLOCK_ELEMENTS", 40)
    monkeypatch.setattr(generic_scores, "_BLOCK_QUERIES", 4)
    components = FAMILIES[family]()
    q_z = AggregatePosterior(components, weights=WEIGHTS[weights])
    z = q_z.sample([5, 2], seed=(1, 2))
    assert z.shape == (5, 2, *components.batch_shape[:-1], *components.event_shape)
    log_prob, entropy, *_ = q_z.evaluate(z)
    expected = _dense(components, z, WEIGHTS[weights])
    np.testing.assert_allclose(log_prob, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(entropy, expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(q_z.log_prob(z), log_prob)
    np.testing.assert_array_equal(q_z.index_entropy(z), entropy)
    index_log_probs = q_z.index_log_probs(z)
    assert index_log_probs.shape == (*log_prob.shape, N)
    index_probs = tf.exp(index_log_probs)
    np.testing.assert_allclose(tf.reduce_sum(index_probs, -1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        -tf.reduce_sum(tf.math.multiply_no_nan(index_log_probs, index_probs), -1),
        entropy,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_leaving_one_out_is_the_mixture_of_the_others(family: str, weights: str) -> None:
    components = FAMILIES[family]()
    q_z = AggregatePosterior(components, weights=WEIGHTS[weights])
    z = q_z.sample(N, seed=(1, 2))
    batch_ndims = components.batch_shape.rank - 1
    index = tf.reshape(tf.range(N), [N] + [1] * batch_ndims)
    actual = q_z.leave_one_out_log_prob(z, index)
    given = WEIGHTS[weights]
    base = np.ones(N) if given is None else given
    for left_out in range(N):
        others = np.where(np.arange(N) == left_out, 0.0, base)
        expected, _ = _dense(components, z, others)
        np.testing.assert_allclose(actual[left_out], expected[left_out], rtol=1e-4, atol=1e-5)


def test_leaving_the_dominant_one_out_keeps_its_digits() -> None:
    """Subtracting exp(log q_i) from the full sum in float32 would give -inf here."""
    loc, scale = oracles.gaussian_case("separated", 50, 2)
    loc, scale = loc.astype(np.float32), scale.astype(np.float32)
    q_z = AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale))
    actual = q_z.leave_one_out_log_prob(loc, tf.range(50))
    densities = oracles.gaussian_log_densities(loc, loc, scale)
    np.fill_diagonal(densities, -np.inf)
    expected = np.logaddexp.reduce(densities, axis=-1) - np.log(49)
    assert np.all(np.isfinite(expected))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_leaving_out_the_only_component_leaves_nothing() -> None:
    q_z = AggregatePosterior(tfd.Normal([0.0], [1.0]))
    np.testing.assert_array_equal(q_z.leave_one_out_log_prob([0.5], [0]), [-np.inf])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    "family", ["diag", "tril", "independent normal", "batch of diag", "dirichlet", "scalar normal"]
)
def test_moments_are_those_of_the_mixture(family: str, weights: str) -> None:
    components = FAMILIES[family]()
    given = WEIGHTS[weights]
    q_z = AggregatePosterior(components, weights=given)
    probs = np.full(N, 1 / N) if given is None else given / given.sum()
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(probs=tf.constant(probs, tf.float32)), components
    )
    np.testing.assert_allclose(q_z.mean(), mixture.mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(q_z.variance(), mixture.variance(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(q_z.stddev(), mixture.stddev(), rtol=1e-4, atol=1e-6)
    if family == "independent normal":  # tfd.Independent has no covariance of its own
        mixture = mixture.copy(
            components_distribution=tfd.MultivariateNormalDiag(
                components.mean(), components.stddev()
            )
        )
    if components.event_shape.rank == 1:
        np.testing.assert_allclose(q_z.covariance(), mixture.covariance(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("case", oracles.CASES)
def test_samples_follow_the_density(case: str, weights: str) -> None:
    """Kolmogorov-Smirnov of 20000 draws against the mixture's own distribution function."""
    loc, scale = oracles.gaussian_case(case, N, 1)
    given = WEIGHTS[weights]
    q_z = AggregatePosterior(tfd.Normal(loc[:, 0], scale[:, 0]), weights=given)
    probs = np.full(N, 1 / N) if given is None else given / given.sum()
    draws = q_z.sample(20000, seed=(3, 4)).numpy()
    result = stats.kstest(draws, lambda x: stats.norm.cdf(x[:, None], loc.T, scale.T) @ probs)
    assert result.pvalue > 1e-3


def test_samples_of_a_batch_follow_their_own_mixture() -> None:
    loc = np.array([[-5.0, 5.0], [100.0, 300.0]])
    q_z = AggregatePosterior(tfd.Normal(loc, 1.0), weights=[[1.0, 3.0], [1.0, 1.0]])
    draws = q_z.sample(20000, seed=(3, 4)).numpy()
    fraction = (draws > [0.0, 200.0]).mean(axis=0)
    expected = np.array([0.75, 0.5])
    error = np.sqrt(expected * (1 - expected) / 20000)
    assert np.all(np.abs(fraction - expected) < 4 * error)


def test_a_seed_gives_the_same_draws_and_another_gives_others() -> None:
    q_z = AggregatePosterior(FAMILIES["diag"]())
    first = q_z.sample(5, seed=(1, 2))
    np.testing.assert_array_equal(first, q_z.sample(5, seed=(1, 2)))
    assert not np.allclose(first, q_z.sample(5, seed=(1, 3)))


def test_reparameterized_gradient_is_the_derivative_of_the_expectation() -> None:
    """d/d loc_n E[sum z^2] = 2 loc_n / N; each draw's term has standard deviation 2 sigma / N."""
    loc = tf.constant([[1.0, -2.0], [0.5, 3.0]])
    num_draws = 40000
    with tf.GradientTape() as tape:
        tape.watch(loc)
        q_z = AggregatePosterior(tfd.MultivariateNormalDiag(loc, [0.5, 0.5]))
        z = q_z.sample(num_draws, seed=(1, 2))
        objective = tf.reduce_mean(tf.reduce_sum(z**2, axis=-1))
    assert q_z.reparameterization_type == tfd.FULLY_REPARAMETERIZED
    expected = loc.numpy()
    # With probability 1/2 a draw is from component n: Var(1[n] 2 z) < 2 (loc^2 + scale^2).
    error = np.sqrt(2 * (expected**2 + 0.25) / num_draws)
    assert np.all(np.abs(tape.gradient(objective, loc) - expected) < 4 * error)
    weighted = AggregatePosterior(tfd.Normal([0.0, 1.0], 1.0), weights=[1.0, 2.0])
    assert weighted.reparameterization_type == tfd.NOT_REPARAMETERIZED


def test_weights_receive_gradients() -> None:
    weights = tf.Variable([1.0, 2.0, 3.0])
    q_z = AggregatePosterior(tfd.Normal([0.0, 1.0, 2.0], 1.0), weights=weights)
    with tf.GradientTape() as tape:
        log_prob = q_z.log_prob(0.3)
    densities = stats.norm.pdf(0.3, [0.0, 1.0, 2.0])
    expected = densities / (densities @ [1.0, 2.0, 3.0]) - 1 / 6
    np.testing.assert_allclose(tape.gradient(log_prob, weights), expected, rtol=1e-4)


def test_marginals_are_the_mixtures_of_the_marginals() -> None:
    components = FAMILIES["tril"]()
    q_z = AggregatePosterior(components, weights=UNEVEN)
    marginals = q_z.marginals()
    assert marginals.batch_shape == (D,)
    assert marginals.event_shape == ()
    z = q_z.sample(4, seed=(1, 2))
    weights = UNEVEN / UNEVEN.sum()
    densities = stats.norm.pdf(
        z.numpy()[:, None, :], components.mean().numpy(), components.stddev().numpy()
    )  # [4, N, D]
    np.testing.assert_allclose(
        marginals.log_prob(z), np.log(np.einsum("n,mnd->md", weights, densities)), rtol=1e-4
    )
    np.testing.assert_allclose(marginals.mean(), q_z.mean(), rtol=1e-5)
    np.testing.assert_allclose(marginals.variance(), q_z.variance(), rtol=1e-4)


@pytest.mark.parametrize("family", ["diag", "tril", "dirichlet", "one-hot"])
def test_works_in_functions_compiled_by_xla(family: str) -> None:
    q_z = AggregatePosterior(FAMILIES[family]())

    @tf.function(jit_compile=True)
    def run() -> tuple[tf.Tensor, tf.Tensor]:
        z = q_z.sample(6, seed=tf.constant([1, 2]))
        return z, q_z.log_prob(z)

    z, log_prob = run()
    np.testing.assert_allclose(log_prob, q_z.log_prob(z), rtol=1e-5)


def test_passes_through_a_function_as_an_argument() -> None:
    q_z = AggregatePosterior(FAMILIES["diag"]())
    z = q_z.sample(4, seed=(1, 2))
    score = tf.function(lambda distribution, z: distribution.log_prob(z))
    np.testing.assert_allclose(score(q_z, z), q_z.log_prob(z), rtol=1e-6)
    identity = tf.function(lambda distribution: distribution)
    assert isinstance(identity(q_z), AggregatePosterior)


def test_components_that_are_no_composites_work_as_well() -> None:
    class Plain(tfd.Distribution):
        """A Normal that is no CompositeTensor."""

        def __init__(self, loc: tf.Tensor) -> None:
            parameters = dict(locals())
            self.loc = tf.convert_to_tensor(loc)
            super().__init__(
                tf.float32, tfd.FULLY_REPARAMETERIZED, False, True, parameters=parameters
            )

        @classmethod
        def _parameter_properties(
            cls, dtype: tf.DType, num_classes: int | None = None
        ) -> dict[str, Any]:
            return {"loc": tfp.util.ParameterProperties()}

        def _event_shape(self) -> tf.TensorShape:
            return tf.TensorShape([])

        def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
            return tfd.Normal(self.loc, 1.0).log_prob(x)

    q_z = AggregatePosterior(Plain([0.0, 2.0]))
    assert isinstance(q_z, AggregatePosterior)
    expected = AggregatePosterior(tfd.Normal([0.0, 2.0], 1.0)).log_prob(0.7)
    np.testing.assert_allclose(q_z.log_prob(0.7), expected, rtol=1e-6)


def test_composes_with_independent_bijectors_and_joint_distributions() -> None:
    batch = AggregatePosterior(FAMILIES["batch of scalars"]())
    z = batch.sample(3, seed=(1, 2))
    np.testing.assert_allclose(
        tfd.Independent(batch, 1).log_prob(z), tf.reduce_sum(batch.log_prob(z), -1), rtol=1e-5
    )
    q_z = AggregatePosterior(FAMILIES["diag"]())
    shift = tf.constant([1.0, 2.0, 3.0])
    shifted = tfb.Shift(shift)(q_z)
    z = q_z.sample(3, seed=(1, 2))
    np.testing.assert_allclose(shifted.log_prob(z + shift), q_z.log_prob(z), rtol=1e-4)
    joint = tfd.JointDistributionSequential([q_z, lambda z: tfd.Independent(tfd.Normal(z, 1.0), 1)])
    code, observation = joint.sample(5, seed=(1, 2))
    np.testing.assert_allclose(
        joint.log_prob([code, observation]),
        q_z.log_prob(code) + tf.reduce_sum(tfd.Normal(code, 1.0).log_prob(observation), axis=-1),
        rtol=1e-5,
    )


def test_is_a_target_for_hamiltonian_monte_carlo() -> None:
    """The chain's mean lies within 5 standard errors of the closed form."""
    loc, scale = oracles.gaussian_case("overlapping", 30, 2)
    q_z = AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale))

    @tf.function(jit_compile=True)
    def run() -> tf.Tensor:
        kernel = tfp.mcmc.HamiltonianMonteCarlo(q_z.log_prob, step_size=0.5, num_leapfrog_steps=4)
        return tfp.mcmc.sample_chain(
            300,
            tf.zeros([20, 2], tf.float64),
            kernel=kernel,
            num_burnin_steps=100,
            trace_fn=None,
            seed=tf.constant([1, 2]),
        )

    draws = run()
    effective = tf.reduce_sum(tfp.mcmc.effective_sample_size(draws), axis=0)
    error = q_z.stddev() / tf.sqrt(effective)
    assert np.all(np.abs(tf.reduce_mean(draws, [0, 1]) - q_z.mean()) < 5 * error)


def test_is_a_prior_that_a_vae_trains_with_under_xla() -> None:
    x = (np.random.default_rng(0).uniform(size=(64, 6)) < 0.3).astype(np.float32)
    q_z = AggregatePosterior(tfd.MultivariateNormalDiag(_normal(20, 2), 0.5 * tf.ones([20, 2])))
    keras.utils.set_random_seed(0)
    vae = VAE(MLPEncoder(2, hidden_sizes=(8,)), MLPDecoder((6,), hidden_sizes=(8,)), q_z)
    vae.compile(optimizer=keras.optimizers.Adam(0.01), jit_compile=True)
    loss = vae.fit(x, epochs=20, batch_size=32, verbose=0).history["loss"]
    assert np.all(np.isfinite(loss))
    assert loss[-1] < loss[0]


def test_constructor_refuses_what_does_not_fit() -> None:
    with pytest.raises(TypeError, match=r"tfd\.Distribution"):
        AggregatePosterior(tf.zeros([3]))
    with pytest.raises(ValueError, match="rightmost batch dimension"):
        AggregatePosterior(tfd.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="N = 0"):
        AggregatePosterior(tfd.Normal(tf.zeros([0]), 1.0))
    with pytest.raises(ValueError, match="weights"):
        AggregatePosterior(tfd.Normal(tf.zeros([3]), 1.0), weights=[1.0, 2.0])
    with pytest.raises(TypeError, match="integer"):
        AggregatePosterior(tfd.Normal(tf.zeros([3]), 1.0)).leave_one_out_log_prob(0.0, 1.0)


@pytest.mark.parametrize("shape", [(5, 2), (), (3,)])
def test_queries_of_another_event_shape_are_refused(shape: tuple[int, ...]) -> None:
    """An event of one dimension must not be broadcast to two."""
    q_z = AggregatePosterior(tfd.MultivariateNormalDiag(tf.zeros([4, 1]), tf.ones([4, 1])))
    for method in (q_z.log_prob, q_z.index_entropy, q_z.index_log_probs):
        with pytest.raises(ValueError, match="event shape"):
            method(tf.zeros(shape))


@pytest.mark.parametrize("family", ["diag", "tril"])
def test_no_queries_give_nothing(family: str) -> None:
    q_z = AggregatePosterior(FAMILIES[family]())
    assert q_z.log_prob(tf.zeros([0, D])).shape == (0,)
    assert q_z.index_entropy(tf.zeros([2, 0, D])).shape == (2, 0)


def test_indices_of_few_bits_leave_out_one_component() -> None:
    components = tfd.Normal(tf.linspace(0.0, 1.0, 300), 0.1)
    q_z = AggregatePosterior(components)
    expected = q_z.leave_one_out_log_prob([0.5], tf.constant([5]))
    actual = q_z.leave_one_out_log_prob([0.5], tf.constant([5], tf.uint8))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("index", [-1, 7])
def test_indices_out_of_range_are_refused(index: int) -> None:
    q_z = AggregatePosterior(FAMILIES["diag"]())
    with pytest.raises(ValueError, match=r"index must lie in \[0, 7\)"):
        q_z.leave_one_out_log_prob(tf.zeros([1, D]), [index])


def test_infinite_densities_stay_infinite() -> None:
    q_z = AggregatePosterior(tfd.Beta([0.5, 2.0], 1.0))
    assert q_z.log_prob(0.0) == np.inf


def test_scalar_weights_serve_the_marginals() -> None:
    q_z = AggregatePosterior(FAMILIES["diag"](), weights=2.0)
    z = q_z.sample(3, seed=(1, 2))
    uniform = AggregatePosterior(FAMILIES["diag"]()).marginals()
    np.testing.assert_allclose(q_z.marginals().log_prob(z), uniform.log_prob(z), rtol=1e-5)


def test_default_bijector_is_that_of_a_shared_support() -> None:
    bijector = AggregatePosterior(
        FAMILIES["dirichlet"]()
    ).experimental_default_event_space_bijector()
    np.testing.assert_allclose(tf.reduce_sum(bijector(tf.zeros([D - 1]))), 1.0, rtol=1e-6)
    shifted = tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(_normal(N, D)), tfb.Shift(_normal(N, D))
    )
    with pytest.raises(NotImplementedError, match="do not share one support"):
        AggregatePosterior(shifted).experimental_default_event_space_bijector()


def test_half_precision_components_are_scored_in_float32() -> None:
    loc, scale = oracles.gaussian_case("overlapping", 50, 20)
    half = tfd.MultivariateNormalDiag(tf.cast(loc, tf.bfloat16), tf.cast(scale, tf.bfloat16))
    q_z = AggregatePosterior(half)
    z = q_z.sample(5, seed=(1, 2))
    assert z.dtype == tf.float32
    rounded = (tf.cast(part, tf.float64).numpy() for part in (half.mean(), half.stddev()))
    expected, _ = oracles.log_prob_and_entropy(oracles.gaussian_log_densities(z.numpy(), *rounded))
    np.testing.assert_allclose(q_z.log_prob(z), expected, atol=1e-4)


def test_users_see_the_public_name() -> None:
    assert "tfp.distributions.AggregatePosterior" in str(AggregatePosterior(FAMILIES["diag"]()))


def test_validate_args_checks_values() -> None:
    components = tfd.Normal(tf.zeros([2]), 1.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="non-negative"):
        AggregatePosterior(components, weights=[1.0, -1.0], validate_args=True)
    q_z = AggregatePosterior(components, validate_args=True)
    leave_out = tf.function(q_z.leave_one_out_log_prob)
    with pytest.raises(tf.errors.InvalidArgumentError, match="index must be < N"):
        leave_out(tf.constant([0.0]), tf.constant([2]))


def test_memory_stays_that_of_a_block() -> None:
    """A dense [M, N, D] would take 12.8 GB here; the graph holds no tensor of M x N elements."""
    num, size = 20000, 8
    components = tfd.MultivariateNormalDiag(tf.random.stateless_normal([num, size], (0, 1)))
    graph = tf.function(AggregatePosterior(components).log_prob, autograph=False)
    concrete = graph.get_concrete_function(tf.TensorSpec([num, size], tf.float32))
    largest = max(
        tensor.shape.num_elements() or 0
        for function in [concrete.graph, *_functions(concrete.graph)]
        for op in function.get_operations()
        for tensor in op.outputs
    )
    assert largest <= 2 * max(512 * 1024 * size, num * size)


def _functions(graph: tf.Graph) -> list[tf.Graph]:
    from tensorflow.python.framework import function_def_to_graph

    return [
        function_def_to_graph.function_def_to_graph(definition)
        for definition in graph.as_graph_def().library.function
    ]


def test_from_arrays_is_the_mixture_of_their_gaussians() -> None:
    """Against float64 NumPy, for each word, with and without weights."""
    loc, scale = oracles.gaussian_case("overlapping", 9, 3)
    weights = np.arange(9.0)
    tril = scale[:, :, None] * np.eye(3)
    z = loc[:4] + 0.3
    densities = oracles.gaussian_log_densities(z, loc, scale)
    for given in (None, weights):
        expected, _ = oracles.log_prob_and_entropy(densities, given)
        for width in (
            {"scale": scale},
            {"variance": scale**2},
            {"log_variance": 2 * np.log(scale)},
            {"scale_tril": tril},
        ):
            q_z = AggregatePosterior.from_arrays(loc=loc, weights=given, **width)
            assert q_z.batch_shape == ()
            np.testing.assert_allclose(q_z.log_prob(z), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones([3, 1]), r"weights must have shape \[3\].*got \[3, 1\]"),
        (2.0, r"got \[\]"),
        ([1.0, -1.0, 1.0], "at index 1 is -1.0"),
        ([0.0, 0.0, 0.0], "all are zero"),
        ([1.0, np.nan, 1.0], "at index 1 is nan"),
    ],
)
def test_from_arrays_takes_one_weight_an_observation(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AggregatePosterior.from_arrays(loc=[0.0, 1.0, 2.0], scale=[1.0, 1.0, 1.0], weights=weights)


def test_from_arrays_takes_keywords_alone() -> None:
    with pytest.raises(TypeError, match="positional"):
        AggregatePosterior.from_arrays([0.0], [1.0])  # type: ignore[call-arg]


@pytest.mark.parametrize("family", ["diag", "tril", "scalar normal", "dirichlet", "transformed"])
def test_weights_may_add_batch_dimensions(family: str) -> None:
    """A mixture for each row of weights, over the same components, is each row's own mixture."""
    weights = np.random.default_rng(0).uniform(size=(4, 1, N)).astype(np.float32)
    components = FAMILIES[family]()
    q_z = AggregatePosterior(components, weights=weights)
    assert q_z.batch_shape == (4, 1)
    np.testing.assert_array_equal(q_z.batch_shape_tensor(), [4, 1])
    z = q_z.sample(3, seed=(1, 2))
    assert z.shape == (3, 4, 1, *components.event_shape)
    found = q_z.evaluate(z, index=2)
    left_out = q_z.leave_one_out_log_prob(z, 2)
    moments = [] if family == "transformed" else [q_z.mean(), q_z.variance()]
    for row in range(4):
        one = AggregatePosterior(components, weights=weights[row, 0])
        expected = one.evaluate(z[:, row, 0], index=2)
        for part, other in zip(found, expected, strict=True):  # log_prob, index_entropy, own
            np.testing.assert_allclose(part[:, row, 0], other, rtol=1e-4)
        expected = one.leave_one_out_log_prob(z[:, row, 0], 2)
        np.testing.assert_allclose(left_out[:, row, 0], expected, rtol=1e-5)
        for actual, expected in zip(moments, (one.mean, one.variance), strict=False):
            np.testing.assert_allclose(actual[row, 0], expected(), rtol=1e-4, atol=1e-6)
    if family in ("diag", "tril"):
        one = AggregatePosterior(components, weights=weights[3, 0]).marginals()
        actual = q_z.marginals().log_prob(z)[:, 3, 0]
        np.testing.assert_allclose(actual, one.log_prob(z[:, 3, 0]), rtol=1e-4)


def test_weights_and_components_may_both_have_batches() -> None:
    """Weights [2, 1, N] over components [3, N] are batch [2, 3], as of tfd.MixtureSameFamily."""
    loc = np.random.default_rng(0).normal(size=(3, N))
    weights = np.random.default_rng(1).uniform(size=(2, 1, N))
    q_z = AggregatePosterior(tfd.Normal(loc, 1.0), weights=weights)
    assert q_z.batch_shape == (2, 3)
    z = np.linspace(-2.0, 2.0, 5)[:, None, None]
    densities = stats.norm.pdf(z[..., None], loc)  # [5, 1, 3, N]
    probs = weights / weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(q_z.prob(z), (densities * probs).sum(axis=-1), rtol=1e-12)


@pytest.mark.parametrize("shape", [(N, 1), (2, 1), (3, 2, 1), (2, N + 1)])
def test_a_column_of_weights_is_not_a_batch_of_mixtures(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one entry for each component"):
        AggregatePosterior(tfd.Normal(_normal(N), 1.0), weights=np.ones(shape, np.float32))
