from __future__ import annotations

import copy

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.distributions.leave_one_out import LeaveOneOut

tfb = tfp.bijectors
tfd = tfp.distributions

N, D = 4, 4  # equal on purpose: a shared [D, D] scale must not pass for a batch of N


def _normal(*shape: int, seed: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def _directions() -> tf.Tensor:
    return tf.math.l2_normalize(_normal(N, D), axis=-1)


FAMILIES = {
    "diag, shared scale": lambda: tfd.MultivariateNormalDiag(_normal(N, D), tf.exp(_normal(D))),
    "tril, shared scale": lambda: tfd.MultivariateNormalTriL(
        _normal(N, D), tf.linalg.band_part(_normal(D, D), -1, 0) + 3 * tf.eye(D)
    ),
    "independent normal": lambda: tfd.Independent(tfd.Normal(_normal(N, D), 1.0), 1),
    "scalar normal": lambda: tfd.Normal(_normal(N), 1.0),
    "transformed": lambda: tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(_normal(N, D)),
        tfb.Chain([tfb.Exp(), tfb.Shift(_normal(D)), tfb.Scale(tf.exp(_normal(N, D, seed=1)))]),
    ),
    "log-normal": lambda: tfd.LogNormal(_normal(N), 1.0),
    "dirichlet": lambda: tfd.Dirichlet(tf.exp(_normal(N, D))),
    "von Mises-Fisher": lambda: tfd.VonMisesFisher(_directions(), 2.0),
    "one-hot": lambda: tfd.OneHotCategorical(logits=_normal(N, D)),
    "independent Bernoulli": lambda: tfd.Independent(tfd.Bernoulli(logits=_normal(N, D)), 1),
    "mixture": lambda: tfd.MixtureSameFamily(
        tfd.Categorical(logits=_normal(N, 2)), tfd.MultivariateNormalDiag(_normal(N, 2, D))
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_leaves_carry_the_batch_and_rebuild_the_distribution(family: str) -> None:
    distribution = FAMILIES[family]()
    broadcast = components_lib.broadcast(distribution)
    leaves = components_lib.leaves(broadcast)
    assert leaves
    assert all(leaf.shape[0] == N for leaf in leaves)
    x = distribution.sample(seed=(1, 2))
    rebuilt = components_lib.with_leaves(broadcast, leaves)
    np.testing.assert_allclose(rebuilt.log_prob(x), distribution.log_prob(x), rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_gather_picks_components(family: str) -> None:
    distribution = FAMILIES[family]()
    indices = tf.constant([2, 0, 2])
    picked = components_lib.gather(components_lib.broadcast(distribution), indices)
    x = distribution.sample(seed=(1, 2))
    np.testing.assert_allclose(
        picked.log_prob(tf.gather(x, indices)),
        tf.gather(distribution.log_prob(x), indices),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_concatenate_joins_batches_of_different_size(family: str) -> None:
    distribution = FAMILIES[family]()
    part = components_lib.gather(components_lib.broadcast(distribution), tf.constant([1, 3]))
    joined = components_lib.concatenate([distribution, part])
    assert joined.batch_shape == (N + 2,)
    x = distribution.sample(seed=(1, 2))
    expected = tf.gather(distribution.log_prob(x), [0, 1, 2, 3, 1, 3])
    actual = joined.log_prob(tf.gather(x, [0, 1, 2, 3, 1, 3]))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_concatenate_refuses_different_kinds() -> None:
    with pytest.raises(TypeError, match="MultivariateNormalDiag and MultivariateNormalTriL"):
        components_lib.concatenate(
            [
                tfd.MultivariateNormalDiag(_normal(N, D)),
                tfd.MultivariateNormalTriL(_normal(N, D), tf.eye(D)),
            ]
        )


def test_concatenate_looks_into_what_is_wrapped() -> None:
    with pytest.raises(TypeError, match="Independent of Normal and Independent of Laplace"):
        components_lib.concatenate(
            [
                tfd.Independent(tfd.Normal(_normal(N, D), 1.0), 1),
                tfd.Independent(tfd.Laplace(_normal(N, D), 1.0), 1),
            ]
        )


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_prepare_widens_half_precision(dtype: tf.DType) -> None:
    loc = tf.cast(_normal(N, D), dtype)
    prepared = components_lib.prepare(
        tfd.Independent(tfd.Normal(loc, tf.ones([D], dtype)), 1), "posterior"
    )
    assert prepared.dtype == tf.float32
    np.testing.assert_array_equal(prepared.mean(), tf.cast(loc, tf.float32))


def test_prepare_unwraps_what_layers_of_tfp_made() -> None:
    layer = tfp.layers.MixtureNormal(2, [D])
    coercible = layer(_normal(N, layer.params_size(2, [D])))
    prepared = components_lib.prepare(coercible, "posterior")
    leaves = components_lib.leaves(components_lib.broadcast(prepared))
    assert all(leaf.shape[0] == N for leaf in leaves)
    x = _normal(N, D)
    np.testing.assert_allclose(prepared.log_prob(x), coercible.log_prob(x), rtol=1e-5)


def test_a_permutation_is_shared_by_all_components() -> None:
    distribution = tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(_normal(N, D)), tfb.Chain([tfb.Permute([3, 1, 0, 2]), tfb.Exp()])
    )
    x = distribution.sample(seed=(1, 2))
    broadcast = components_lib.broadcast(distribution)
    np.testing.assert_allclose(broadcast.log_prob(x), distribution.log_prob(x), rtol=1e-6)
    picked = components_lib.gather(broadcast, tf.constant([2, 0]))
    expected = tf.gather(distribution.log_prob(x), [2, 0])
    np.testing.assert_allclose(picked.log_prob(tf.gather(x, [2, 0])), expected, rtol=1e-5)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 1.0]])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_aggregate_can_be_copied_deeply(family: str, weights: list[float] | None) -> None:
    original = AggregatePosterior(FAMILIES[family](), weights=weights)
    one, again = copy.deepcopy([original, original])
    assert one is again
    assert one is not original
    z = original.sample(5, seed=(1, 2))
    for copied in (one, copy.copy(original)):
        assert type(copied) is type(original)
        np.testing.assert_array_equal(copied.log_prob(z), original.log_prob(z))
    without_one = copy.deepcopy(LeaveOneOut(original, [0, 2]))
    np.testing.assert_array_equal(
        without_one.log_prob(z[:2]), original.leave_one_out_log_prob(z[:2], [0, 2])
    )


