from __future__ import annotations

import dataclasses
import json

import numpy as np

from tests.testing.gaussian_mixtures import D, draws_of, posteriors, prior_of
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.surgery.marginal_kl_split import marginal_kl_split


def test_prints_a_table_and_gives_json() -> None:
    q, components = posteriors("overlapping")
    split = marginal_kl_split(
        draws_of(q, 5),
        np.arange(9),
        AggregatePosterior(components),
        prior_of("tril")[1],
        groups=((2, 0), (1,), (3,)),
    )
    rows = str(split).splitlines()
    assert rows[1] == "nats per observation; N = 9, 5 draws an observation"
    assert len({row.index(".") for row in rows[2:6]}) == 1  # aligned
    assert "  group {2, 0}: total correlation" in str(split)
    assert rows[-D - 1].split("  ")[-1].strip() == "KL(q(z_j) || p(z_j))"
    assert split.dimension_wise_kl is not None
    assert rows[-1].endswith(str(split.dimension_wise_kl[-1]))
    record = json.loads(json.dumps(split.to_dict(), allow_nan=False))
    assert record["dimension_wise_kl"][2] == split.dimension_wise_kl[2].to_dict()
    assert record["groups"]["dimensions"] == [[2, 0], [1], [3]]
    assert set(record) == {field.name for field in dataclasses.fields(split)}
