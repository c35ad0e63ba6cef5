"""What `elbo_surgery` says of numbers that cannot all be right, and what it lets pass."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing import oracles
from tests.testing.models import index_data, table_encoder, unit_decoder
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.evidence.importance_sampling import log_evidence_by_importance_sampling
from tfp_surgery.evidence.importance_weighted_elbo import importance_weighted_elbo
from tfp_surgery.information.mutual_information_bounds import mutual_information_bounds
from tfp_surgery.surgery.elbo_surgery import elbo_surgery
from tfp_surgery.surgery.elbo_surgery_result import ElboSurgery

tfb = tfp.bijectors
tfd = tfp.distributions

N = 120


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    """What is not expected to warn must not."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def _surgery(posteriors: tfd.Distribution, prior: tfd.Distribution, **kwargs: Any) -> ElboSurgery:
    size = int(posteriors.batch_shape[0])
    return elbo_surgery(index_data(size), table_encoder(posteriors), unit_decoder, prior, **kwargs)


def _gammas(shape: float, dtype: type) -> tuple[tfd.Distribution, tfd.Distribution]:
    """Posteriors [N] over four Gamma variables of small shape, and a prior of that shape."""
    shapes = shape * np.exp(0.3 * np.random.default_rng(1).normal(size=(N, 4)))
    return (
        tfd.Independent(tfd.Gamma(shapes.astype(dtype), dtype(1)), 1),
        tfd.Independent(tfd.Gamma(np.full(4, shape, dtype), dtype(1)), 1),
    )


@pytest.mark.parametrize("shape", [0.05, 0.02])
def test_clamped_draws_are_the_cause_that_is_named(shape: float) -> None:
    with pytest.warns(UserWarning, match="float32 rounds draws of the posteriors") as caught:
        surgery = _surgery(*_gammas(shape, np.float32), num_samples=30)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "exactly 1.17549e-38" in surgery.warnings[0]
    assert "Likely" not in str(surgery.warnings)
    assert f"WARNING: {surgery.warnings[0]}" in str(surgery)
    record = json.loads(json.dumps(surgery.to_dict(), allow_nan=False))
    assert record["warnings"] == list(surgery.warnings)
    if shape == 0.02:
        text = " ".join(surgery.warnings[1:])
        assert "Marginal KL = -0.07" in text
        assert "Average KL: " in text


@pytest.mark.parametrize("shape", [0.05, 0.02])
def test_in_float64_the_same_model_is_right(shape: float) -> None:
    surgery = _surgery(*_gammas(shape, np.float64), num_samples=30)
    assert surgery.warnings == ()
    assert "WARNING" not in str(surgery)
    shapes = shape * np.exp(0.3 * np.random.default_rng(1).normal(size=(N, 4)))
    truth = np.mean(_gamma_kl(shapes, shape).sum(axis=1))
    kl = surgery.average_kl
    assert abs(kl.value - truth) < 4 * kl.standard_error
    assert surgery.marginal_kl.value > 0


def _gamma_kl(a: np.ndarray, b: float) -> np.ndarray:
    """KL(Gamma(a, 1) || Gamma(b, 1)) by SciPy."""
    from scipy import special

    kl: np.ndarray = (a - b) * special.digamma(a) - special.gammaln(a) + special.gammaln(b)
    return kl


_LOGITS = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("posteriors", "prior"),
    [
        (
            tfd.TransformedDistribution(
                tfd.MultivariateNormalDiag(5 + _LOGITS, np.full_like(_LOGITS, 0.5)), tfb.Tanh()
            ),
            tfd.TransformedDistribution(
                tfd.MultivariateNormalDiag(np.full(3, 5.0, np.float32)), tfb.Tanh()
            ),
        ),
        (
            tfd.RelaxedOneHotCategorical(np.full(N, 0.1, np.float32), logits=3 * _LOGITS),
            tfd.RelaxedOneHotCategorical(0.1, logits=np.zeros(3, np.float32)),
        ),
        (
            tfd.Independent(tfd.RelaxedBernoulli(0.05, logits=_LOGITS), 1),
            tfd.Independent(tfd.RelaxedBernoulli(0.05, logits=np.zeros(3, np.float32)), 1),
        ),
        (
            tfd.Independent(tfd.Beta(0.3 * np.exp(0.3 * _LOGITS), 0.3), 1),
            tfd.Independent(tfd.Beta(np.full(3, 0.3, np.float32), 0.3), 1),
        ),
        (
            tfd.Independent(tfd.LogitNormal(10 * _LOGITS, 5.0), 1),
            tfd.Independent(tfd.LogitNormal(np.zeros(3, np.float32), 10.0), 1),
        ),
        (
            tfd.Dirichlet(0.05 * np.exp(0.3 * _LOGITS)),
            tfd.Dirichlet(np.full(3, 0.05, np.float32)),
        ),
        (
            tfd.Independent(tfd.InverseGamma(0.02 * np.exp(0.3 * _LOGITS), 1.0), 1),
            tfd.Independent(tfd.InverseGamma(np.full(3, 0.02, np.float32), 1.0), 1),
        ),
    ],
    ids=["tanh", "Gumbel-softmax", "RelaxedBernoulli", "Beta", "LogitNormal", "Dirichlet", "inf"],
)
def test_draws_on_the_border_are_said_to_be_rounded(
    posteriors: tfd.Distribution, prior: tfd.Distribution
) -> None:
    with pytest.raises(ValueError, match="is not finite in") as caught:
        _surgery(posteriors, prior, num_samples=8)
    assert "float32 rounds these draws onto the border of the support" in str(caught.value)
    assert "Use float64, or a code that float32 can hold" in str(caught.value)


