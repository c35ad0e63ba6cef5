from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from tfp_surgery.estimate import Estimate
from tfp_surgery.surgery.elbo_surgery_result import NO_CLOSED_FORM, ElboSurgery


@pytest.fixture
def surgery() -> ElboSurgery:
    return ElboSurgery(
        elbo=Estimate(-100.25, 0.011, 200),
        average_reconstruction=Estimate(-90.0, 0.01, 200),
        average_kl=Estimate(10.2468, 0.0, 0, population_standard_error=0.31),
        index_code_mutual_information=Estimate(4.5, 0.002, 200, population_standard_error=0.021),
        marginal_kl=Estimate(5.7468, 0.002, 200, population_standard_error=0.43),
        average_kl_sampled=Estimate(10.25, 0.005, 200),
        index_code_mutual_information_sampled=Estimate(4.502, 0.003, 200),
        marginal_kl_sampled=Estimate(5.748, 0.004, 200),
        index_code_mutual_information_from_entropy=Estimate(4.501, 0.0011, 200),
        index_code_mutual_information_by_subtraction=Estimate(4.4988, 0.004, 200),
        cross_term=None,
        num_observations=100,
        num_query=100,
        num_samples=2,
        seed=7,
        data="mine/train, N = 100, binarization fixed (seed 0)",
        evaluation="exact",
        control_variates=("H[q(z|x)]", "H[q(n|z)]"),
    )


def test_prints_every_term_with_its_error_beside_log_n(surgery: ElboSurgery) -> None:
    text = str(surgery)
    assert "mine/train, N = 100, binarization fixed (seed 0)" in text
    assert "2 draws an observation, seed 7" in text
    for part in ("-100.250 ± 0.011", "4.5000 ± 0.0020", "10.2468 ± 0", f"{math.log(100):.4f}"):
        assert part in text
    assert "cross term" not in text
    table = text[: text.index("  over other data")].splitlines()[2:]
    rows = [row for row in table if row != "  checks:"]
    assert len(rows) == 11
    assert len({row.rindex("  ") < len(row) and row.index(".") for row in rows}) == 1  # aligned


def test_to_dict_is_strict_json_under_the_names_of_the_fields(surgery: ElboSurgery) -> None:
    record = json.loads(json.dumps(surgery.to_dict(), allow_nan=False))
    assert record["marginal_kl_sampled"] == {"value": 5.748, "standard_error": 0.004}
    assert record["marginal_kl"] == {
        "value": 5.7468,
        "standard_error": 0.002,
        "population_standard_error": 0.43,
    }
    assert record["control_variates"] == ["H[q(z|x)]", "H[q(n|z)]"]
    assert record["cross_term"] is None
    assert record["average_kl_method"] == "analytic"
    assert record["log_num_observations"] == pytest.approx(math.log(100))
    assert {field.name for field in dataclasses.fields(surgery)} <= set(record)


def test_without_a_registered_kl_the_result_says_so(surgery: ElboSurgery) -> None:
    sampled = dataclasses.replace(
        surgery,
        average_kl=surgery.average_kl_sampled,
        index_code_mutual_information_by_subtraction=None,
        absent={
            **surgery.absent,
            "index_code_mutual_information_by_subtraction": NO_CLOSED_FORM,
        },
    )
    assert sampled.average_kl_method == "monte_carlo"
    assert "no closed-form KL" in str(sampled)
    assert "average KL = (2) + (3), Monte Carlo" in str(sampled)
    assert "average KL = (2) + (3), closed form" in str(surgery)
    assert "index_code_mutual_information_by_subtraction" not in sampled.estimates()


def test_errors_over_other_data_and_control_variates_are_named(surgery: ElboSurgery) -> None:
    text = str(surgery)
    assert "over other data of the same size, the model held fixed: (2) ± 0.021, (3) ± 0.43" in text
    assert "average KL ± 0.31" in text
    assert "control variates: H[q(z|x)], H[q(n|z)]" in text
    unknown: dict[str, Any] = {
        name: dataclasses.replace(estimate, population_standard_error=None)
        for name, estimate in surgery.estimates().items()
    }
    without = dataclasses.replace(surgery, control_variates=(), **unknown)
    assert "other data" not in str(without)
    assert "control variates" not in str(without)


def test_a_subset_is_named(surgery: ElboSurgery) -> None:
    assert "of a random 30," in str(dataclasses.replace(surgery, num_query=30))
