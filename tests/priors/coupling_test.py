from __future__ import annotations

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.priors.coupling import Coupling, kept_for_one_more_call

tfb = tfp.bijectors


def elementwise(first: tf.Tensor) -> tfb.Bijector:
    """Shift and scale of two coordinates from one."""
    first = tf.convert_to_tensor(first)
    shift = tf.concat([first**2, tf.sin(first)], axis=-1)
    log_scale = tf.concat([tf.cos(first), 0.5 * first], axis=-1)
    return tfb.Chain([tfb.Shift(shift), tfb.Scale(log_scale=log_scale)])


def test_it_is_the_coupling_of_tfp() -> None:
    """tfb.RealNVP is an independent route to the same map."""
    y = np.random.default_rng(0).normal(size=(5, 3))
    ours = Coupling(1, elementwise)
    theirs = tfb.RealNVP(1, bijector_fn=lambda first, _: elementwise(first))
    np.testing.assert_allclose(ours.forward(y), theirs.forward(y), rtol=1e-12)
    np.testing.assert_allclose(ours.inverse(y), theirs.inverse(y), rtol=1e-12)
    for method in ("forward_log_det_jacobian", "inverse_log_det_jacobian"):
        np.testing.assert_allclose(
            getattr(ours, method)(y, event_ndims=1),
            getattr(theirs, method)(y, event_ndims=1),
            rtol=1e-12,
        )


def test_a_density_runs_the_network_once() -> None:
    calls = []

    def counted(first: tf.Tensor) -> tfb.Bijector:
        calls.append(first)
        return elementwise(first)

    bijector = Coupling(1, counted)
    y = tf.constant(np.random.default_rng(0).normal(size=(5, 3)))
    bijector.inverse(y)
    bijector.inverse_log_det_jacobian(y, event_ndims=1)
    assert len(calls) == 1
    # And once more for the gradient that is asked for later: nothing outside the tape is reused.
    with tf.GradientTape() as tape:
        tape.watch(y)
        log_det = bijector.inverse_log_det_jacobian(tf.identity(y), event_ndims=1)
    assert len(calls) == 2
    assert np.any(tape.gradient(log_det, y) != 0)


def test_kept_for_one_more_call() -> None:
    calls: list[float] = []

    def function(x: tf.Tensor) -> float:
        calls.append(float(x))
        return 2 * float(x)

    keeping = kept_for_one_more_call(function)
    x, same = tf.constant(1.0), tf.constant(1.0)
    assert [keeping(x), keeping(x), keeping(x)] == [2.0, 2.0, 2.0]
    assert calls == [1.0, 1.0]  # the second call was answered from the first, the third was not
    assert keeping(same) == 2.0
    assert keeping(tf.constant(3.0)) == 6.0
    assert calls == [1.0, 1.0, 1.0, 3.0]