def test_a_deep_copy_has_variables_of_its_own() -> None:
    loc = tf.Variable(_normal(N, D))
    original = AggregatePosterior(tfd.Independent(tfd.Normal(loc, 1.0), 1))
    z = original.sample(3, seed=(1, 2))
    before = original.log_prob(z)
    copied = copy.deepcopy(original)
    loc.assign_add(tf.ones_like(loc))
    np.testing.assert_array_equal(copied.log_prob(z), before)
    with tf.GradientTape() as tape:
        log_prob = copied.log_prob(z)
    (variable,) = copied.trainable_variables
    assert variable is not loc
    assert tape.gradient(log_prob, variable) is not None


def test_linear_operators_are_refused_with_advice() -> None:
    distribution = tfd.MultivariateNormalLinearOperator(
        _normal(N, D), tf.linalg.LinearOperatorIdentity(D)
    )
    with pytest.raises(TypeError, match="MultivariateNormalTriL"):
        components_lib.leaves(distribution)


def test_what_cannot_be_a_component_is_refused() -> None:
    with pytest.raises(TypeError, match=r"posterior must be a tfd\.Distribution"):
        components_lib.prepare(_normal(N, D), "posterior")
    joint = tfd.JointDistributionSequential([tfd.Normal(0.0, 1.0), lambda x: tfd.Normal(x, 1.0)])
    with pytest.raises(TypeError, match=r"depend on each other.*reencode=True"):
        components_lib.prepare(joint, "posterior")

    class Undeclared(tfd.Distribution):
        def __init__(self) -> None:
            super().__init__(
                tf.float32, tfd.NOT_REPARAMETERIZED, validate_args=False, allow_nan_stats=True
            )

    with pytest.raises(TypeError, match="_parameter_properties"):
        components_lib.prepare(Undeclared(), "posterior")
