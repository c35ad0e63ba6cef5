"""Tests of surgeries with a condition, against a float64 brute force in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

import tfp_surgery as tfs
from tests.testing.brute_force import check_terms
from tfp_surgery import priors
from tfp_surgery.estimate import stratified_estimate

tfd = tfp.distributions

N, S = 24, 3
C = np.arange(N) % 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 2))
LOC = RNG.normal(size=(N, 2))
# Collapsed, overlapping and separated posteriors.
CASES = {"collapsed": (0.0, 1.0), "overlapping": (1.0, 0.7), "separated": (1000.0, 0.1)}


def model(case: str) -> tuple[Any, Any, Any]:
    """An encoder of rows [index, x], a decoder and a prior that take the condition."""
    spread, scale = CASES[case]
    table = tf.constant(spread * LOC)

    def encoder(x: tf.Tensor, condition: tf.Tensor) -> tfd.Distribution:
        shift = spread * tf.cast(condition, tf.float64)[:, tf.newaxis]
        loc = tf.gather(table, tf.cast(x[:, 0], tf.int32)) + shift
        return tfd.MultivariateNormalDiag(loc, tf.fill([2], tf.constant(scale, tf.float64)))

    def decoder(z: tf.Tensor, condition: tf.Tensor) -> tfd.Distribution:
        loc = 0.1 * z + tf.cast(condition, tf.float64)[:, tf.newaxis]
        return tfd.MultivariateNormalDiag(tf.concat([loc, loc[:, :1]], axis=-1), np.ones(3))

    def prior(condition: tf.Tensor) -> tfd.Distribution:
        loc = tf.cast(condition, tf.float64)[:, tf.newaxis] * tf.ones([1, 2], tf.float64)
        return tfd.MultivariateNormalDiag(loc, tf.constant([1.0, 1.0], tf.float64))

    return encoder, decoder, prior


OBSERVED = np.concatenate([np.arange(N)[:, None], X], axis=1)


def brute_force(case: str, z: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The log densities of draws [S, Q, 2] by numpy."""
    spread, scale = CASES[case]
    loc = spread * (LOC + C[:, None])
    scores = stats.norm.logpdf(z[:, :, None], loc, scale).sum(-1)  # [S, Q, N]
    same = C[rows][:, None] == C
    of_group = np.where(same, scores, -np.inf)
    decoded = 0.1 * z + C[rows][:, None]
    decoded = np.concatenate([decoded, decoded[..., :1]], axis=-1)
    return {
        "own": np.take_along_axis(scores, rows[None, :, None], axis=2)[..., 0],
        "aggregate": special.logsumexp(scores, axis=-1) - np.log(N),
        "given": special.logsumexp(of_group, axis=-1) - np.log(same.sum(-1)),
        "prior": stats.norm.logpdf(z, C[rows][:, None], 1.0).sum(-1),
        "likelihood": stats.norm.logpdf(OBSERVED[rows], decoded, 1.0).sum(-1),
    }


