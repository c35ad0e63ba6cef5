from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components.flat_joint import flattened
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors
from tfp_surgery.measurement import rounded_draws

tfb = tfp.bijectors
tfd = tfp.distributions


GAUSSIAN = tfd.Normal(0.0, 1.0)  # where only the draws count


def _draws(distribution: tfd.Distribution, num_observations: int = 500) -> np.ndarray:
    """Draws `[2, N, 1]`."""
    draws: np.ndarray = distribution.sample([2, num_observations, 1], seed=(0, 1)).numpy()
    return draws


@pytest.mark.parametrize(
    ("distribution", "what"),
    [
        (tfd.Gamma(0.02, 1.0), "are exactly 1.17549e-38"),
        (tfd.Chi2(0.04), "are exactly 1.17549e-38"),
        (tfd.Chi(0.04), "are exactly 1.0842e-19"),
        (tfd.InverseGamma(0.02, 1.0), "lie beyond 2e+17"),
        (tfd.HalfStudentT(0.05, 0.0, 1.0), "lie beyond 2e+17"),
        (tfd.StudentT(0.05, 0.0, 1.0), "lie beyond 2e+17"),
    ],
)
def test_draws_at_the_end_of_what_float32_holds(distribution: tfd.Distribution, what: str) -> None:
    text = rounded_draws.rounding_of_draws(_draws(distribution), distribution)
    assert text is not None
    assert "float32 rounds draws of the posteriors" in text
    assert f"of those of code dimension 0 {what}" in text
    assert "Use float64, or a code that float32 can hold" in text


def test_the_share_of_clamped_draws_is_right() -> None:
    shape = 0.02
    text = rounded_draws.rounding_of_draws(_draws(tfd.Gamma(shape, 1.0), 20_000), GAUSSIAN)
    assert text is not None
    share = float(text.split("hold: ")[1].split("%")[0]) / 100
    # For small shapes P(Gamma < t) is t^shape / Gamma(shape + 1), to order t.
    truth = np.exp(shape * np.log(np.finfo(np.float32).tiny)) / 0.98884  # Gamma(1.02)
    # The text shows two digits: half of the last one is 0.005.
    assert abs(share - truth) < 0.005 + 5 * np.sqrt(truth * (1 - truth) / 40_000)


def test_float64_holds_them_and_has_its_own_end() -> None:
    assert (
        rounded_draws.rounding_of_draws(_draws(tfd.Gamma(np.float64(0.05), 1.0)), GAUSSIAN) is None
    )
    text = rounded_draws.rounding_of_draws(_draws(tfd.Gamma(np.float64(0.002), 1.0)), GAUSSIAN)
    assert text is not None
    assert "are exactly 2.22507e-308" in text
    assert "Use float64" not in text


@pytest.mark.parametrize(("loc", "scale"), [(1000.0, 3e-5), (3e-3, 1e-10)])
def test_posteriors_too_narrow_for_their_place(loc: float, scale: float) -> None:
    text = rounded_draws.rounding_of_draws(_draws(tfd.Normal(loc, scale)), GAUSSIAN)
    assert text is not None
    assert "too few digits for posteriors so narrow so far from 0" in text
    wide = tfd.Normal(np.float64(loc), np.float64(scale))
    assert rounded_draws.rounding_of_draws(_draws(wide), GAUSSIAN) is None


@pytest.mark.parametrize(
    "distribution",
    [
        tfd.Normal(1000.0, 1e-2),
        tfd.Cauchy(0.0, 1.0),
        tfd.Uniform(0.0, 1.0),
        tfd.VonMises(0.0, 1.0),
        tfd.TruncatedNormal(0.0, 1.0, -1.0, 1.0),
        tfd.Gamma(0.3, 1.0),
        tfd.Exponential(1.0),
        tfd.Poisson(1.0),
        tfd.Bernoulli(probs=0.3, dtype=tf.float32),
        tfd.Categorical(probs=[0.5, 0.5]),
        tfd.FiniteDiscrete([0.1, 0.35, 0.5, 0.9], probs=[0.2, 0.3, 0.3, 0.2]),
        tfd.TransformedDistribution(tfd.Bernoulli(probs=0.5, dtype=tf.float32), tfb.Shift(-0.5)),
        tfd.TransformedDistribution(tfd.Normal(0.0, 1.0), tfb.Tanh()),
        # Rounded to 1 or 0, where the density is finite: as good as the value next to it.
        tfd.Beta(1e5, 1.0),
        tfd.TransformedDistribution(tfd.Normal(0.0, 1e-3), tfb.Exp()),
    ],
    ids=lambda distribution: type(distribution).__name__,
)
def test_draws_that_are_as_they_should_be_pass(distribution: tfd.Distribution) -> None:
    assert rounded_draws.rounding_of_draws(_draws(distribution, 20_000), distribution) is None


def test_a_dimension_that_is_constant_by_definition_passes() -> None:
    factors = tfd.CholeskyLKJ(2, 3.0)
    z = factors.sample([2, 500], seed=(0, 1)).numpy()
    assert np.all(z[..., 0, 0] == 1.0)
    assert rounded_draws.rounding_of_draws(z, factors) is None


