"""What `marginal_kl_split` refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.testing.gaussian_mixtures import D, posteriors, prior_of
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.surgery.marginal_kl_split import marginal_kl_split

tfd = tfp.distributions


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"z": np.zeros([9, D])}, ValueError, r"code_shape = \[4\]"),
        ({"z": np.zeros([2, 9, 3])}, ValueError, r"code_shape = \[4\]"),
        ({"z": np.zeros([0, 9, D])}, ValueError, "at least one draw"),
        ({"z": np.full([2, 9, D], np.nan)}, ValueError, "not finite"),
        ({"index": np.arange(8)}, ValueError, r"expected \[9\]"),
        ({"index": np.arange(1, 10)}, ValueError, r"\[0, 9\)"),
        ({"index": np.zeros(9, int)}, ValueError, "more than once"),
        ({"index": np.arange(9.0)}, TypeError, "integer"),
        ({"groups": [[0, 1], [2]]}, ValueError, "0 to 3 once"),
        ({"groups": [[0, 1], [1, 2, 3]]}, ValueError, "0 to 3 once"),
        ({"groups": [[0, 1, 2, 3], []]}, ValueError, "none may be"),
        ({"groups": [[0, 1, 2, 4]]}, ValueError, "at most 3"),
        ({"groups": [[0.5, 1, 2, 3]]}, TypeError, "integer"),
        ({"tolerance": 0.0}, ValueError, "tolerance"),
        ({"prior": tfd.MultivariateNormalDiag(np.zeros(3))}, ValueError, "codes of shape"),
        ({"prior": tfd.MultivariateNormalDiag(tf.zeros(D))}, ValueError, "one dtype"),
        ({"prior": "N(0, I)"}, TypeError, "prior"),
        ({"aggregate_posterior": prior_of("diag")[1]}, TypeError, "AggregatePosterior"),
        (
            {"aggregate_posterior": AggregatePosterior(tfd.Normal(np.zeros(9), 1.0))},
            ValueError,
            "codes of shape",
        ),
        (
            {
                "aggregate_posterior": AggregatePosterior(
                    posteriors("overlapping")[1], weights=np.arange(9.0)
                )
            },
            ValueError,
            "weights=None",
        ),
        (
            {"aggregate_posterior": AggregatePosterior(tfd.Dirichlet(np.ones([9, D])))},
            NotImplementedError,
            "Dirichlet",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {
        "z": np.zeros([2, 9, D]),
        "index": np.arange(9),
        "aggregate_posterior": AggregatePosterior(posteriors("overlapping")[1]),
        "prior": prior_of("diag")[1],
        **change,
    }
    with pytest.raises(error, match=message):
        marginal_kl_split(**arguments)