@pytest.mark.parametrize("num_query", [None, 11])
@pytest.mark.parametrize("reencode", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_terms_given_the_condition_are_those_of_numpy(
    case: str, reencode: bool, num_query: int | None
) -> None:
    options: Any = {"condition": C, "num_samples": S, "num_query": num_query, "reencode": reencode}
    draws = tfs.scored_draws(OBSERVED, *model(case), **options)
    logs = brute_force(case, draws.z.numpy(), draws.index)
    for name, values in {
        "log_posterior": logs["own"],
        "log_prior": logs["prior"],
        "log_aggregate": logs["aggregate"],
        "reconstruction": logs["likelihood"],
    }.items():
        np.testing.assert_allclose(getattr(draws, name), values, rtol=1e-6, err_msg=name)
    surgery = tfs.elbo_surgery(OBSERVED, *model(case), **options)
    split = surgery.condition_split
    assert split is not None
    check_terms(
        surgery,
        *(logs["own"], logs["aggregate"], logs["prior"], logs["likelihood"]),
        double=True,
    )
    spread, scale = CASES[case]
    shift = spread * LOC + (spread - 1.0) * C[:, None]
    kl = (0.5 * (scale**2 + shift**2 - 1.0) - np.log(scale)).sum(axis=1)  # [N]
    assert surgery.average_kl.value == pytest.approx(kl.mean(), rel=1e-12, abs=1e-12)
    for estimate, values in [
        (split.index_code_mutual_information, logs["own"] - logs["given"]),
        (split.marginal_kl, logs["given"] - logs["prior"]),
        (split.condition_mutual_information, logs["given"] - logs["aggregate"]),
    ]:
        assert estimate is not None
        plain = stratified_estimate(values, N)
        error = 5.0 * plain.standard_error  # of few draws
        assert estimate.value == pytest.approx(values.mean(), rel=1e-6, abs=error + 1e-9)
    check_sums(surgery)
    assert split.num_values == 3
    assert split.ceiling == pytest.approx(np.log(N / 3))
    assert "condition given to encoder, decoder and prior" in surgery.data


def check_sums(surgery: tfs.ElboSurgery) -> None:
    """The split adds up to the terms of the same result."""
    split = surgery.condition_split
    assert split is not None
    inside = split.index_code_mutual_information.value
    for total, rest in (
        (surgery.average_kl, split.marginal_kl),
        (surgery.index_code_mutual_information, split.condition_mutual_information),
    ):
        assert total.value == pytest.approx(inside + rest.value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("with_prior", [True, False])
def test_what_is_known_makes_the_errors_smaller(with_prior: bool) -> None:
    """Against a mean over many draws of numpy's, and the errors of plain means."""
    encoder, decoder, prior = model("overlapping")
    spread, scale = CASES["overlapping"]
    loc = spread * (LOC + C[:, None])
    noise = np.random.default_rng(1).normal(size=(20000, N, 2))
    everything = np.arange(N)
    if not with_prior:  # one whose KL is not known
        mixture = tfd.MixtureSameFamily(
            tfd.Categorical(logits=np.zeros(2)),
            tfd.MultivariateNormalDiag(np.array([[0.0, 0.0], [1.0, 1.0]]), np.full(2, 1.5)),
        )

    def logs_of(z: np.ndarray) -> dict[str, np.ndarray]:
        logs = brute_force("overlapping", z, everything)
        if not with_prior:
            both = stats.norm.logpdf(z[..., None, :], np.array([[0.0], [1.0]]), 1.5).sum(-1)
            logs["prior"] = special.logsumexp(both, axis=-1) - np.log(2.0)
        return {
            "index_code_mutual_information": logs["own"] - logs["given"],
            "marginal_kl": logs["given"] - logs["prior"],
            "condition_mutual_information": logs["given"] - logs["aggregate"],
        }

    truth = logs_of(loc + scale * noise)
    chosen = (encoder, decoder, prior if with_prior else mixture)
    options: Any = {"condition": C, "num_samples": 60}
    surgery = tfs.elbo_surgery(OBSERVED, *chosen, **options)
    check_sums(surgery)
    sampled = logs_of(tfs.scored_draws(OBSERVED, *chosen, **options).z.numpy())
    for name, values in truth.items():
        estimate, exact = getattr(surgery.condition_split, name), stratified_estimate(values, N)
        error = np.hypot(estimate.standard_error, exact.standard_error)
        assert abs(estimate.value - exact.value) <= 4.0 * error, name
        plain = stratified_estimate(sampled[name], N).standard_error
        is_known = with_prior or name != "marginal_kl"
        assert estimate.standard_error < (0.6 if is_known else 0.95) * plain, name


def test_a_prior_of_the_condition_has_no_marginal_kl() -> None:
    surgery = tfs.elbo_surgery(OBSERVED, *model("overlapping"), condition=C, detail="full")
    assert surgery.marginal_kl is None
    assert "no KL" in surgery.absent["marginal_kl"]
    assert "no KL" in str(surgery)
    assert surgery.readings is None
    assert surgery.average_kl_method == "analytic"
    # One average KL, split in two ways.
    split = surgery.condition_split
    assert split is not None
    assert surgery.conditional_prior_term is not None
    both = split.index_code_mutual_information.value + split.marginal_kl.value
    other = surgery.index_code_mutual_information.value + surgery.conditional_prior_term.value
    assert both == pytest.approx(surgery.average_kl.value)
    assert other == pytest.approx(surgery.average_kl.value)


def test_a_condition_of_encoder_and_decoder_alone_keeps_the_marginal_kl() -> None:
    encoder, decoder, _ = model("overlapping")
    prior = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    surgery = tfs.elbo_surgery(OBSERVED, encoder, decoder, prior, condition=C)
    assert surgery.conditional_prior_term is None
    draws = tfs.scored_draws(OBSERVED, encoder, decoder, prior, condition=C)
    np.testing.assert_allclose(
        draws.log_prior, stats.norm.logpdf(draws.z.numpy()).sum(-1), rtol=1e-12
    )
    assert surgery.condition_split is not None
    assert surgery.marginal_kl_sampled.value == pytest.approx(
        (draws.log_aggregate - draws.log_prior).mean()
    )


@pytest.mark.parametrize(
    "condition",
    [
        {"a": C // 2, "b": C % 2},
        np.eye(3)[C],
        scipy.sparse.csr_matrix(np.eye(3)[C]),
        tf.ragged.constant([[1.0] * int(c) for c in C], dtype=tf.float64, inner_shape=()),
    ],
    ids=["two parts", "one-hot", "sparse", "ragged"],
)
def test_equal_rows_of_any_condition_are_one_value(condition: Any) -> None:
    encoder, decoder, prior = model("overlapping")

    def value(given: Any) -> Any:
        if isinstance(given, dict):
            return 2 * given["a"] + given["b"]
        if isinstance(given, tf.RaggedTensor):
            return given.row_lengths()
        return tf.argmax(given, axis=-1)

    parts: Any = (
        lambda x, condition: encoder(x, value(condition)),
        lambda z, condition: decoder(z, value(condition)),
        lambda condition: prior(value(condition)),
    )
    expected = tfs.elbo_surgery(OBSERVED, encoder, decoder, prior, condition=C)
    found = tfs.elbo_surgery(OBSERVED, *parts, condition=condition)
    assert found.condition_split is not None
    assert expected.condition_split is not None
    assert found.condition_split.to_dict() == expected.condition_split.to_dict()
    assert found.elbo == expected.elbo


def test_a_condition_of_every_observation_of_its_own_has_no_split() -> None:
    surgery = tfs.elbo_surgery(OBSERVED, *model("overlapping"), condition=np.arange(N) / N)
    assert surgery.condition_split is None
    assert "24 values in 24 observations" in surgery.absent["condition_split"]


def test_a_conditional_prior_of_the_package_goes_in() -> None:
    encoder = lambda x: tfd.MultivariateNormalDiag(x, tf.fill([2], 0.5))  # noqa: E731
    prior = priors.MixturePrior(2, 3, condition_size=3)
    condition = np.eye(3, dtype=np.float32)[C]
    surgery = tfs.elbo_surgery(X.astype(np.float32), encoder, None, prior, condition=condition)
    draws = tfs.scored_draws(X.astype(np.float32), encoder, None, prior, condition=condition)
    for s in range(2):
        expected = prior(condition).log_prob(draws.z[s])
        np.testing.assert_allclose(draws.log_prior[s], expected, rtol=1e-5)
    assert surgery.conditional_prior_term is not None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"condition": C[:5]}, ValueError, "one row an observation, 24, but it has 5"),
        ({"condition": np.full(N, np.nan)}, ValueError, "condition must be finite"),
        ({"condition": None}, TypeError, "encoder, decoder and prior need condition="),
        (
            {"prior": lambda condition: tfd.MultivariateNormalDiag(np.zeros(2) * len(condition))},
            ValueError,
            "one distribution for each",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    encoder, decoder, prior = model("overlapping")
    arguments: dict[str, Any] = {"prior": prior, "condition": C, **change}
    with pytest.raises(error, match=message):
        tfs.elbo_surgery(OBSERVED, encoder, decoder, **arguments)


def test_a_condition_that_nobody_takes_is_refused() -> None:
    encoder = lambda x: tfd.MultivariateNormalDiag(x, np.ones(2))  # noqa: E731
    prior = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    with pytest.raises(TypeError, match="none of encoder, decoder, prior takes it"):
        tfs.elbo_surgery(X, encoder, encoder, prior, condition=C)


def test_codes_outside_of_the_support_of_any_condition_are_refused() -> None:
    """Those of later observations, too: TFP's formula of the gamma density is finite below 0."""
    loc = np.where(np.arange(N) < 10, 5.0, -5.0)[:, None]
    encoder = lambda x: tfd.Normal(x[:, 0], np.float64(0.1))  # noqa: E731

    def prior(condition: tf.Tensor) -> tfd.Distribution:
        return tfd.Exponential(condition)

    rates = np.ones(N)
    inside = tfs.elbo_surgery(np.abs(loc), encoder, None, prior, condition=rates)
    assert inside.average_kl.value > 0
    with pytest.raises(ValueError, match="outside the support of the prior Exponential"):
        tfs.elbo_surgery(loc, encoder, None, prior, condition=rates)