def test_two_draws_say_nothing() -> None:
    assert rounded_draws.rounding_of_draws(np.full([2, 1, 1], 0.5, np.float32), GAUSSIAN) is None


def test_posteriors_of_many_observations_are_looked_at_everywhere() -> None:
    loc = np.zeros([25_000, 1], np.float32)
    loc[12_000:] = 1000.0
    posteriors = tfd.MultivariateNormalDiag(loc, np.full_like(loc, 1e-5))
    text = rounded_draws.rounding_of_draws(rounded_draws.draws_of(posteriors).numpy(), posteriors)
    assert text is not None
    assert "too few digits" in text
    right = rounded_draws.draws_of(tfd.MultivariateNormalDiag(loc)).numpy()
    assert right.shape == (2, 10_000, 1)
    assert rounded_draws.rounding_of_draws(right, posteriors) is None


def test_the_logarithm_of_a_relaxed_code_is_a_cure_and_not_warned_about() -> None:
    codes = tfd.ExpRelaxedOneHotCategorical(0.1, logits=tf.constant([0.0, 3.0, 1.0]))
    z = codes.sample([2, 5000], seed=(0, 1)).numpy()
    assert np.mean(z == 0) > 0.1  # rounded from -1e-9
    assert rounded_draws.rounding_of_draws(z, codes) is None


def test_a_posterior_without_a_density_at_its_own_draws_is_refused() -> None:
    posteriors = tfd.Independent(tfd.Beta(np.full([50, 2], 0.05, np.float32), 0.05), 1)
    with pytest.raises(ValueError, match=r"log q\(z\|x\) is not finite in .* onto the border"):
        rounded_draws.draws_of(posteriors)


def test_what_failed_at_the_border_is_explained_and_nothing_else() -> None:
    z = np.array([[[0.5], [1.0], [0.25]]], np.float32)
    at_border = np.array([[False, True, False]])
    text = rounded_draws.cause(z)(at_border)
    assert "float32 rounds these draws onto the border of the support (1)" in text
    for failed in (~at_border, np.ones_like(at_border)):
        assert rounded_draws.cause(z)(failed) == ""
        text = rounded_draws.cause(z, own=True)(failed)
        assert "the distribution that drew them gives them none" in text
    integers = np.array([[[0], [1], [2]]])
    assert rounded_draws.cause(integers, own=True)(at_border) == ""
    assert rounded_draws.cause(integers.astype(np.float32))(at_border) == ""


def _of_both(is_dependent: bool, part: Callable[[Any], tfd.Distribution]) -> tfd.Distribution:
    """A cluster of four, and a part that may be said to depend on it, of 500 observations."""
    parts = {
        "k": tfd.Categorical(logits=np.zeros([500, 4], np.float32)),
        "z": (lambda k: part(0.0 * tf.cast(k, tf.float32)))
        if is_dependent
        else part(tf.zeros(500)),
    }
    return flattened(tfd.JointDistributionNamed(parts))


def _one_hot(zeros: Any) -> tfd.Distribution:
    return tfd.OneHotCategorical(tf.stack([zeros, zeros], axis=-1), dtype=tf.float32)


@pytest.mark.parametrize("is_dependent", [False, True])
@pytest.mark.parametrize("is_encoded_again", [False, True])
def test_discrete_parts_of_structured_codes_are_not_rounded(
    is_dependent: bool, is_encoded_again: bool
) -> None:
    """A quarter of pairs have one cluster, which is no sign of few digits."""
    for part in (lambda zeros: tfd.Normal(zeros, 1.0), _one_hot):
        codes = _of_both(is_dependent, part)
        z = codes.sample(2, seed=(0, 1)).numpy()
        assert np.mean(z[0, :, 0] == z[1, :, 0]) > 0.15
        if is_encoded_again:
            codes = ReencodedPosteriors(tf.range(500), lambda _: None, 500, first=codes)
        assert rounded_draws.rounding_of_draws(z, codes) is None


@pytest.mark.parametrize("is_dependent", [False, True])
@pytest.mark.parametrize(
    ("part", "what"),
    [
        (lambda zeros: tfd.Gamma(zeros + 0.02, 1.0), "code dimension 1 are exactly 1.17549e-38"),
        (lambda zeros: tfd.Normal(zeros + 1000.0, 3e-5), "code dimension 1 is the same number"),
    ],
)
def test_continuous_parts_beside_discrete_ones_are_still_looked_at(
    is_dependent: bool, part: Any, what: str
) -> None:
    codes = _of_both(is_dependent, part)
    text = rounded_draws.rounding_of_draws(codes.sample(2, seed=(0, 1)).numpy(), codes)
    assert text is not None
    assert what in text


def test_a_discrete_part_does_not_explain_what_failed() -> None:
    z = np.array([[[0.0, 0.5], [1.0, 0.3], [2.0, 1.0]]], np.float32)
    failed = np.array([[True, True, False]])
    assert rounded_draws.cause(z)(failed) == ""
    assert "border of the support (1)" in rounded_draws.cause(z)(~failed)
