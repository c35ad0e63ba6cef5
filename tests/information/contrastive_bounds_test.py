from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special

from tests.testing import oracles
from tfp_surgery.information import contrastive_bounds as contrastive_bounds_lib
from tfp_surgery.information.contrastive_bounds import contrastive_bounds, jensen_shannon_ceiling

tfd = tfp.distributions


def _log_sigmoid(x: float) -> float:
    return -float(np.logaddexp(0.0, -x))


def _brute_force(
    z: np.ndarray, batch: np.ndarray, loc: np.ndarray, scale: np.ndarray
) -> dict[str, float]:
    """The bounds of one batch, pair by pair."""
    densities = oracles.gaussian_log_densities(z, loc, scale)  # [B, N]
    num_observations, size = len(loc), len(batch)
    log_q = special.logsumexp(densities, axis=1) - math.log(num_observations)
    info_nce, leave_one_out, joint, joint_sigmoid = [], [], [], []
    products: list[tuple[float, float, float]] = []  # weight, ratio, log sigmoid(-log ratio)
    for i, own in enumerate(batch):
        scores = densities[i, batch]
        info_nce.append(densities[i, own] - special.logsumexp(scores) + math.log(size))
        others = np.delete(scores, i)
        leave_one_out.append(densities[i, own] - special.logsumexp(others) + math.log(size - 1))
        joint.append(densities[i, own] - log_q[i])
        joint_sigmoid.append(_log_sigmoid(joint[-1]))
        for j, other in enumerate(batch):
            ratio = densities[i, other] - log_q[i]
            weight = (
                1 / num_observations / size
                if i == j
                else (1 - 1 / num_observations) / (size * (size - 1))
            )
            products.append((weight, math.exp(ratio), _log_sigmoid(-ratio)))
    weights, ratios, sigmoids = np.array(products).T
    assert weights.sum() == pytest.approx(1.0)
    return {
        "info_nce": np.mean(info_nce),
        "leave_one_out": np.mean(leave_one_out),
        "nguyen_wainwright_jordan": np.mean(joint) + 1 - weights @ ratios,
        "jensen_shannon": 0.5 * (np.mean(joint_sigmoid) + weights @ sigmoids) + math.log(2),
    }


@pytest.mark.parametrize("case", oracles.CASES)
@pytest.mark.parametrize("batch_size", [2, 5, 12])
@pytest.mark.parametrize("block", [1, 450, 2**21], ids=["a batch", "some", "all"])
def test_bounds_equal_brute_force_on_the_same_draws(
    case: str, batch_size: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored a batch at a time (more than four, which are traced), some and all at once."""
    monkeypatch.setattr(contrastive_bounds_lib, "_BLOCK_ELEMENTS", block)
    loc, scale = oracles.gaussian_case(case, 12, 3)
    rng = np.random.default_rng(4)
    batches = np.stack([rng.permutation(12)[:batch_size] for _ in range(5)]).astype(np.int32)
    z = loc[batches] + scale[batches] * rng.normal(size=(5, batch_size, 3))
    log_q = np.stack(
        [
            oracles.log_prob_and_entropy(oracles.gaussian_log_densities(codes, loc, scale))[0]
            for codes in z
        ]
    )
    bounds = contrastive_bounds(
        tfd.MultivariateNormalDiag(loc, scale), batches, tf.constant(z), log_q
    )
    for k in range(5):
        expected = _brute_force(z[k], batches[k], loc, scale)
        assert set(bounds) == set(expected)
        for name, value in expected.items():
            assert bounds[name][k] == pytest.approx(value, rel=1e-10, abs=1e-10), name


def test_a_code_outside_all_other_supports_makes_the_upper_bound_infinite() -> None:
    posteriors = tfd.Uniform(np.arange(4.0), np.arange(4.0) + 0.5)
    bounds = contrastive_bounds(
        posteriors,
        np.array([[0, 2]], np.int32),
        tf.constant([[0.2, 2.3]], tf.float64),
        np.full([1, 2], math.log(2.0 / 4.0)),
    )
    assert bounds["leave_one_out"][0] == np.inf
    assert bounds["info_nce"][0] == pytest.approx(math.log(2))
    assert bounds["nguyen_wainwright_jordan"][0] == pytest.approx(math.log(4))
    assert bounds["jensen_shannon"][0] == pytest.approx(jensen_shannon_ceiling(4))


@pytest.mark.parametrize("num_observations", [1, 2, 7, 60000])
def test_jensen_shannon_ceiling_is_the_divergence_of_a_diagonal_and_a_product(
    num_observations: int,
) -> None:
    # A diagonal cell has 1/N against 1/N^2, an off-diagonal one 0 against 1/N^2.
    n = num_observations
    middle = 0.5 / n + 0.5 / n**2
    joint = n * special.rel_entr(1 / n, middle)
    product = n * special.rel_entr(1 / n**2, middle) + n * (n - 1) * special.rel_entr(
        1 / n**2, 0.5 / n**2
    )
    assert jensen_shannon_ceiling(n) == pytest.approx(0.5 * (joint + product), abs=1e-10)
