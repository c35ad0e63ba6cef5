"""Tests of structured codes: joint terms and those of each part, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

import tfp_surgery as tfs
from tests.testing.brute_force import check_terms
from tfp_surgery.estimate import stratified_estimate

tfd = tfp.distributions

N, S = 15, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3))
# Collapsed, overlapping and separated posteriors.
CASES = {"collapsed": 0.0, "overlapping": 1.0, "separated": 50.0}


def named(case: str) -> tuple[Any, Any, Any]:
    """Codes of a scalar u and a matrix v."""
    spread = CASES[case]

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        v = tfd.Normal(spread * tf.reshape(x[:, 1:], [-1, 1, 2]), np.float64(0.8))
        return tfd.JointDistributionNamed(
            {"u": tfd.Normal(spread * x[:, 0], np.float64(0.6)), "v": tfd.Independent(v, 2)}
        )

    def decoder(z: Any) -> tfd.Distribution:
        loc = tf.concat([z["u"][:, tf.newaxis], z["v"][:, 0]], axis=-1)
        return tfd.MultivariateNormalDiag(loc, np.ones(3))

    prior = tfd.JointDistributionNamed(
        {
            "u": tfd.Normal(np.float64(0.0), 1.0),
            "v": tfd.Sample(tfd.Normal(np.float64(0.0), 1.0), [1, 2]),
        }
    )
    return encoder, decoder, prior


def brute_force(case: str, z: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of draws [S, N, 3] under all N posteriors, of each part."""
    spread = CASES[case]
    u = stats.norm.logpdf(z[:, :, None, 0], spread * X[:, 0], 0.6)
    v = stats.norm.logpdf(z[:, :, None, 1:], spread * X[:, 1:], 0.8).sum(-1)
    return {
        "u": u,
        "v": v,
        "joint": u + v,
        "prior u": stats.norm.logpdf(z[..., 0]),
        "prior v": stats.norm.logpdf(z[..., 1:]).sum(-1),
        "likelihood": stats.norm.logpdf(X, z, 1.0).sum(-1),
    }


