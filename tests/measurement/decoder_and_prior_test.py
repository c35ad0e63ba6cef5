from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.measurement.decoder_and_prior import decoder_and_prior

tfd = tfp.distributions

_PRIOR = tfd.MultivariateNormalDiag([1.0, -1.0], [0.5, 2.0])


def _decoder(z: tf.Tensor) -> tfd.Distribution:
    return tfd.Independent(tfd.Normal(tf.stack([z[..., 0], z[..., 1], z[..., 0]], -1), 0.1), 1)


def _decoder_of_code(code: tf.Tensor) -> tfd.Distribution:
    return _decoder(code)


@tfd.JointDistributionCoroutine
def _coroutine() -> Iterator[tfd.Distribution]:
    z = yield tfd.JointDistributionCoroutine.Root(_PRIOR)
    yield _decoder(z)


@pytest.mark.parametrize(
    "joint",
    [
        tfd.JointDistributionSequential([_PRIOR, _decoder]),
        tfd.JointDistributionNamed({"z": _PRIOR, "x": _decoder}),
        tfd.JointDistributionNamed({"code": _PRIOR, "a": _decoder_of_code}),
        _coroutine,
    ],
    ids=["sequential", "named", "named in another order", "coroutine"],
)
def test_parts_are_those_of_the_joint(joint: tfd.JointDistribution) -> None:
    decoder, prior = decoder_and_prior(joint)
    z = _PRIOR.sample(5, seed=(1, 2))
    x = _decoder(z).sample(seed=(3, 4))
    np.testing.assert_allclose(prior.log_prob(z), _PRIOR.log_prob(z))
    assert decoder(z).batch_shape == (5,)
    np.testing.assert_allclose(decoder(z).log_prob(x), _decoder(z).log_prob(x))


def test_three_variables_are_refused() -> None:
    joint = tfd.JointDistributionSequential([_PRIOR, _decoder, _decoder])
    with pytest.raises(ValueError, match=r"two variables.* 3"):
        decoder_and_prior(joint)


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="JointDistribution"):
        decoder_and_prior(_PRIOR)
