from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing import oracles
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.log_density import generic_scores, streamed_pass

tfb = tfp.bijectors
tfd = tfp.distributions


@pytest.fixture(params=["one block", "many ragged blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "many ragged blocks":
        monkeypatch.setattr(generic_scores, "_BLOCK_ELEMENTS", 50)
        monkeypatch.setattr(generic_scores, "_BLOCK_QUERIES", 4)
        monkeypatch.setattr(streamed_pass, "_DIAGONAL_BLOCK", (7, 5))
        monkeypatch.setattr(streamed_pass, "_FULL_COVARIANCE_BLOCK", (4, 6))
        monkeypatch.setattr(streamed_pass, "_SMALL_BLOCK", (4, 6))
        streamed_pass._gaussian_pass.cache_clear()
    yield
    streamed_pass._gaussian_pass.cache_clear()


def _uniform_log_weights(num_components: int, dtype: tf.DType) -> tf.Tensor:
    return tf.fill([num_components], tf.constant(-np.log(num_components), dtype))


def _components(kind: str, loc: Any, scale: Any) -> tfd.Distribution:
    if kind == "diag":
        return tfd.MultivariateNormalDiag(loc, scale)
    if kind == "tril":
        return tfd.MultivariateNormalTriL(loc, tf.linalg.diag(scale))
    if kind == "generic":  # scored by TFP's own log_prob
        return tfd.TransformedDistribution(
            tfd.MultivariateNormalDiag(loc, scale), tfp.bijectors.Identity()
        )
    raise ValueError(kind)


def _draws(loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return loc + scale * np.random.default_rng(5).normal(size=loc.shape)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("kind", ["diag", "tril", "generic"])
@pytest.mark.parametrize("case", oracles.CASES)
@pytest.mark.parametrize("small", [True, False])
def test_agrees_with_brute_force_in_float64(
    case: str, kind: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr(streamed_pass, "_SMALL_PROBLEM", 0)
    loc, scale = oracles.gaussian_case(case, 23, 3)
    z = _draws(loc, scale)
    log_prob, entropy = streamed_pass.log_prob_and_index_entropy(
        _components(kind, loc, scale), _uniform_log_weights(23, tf.float64), tf.constant(z)
    )
    expected = oracles.log_prob_and_entropy(oracles.gaussian_log_densities(z, loc, scale))
    np.testing.assert_allclose(log_prob, expected[0], rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(entropy, expected[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", oracles.CASES)
@pytest.mark.parametrize("event_size", [1, 2, 20, 64])
@pytest.mark.parametrize("scale_factor", [1.0, 1e-1, 1e-3])
def test_float32_error_stays_within_its_bound(
    case: str, event_size: int, scale_factor: float
) -> None:
    """|error| <= max(1e-4, 4 eps |log q|), the posteriors as narrow as they come."""
    loc, scale = oracles.gaussian_case(case, 1100, event_size)
    loc, scale = loc.astype(np.float32), (scale * scale_factor).astype(np.float32)
    z = (loc + scale * np.random.default_rng(5).normal(size=loc.shape)).astype(np.float32)[:200]
    log_prob, entropy = streamed_pass.log_prob_and_index_entropy(
        tfd.MultivariateNormalDiag(loc, scale),
        _uniform_log_weights(1100, tf.float32),
        tf.constant(z),
    )
    expected = oracles.log_prob_and_entropy(oracles.gaussian_log_densities(z, loc, scale))
    bound = np.maximum(1e-4, 4 * np.finfo(np.float32).eps * np.abs(expected[0]))
    assert np.all(np.abs(log_prob.numpy() - expected[0]) <= bound)
    np.testing.assert_allclose(entropy, expected[1], atol=1e-4)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("kind", ["diag", "tril", "generic"])
@pytest.mark.parametrize("case", oracles.CASES)
@pytest.mark.parametrize("what", [0, 1, 2])
def test_gradients_agree_with_the_dense_computation(case: str, kind: str, what: int) -> None:
    """To queries, weights and parameters: of log q, of the entropy, and of a mix of both."""
    loc, scale = oracles.gaussian_case(case, 13, 3)
    variables = [
        tf.constant(_draws(loc, scale)),
        tf.constant(np.random.default_rng(1).normal(size=13)),
        tf.constant(loc),
        tf.constant(scale),
    ]
    upstream = tf.constant(np.random.default_rng(2).normal(size=13))

    def reduce(log_prob: tf.Tensor, entropy: tf.Tensor) -> tf.Tensor:
        parts = (log_prob, entropy, log_prob - 2.0 * entropy)
        return tf.reduce_sum(upstream * parts[what])

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(variables)
        z, logits, loc_variable, scale_variable = variables
        log_weights = tf.nn.log_softmax(logits)
        streamed = reduce(
            *streamed_pass.log_prob_and_index_entropy(
                _components(kind, loc_variable, scale_variable),
                log_weights,
                z,
            )
        )
        scores = log_weights + tf.reduce_sum(
            -0.5 * ((z[:, None] - loc_variable) / scale_variable) ** 2
            - tf.math.log(scale_variable)
            - 0.5 * np.log(2 * np.pi),
            axis=-1,
        )
        index_log_prob = tf.nn.log_softmax(scores)
        dense = reduce(
            tf.reduce_logsumexp(scores, -1),
            -tf.reduce_sum(tf.exp(index_log_prob) * index_log_prob, -1),
        )
    actual = tape.gradient(streamed, variables)
    expected = tape.gradient(dense, variables)
    for got, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(
            got, wanted, rtol=1e-7, atol=1e-9 * max(1.0, np.abs(wanted).max())
        )


Flow = tuple[Callable[[], tfb.Bijector], Sequence[tf.Variable]]


def _autoregressive_network(_: str) -> Flow:
    """TFP's, whose weights are float32."""
    network = tfb.AutoregressiveNetwork(
        params=2, hidden_units=[8], event_shape=[3], activation="tanh"
    )
    network(tf.zeros([1, 3]))
    flow = tfb.Invert(tfb.MaskedAutoregressiveFlow(network))
    return lambda: flow, network.trainable_variables


def _two_inverse_steps(dtype: str) -> Flow:
    """Of one network, with the order turned round in between."""
    weights = tf.Variable(np.random.default_rng(4).normal(size=(2, 3, 3)), dtype=dtype)

    def shift_and_log_scale(z: tf.Tensor) -> list[tf.Tensor]:
        masked = weights * np.triu(np.ones([3, 3]), 1)  # coordinate j sees those before it
        return [tf.tanh(tf.linalg.matvec(masked[i], z, transpose_a=True)) for i in range(2)]

    step = tfb.Invert(tfb.MaskedAutoregressiveFlow(shift_and_log_scale))
    return lambda: tfb.Chain([step, tfb.Permute([2, 1, 0]), step]), [weights]


def _coupling_of_keras_3(dtype: str) -> Flow:
    layer = keras.layers.Dense(4, activation="tanh", dtype=dtype)
    layer.build((None, 1))

    def shift_and_log_scale(z: tf.Tensor, size: int, **_: Any) -> tuple[tf.Tensor, tf.Tensor]:
        both = layer(z)
        return both[..., :size], both[..., size:]

    def flow() -> tfb.Bijector:
        return tfb.RealNVP(num_masked=1, shift_and_log_scale_fn=shift_and_log_scale)

    return flow, [variable.value for variable in layer.trainable_variables]


def _table_in_a_function(dtype: str) -> Flow:
    """Its gradients are sparse."""
    table = tf.Variable(np.random.default_rng(3).normal(size=(3, 3)), dtype=dtype)

    def flow() -> tfb.Bijector:
        return tfb.MaskedAutoregressiveFlow(lambda z: (tf.gather(table, [1])[0] + 0.0 * z, None))

    return flow, [table]


def _declared_variables(dtype: str) -> Flow:
    """A [D] shift and a [D, D] matrix, with N = D components."""
    shift = tf.Variable([0.1, -0.2, 0.3], dtype=dtype)
    matrix = tf.Variable([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [0.2, 0.3, 0.5]], dtype=dtype)
    return lambda: tfb.Shift(shift)(tfb.ScaleMatvecTriL(matrix)), [shift, matrix]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("blocks", ["many ragged blocks"], indirect=True)
@pytest.mark.parametrize(
    ("make", "mode"),
    [
        (_autoregressive_network, "eager"),
        (_two_inverse_steps, "eager"),
        (_coupling_of_keras_3, "eager"),
        (_table_in_a_function, "eager"),
        (_declared_variables, "eager"),
        (_table_in_a_function, "graph"),
        pytest.param(_coupling_of_keras_3, "graph", marks=pytest.mark.slow),
        pytest.param(_two_inverse_steps, "graph", marks=pytest.mark.slow),
        pytest.param(_coupling_of_keras_3, "compiled", marks=pytest.mark.slow),
        pytest.param(_autoregressive_network, "compiled", marks=pytest.mark.slow),
    ],
)
def test_gradients_reach_the_network_that_components_share(
    make: Callable[[str], Flow], mode: str
) -> None:
    """As TFP's own log_prob and autodiff have them; N = 3 is the first dimension of kernels too."""
    dtype = "float32" if make is _autoregressive_network else "float64"
    flow, network = make(dtype)
    rng = np.random.default_rng(0)
    num, num_queries = 3, 6
    loc, scale = (tf.Variable(rng.normal(size=(num, 3)), dtype=dtype) for _ in range(2))
    z = tf.Variable(rng.normal(size=(num_queries, 3)), dtype=dtype)
    upstream = tf.constant(rng.normal(size=(2, num_queries)), dtype)
    variables = [z, loc, scale, *network]

    def components() -> tfd.Distribution:
        return tfd.TransformedDistribution(
            tfd.MultivariateNormalDiag(loc, tf.exp(0.3 * scale)), flow()
        )

    def streamed() -> Any:
        with tf.GradientTape() as tape:
            evaluation = AggregatePosterior(components()).evaluate(z)
            results = tf.stack([evaluation.log_prob, evaluation.index_entropy])
            objective = tf.reduce_sum(upstream * results)
        return results, tape.gradient(objective, variables)

    with tf.GradientTape() as tape:
        scores = components().log_prob(z[:, tf.newaxis])  # [M, N]
        index_log_prob = tf.nn.log_softmax(scores)
        entropy = -tf.reduce_sum(tf.exp(index_log_prob) * index_log_prob, -1)
        expected = tf.stack([tf.reduce_logsumexp(scores, -1) - np.log(num), entropy])
        objective = tf.reduce_sum(upstream * expected)
    expected_grads = tape.gradient(objective, variables)

    if mode != "eager":
        streamed = tf.function(streamed, jit_compile=mode == "compiled")
    actual, actual_grads = streamed()
    rounding = 100.0 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(actual, expected, rtol=rounding, atol=rounding)
    for got, wanted in zip(actual_grads, expected_grads, strict=True):
        dense = tf.convert_to_tensor(wanted).numpy()
        size = max(1.0, np.abs(dense).max())
        np.testing.assert_allclose(tf.convert_to_tensor(got), dense, atol=10 * rounding * size)


def test_a_network_wide_enough_makes_blocks_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers are what takes memory, forward and backward: no array exceeds the budget."""
    budget, width = 2**14, 256
    monkeypatch.setattr(generic_scores, "_BLOCK_ELEMENTS", budget)
    monkeypatch.setattr(generic_scores, "_BLOCK_QUERIES", 4)
    layer = keras.layers.Dense(width, activation="tanh")
    layer.build((None, 1))
    sizes = []

    def shift_and_log_scale(z: tf.Tensor, size: int, **_: Any) -> tuple[tf.Tensor, None]:
        hidden = layer(z)
        sizes.append(int(tf.size(hidden)))
        return hidden[..., :size], None

    flow = tfb.RealNVP(num_masked=1, shift_and_log_scale_fn=shift_and_log_scale)
    loc = tf.constant(np.random.default_rng(0).normal(size=(20, 2)), tf.float32)
    components = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(loc), flow)
    with tf.GradientTape() as tape:
        log_prob, _ = streamed_pass.log_prob_and_index_entropy(
            components, _uniform_log_weights(20, tf.float32), loc
        )
    forward = len(sizes)
    gradients = tape.gradient(log_prob, [v.value for v in layer.trainable_variables])
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert len(sizes) > forward > 1
    assert max(sizes) <= budget


def test_an_eager_tape_keeps_no_block_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tape that recorded the forward would hold the layers of all nine blocks."""
    monkeypatch.setattr(generic_scores, "_BLOCK_ELEMENTS", 8)
    layer = keras.layers.Dense(2)
    layer.build((None, 1))
    alive: list[Any] = []

    def shift_and_log_scale(z: tf.Tensor, size: int, **_: Any) -> tuple[tf.Tensor, None]:
        hidden = tf.exp(layer(z))  # the gradient of exp needs its result
        alive.append(weakref.ref(hidden))
        return hidden[..., :size], None

    flow = tfb.RealNVP(num_masked=1, shift_and_log_scale_fn=shift_and_log_scale)
    components = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros([9, 2])), flow)
    with tf.GradientTape() as tape:
        log_prob, _ = streamed_pass.log_prob_and_index_entropy(
            components, _uniform_log_weights(9, tf.float32), tf.zeros([5, 2])
        )
        gc.collect()
        kept = sum(reference() is not None for reference in alive)
    assert kept <= len(alive) / 10  # those of one score, which told how wide the layers are
    assert tape.gradient(log_prob, layer.kernel.value) is not None


def test_excluded_component_is_masked_inside_the_sum() -> None:
    loc, scale = oracles.gaussian_case("separated", 9, 2)
    z = _draws(loc, scale)
    log_prob, _ = streamed_pass.log_prob_and_index_entropy(
        tfd.MultivariateNormalDiag(loc, scale),
        _uniform_log_weights(9, tf.float64),
        tf.constant(z),
        excluded_index=tf.range(9),
    )
    densities = oracles.gaussian_log_densities(z, loc, scale) - np.log(9)
    np.fill_diagonal(densities, -np.inf)
    np.testing.assert_allclose(log_prob, np.logaddexp.reduce(densities, axis=-1), rtol=1e-12)


def test_query_outside_every_support_has_no_density_and_zero_gradient() -> None:
    components = tfd.Uniform(tf.constant([0.0, 1.0]), tf.constant([1.0, 2.0]))
    z = tf.constant([0.5, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(z)
        log_prob, entropy = streamed_pass.log_prob_and_index_entropy(
            components, _uniform_log_weights(2, tf.float32), z
        )
    np.testing.assert_allclose(log_prob, [np.log(0.5), -np.inf])
    assert entropy[0] == 0.0
    assert np.isnan(entropy[1])
    np.testing.assert_array_equal(tape.gradient(log_prob, z), [0.0, 0.0])


@pytest.mark.parametrize("kind", ["diag", "tril", "generic"])
def test_nan_queries_give_nan_and_not_a_number_by_accident(kind: str) -> None:
    loc, scale = oracles.gaussian_case("overlapping", 5, 2)
    z = _draws(loc, scale)
    z[2, 0] = np.nan
    log_prob, _ = streamed_pass.log_prob_and_index_entropy(
        _components(kind, loc, scale), _uniform_log_weights(5, tf.float64), tf.constant(z)
    )
    np.testing.assert_array_equal(np.isnan(log_prob), [False, False, True, False, False])


def test_second_derivatives_are_an_error_and_not_wrong() -> None:
    loc, scale = oracles.gaussian_case("overlapping", 5, 2)
    z = tf.constant(_draws(loc, scale))
    with tf.GradientTape() as outer:
        outer.watch(z)
        with tf.GradientTape() as inner:
            inner.watch(z)
            log_prob, _ = streamed_pass.log_prob_and_index_entropy(
                tfd.MultivariateNormalDiag(loc, scale), _uniform_log_weights(5, tf.float64), z
            )
        gradient = inner.gradient(log_prob, z)
    with pytest.raises(LookupError, match="first derivatives only"):
        outer.gradient(gradient, z)


def test_unknown_static_shapes_are_served() -> None:
    loc, scale = oracles.gaussian_case("overlapping", 11, 2)
    z = _draws(loc, scale)

    @tf.function(
        input_signature=[tf.TensorSpec([None, 2], tf.float64), tf.TensorSpec([None, 2], tf.float64)]
    )
    def run(z: tf.Tensor, loc: tf.Tensor) -> tf.Tensor:
        num_components = tf.shape(loc)[0]
        log_weights = -tf.math.log(tf.cast(tf.fill([num_components], num_components), tf.float64))
        return streamed_pass.log_prob_and_index_entropy(
            tfd.MultivariateNormalDiag(loc, tf.ones_like(loc)), log_weights, z
        )

    log_prob, entropy = run(z, loc)
    expected = oracles.log_prob_and_entropy(
        oracles.gaussian_log_densities(z, loc, np.ones_like(scale))
    )
    np.testing.assert_allclose(log_prob, expected[0], rtol=1e-12)
    np.testing.assert_allclose(entropy, expected[1], rtol=1e-10)
