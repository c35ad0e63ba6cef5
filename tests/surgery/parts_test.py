from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing.linear_gaussian import ProbabilisticPCA
from tests.testing.models import index_data, table_encoder
from tfp_surgery.surgery.elbo_surgery import elbo_surgery
from tfp_surgery.surgery.elbo_surgery_result import NO_CONDITION, NO_PARTS, PARTS, ElboSurgery

tfb = tfp.bijectors
tfd = tfp.distributions

STANDARD_ERRORS = 4.5


def _full(*arguments: object, **options: object) -> ElboSurgery:
    return elbo_surgery(*arguments, detail="full", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> ProbabilisticPCA:
    return ProbabilisticPCA()


@pytest.fixture(scope="module")
def surgery(model: ProbabilisticPCA) -> ElboSurgery:
    return _full(model.x, model.encoder, model.decoder, model.prior, num_samples=8, seed=3)


def test_the_terms_are_those_of_a_surgery_without_detail(
    model: ProbabilisticPCA, surgery: ElboSurgery
) -> None:
    terms = elbo_surgery(model.x, model.encoder, model.decoder, model.prior, num_samples=8, seed=3)
    assert surgery.estimates() == terms.estimates()
    assert type(terms) is type(surgery)


def test_parts_that_were_not_asked_for_say_so(model: ProbabilisticPCA) -> None:
    terms = elbo_surgery(model.x, model.encoder, model.decoder, model.prior)
    assert set(terms.absent) == set(PARTS)
    assert all(getattr(terms, name) is None for name in PARTS)
    of_the_model = {name: terms.absent[name] for name in ("condition_split", "per_part")}
    assert of_the_model == {"condition_split": NO_CONDITION, "per_part": NO_PARTS}
    others = terms.absent.items() - of_the_model.items()
    assert all('detail="full"' in reason for _, reason in others)
    assert terms.total_correlation is None
    assert not set(PARTS) & set(terms.to_dict())
    assert "absent" not in str(terms)


def test_a_log_evidence_goes_with_any_detail(model: ProbabilisticPCA) -> None:
    log_evidence = np.full(len(model.x), model.average_log_evidence)
    terms = elbo_surgery(
        model.x, model.encoder, model.decoder, model.prior, log_evidence=log_evidence
    )
    assert terms.readings is not None
    assert terms.readings.log_evidence is not None
    assert terms.readings.log_evidence.value == pytest.approx(model.average_log_evidence)
    assert set(terms.absent) == set(PARTS) - {"readings"}
    assert "Readings of the ELBO" in str(terms)


def test_every_part_belongs_to_the_same_draws(surgery: ElboSurgery) -> None:
    assert surgery.readings is not None
    for reading in surgery.readings.readings().values():
        assert reading.value == pytest.approx(surgery.elbo.value, abs=1e-10)
    assert "evidence_minus_posterior_kl" in surgery.readings.absent
    split = surgery.marginal_kl_split
    assert split is not None
    assert split.marginal_kl.value == pytest.approx(surgery.marginal_kl.value, abs=1e-10)
    assert surgery.total_correlation is split.total_correlation
    assert surgery.dimension_wise_kl is split.dimension_wise_kl
    assert surgery.prior_factorization is split.prior_factorization
    assert surgery.dimension_wise_mutual_information is split.dimension_wise_mutual_information
    assert split.dimension_wise_kl is not None
    assert split.prior_factorization is not None
    parts = [split.total_correlation, *split.dimension_wise_kl, split.prior_factorization]
    assert sum(part.value for part in parts) == pytest.approx(surgery.marginal_kl.value, abs=1e-9)


def test_the_log_evidence_gives_the_first_reading(model: ProbabilisticPCA) -> None:
    """The posteriors are exact: their KL is 0 for every draw."""
    posterior, z = model.encoder(model.x), model.encoder(model.x).mean()
    log_evidence = (
        model.decoder(z).log_prob(model.x) + model.prior.log_prob(z) - posterior.log_prob(z)
    )
    surgery = _full(
        *(model.x, model.encoder, model.decoder, model.prior),
        num_query=100,
        log_evidence=log_evidence,
    )
    assert surgery.readings is not None
    posterior_kl = surgery.readings.posterior_kl
    assert posterior_kl is not None
    assert abs(posterior_kl.value) < 1e-10
    for estimate in surgery.readings.readings().values():
        assert estimate.value == pytest.approx(surgery.elbo.value, abs=1e-10)
    arguments = (model.x, model.encoder, model.decoder, model.prior)
    with pytest.raises(ValueError, match=r"must have shape \[400\]; got \[3\]"):
        _full(*arguments, log_evidence=[0.0] * 3)


def test_the_parts_of_probabilistic_pca_are_known(
    model: ProbabilisticPCA, surgery: ElboSurgery
) -> None:
    """q(z) has covariance I, so that both dimensions are active; the ELBO is the log evidence."""
    units = surgery.active_units
    assert units is not None
    assert units.num_active == 2
    # Var_n E[z_j|x_n] + the posterior variance = 1.
    posterior_variance = model.encoder(model.x[:1]).variance().numpy()[0]
    np.testing.assert_allclose(units.variances, 1.0 - posterior_variance, rtol=1e-9)
    assert surgery.rate_distortion is not None
    assert surgery.rate_distortion.rate == surgery.average_kl
    assert surgery.rate_distortion.lower_bound is None  # a density
    bounds = surgery.mutual_information_bounds
    assert bounds is not None
    information, other = (
        bounds.index_code_mutual_information.estimate,
        surgery.index_code_mutual_information,
    )
    error = math.hypot(information.standard_error, other.standard_error)
    assert abs(information.value - other.value) < STANDARD_ERRORS * error
    assert bounds.barber_agakov is not None
    rate = bounds.barber_agakov.estimate
    assert abs(rate.value - model.average_kl) < STANDARD_ERRORS * rate.standard_error


def test_it_prints_and_serialises(surgery: ElboSurgery) -> None:
    text = str(surgery)
    for title in ("ELBO surgery of", "Readings of the ELBO", "Split of the", "units are active"):
        assert title in text
    for title in ("Rate-distortion bounds", "Mutual information bounds"):
        assert title in text
    record = json.loads(json.dumps(surgery.to_dict(), allow_nan=False))
    assert record["elbo"]["value"] == surgery.elbo.value
    assert record["readings"]["surgery"]["value"] == pytest.approx(surgery.elbo.value)
    split, units = record["marginal_kl_split"], record["active_units"]
    assert surgery.total_correlation is not None
    assert split["total_correlation"]["value"] == surgery.total_correlation.value
    assert units["num_active"] == 2
    assert record["rate_distortion"]["absent"].keys() == {
        *("data_entropy", "lower_bound", "elbo_gap")
    }
    assert record["absent"] == {}


def test_binary_data_have_an_entropy(model: ProbabilisticPCA) -> None:
    x = (model.x > 0).astype(np.float32)
    weights = tf.constant(np.random.default_rng(0).normal(size=(2, 6)), tf.float32)
    surgery = _full(
        x,
        lambda x: tfd.MultivariateNormalDiag(x @ tf.transpose(weights) / 10, [0.5, 0.5]),
        lambda z: tfd.Independent(tfd.Bernoulli(logits=z @ weights, dtype=tf.float32), 1),
        tfd.MultivariateNormalDiag(tf.zeros(2)),
    )
    _, counts = np.unique(x, axis=0, return_counts=True)
    entropy = -np.sum(counts / len(x) * np.log(counts / len(x)))
    assert surgery.rate_distortion is not None
    given = surgery.rate_distortion.data_entropy
    assert given is not None
    assert given.value == pytest.approx(entropy)
    assert given.standard_error == 0.0
    gap = surgery.rate_distortion.elbo_gap
    assert gap is not None
    assert gap.value == pytest.approx(-surgery.elbo.value - entropy)


def test_what_a_model_does_not_have_is_absent_with_the_reason() -> None:
    x = index_data(9, np.float32)
    tril = tf.eye(3, batch_shape=[9, 2])
    rows = tfd.WishartTriL(df=4.0, scale_tril=tril[:, 0])
    matrix = _full(
        x,
        table_encoder(rows),
        lambda z: tfd.MultivariateNormalDiag(z[:, 0, :1], [1.0]),
        tfd.WishartTriL(df=4.0, scale_tril=tf.eye(3)),
    )
    assert matrix.absent.keys() == {
        "index_code_mutual_information_by_subtraction",
        "condition_split",
        "per_part",
        "marginal_kl_split",
    }
    for name in ("total_correlation", "dimension_wise_kl", "prior_factorization"):
        assert getattr(matrix, name) is None
    assert matrix.dimension_wise_mutual_information is None
    assert "(3, 3)" in str(matrix)
    assert matrix.to_dict()["marginal_kl_split"] is None

    # The marginals of this prior have no closed form.
    prior = tfb.Shift([1.0, 0.0])(
        tfd.MultivariateStudentTLinearOperator(
            5.0, tf.zeros(2), tf.linalg.LinearOperatorLowerTriangular([[1.0, 0.0], [0.5, 1.0]])
        )
    )
    loc = tf.constant(np.random.default_rng(0).normal(size=(9, 2)), tf.float32)
    surgery = _full(
        x,
        table_encoder(tfd.MultivariateNormalDiag(loc, [0.3, 0.3])),
        lambda z: tfd.MultivariateNormalDiag(z[:, :1], [1.0]),
        prior,
    )
    assert surgery.total_correlation is not None
    assert surgery.dimension_wise_kl is None
    assert surgery.marginal_kl_split is not None
    assert surgery.marginal_kl_split.absent.keys() >= {"dimension_wise_kl", "prior_factorization"}

    alone = _full(
        x[:1],
        table_encoder(tfd.MultivariateNormalDiag(loc[:1], [0.3, 0.3])),
        lambda z: tfd.MultivariateNormalDiag(z[:, :1], [1.0]),
        tfd.MultivariateNormalDiag(tf.zeros(2)),
    )
    assert alone.absent.keys() - {"condition_split", "per_part"} == {
        "active_units",
        "mutual_information_bounds",
    }


def test_a_detail_that_there_is_not(model: ProbabilisticPCA) -> None:
    with pytest.raises(ValueError, match='detail must be "terms" or "full"; got \'all\''):
        elbo_surgery(model.x, model.encoder, model.decoder, model.prior, detail="all")  # type: ignore[arg-type]