@pytest.mark.parametrize("reencode", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_terms_of_a_joint_code_and_of_its_parts_are_those_of_numpy(
    case: str, reencode: bool
) -> None:
    options: Any = {"num_samples": S, "reencode": reencode}
    draws = tfs.scored_draws(X, *named(case), **options)
    logs = brute_force(case, draws.z.numpy())
    own = np.arange(N)
    np.testing.assert_allclose(draws.log_posterior, logs["joint"][:, own, own], rtol=1e-9)
    np.testing.assert_allclose(draws.reconstruction, logs["likelihood"], rtol=1e-9)
    surgery = tfs.elbo_surgery(X, *named(case), **options)
    log_q = special.logsumexp(logs["joint"], axis=-1) - np.log(N)
    log_prior = logs["prior u"] + logs["prior v"]
    check_terms(
        surgery,
        *(logs["joint"][:, own, own], log_q, log_prior, logs["likelihood"]),
        double=True,
    )
    assert surgery.per_part is not None
    assert list(surgery.per_part) == ["u", "v"]
    for name, terms in surgery.per_part.items():
        log_q = special.logsumexp(logs[name], axis=-1) - np.log(N)
        own_scores, log_prior = logs[name][:, own, own], logs[f"prior {name}"]
        for estimate, values in [
            (terms.index_code_mutual_information, own_scores - log_q),
            (terms.marginal_kl, log_q - log_prior),
            (terms.average_kl, own_scores - log_prior),
        ]:
            assert estimate is not None
            error = 5.0 * stratified_estimate(values, N).standard_error  # of few draws
            expected = pytest.approx(values.mean(), rel=1e-6, abs=error + 1e-9)
            assert estimate.value == expected, name
        check_part(terms, case, name)


def check_part(terms: Any, case: str, name: str) -> None:
    """The average KL of a part is its closed form, and the other two terms add up to it."""
    scale, dims = (0.6, slice(0, 1)) if name == "u" else (0.8, slice(1, 3))
    loc = CASES[case] * X[:, dims]
    kl = (0.5 * (scale**2 + loc**2 - 1.0) - np.log(scale)).sum(axis=1).mean()
    assert terms.average_kl.value == pytest.approx(kl, rel=1e-12)
    assert terms.index_code_mutual_information.value + terms.marginal_kl.value == pytest.approx(kl)


@pytest.mark.parametrize("case", CASES)
def test_what_is_known_of_a_part_makes_its_errors_smaller(case: str) -> None:
    options: Any = {"num_samples": 100}
    surgery = tfs.elbo_surgery(X, *named(case), **options)
    z = tfs.scored_draws(X, *named(case), **options).z.numpy()
    loc = CASES[case] * X
    noise = np.random.default_rng(2).normal(size=(20000, N, 3)) * [0.6, 0.8, 0.8]
    own = np.arange(N)
    assert surgery.per_part is not None
    for name, terms in surgery.per_part.items():
        check_part(terms, case, name)
        means = []
        for codes in (loc + noise, z):
            logs = brute_force(case, codes)
            log_q = special.logsumexp(logs[name], axis=-1) - np.log(N)
            information = logs[name][:, own, own] - log_q
            means.append(
                (
                    stratified_estimate(information, N),
                    stratified_estimate(log_q - logs[f"prior {name}"], N),
                )
            )
        found = terms.index_code_mutual_information, terms.marginal_kl
        for estimate, exact, plain in zip(found, *means, strict=True):
            error = np.hypot(estimate.standard_error, exact.standard_error)
            assert abs(estimate.value - exact.value) <= 4.0 * error + 1e-9
            # Where parts are separated, the error is that of draws too rare to be made.
            assert estimate.standard_error <= 0.8 * plain.standard_error + 1e-6


def test_the_average_kl_of_independent_parts_is_known_in_closed_form() -> None:
    surgery = tfs.elbo_surgery(X, *named("overlapping"))
    kl = [
        0.5 * (scale**2 + X[:, dims] ** 2 - 1.0) - np.log(scale)
        for scale, dims in ((0.6, slice(0, 1)), (0.8, slice(1, 3)))
    ]
    assert surgery.average_kl_method == "analytic"
    assert surgery.average_kl.value == pytest.approx(np.concatenate(kl, 1).sum(1).mean())


def test_dependent_parts_have_terms_where_their_posterior_is_known() -> None:
    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.JointDistributionNamed(
            {
                "top": tfd.Normal(x[:, 0], np.float64(0.6)),
                "low": lambda top: tfd.Normal(top + x[:, 1], np.float64(0.8)),
            }
        )

    prior = tfd.JointDistributionNamed(
        {
            "top": tfd.Normal(np.float64(0.0), 1.0),
            "low": lambda top: tfd.Normal(top, np.float64(1.0)),
        }
    )
    draws = tfs.scored_draws(X, encoder, None, prior, num_samples=S, reencode=True)
    low, top = np.moveaxis(draws.z.numpy(), -1, 0)
    scores = stats.norm.logpdf(top[..., None], X[:, 0], 0.6)
    joint = scores + stats.norm.logpdf(low[..., None], top[..., None] + X[:, 1], 0.8)
    np.testing.assert_allclose(
        draws.log_aggregate, special.logsumexp(joint, axis=-1) - np.log(N), rtol=1e-9
    )
    np.testing.assert_allclose(
        draws.log_prior, stats.norm.logpdf(top) + stats.norm.logpdf(low, top), rtol=1e-9
    )
    surgery = tfs.elbo_surgery(X, encoder, None, prior, num_samples=S, reencode=True)
    assert surgery.per_part is not None
    log_q = special.logsumexp(scores, axis=-1) - np.log(N)
    information = surgery.per_part["top"].index_code_mutual_information
    assert information is not None
    own = np.arange(N)
    values = scores[:, own, own] - log_q
    error = 5.0 * stratified_estimate(values, N).standard_error  # of few draws
    assert information.value == pytest.approx(values.mean(), abs=error)
    marginal, average_kl = surgery.per_part["top"].marginal_kl, surgery.per_part["top"].average_kl
    assert marginal is not None
    assert average_kl is not None
    kl = (0.5 * (0.6**2 + X[:, 0] ** 2 - 1.0) - np.log(0.6)).mean()
    assert average_kl.value == pytest.approx(kl)
    assert marginal.value == pytest.approx(kl - information.value)
    assert surgery.per_part["low"].index_code_mutual_information is None
    assert "depend on each other" in surgery.per_part["low"].absent["marginal_kl"]
    assert "low: index_code_mutual_information" in str(surgery)
    with pytest.raises(TypeError, match=r"low \[\], top \[\].*reencode=True"):
        tfs.elbo_surgery(X, encoder, None, prior)


def test_parts_of_a_blockwise_code_have_terms_of_their_own() -> None:
    def encoder(x: tf.Tensor) -> tfd.Distribution:
        return tfd.Blockwise(
            [
                tfd.Normal(x[:, 0], np.float64(0.6)),
                tfd.MultivariateNormalDiag(x[:, 1:], np.full(2, 0.8)),
            ]
        )

    prior = tfd.Blockwise(
        [tfd.Normal(np.float64(0.0), 1.0), tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))]
    )
    blockwise = tfs.elbo_surgery(X, encoder, None, prior, num_samples=400)
    encoder_of_both, _, prior_of_both = named("overlapping")
    joint = tfs.elbo_surgery(X, encoder_of_both, None, prior_of_both, num_samples=400)
    assert blockwise.per_part is not None
    assert joint.per_part is not None
    for number, name in (("0", "u"), ("1", "v")):
        one, other = (
            each.index_code_mutual_information
            for each in (blockwise.per_part[number], joint.per_part[name])
        )
        assert one is not None
        assert other is not None
        error = np.hypot(one.standard_error, other.standard_error)
        assert abs(one.value - other.value) < 5 * error


