"""Tests of the names of priors, and of what they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from experiments.priors.families import FAMILIES, Ingredients, PriorName, build, em_mixture
from tfp_surgery.networks.encoders import MLPEncoder
from tfp_surgery.priors.exemplar import ExemplarPrior
from tfp_surgery.priors.vamp import VampPrior


@pytest.fixture
def given() -> Ingredients:
    x = np.random.default_rng(0).integers(0, 2, (30, 3, 2)).astype("float32")
    return Ingredients(MLPEncoder(2, (4,)), latent_size=2, x=x, seed=1)


def test_names_are_read_and_written() -> None:
    for text in ("standard", "mog:7", "mog_full:1", "realnvp"):
        assert str(PriorName.parse(text)) == text
    assert PriorName.parse("mog") == PriorName("mog", FAMILIES["mog"].num_components)
    assert PriorName.parse("mog:7").file_name == "mog_7"
    for wrong in ("gauss", "mog:0", "mog:-1", "mog:x", "standard:3", "exemplar:1"):
        with pytest.raises(ValueError, match="--priors names"):
            PriorName.parse(wrong)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.make])
def test_every_layer_is_built_over_the_codes(family: str, given: Ingredients) -> None:
    text = f"{family}:3" if FAMILIES[family].num_components else family
    layer = build(PriorName.parse(text), given)
    assert layer.event_size == 2
    assert np.isfinite(layer().log_prob(np.zeros([2], np.float32)))


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.make])
def test_the_least_size_of_a_code_is_that_of_the_layer(family: str) -> None:
    x = np.random.default_rng(0).integers(0, 2, (30, 3, 2)).astype("float32")
    given = Ingredients(MLPEncoder(1, (4,)), latent_size=1, x=x, seed=1)
    name = PriorName.parse(f"{family}:3" if FAMILIES[family].num_components else family)
    if FAMILIES[family].min_latent_size > 1:
        with pytest.raises(ValueError, match="event_size of at least 2"):
            build(name, given)
    else:
        assert np.isfinite(build(name, given)().log_prob(np.zeros([1], np.float32)))


def test_what_is_no_layer_is_not_built(given: Ingredients) -> None:
    with pytest.raises(ValueError, match="sklearn:200 is no layer"):
        build(PriorName.parse("sklearn"), given)


def test_pseudo_inputs_and_exemplars_are_observations(given: Ingredients) -> None:
    vamp = build(PriorName.parse("vamp:4"), given)
    assert isinstance(vamp, VampPrior)
    rows = {row.tobytes() for row in given.x}
    assert {row.tobytes() for row in np.asarray(vamp.pseudo_inputs)} <= rows
    exemplar, memorising = (
        build(PriorName.parse(f"{family}:5"), given) for family in ("exemplar", "exemplar_self")
    )
    assert isinstance(exemplar, ExemplarPrior)
    assert isinstance(memorising, ExemplarPrior)
    assert exemplar.leaves_one_out
    assert not memorising.leaves_one_out
    np.testing.assert_array_equal(exemplar.indices, memorising.indices)


@pytest.mark.parametrize(("family", "num_parameters"), [("sklearn", 9), ("sklearn_full", 11)])
def test_the_baseline_is_the_mixture_of_scikit_learn(family: str, num_parameters: int) -> None:
    rng = np.random.default_rng(0)
    mixing = np.array([[1.0, 0.0], [0.6, 0.5]])
    codes = np.concatenate([rng.normal(size=(400, 2)) @ mixing - 4, rng.normal(size=(600, 2)) + 4])
    prior, count = em_mixture(codes.astype("float32"), PriorName(family, 2), seed=0)
    assert count == num_parameters
    # Two groups that do not touch: the optimum is known.
    z = np.array([[-4.0, -4.0], [4.5, 3.0]], np.float32)
    parts = []
    for group in (codes[:400], codes[400:]):
        covariance = np.cov(group.T, bias=True)
        if family == "sklearn":
            covariance = np.diag(np.diag(covariance))
        gaussian = scipy.stats.multivariate_normal(group.mean(axis=0), covariance)
        parts.append(len(group) / 1000 * gaussian.pdf(z))
    np.testing.assert_allclose(prior.log_prob(z), np.log(np.sum(parts, axis=0)), atol=2e-3)
