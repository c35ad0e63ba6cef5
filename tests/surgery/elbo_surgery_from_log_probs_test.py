"""Tests of the surgery of log densities: that of the model itself, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

import tfp_surgery as tfs
from tests.testing.regression import controlled_mean

tfd = tfp.distributions

N, S = 12, 4
# Collapsed, overlapping and separated posteriors.
CASES = {"collapsed": 0.0, "overlapping": 1.0, "separated": 100.0}


def model(spread: float) -> tuple[Any, Any, Any, np.ndarray]:
    loc = spread * np.random.default_rng(0).normal(size=(N, 2))
    x = np.random.default_rng(1).normal(size=(N, 2))
    posteriors = tfd.MultivariateNormalDiag(loc, np.full([N, 2], 0.8))
    prior = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))

    def decoder(z: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(0.3 * z, np.ones(2))

    return x, posteriors, (decoder, prior), loc


def log_densities(spread: float) -> dict[str, Any]:
    """Draws and scores of numpy, as another library would have made them."""
    x, _, _, loc = model(spread)
    z = loc + 0.8 * np.random.default_rng(2).normal(size=(S, N, 2))
    scores = stats.norm.logpdf(z[:, :, None], loc, 0.8).sum(-1)  # [S, N, N]
    return {
        "log_posterior": scores[:, np.arange(N), np.arange(N)],
        "log_prior": stats.norm.logpdf(z).sum(-1),
        "log_posteriors": scores,
        "log_likelihood": stats.norm.logpdf(x, 0.3 * z).sum(-1),
    }


def _unseen_variance(log_ratio: np.ndarray, entropy: np.ndarray) -> float:
    """What is missing of the variance of the mean of log q(n|z): see the module of the terms."""
    other = -np.expm1(np.minimum(log_ratio - np.log(N), 0.0))
    rare = (entropy < 0.5) & (other > 1e-10)
    if other[rare].sum() >= 20.0:
        return 0.0
    known = rare & (other < 0.5)
    return float(((entropy[known] - other[known]) ** 2 / other[known]).sum() / entropy.size**2)


@pytest.mark.parametrize("case", CASES)
def test_terms_are_means_of_differences_of_log_densities_with_control_variates(case: str) -> None:
    given = log_densities(CASES[case])
    surgery = tfs.elbo_surgery_from_log_probs(**given)
    log_q = special.logsumexp(given["log_posteriors"], axis=-1) - np.log(N)
    plain = {
        "average_kl_sampled": given["log_posterior"] - given["log_prior"],
        "index_code_mutual_information_sampled": given["log_posterior"] - log_q,
        "marginal_kl_sampled": log_q - given["log_prior"],
    }
    for name, values in plain.items():
        assert getattr(surgery, name).value == pytest.approx(values.mean(), abs=1e-10), name
    posterior = special.softmax(given["log_posteriors"], axis=-1)
    entropy = special.entr(posterior).sum(-1)
    assert surgery.index_code_mutual_information_from_entropy.value == pytest.approx(
        np.log(N) - entropy.mean(), abs=1e-10
    )
    # The two ways to the mutual information are the one control variate that scores give.
    control = plain["index_code_mutual_information_sampled"] - np.log(N) + entropy
    varies = case == "overlapping"
    assert surgery.control_variates == (("H[q(n|z)]",) if varies else ())
    terms = {
        "average_reconstruction": given["log_likelihood"],
        "elbo": given["log_likelihood"] - plain["average_kl_sampled"],
        "average_kl": plain["average_kl_sampled"],
        "index_code_mutual_information": plain["index_code_mutual_information_sampled"],
        "marginal_kl": plain["marginal_kl_sampled"],
    }
    unseen = {"index_code_mutual_information": 1.0, "marginal_kl": -1.0}
    for name, values in terms.items():
        mean, error = controlled_mean(
            values,
            [control] if varies else [],
            N,
            unseen_variance=_unseen_variance(given["log_posterior"] - log_q, entropy),
            unseen=unseen.get(name, 0.0),
            loadings=[1.0] if varies else None,
            own_means=[None] if varies else None,
        )
        estimate = getattr(surgery, name)
        assert estimate.value == pytest.approx(mean, abs=1e-10), name
        assert estimate.standard_error == pytest.approx(error, rel=1e-8, abs=1e-9), name
    assert surgery.warnings == ()


@pytest.mark.parametrize("case", CASES)
def test_the_scored_draws_of_a_model_give_its_surgery(case: str) -> None:
    x, posteriors, networks, _ = model(CASES[case])
    surgery = tfs.elbo_surgery(x, posteriors, *networks, num_samples=S, num_query=7)
    draws = tfs.scored_draws(x, posteriors, *networks, num_samples=S, num_query=7)
    again = tfs.elbo_surgery_from_log_probs(
        log_posterior=draws.log_posterior,
        log_prior=draws.log_prior,
        log_aggregate=draws.log_aggregate,
        log_likelihood=draws.reconstruction,
        index=draws.index,
        num_observations=N,
        data="the same",
    )
    sampled = [name for name in surgery.estimates() if name.endswith("_sampled")]
    assert len(sampled) == 3
    for name in sampled:
        estimate = getattr(again, name)
        assert dataclasses.replace(
            getattr(surgery, name), standard_error=estimate.standard_error
        ) == dataclasses.replace(
            estimate, population_standard_error=getattr(surgery, name).population_standard_error
        ), name
        # Without log q(z|x_n) of all n, nothing is known of it but its draws.
        assert again.estimates()[name.removesuffix("_sampled")] == estimate
    assert again.control_variates == ()
    assert surgery.average_kl_method == "analytic"
    assert again.average_kl_method == "monte_carlo"
    assert again.average_reconstruction.value == surgery.average_reconstruction.value
    assert again.index_code_mutual_information_from_entropy is None
    assert "index_code_mutual_information_from_entropy" in again.absent
    assert again.data == "the same, N = 12"
    assert "seed" not in str(again)


def test_without_a_likelihood_there_is_no_elbo() -> None:
    given = log_densities(1.0)
    del given["log_likelihood"]
    surgery = tfs.elbo_surgery_from_log_probs(**given)
    assert surgery.elbo is None
    assert "elbo" in surgery.absent
    with pytest.raises(ValueError, match="give log_likelihood"):
        tfs.elbo_surgery_from_log_probs(**given, log_evidence=np.zeros(N))


def test_a_log_evidence_gives_the_readings() -> None:
    given = log_densities(1.0)
    surgery = tfs.elbo_surgery_from_log_probs(**given, log_evidence=np.full(N, -1.0))
    assert surgery.readings is not None
    assert surgery.readings.log_evidence is not None
    assert surgery.readings.log_evidence.value == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: {**given, "log_aggregate": given["log_prior"]}, "give either"),
        (lambda given: {**given, "log_posteriors": None}, "give either"),
        (lambda given: {**given, "log_posterior": given["log_posterior"][0]}, r"\[S, Q\]"),
        (lambda given: {**given, "log_posteriors": given["log_posteriors"][:2]}, r"\[4, 12, N\]"),
        (lambda given: {**given, "log_posteriors": given["log_posteriors"][..., ::-1]}, "order"),
        (lambda given: {**given, "num_observations": 13}, "holds 12 posteriors"),
        (lambda given: {**given, "index": np.zeros(N, int), "num_observations": N}, "different"),
        (lambda given: {**given, "index": np.arange(N) + 1, "num_observations": N}, "lie in"),
        (lambda given: {**given, "log_prior": given["log_prior"] * np.nan}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tfs.elbo_surgery_from_log_probs(**change(log_densities(1.0)))


def test_a_part_of_the_observations_must_be_named() -> None:
    given = {name: values[:, :5] for name, values in log_densities(1.0).items()}
    with pytest.raises(ValueError, match="index must say which"):
        tfs.elbo_surgery_from_log_probs(**given)


def test_reasons_are_those_of_log_densities() -> None:
    given = log_densities(1.0)
    del given["log_likelihood"]
    surgery = tfs.elbo_surgery_from_log_probs(**given)
    assert surgery.absent["elbo"] == "log_likelihood is not given"
    text = str(surgery)
    assert "TFP registers" not in text
    assert "log densities alone" not in text
    assert "log_evidence is not given" in text


def test_swapped_axes_are_named_where_numbers_contradict_each_other() -> None:
    loc = np.zeros((N, 2))
    scale = np.exp(1.5 * np.random.default_rng(1).normal(size=N))[:, None]
    z = loc + scale * np.random.default_rng(2).normal(size=(200, N, 2))
    scores = stats.norm.logpdf(z[:, :, None], loc, scale).sum(-1)
    arguments = {
        "log_posterior": scores[:, np.arange(N), np.arange(N)],
        "log_prior": stats.norm.logpdf(z).sum(-1),
    }
    assert not tfs.elbo_surgery_from_log_probs(**arguments, log_posteriors=scores).warnings
    with pytest.warns(UserWarning, match="last two axes of log_posteriors may be swapped"):
        tfs.elbo_surgery_from_log_probs(**arguments, log_posteriors=np.swapaxes(scores, 1, 2))


def test_an_aggregate_below_the_posterior_s_own_share_is_refused() -> None:
    given = log_densities(100.0)
    log_q = special.logsumexp(given.pop("log_posteriors"), axis=-1) - np.log(N)
    surgery = tfs.elbo_surgery_from_log_probs(**given, log_aggregate=log_q)
    assert surgery.index_code_mutual_information.value == pytest.approx(np.log(N))
    with pytest.raises(ValueError, match=r"48 of 48 draws.* with 1/N taken once"):
        tfs.elbo_surgery_from_log_probs(**given, log_aggregate=log_q - np.log(N))
