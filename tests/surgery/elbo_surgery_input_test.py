"""What `elbo_surgery` accepts and what it refuses."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing import oracles
from tests.testing.models import index_data, table_encoder, unit_decoder
from tfp_surgery.datasets import Dataset
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.surgery.elbo_surgery import elbo_surgery

tfb = tfp.bijectors
tfd = tfp.distributions


def test_the_data_set_is_named_and_a_stochastic_draw_is_stated() -> None:
    intensities = np.random.default_rng(0).uniform(size=(20, 3)).astype(np.float32)
    dataset = Dataset("mine", "train", intensities, "stochastic", 0)
    arguments = (
        lambda x: tfd.MultivariateNormalDiag(x[:, :2]),
        lambda z: tfd.Independent(tfd.Bernoulli(logits=tf.tile(z[:, :1], [1, 3])), 1),
        tfd.MultivariateNormalDiag(tf.zeros(2)),
    )
    surgery = elbo_surgery(dataset, *arguments, seed=5)
    assert "mine/train, N = 20, binarization stochastic" in surgery.data
    assert "draw 5" in surgery.data
    array = elbo_surgery(dataset.observations(draw_seed=5), *arguments, seed=5)
    assert array.elbo == surgery.elbo
    assert "binarization not stated" in array.data


def test_a_flow_of_a_network_is_taken_apart_as_tfp_does_alone() -> None:
    """Against draws of the dense mixture, within five standard errors of the difference."""
    num, draws = 30, 40
    x = np.random.default_rng(0).normal(size=(num, 2)).astype(np.float32)
    weights = tf.Variable([0.8, -0.4])
    flow = tfb.Invert(
        tfb.MaskedAutoregressiveFlow(
            lambda z: [
                tf.stack([0.0 * z[..., 0], weights[i] * tf.tanh(z[..., 0])], -1) for i in range(2)
            ]
        )
    )

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(x, tf.fill([2], 0.5)), flow)

    prior = tfd.MultivariateNormalDiag(tf.zeros(2), tf.ones(2))
    surgery = elbo_surgery(
        x, encoder, tfd.MultivariateNormalDiag, prior, num_samples=8, detail="full"
    )
    assert {"marginal_kl_split", "active_units"} <= set(surgery.absent)

    posteriors = encoder(tf.constant(x))
    z = tf.identity(posteriors.sample(draws, seed=(7, 7)))  # [S, N, 2]
    own = posteriors.log_prob(z)
    dense = tf.reduce_logsumexp(posteriors.log_prob(z[:, :, tf.newaxis]), axis=-1) - np.log(num)
    for name, values in (
        ("index_code_mutual_information", own - dense),
        ("marginal_kl", dense - prior.log_prob(z)),
    ):
        of_draws = tf.reduce_mean(values, axis=1).numpy()
        estimate = getattr(surgery, name)
        error = np.hypot(estimate.standard_error, of_draws.std(ddof=1) / np.sqrt(draws))
        assert abs(estimate.value - of_draws.mean()) < 5 * error


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others() -> None:
    loc, scale = oracles.gaussian_case("overlapping", 40, 2)
    arguments = (
        index_data(40),
        table_encoder(tfd.MultivariateNormalDiag(loc, scale)),
        unit_decoder,
        tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2)),
    )
    first = elbo_surgery(*arguments, seed=1, batch_size=30)
    assert elbo_surgery(*arguments, seed=1, batch_size=30) == first
    assert elbo_surgery(*arguments, seed=2, batch_size=30) != first


def test_one_draw_warns_and_has_no_error() -> None:
    arguments = (
        index_data(5),
        table_encoder(tfd.MultivariateNormalDiag(np.zeros([5, 2]), np.ones([5, 2]))),
        unit_decoder,
        tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2)),
    )
    with pytest.warns(UserWarning, match="num_samples=1"):
        surgery = elbo_surgery(*arguments, num_samples=1)
    assert math.isnan(surgery.elbo.standard_error)
    assert math.isnan(surgery.index_code_mutual_information.standard_error)
    assert surgery.control_variates == ()
    assert surgery.average_kl_method == "analytic"
    assert surgery.average_kl.standard_error < 1e-12  # of rounding alone


def _valid() -> dict[str, Any]:
    return {
        "x": np.zeros([6, 3], np.float32),
        "encoder": lambda x: tfd.MultivariateNormalDiag(x[:, :2]),
        "decoder": lambda z: tfd.Independent(tfd.Bernoulli(logits=tf.tile(z[:, :1], [1, 3])), 1),
        "prior": tfd.MultivariateNormalDiag(tf.zeros(2)),
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.zeros([0, 3], np.float32)}, ValueError, "no observations"),
        ({"x": np.full([6, 3], np.nan, np.float32)}, ValueError, "NaN"),
        ({"x": np.full([6, 3], 0.4, np.float32)}, ValueError, "Binarize"),
        (
            {"encoder": lambda x: tfd.MultivariateNormalDiag(x[0, :2])},
            ValueError,
            r"batch shape \[2\]",
        ),
        ({"encoder": lambda x: x}, TypeError, "encoder must return a distribution"),
        ({"encoder": None}, TypeError, "encoder must be a callable"),
        (
            {"decoder": lambda z: tfd.Bernoulli(logits=tf.tile(z[:, :1], [1, 3]))},
            ValueError,
            "event shape",
        ),
        ({"prior": tfd.MultivariateNormalDiag(tf.zeros(3))}, ValueError, "prior"),
        ({"prior": 3.0}, TypeError, "prior"),
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"num_samples": 1.5}, TypeError, "num_samples"),
        ({"num_query": 7}, ValueError, "num_query = 7 exceeds"),
        ({"seed": -1}, ValueError, "seed"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"x": np.zeros([6, 1], np.float32)}, ValueError, r"event shape|encoder failed"),
        (
            {"encoder": lambda x: tfd.MultivariateNormalDiag(x @ tf.zeros([5, 2]))},
            ValueError,
            r"the encoder failed on inputs of shape \(2, 3\)",
        ),
        (
            {"decoder": lambda z: tfd.MultivariateNormalDiag(z @ tf.zeros([3, 3]))},
            ValueError,
            r"the decoder failed on inputs of shape \(1, 2\)",
        ),
        (
            {"prior": tfd.MultivariateNormalDiag(np.zeros(2))},
            ValueError,
            "prior and posterior must have one dtype",
        ),
        (
            {"decoder": lambda z: tfd.Independent(tfd.Normal(tf.zeros([len(z), 3]), 0.0), 1)},
            ValueError,
            "the decoder gave Normal parameters that TFP refuses",
        ),
        ({"training_aggregate_posterior": "a"}, TypeError, "must be an AggregatePosterior"),
        (
            {
                "training_aggregate_posterior": AggregatePosterior(
                    tfd.MultivariateNormalDiag(tf.zeros([4, 3]))
                )
            },
            ValueError,
            "training_aggregate_posterior must be over the codes of this model",
        ),
        (
            {"encoder": lambda x: tfd.MultivariateNormalDiag(x[:, :2] / tf.zeros([]))},
            ValueError,
            "NaN parameters for 6 of 6",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_one_clear_message(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {**_valid(), **change}
    with pytest.raises(error, match=message):
        elbo_surgery(**arguments)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_, np.float64])
def test_observations_may_be_of_any_numeric_dtype(dtype: type) -> None:
    """A real-valued likelihood sees them in its own dtype."""
    x = (np.random.default_rng(0).uniform(size=(6, 3)) < 0.5).astype(np.float32)
    arguments = {
        **_valid(),
        "encoder": lambda x: tfd.MultivariateNormalDiag(tf.cast(x[:, :2], tf.float32)),
        "decoder": lambda z: tfd.Independent(tfd.Normal(tf.tile(z[:, :1], [1, 3]), 1.0), 1),
    }
    expected = elbo_surgery(**{**arguments, "x": x})
    assert elbo_surgery(**{**arguments, "x": x.astype(dtype)}).elbo == expected.elbo
    assert elbo_surgery(**{**arguments, "x": x.tolist()}).elbo == expected.elbo


def test_infinite_parameters_with_finite_densities_are_served() -> None:
    arguments = {
        **_valid(),
        "encoder": lambda x: tfd.Independent(
            tfd.TruncatedNormal(x[:, :2], 1.0, low=0.0, high=np.inf), 1
        ),
    }
    surgery = elbo_surgery(**arguments)
    assert math.isfinite(surgery.marginal_kl.value)
    # TFP's entropy of a normal that is truncated at infinity is NaN, which contradicts nothing.
    assert surgery.warnings == ()
    assert "H[q(z|x)]" not in surgery.control_variates


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_posteriors_are_measured_in_float32(dtype: tf.DType) -> None:
    loc, scale = (tf.cast(part, dtype) for part in oracles.gaussian_case("overlapping", 50, 20))
    arguments = (
        lambda z: tfd.MultivariateNormalDiag(tf.zeros([len(z), 1]), [1.0]),
        tfd.MultivariateNormalDiag(tf.zeros(20)),
    )
    x = index_data(50, np.float32)
    half, full = (
        elbo_surgery(x, table_encoder(tfd.MultivariateNormalDiag(*parameters)), *arguments)
        for parameters in (
            (loc, scale),
            (tf.cast(loc, tf.float32), tf.cast(scale, tf.float32)),
        )
    )
    assert half.index_code_mutual_information == full.index_code_mutual_information


def test_numbers_of_numpy_leave_a_result_that_json_knows() -> None:
    numbers: dict[str, Any] = {"num_samples": np.int64(3), "seed": np.int64(3)}
    surgery = elbo_surgery(**_valid(), **numbers)
    json.dumps(surgery.to_dict(), allow_nan=False)


def test_a_model_without_density_somewhere_is_named() -> None:
    arguments = _valid()
    arguments["prior"] = tfd.Independent(tfd.Uniform(tf.zeros(2), tf.ones(2)), 1)
    with pytest.raises(ValueError, match="log prior is not finite"):
        elbo_surgery(**arguments)


def test_a_prior_in_a_batch_of_one_gives_the_terms_of_that_prior() -> None:
    x = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(0.5 * x, tf.fill([2], 0.5))

    single, batch = (
        elbo_surgery(x, encoder, tfd.MultivariateNormalDiag, tfd.MultivariateNormalDiag(loc))
        for loc in (tf.zeros([2]), tf.zeros([1, 2]))
    )
    assert batch.to_dict() == single.to_dict()
