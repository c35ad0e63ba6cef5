from __future__ import annotations

import numpy as np
import pytest
import tensorflow_probability as tfp

from tests.testing import oracles
from tests.testing.models import index_data, table_encoder, unit_decoder
from tfp_surgery.log_density.tree import component_tree
from tfp_surgery.surgery.elbo_surgery import elbo_surgery
from tfp_surgery.surgery.elbo_surgery_result import ElboSurgery

tfd = tfp.distributions

N, D, TOLERANCE = 300, 3, 1e-3


def _surgery(case: str, tolerance: float | None) -> ElboSurgery:
    loc, scale = oracles.gaussian_case(case, N, D)
    encoder = table_encoder(tfd.MultivariateNormalDiag(loc, scale))
    prior = tfd.MultivariateNormalDiag(np.zeros(D), np.ones(D))
    return elbo_surgery(index_data(N), encoder, unit_decoder, prior, tolerance=tolerance)


@pytest.mark.parametrize("case", oracles.CASES)
def test_terms_are_within_the_tolerance_of_the_exact_ones(case: str) -> None:
    pytest.importorskip("numba")
    exact, within = _surgery(case, None), _surgery(case, TOLERANCE)
    assert exact.evaluation == "exact"
    if case == "collapsed":  # the tree has nothing to leave out
        assert within.evaluation == "exact"
    else:
        assert "within 0.001 nats" in within.evaluation
    assert within.evaluation in str(within)
    for name in (
        "index_code_mutual_information",
        "index_code_mutual_information_from_entropy",
        "marginal_kl",
    ):
        difference = getattr(exact, name).value - getattr(within, name).value
        assert abs(difference) <= TOLERANCE
    assert within.average_kl == exact.average_kl


def test_without_numba_the_result_says_that_it_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component_tree, "is_available", lambda: False)
    assert _surgery("overlapping", TOLERANCE).evaluation == "exact"


def test_a_tolerance_must_be_positive() -> None:
    with pytest.raises(ValueError, match="tolerance must be positive"):
        _surgery("overlapping", -1.0)
