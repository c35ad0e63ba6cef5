"""Tests of likelihoods as trained: outside of their support, of structured x, and none at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_surgery as tfs
from tests.testing.regression import controlled_mean

tfd = tfp.distributions

N, S = 20, 3
RNG = np.random.default_rng(0)
GREY = RNG.uniform(size=(N, 4))
PRIOR = tfd.MultivariateNormalDiag(np.zeros(4), np.ones(4))


def encoder(x: tf.Tensor) -> tfd.Distribution:
    return tfd.MultivariateNormalDiag(2.0 * x - 1.0, np.full(4, 0.5))


def with_control_variates(reconstruction: np.ndarray, z: np.ndarray) -> float:
    """The mean of `[S, N]`, less its regression on log q(z|x), whose mean is known.

    16 observations of three draws have the degrees of freedom of one coefficient.
    """
    log_posterior = stats.norm.logpdf(z, 2.0 * GREY - 1.0, 0.5).sum(-1)
    entropy = 4 * stats.norm(scale=0.5).entropy()
    return controlled_mean(reconstruction, [log_posterior + entropy], N)[0]


def bernoulli(z: tf.Tensor) -> tfd.Distribution:
    return tfd.Independent(tfd.Bernoulli(logits=z, dtype=tf.float64), 1)


def test_grey_pixels_under_a_bernoulli_are_refused_with_three_ways_out() -> None:
    with pytest.raises(ValueError, match="expected 0 or 1") as caught:
        tfs.elbo_surgery(GREY, encoder, bernoulli, PRIOR)
    for way_out in ("Binarize the data", "likelihood for real-valued", "validate_args=False"):
        assert way_out in str(caught.value)


def test_they_are_scored_as_they_are_and_never_called_an_elbo() -> None:
    options: Any = {"num_samples": S, "validate_args": False}
    surgery = tfs.elbo_surgery(GREY, encoder, bernoulli, PRIOR, **options)
    z = tfs.scored_draws(GREY, encoder, bernoulli, PRIOR, **options).z.numpy()
    cross_entropy = np.logaddexp(0.0, z) - GREY * z  # of Keras's loss, [S, N, 4]
    assert surgery.average_reconstruction.value == pytest.approx(
        with_control_variates(-cross_entropy.sum(-1), z)
    )
    assert "expected 0 or 1" in surgery.outside_support
    text = str(surgery)
    assert text.startswith("Surgery of an objective")
    assert "NOT THE ELBO OF A NORMALISED MODEL" in text
    assert "ELBO =" not in text
    assert surgery.to_dict()["outside_support"]
    full = tfs.elbo_surgery(GREY, encoder, bernoulli, PRIOR, detail="full", validate_args=False)
    assert full.rate_distortion is not None
    assert full.rate_distortion.lower_bound is None  # H - D is for masses of what was observed
    assert full.readings is None
    assert "ELBO =" not in str(full)


def test_pixels_in_the_support_remain_an_elbo() -> None:
    binary = (GREY > 0.5).astype(np.float64)
    surgery = tfs.elbo_surgery(binary, encoder, bernoulli, PRIOR, validate_args=False)
    assert surgery.outside_support == ""
    assert surgery.elbo == tfs.elbo_surgery(binary, encoder, bernoulli, PRIOR).elbo
    assert "ELBO = (1) - (2) - (3)" in str(surgery)


def test_a_user_s_likelihood_without_validate_args_goes_in() -> None:
    class Cauchy(tfd.Distribution):
        def __init__(self, loc: tf.Tensor) -> None:
            parameters = dict(locals())
            self.loc = loc
            super().__init__(
                dtype=loc.dtype,
                reparameterization_type=tfd.NOT_REPARAMETERIZED,
                validate_args=False,
                allow_nan_stats=True,
                parameters=parameters,
            )

        def _batch_shape(self) -> tf.TensorShape:
            return self.loc.shape[:-1]

        def _event_shape(self) -> tf.TensorShape:
            return self.loc.shape[-1:]

        def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
            return -tf.reduce_sum(tf.math.log(np.pi * (1.0 + (x - self.loc) ** 2)), axis=-1)

    surgery = tfs.elbo_surgery(GREY, encoder, Cauchy, PRIOR, num_samples=S)
    z = tfs.scored_draws(GREY, encoder, Cauchy, PRIOR, num_samples=S).z.numpy()
    expected = with_control_variates(stats.cauchy.logpdf(GREY, z).sum(-1), z)
    assert surgery.average_reconstruction.value == pytest.approx(expected)


def test_a_structured_observation_is_scored_by_a_joint_likelihood() -> None:
    x = {"image": GREY, "count": RNG.poisson(3.0, size=N)}

    def encode(x: dict[str, tf.Tensor]) -> tfd.Distribution:
        return encoder(x["image"] + tf.cast(x["count"], tf.float64)[:, tf.newaxis])

    def decode(z: tf.Tensor) -> tfd.Distribution:
        return tfd.JointDistributionNamed(
            {
                "image": tfd.MultivariateNormalDiag(z, np.ones(4)),
                "count": tfd.Poisson(tf.exp(z[:, 0])),
            }
        )

    draws = tfs.scored_draws(x, encode, decode, PRIOR, num_samples=S)
    z = draws.z.numpy()
    expected = stats.norm.logpdf(x["image"], z).sum(-1)
    expected += stats.poisson.logpmf(x["count"], np.exp(z[..., 0]))
    np.testing.assert_allclose(draws.reconstruction, expected, rtol=1e-9)
    with pytest.raises(ValueError, match="goes into condition=, not into x"):
        tfs.elbo_surgery(x, encode, lambda z: tfd.MultivariateNormalDiag(z, np.ones(4)), PRIOR)


@pytest.mark.parametrize("kind", ["sparse", "tf.sparse", "tf.data"])
def test_x_of_any_storage_gives_the_same_numbers(kind: str) -> None:
    counts = RNG.poisson(0.7, size=(N, 4)).astype(np.float64)
    poisson = lambda z: tfd.Independent(tfd.Poisson(log_rate=z), 1)  # noqa: E731
    x: Any = {
        "sparse": scipy.sparse.csr_matrix,
        "tf.sparse": tf.sparse.from_dense,
        "tf.data": lambda array: tf.data.Dataset.from_tensor_slices(array).batch(6),
    }[kind](counts)
    expected = tfs.elbo_surgery(counts, encoder, poisson, PRIOR)
    found = tfs.elbo_surgery(x, encoder, poisson, PRIOR)
    assert found.estimates() == expected.estimates()


def test_ragged_rows_reach_encoder_and_likelihood() -> None:
    """Sequences of different lengths, each value a draw around a scalar code."""
    rows = tf.ragged.constant([[1.0, 2.0], [0.5], [3.0, 1.0, 2.0]] * 4, dtype=tf.float64)

    def encode(x: Any) -> tfd.Distribution:
        return tfd.Normal(tf.reduce_mean(x, axis=1), np.float64(0.5))

    class Around(tfd.Normal):
        """A density of ragged rows: independent Gaussians around the code."""

        def _event_shape(self) -> tf.TensorShape:
            return tf.TensorShape([None])

        def log_prob(self, x: Any, name: str = "log_prob") -> tf.Tensor:
            del name
            loc = tf.repeat(self.loc, x.row_lengths())
            scores = tfd.Normal(loc, self.scale).log_prob(x.flat_values)
            return tf.math.segment_sum(scores, x.value_rowids())

    prior = tfd.Normal(np.float64(0.0), 1.0)
    decode = lambda z: Around(z, np.float64(1.0))  # noqa: E731
    draws = tfs.scored_draws(rows, encode, decode, prior, num_samples=S)
    z = draws.z.numpy()
    for n, row in enumerate(rows.to_list()):
        expected = stats.norm.logpdf(np.array(row), z[:, n, None]).sum(-1)
        np.testing.assert_allclose(draws.reconstruction[:, n], expected, rtol=1e-9)


def test_without_a_decoder_there_are_the_terms_of_the_code() -> None:
    posteriors = encoder(tf.constant(GREY))
    whole = tfs.elbo_surgery(GREY, posteriors, bernoulli, PRIOR, validate_args=False)
    for x in (None, GREY):
        surgery = tfs.elbo_surgery(x, posteriors, None, PRIOR, detail="full")
        assert surgery.elbo is None
        assert surgery.absent["elbo"] == "decoder is None"
        for name in ("average_kl", "index_code_mutual_information", "marginal_kl"):
            assert getattr(surgery, name) == getattr(whole, name), name
        assert surgery.marginal_kl_split is not None
        assert surgery.mutual_information_bounds is not None
        assert {"readings", "rate_distortion"} <= surgery.absent.keys()
    with pytest.raises(TypeError, match="x is None: observations may be left out only"):
        tfs.elbo_surgery(None, encoder, None, PRIOR)
    with pytest.raises(TypeError, match="x is None"):
        tfs.elbo_surgery(None, posteriors, bernoulli, PRIOR)
    with pytest.raises(TypeError, match="decoder must be a callable"):
        tfs.importance_weighted_elbo(GREY, encoder, None, PRIOR, num_importance_samples=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without a decoder there is no ELBO"):
        tfs.elbo_surgery(None, posteriors, None, PRIOR, log_evidence=np.zeros(N))


def test_a_likelihood_that_does_not_score_x_is_named_before_the_work() -> None:
    binary = (GREY > 0.5).astype(np.float32)
    mask = GREY > 0.2
    encode = lambda x: tfd.MultivariateNormalDiag(x, tf.ones_like(x))  # noqa: E731
    prior = tfd.MultivariateNormalDiag(tf.zeros(4), tf.ones(4))

    def masked(dtype: tf.DType) -> Any:
        return lambda z, condition: tfd.Independent(
            tfd.Masked(tfd.Bernoulli(logits=z, dtype=dtype), validity_mask=condition), 1
        )

    with pytest.raises(ValueError, match=r"does not score x: .*tfd.Masked needs a distribution in"):
        tfs.elbo_surgery(binary, encode, masked(tf.int32), prior, condition=mask)
    draws = tfs.scored_draws(binary, encode, masked(tf.float32), prior, condition=mask)
    logits = draws.z.numpy()
    expected = np.where(mask, binary * logits - np.logaddexp(0.0, logits), 0.0).sum(-1)
    np.testing.assert_allclose(draws.reconstruction, expected, rtol=1e-5)


def test_rate_and_distortion_of_a_conditional_model_are_not_those_of_x() -> None:
    """x is a function of the label, and z is independent of both."""
    labels = np.arange(N) % 4
    x = np.eye(4)[labels]
    encode = lambda x: tfd.MultivariateNormalDiag(tf.zeros_like(x), np.ones(4))  # noqa: E731

    def decode(z: tf.Tensor, condition: tf.Tensor) -> tfd.Distribution:
        logits = 8.0 * tf.one_hot(condition, 4, dtype=z.dtype)
        return tfd.OneHotCategorical(logits=logits, dtype=tf.float64)

    full = tfs.elbo_surgery(x, encode, decode, PRIOR, condition=labels, detail="full")
    assert full.rate_distortion is None
    assert "I(X; Z|C)" in full.absent["rate_distortion"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": {"x": GREY, "condition": GREY}}, r"x\[\"x\"\] and condition=x\[\"condition\"\]"),
        ({"encoder": (GREY, GREY)}, r"from_arrays\(loc=..., scale= or log_variance= ...\)"),
        (
            {"encoder": lambda x, c: encoder(x + c)},
            "is named condition, and handed in as condition=",
        ),
        ({"encoder": lambda x: encoder(x).log_prob(0.0)}, "encoder must return a distribution"),
    ],
)
def test_messages_name_what_to_write(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"x": GREY, "encoder": encoder, **arguments}
    with pytest.raises((TypeError, ValueError), match=message):
        tfs.elbo_surgery(given["x"], given["encoder"], None, PRIOR)


def test_a_log_evidence_goes_in_by_its_observations() -> None:
    binary = (GREY > 0.5).astype(np.float64)
    evidence = tfs.log_evidence_by_importance_sampling(
        binary, encoder, bernoulli, PRIOR, num_importance_samples=20
    )
    with pytest.raises(TypeError, match=r"hand in log_evidence\.per_observation"):
        tfs.elbo_surgery(binary, encoder, bernoulli, PRIOR, log_evidence=evidence)
    surgery = tfs.elbo_surgery(
        binary, encoder, bernoulli, PRIOR, log_evidence=evidence.per_observation
    )
    assert surgery.readings is not None