def test_a_density_that_rounds_inside_is_named_too() -> None:
    shapes = 0.05 * np.exp(0.3 * _LOGITS)
    with pytest.raises(ValueError, match="log posterior is not finite in") as caught:
        _surgery(
            tfd.Independent(tfd.Kumaraswamy(shapes, 0.05), 1),
            tfd.Independent(tfd.Kumaraswamy(np.full(3, 0.05, np.float32), 0.05), 1),
        )
    assert "the distribution that drew them gives them none, since float32" in str(caught.value)


def test_where_it_is_not_rounding_the_model_gives_no_density() -> None:
    posteriors = tfd.MultivariateNormalDiag(np.zeros([N, 2], np.float32))
    prior = tfd.Independent(tfd.Uniform(np.zeros(2, np.float32), 1.0), 1)
    with pytest.raises(ValueError, match=r"log prior is not finite.*gives no density there"):
        _surgery(posteriors, prior)


class _Unnormalised(tfd.MultivariateNormalDiag):
    """A prior whose density integrates to e."""

    def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
        return super()._log_prob(z) + 1.0


class _OtherDraws(tfd.MultivariateNormalDiag):
    """Posteriors that draw with twice their scale."""

    def _call_sample_n(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        z = super()._call_sample_n(*args, **kwargs)
        return self.loc + 2.0 * (z - self.loc)


def test_a_prior_that_is_not_normalised_is_found() -> None:
    loc, scale = oracles.gaussian_case("overlapping", N, 2)
    posteriors = tfd.MultivariateNormalDiag(loc, scale)
    with pytest.warns(UserWarning, match="Marginal KL = -.*is never negative"):
        surgery = _surgery(posteriors, _Unnormalised(np.zeros(2), np.ones(2)), num_samples=20)
    # The closed form of the base class is that of another density, and not taken.
    assert surgery.average_kl_method == "monte_carlo"
    assert "log_prob is not normalised" in surgery.warnings[-1]


def test_posteriors_that_draw_from_another_distribution_are_found() -> None:
    loc, scale = oracles.gaussian_case("overlapping", N, 2)
    prior = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    with pytest.warns(UserWarning, match="estimate one number and lie"):
        surgery = _surgery(_OtherDraws(loc, scale), prior, num_samples=20)
    assert len(surgery.warnings) >= 4
    assert surgery.warnings[0].startswith("Average KL: ")
    assert surgery.warnings[1].startswith("Average entropy of q(z|x): ")
    assert surgery.warnings[2].startswith("Index-code mutual information: ")
    # What the draws contradict is not subtracted from them.
    assert surgery.control_variates == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", oracles.CASES)
@pytest.mark.parametrize("num_samples", [2, 12])
def test_what_is_right_passes(case: str, num_samples: int, dtype: type) -> None:
    loc, scale = oracles.gaussian_case(case, N, 3, seed=5)
    posteriors = tfd.MultivariateNormalDiag(loc.astype(dtype), scale.astype(dtype))
    prior = tfd.MultivariateNormalDiag(np.zeros(3, dtype), np.ones(3, dtype))
    surgery = _surgery(posteriors, prior, num_samples=num_samples, detail="full")
    parts = (surgery, surgery.readings, surgery.marginal_kl_split)
    for part in (*parts, surgery.mutual_information_bounds):
        assert part is not None
        assert part.warnings == ()


@pytest.mark.parametrize("distance", [6.0, 8.0, 10.0])
def test_confusions_too_rare_to_have_been_drawn_are_not_reported(distance: float) -> None:
    """Neighbours on a grid, all equally far apart: log q(n|z) looks as if it had no spread."""
    loc = np.zeros([300, 2], np.float32)
    loc[:, 0] = distance * np.arange(300)
    posteriors = tfd.MultivariateNormalDiag(loc, np.ones_like(loc))
    prior = tfd.MultivariateNormalDiag(np.zeros(2, np.float32), np.full(2, 1000.0, np.float32))
    for seed in range(5):
        assert _surgery(posteriors, prior, num_samples=3, seed=seed).warnings == ()


def test_one_observation_far_out_is_not_reported() -> None:
    loc, scale = oracles.gaussian_case("overlapping", N, 2)
    loc[0] = 300.0
    posteriors = tfd.MultivariateNormalDiag(loc, scale)
    prior = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    for seed in range(20):
        assert _surgery(posteriors, prior, seed=seed).warnings == ()


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_errors_are_not_below_rounding(eps: float) -> None:
    """Collapsed posteriors: every term is 0, within its own error."""
    x = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
    weights = (eps * np.random.default_rng(1).normal(size=(5, 8))).astype(np.float32)
    surgery = elbo_surgery(
        x,
        lambda x: tfd.MultivariateNormalDiag(x @ weights, tf.ones([len(x), 8])),
        lambda z: tfd.Independent(tfd.Normal(0 * z[:, :5], 1.0), 1),
        tfd.MultivariateNormalDiag(tf.zeros(8), tf.ones(8)),
        num_samples=4,
        detail="full",
    )
    split, bounds = surgery.marginal_kl_split, surgery.mutual_information_bounds
    assert split is not None
    assert split.dimension_wise_kl is not None
    assert bounds is not None
    estimates = (
        surgery.index_code_mutual_information,
        surgery.index_code_mutual_information_from_entropy,
        surgery.marginal_kl,
        surgery.average_kl,
        split.total_correlation,
        split.prior_factorization,
        *split.dimension_wise_kl,
        *split.dimension_wise_mutual_information,
        bounds.index_code_mutual_information.estimate,
        bounds.info_nce.estimate,
    )
    for estimate in estimates:
        assert estimate is not None
        assert abs(estimate.value) <= 3 * estimate.standard_error
        # A log density of eight dimensions, about -11, has a last bit of 1e-6.
        assert 1e-7 < estimate.standard_error < 2e-4
    assert surgery.warnings == split.warnings == bounds.warnings == ()


def test_the_full_detail_warns_once_of_all_of_its_parts() -> None:
    loc, scale = oracles.gaussian_case("overlapping", N, 2)
    prior = _Unnormalised(np.zeros(2), np.ones(2))
    with pytest.warns(UserWarning, match="Marginal KL = ") as caught:
        surgery = _surgery(
            tfd.MultivariateNormalDiag(loc, scale),
            prior,
            num_samples=20,
            detail="full",
            log_evidence=np.full(N, -1e5),
        )
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = "\n".join(surgery.warnings)
    assert text.count("Marginal KL = ") == 1
    assert "Posterior KL = " in text
    assert surgery.to_dict()["warnings"] == list(surgery.warnings)
    assert str(surgery).count("Marginal KL = ") == 1


def test_draws_outside_the_support_of_the_prior_are_found_wherever_they_are() -> None:
    loc = np.full([N, 1], 5.0)
    loc[-20:] = -3.0
    posteriors = tfd.MultivariateNormalDiag(loc, np.full_like(loc, 0.1))
    prior = tfd.Independent(tfd.Exponential(np.ones(1)), 1)
    for measure in (elbo_surgery, importance_weighted_elbo, log_evidence_by_importance_sampling):
        arguments: dict[str, Any] = {}
        if measure is not elbo_surgery:
            arguments["num_importance_samples"] = 5
        with pytest.raises(ValueError, match=r"40 of 240 draws .* outside the support"):
            measure(index_data(N), table_encoder(posteriors), unit_decoder, prior, **arguments)


def test_other_measurements_say_it_of_their_own_draws() -> None:
    posteriors, prior = _gammas(0.02, np.float32)
    arguments = (index_data(N), table_encoder(posteriors), unit_decoder, prior)
    with pytest.warns(UserWarning, match="float32 rounds draws"):
        bound = importance_weighted_elbo(*arguments, num_importance_samples=5)
    assert "exactly 1.17549e-38" in bound.warnings[0]
    assert "WARNING: float32 rounds" in str(bound)
    with pytest.warns(UserWarning, match="float32 rounds draws"):
        bounds = mutual_information_bounds(AggregatePosterior(posteriors), batch_size=40)
    assert "exactly 1.17549e-38" in bounds.warnings[0]
