"""Tests of joint distributions over the vectors of their parts."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tfp_surgery.components import components as components_lib
from tfp_surgery.components.flat_joint import FlatJoint, flattened

tfd = tfp.distributions

N = 5
RNG = np.random.default_rng(0)
LOC = RNG.normal(size=(N, 2, 3))
COUNT = tfd.Poisson(np.float64(1.0))
RATE = RNG.uniform(1.0, 5.0, size=N)


def parts() -> dict[str, Any]:
    """A count, and a matrix of Gaussians."""
    return {
        "w": tfd.Independent(tfd.Normal(LOC, np.float64(0.5)), 2),
        "k": tfd.Poisson(RATE),
    }


Pair = collections.namedtuple("Pair", ["w", "k"])
ROOT = tfd.JointDistributionCoroutine.Root


def coroutine() -> Any:
    def model() -> Any:
        yield ROOT(tfd.Independent(tfd.Normal(LOC, np.float64(0.5)), 2, name="w"))
        yield ROOT(tfd.Poisson(RATE, name="k"))

    return tfd.JointDistributionCoroutine(model)


JOINTS: dict[str, tuple[Any, list[str]]] = {
    "named": (lambda: tfd.JointDistributionNamed(parts()), ["k", "w"]),
    "namedtuple": (lambda: tfd.JointDistributionNamed(Pair(**parts())), ["w", "k"]),
    "sequential": (lambda: tfd.JointDistributionSequential([*parts().values()]), ["x1", "x"]),
    "coroutine": (coroutine, ["w", "k"]),
}


@pytest.mark.parametrize("kind", JOINTS)
def test_the_density_is_that_of_the_parts(kind: str) -> None:
    make, names = JOINTS[kind]
    joint = make()
    flat = flattened(joint)
    assert len(flat.layout.names) == 2
    if kind != "sequential":
        assert list(flat.layout.names) == names
    assert flat.batch_shape == [N]
    assert flat.event_shape == [7]
    z = flat.sample(3, seed=(0, 1))
    code = flat.layout.unpack(z)
    np.testing.assert_array_equal(flat.layout.pack(code), z)
    np.testing.assert_allclose(flat.log_prob(z), joint.log_prob(code), rtol=1e-12)
    values = {shape.rank: value.numpy() for shape, value in zip(
        flat.layout.event_shapes, tf.nest.flatten(code), strict=True
    )}  # fmt: skip
    expected = stats.norm.logpdf(values[2], LOC, 0.5).sum((-1, -2))
    expected += stats.poisson.logpmf(values[0], RATE)
    np.testing.assert_allclose(flat.log_prob(z), expected, rtol=1e-10)


def test_independent_parts_are_joined_and_picked_by_index() -> None:
    flat = flattened(tfd.JointDistributionNamed(parts()))
    index = np.array([3, 0, 3])
    picked = components_lib.gather(components_lib.broadcast(flat), tf.constant(index))
    z = picked.sample(seed=(0, 1))
    expected = stats.norm.logpdf(z[:, 1:].numpy(), LOC.reshape(N, 6)[index], 0.5).sum(-1)
    expected += stats.poisson.logpmf(z[:, 0].numpy(), RATE[index])
    np.testing.assert_allclose(picked.log_prob(z), expected, rtol=1e-10)
    np.testing.assert_allclose(flat.mean()[:, 1:], LOC.reshape(N, 6))
    np.testing.assert_allclose(flat.variance()[:, 0], RATE)
    joined = components_lib.concatenate([flat, flat])
    assert joined.batch_shape == [2 * N]


def test_dependent_parts_have_no_parameters_to_be_joined_by() -> None:
    joint = tfd.JointDistributionNamed(
        {"a": tfd.Normal(RATE, 1.0), "b": lambda a: tfd.Normal(a, np.float64(1.0))}
    )
    flat = flattened(joint)
    assert flat.part(0) is not None
    assert flat.part(1) is None
    with pytest.raises(TypeError, match=r"\(a \[\], b \[\]\).*reencode=True"):
        components_lib.prepare(joint, "The posterior")
    with pytest.raises(NotImplementedError, match="dependent parts"):
        flat.mean()


def test_reparameterization_is_that_of_all_parts() -> None:
    assert flattened(tfd.JointDistributionNamed(parts())).reparameterization_type == (
        tfd.NOT_REPARAMETERIZED
    )
    gaussians = tfd.JointDistributionSequential([tfd.Normal(RATE, 1.0), tfd.Normal(RATE, 2.0)])
    assert flattened(gaussians).reparameterization_type == tfd.FULLY_REPARAMETERIZED


@pytest.mark.parametrize(
    "other",
    [
        tfd.JointDistributionNamed({"k": COUNT, "v": tfd.Normal(np.zeros([2, 3]), 1.0)}),
        tfd.JointDistributionSequential([COUNT, tfd.Normal(np.zeros([2, 3]), 1.0)]),
        tfd.JointDistributionNamed({"k": COUNT, "w": tfd.Normal(np.float64(0.0), 1.0)}),
    ],
    ids=["another name", "no names", "another shape"],
)
def test_a_prior_of_other_parts_is_refused(other: Any) -> None:
    layout = flattened(tfd.JointDistributionNamed(parts())).layout
    with pytest.raises(ValueError, match=r"of parts k \[\], w \[2, 3\], but"):
        flattened(other, layout)


def test_one_layout_serves_posterior_and_prior() -> None:
    layout = flattened(tfd.JointDistributionNamed(parts())).layout
    prior = flattened(
        tfd.JointDistributionNamed(
            {
                "k": tfd.Poisson(np.float64(2.0)),
                "w": tfd.Sample(tfd.Normal(np.float64(0.0), 1.0), [2, 3]),
            }
        ),
        layout,
    )
    assert isinstance(prior, FlatJoint)
    assert prior.layout is layout
    assert prior.batch_shape == []


def test_parts_with_names_go_by_their_names() -> None:
    """A posterior from the bottom up against a prior from the top down."""
    rng = np.random.default_rng(1)
    x = tf.constant(rng.normal(size=(N, 2)))

    def posterior() -> Any:
        low = yield ROOT(tfd.Normal(x[:, 0], np.float64(0.5), name="low"))
        yield tfd.Normal(low + x[:, 1], np.float64(0.7), name="top")

    def prior() -> Any:
        top = yield ROOT(tfd.Normal(np.float64(0.0), 1.0, name="top"))
        yield tfd.Normal(top, np.float64(2.0), name="low")

    layout = flattened(tfd.JointDistributionCoroutine(posterior)).layout
    assert layout.names == ("low", "top")
    z = rng.normal(size=(3, 2))
    expected = stats.norm.logpdf(z[:, 1]) + stats.norm.logpdf(z[:, 0], z[:, 1], 2.0)
    named = tfd.JointDistributionNamed(
        {
            "top": tfd.Normal(np.float64(0.0), 1.0),
            "low": lambda top: tfd.Normal(top, np.float64(2.0)),
        }
    )
    for other in (tfd.JointDistributionCoroutine(prior), named):
        flat = flattened(other, layout)
        np.testing.assert_allclose(flat.log_prob(z), expected, rtol=1e-12)
        draws = flat.sample(4000, seed=(0, 1)).numpy()
        np.testing.assert_allclose(draws.var(0), [5.0, 1.0], rtol=5 * np.sqrt(2 / 4000))
    top = flattened(named, layout).part(1)
    assert top is not None
    np.testing.assert_allclose(top.log_prob(np.float64(0.5)), stats.norm.logpdf(0.5))
    assert flattened(named, layout).part(0) is None


def test_parts_of_an_auto_batched_joint_are_independent_where_they_are() -> None:
    joint = tfd.JointDistributionNamedAutoBatched(
        {
            "w": tfd.Normal(LOC, np.float64(0.5)),
            "k": tfd.Poisson(RATE),
        },
        batch_ndims=1,
    )
    flat = flattened(joint)
    assert flat.distributions is not None
    z = flat.sample(3, seed=(0, 1))
    expected = stats.norm.logpdf(z[..., 1:].numpy(), LOC.reshape(N, 6), 0.5).sum(-1)
    expected += stats.poisson.logpmf(z[..., 0].numpy(), RATE)
    np.testing.assert_allclose(flat.log_prob(z), expected, rtol=1e-10)
    np.testing.assert_allclose(flat.log_prob(z), joint.log_prob(flat.layout.unpack(z)), rtol=1e-10)


def ladder(names: tuple[str, str], dependent: bool, given: bool = True) -> Any:
    """N(3, 1) and then N(0, 1), of the names in this order."""
    first = tfd.Normal(np.float64(3.0), 1.0, **({"name": names[0]} if given else {}))

    def second(above: Any) -> tfd.Distribution:
        return tfd.Normal(0.0 * above, np.float64(1.0), **({"name": names[1]} if given else {}))

    # TFP takes the argument of a function for the name of the part above.
    functions = {
        "a": lambda a: second(a),  # noqa: PLW0108
        "b": lambda b: second(b),  # noqa: PLW0108
        "u": lambda u: second(u),  # noqa: PLW0108
    }
    last: Any = functions[names[0]] if dependent else second(np.float64(0.0))
    return tfd.JointDistributionSequential([first, last])


def test_named_parts_of_a_sequence_go_by_their_names() -> None:
    layout = flattened(ladder(("a", "b"), False)).layout
    z = np.array([[3.0, 0.0]])  # a, b
    for dependent in (False, True):
        same, swapped = (
            flattened(ladder(names, dependent), layout).log_prob(z)
            for names in (("a", "b"), ("b", "a"))
        )
        np.testing.assert_allclose(same, 2 * stats.norm.logpdf(0.0))
        np.testing.assert_allclose(swapped, 2 * stats.norm.logpdf(3.0))
    by_place = flattened(ladder(("u", "v"), False), layout).log_prob(z)
    np.testing.assert_allclose(by_place, 2 * stats.norm.logpdf(0.0))


def test_dependent_parts_of_one_shape_need_names() -> None:
    layout = flattened(ladder(("a", "b"), False)).layout
    for other in (ladder(("a", "b"), True, given=False), ladder(("u", "v"), True)):
        with pytest.raises(ValueError, match="give the parts the same names in both"):
            flattened(other, layout)


def test_structures_that_have_no_vector_are_refused() -> None:
    inner = tfd.JointDistributionSequential([tfd.Normal(0.0, 1.0), tfd.Normal(0.0, 1.0)])
    one = tfd.Normal(0.0, 1.0)
    with pytest.raises(ValueError, match="one of them is a structure itself"):
        flattened(tfd.JointDistributionNamed({"a": inner, "b": one}))
    with pytest.raises(ValueError, match="one floating dtype, got float32 and float64"):
        flattened(tfd.JointDistributionNamed({"a": one, "b": tfd.Normal(np.float64(0.0), 1.0)}))
    of_many = tfd.JointDistributionNamed(
        {"a": one, "b": lambda a: tfd.Normal(tf.zeros(3) + a[..., tf.newaxis], 1.0)}
    )
    with pytest.raises(ValueError, match="must have one batch shape"):
        flattened(of_many)
