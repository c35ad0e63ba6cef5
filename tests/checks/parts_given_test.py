from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.parts_given import has_dependent_parts, parts_given

tfd = tfp.distributions


def _generator() -> Any:
    first = yield tfd.JointDistributionCoroutine.Root(tfd.Normal([0.0], 1.0, name="first"))
    yield tfd.Normal(2.0 * first, 1.0, name="second")


def test_parts_have_the_distribution_that_the_others_give_them() -> None:
    first, second = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
    joints = {
        "named": tfd.JointDistributionNamed(
            {"second": lambda first: tfd.Normal(2.0 * first, 1.0), "first": tfd.Normal([0.0], 1.0)}
        ),
        "coroutine": tfd.JointDistributionCoroutine(_generator),
    }
    for joint in joints.values():
        value = tf.nest.pack_sequence_as(joint.dtype, [first, second])
        parts = {part.place: part for part in parts_given(joint, value)}
        assert parts.keys() == {"['first']", "['second']"}
        np.testing.assert_array_equal(parts["['second']"].distribution.loc, [2.0, -4.0])
        np.testing.assert_array_equal(parts["['second']"].value, second)
        np.testing.assert_array_equal(parts["['first']"].value, first)


def test_parts_that_may_depend_on_others_are_told_from_those_that_do_not() -> None:
    normal = tfd.Normal([0.0], 1.0)
    independent = tfd.JointDistributionSequential([normal, normal])
    dependent = tfd.JointDistributionSequential([normal, lambda a: tfd.Normal(a, 1.0)])
    assert not has_dependent_parts(independent)
    assert has_dependent_parts(dependent)
    assert has_dependent_parts(tfd.JointDistributionCoroutine(_generator))
    assert has_dependent_parts(tfd.JointDistributionNamed({"a": normal, "b": dependent}))
    assert not has_dependent_parts(normal)