def test_integer_parts_go_with_masses() -> None:
    """A mixture label beside a Gaussian, as in a Gaussian mixture VAE."""
    logits = RNG.normal(size=(N, 4))

    def encoder(x: tf.Tensor) -> tfd.Distribution:
        rows = tf.cast(x[:, 0], tf.int32)
        return tfd.JointDistributionSequential(
            [
                tfd.Categorical(logits=tf.gather(tf.constant(logits), rows)),
                tfd.Normal(x[:, 1], np.float64(0.5)),
            ]
        )

    prior = tfd.JointDistributionSequential(
        [tfd.Categorical(probs=np.full(4, 0.25)), tfd.Normal(np.float64(0.0), 1.0)]
    )
    x = np.stack([np.arange(N), X[:, 0]], axis=1)
    draws = tfs.scored_draws(x, encoder, None, prior, num_samples=S)
    label, z = draws.z.numpy()[..., 0].astype(int), draws.z.numpy()[..., 1]
    log_probs = special.log_softmax(logits, axis=-1)
    joint = log_probs[:, label].transpose(1, 2, 0) + stats.norm.logpdf(z[..., None], X[:, 0], 0.5)
    np.testing.assert_allclose(
        draws.log_aggregate, special.logsumexp(joint, axis=-1) - np.log(N), rtol=1e-9
    )
    surgery = tfs.elbo_surgery(x, encoder, None, prior, num_samples=2000)
    assert surgery.per_part is not None
    usage = np.exp(log_probs).mean(0)
    expected = special.entr(usage).sum() - special.entr(np.exp(log_probs)).sum(-1).mean()
    information = next(iter(surgery.per_part.values())).index_code_mutual_information
    assert information is not None
    assert abs(information.value - expected) < 5 * information.standard_error
    assert surgery.warnings == ()


def test_a_pinned_joint_distribution_is_not_normalised() -> None:
    encoder, decoder, prior = named("overlapping")
    pinned = prior.experimental_pin(u=np.float64(0.0))
    for parts in (
        (encoder, decoder, pinned),
        (pinned, decoder, prior),
        (lambda x: encoder(x).experimental_pin(u=x[:, 0]), decoder, prior),
    ):
        with pytest.raises(TypeError, match=r"not normalised over its unpinned parts"):
            tfs.elbo_surgery(X, *parts)


def test_results_are_mappings_by_name_and_json_ready() -> None:
    per_part = tfs.elbo_surgery(X, *named("overlapping")).per_part
    assert per_part is not None
    assert len(per_part) == 2
    assert per_part.to_dict()["parts"]["u"]["marginal_kl"]["value"] is not None
    assert "u: marginal KL" in str(per_part)


def test_other_layouts_of_as_many_dimensions_are_refused() -> None:
    def encoder(first: str, second: str) -> Any:
        return lambda x: tfd.JointDistributionNamed(
            {
                first: tfd.MultivariateNormalDiag(x[:, :2], np.full(2, 0.5)),
                second: tfd.Normal(x[:, 2], np.float64(0.5)),
            }
        )

    prior = tfd.JointDistributionNamed(
        {
            "a": tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2)),
            "b": tfd.Normal(np.float64(0.0), 1.0),
        }
    )
    own, other = (
        tfs.AggregatePosterior.from_encoder(encoder(*names), X)
        for names in (("a", "b"), ("b", "a"))
    )
    arguments = (X, encoder("a", "b"), None, prior)
    plain, surgery = (
        tfs.elbo_surgery(*arguments, num_samples=num_samples, training_aggregate_posterior=own)
        for num_samples in (2, 20)
    )
    assert plain.control_variates == ()  # of 12 degrees of freedom
    assert plain.cross_term is not None
    assert plain.cross_term.value == pytest.approx(plain.marginal_kl_sampled.value)
    assert len(surgery.control_variates) == 3
    assert surgery.cross_term is not None
    gap = surgery.cross_term.value - surgery.marginal_kl.value
    # What of log q(z) was too rare to be drawn is not known of a q_train(z).
    assert abs(gap) < surgery.marginal_kl.standard_error
    with pytest.raises(ValueError, match=r"parts a \[2\], b \[\]; it is over a \[\], b \[2\]"):
        tfs.elbo_surgery(*arguments, training_aggregate_posterior=other)
    flat = tfd.MultivariateNormalDiag(np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="hand in a joint distribution of the same parts"):
        tfs.elbo_surgery(X, encoder("a", "b"), None, flat)
    assert tfs.elbo_surgery(X, encoder("a", "b"), None, own).marginal_kl.value == pytest.approx(0.0)
    assert hash(surgery) == hash(surgery)
