"""The average KL split given a discrete condition."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_surgery.components import components as components_lib
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate, rounding
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.control_variates import ControlVariate, ControlVariates
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.prepared_model import PreparedModel
from tfp_surgery.measurement.result import Result
from tfp_surgery.surgery.reduced_terms import reduced_terms
from tfp_surgery.surgery.scored_draws import ScoredDraws

_MOST_VALUES = 1000


@dataclasses.dataclass(frozen=True)
class ConditionSplit(Result):
    r"""The average KL and the index-code mutual information, split by a discrete condition c.

    With q(z|c) = 1/N_c sum_{n: c_n = c} q(z|x_n), in nats per observation,

        average KL = I(n; z|c) + sum_c N_c/N KL(q(z|c) || p(z|c))
        I(n; z)    = I(c; z) + I(n; z|c),

    the surgery of Hoffman and Johnson (2016) within each group of observations of one condition.
    p(z|c) is p(z) where the prior does not take the condition. In a result of `elbo_surgery`, both
    lines hold for its average KL and its mutual information up to rounding: I(n; z|c) is estimated
    with the control variates of the terms and with

        log q(z|x_n) - log q(z|c_n) - log N_c + H[q(n|z, c)],  of mean 0,

    and the other two are what is left.

    Attributes:
      index_code_mutual_information: I(n; z|c) = E[log q(z|x_n) - log q(z|c_n)], at most
        sum_c N_c/N log N_c.
      marginal_kl: sum_c N_c/N KL(q(z|c) || p(z|c)).
      condition_mutual_information: I(c; z) = E[log q(z|c_n) - log q(z)], at most the entropy of c.
      num_values: Number of distinct values of the condition.
      ceiling: sum_c N_c/N log N_c.
    """

    index_code_mutual_information: Estimate
    marginal_kl: Estimate
    condition_mutual_information: Estimate
    num_values: int
    ceiling: float

    def _title(self) -> list[str]:
        return [f"Given the condition, of {self.num_values} values; nats per observation"]

    def _rows(self) -> list[tuple[str, Any]]:
        return [
            ("average KL = I(n; z|c) + marginal KL given c", ""),
            ("    I(n; z|c)", self.index_code_mutual_information),
            ("    sum_c N_c/N KL(q(z|c) || p(z|c))", self.marginal_kl),
            ("I(c; z) = I(n; z) - I(n; z|c)", self.condition_mutual_information),
            ("ceiling of I(n; z|c)", f"{self.ceiling:.4f}"),
        ]


def condition_split(
    model: PreparedModel, draws: ScoredDraws, controls: ControlVariates
) -> ConditionSplit | str:
    """Splits the average KL given the condition of a model.

    Args:
      model: A model with conditions.
      draws: Its scored draws.
      controls: The control variates of its terms.

    Returns:
      `ConditionSplit`; or the reason why there is none, in words.

    Raises:
      ValueError: If a log density is not finite.
    """
    group = _groups(model)
    num_values = int(group.max()) + 1
    if 2 * num_values > model.num_observations:
        return (
            f"the condition is not discrete: it has {num_values} values in "
            f"{model.num_observations} observations, and q(z|c) would have fewer than two "
            "components"
        )
    if num_values > _MOST_VALUES:
        return f"the condition has {num_values} values, more than {_MOST_VALUES}"
    sizes = np.bincount(group)
    log_given = np.empty_like(draws.log_aggregate)
    entropy = np.empty_like(draws.log_aggregate)  # H[q(n|z, c)]
    of_draws = group[draws.index]
    for value in np.unique(of_draws):
        rows = tf.constant(np.flatnonzero(group == value), tf.int32)
        given = AggregatePosterior(components_lib.gather(model.posteriors, rows))
        columns = np.flatnonzero(of_draws == value)
        z = tf.gather(draws.z, columns, axis=1)
        evaluated = given.evaluate(z, tolerance=draws.tolerance)
        log_given[:, columns] = evaluated.log_prob.numpy()
        entropy[:, columns] = evaluated.index_entropy.numpy()
    log_given = checked_draws("log q(z|c)", log_given)
    left_out = draws.tolerance or 0.0
    known = ControlVariate.of(
        "H[q(n|z, c)]",
        draws.log_posterior,
        -log_given,
        np.broadcast_to(-np.log(sizes[of_draws]).astype(log_given.dtype), log_given.shape),
        entropy,
        truncation=2.0 * left_out + rounding(log_given),
        unseen=1.0,
    )
    finer = ControlVariates(
        [*controls.candidates, known], draws.num_observations, controls.unseen_variance
    )
    whole = reduced_terms(draws, controls)
    information = finer.reduced(draws.log_posterior, -log_given, truncation=left_out, unseen=1.0)
    split = ConditionSplit(
        index_code_mutual_information=finer.estimate_of(information),
        marginal_kl=finer.estimate_of(whole.average_kl - information),
        condition_mutual_information=finer.estimate_of(whole.information - information),
        num_values=num_values,
        ceiling=float(sizes @ np.log(sizes) / sizes.sum()),
    )
    sentences = (
        *consistency.negative("I(n; z|c)", split.index_code_mutual_information),
        *consistency.above(
            "I(n; z|c)",
            split.index_code_mutual_information,
            "its ceiling",
            Estimate(split.ceiling, 0.0, 0),
        ),
        *consistency.negative("The marginal KL given c", split.marginal_kl),
        *consistency.negative("I(c; z)", split.condition_mutual_information),
    )
    return dataclasses.replace(split, warnings=sentences)


def _groups(model: PreparedModel) -> np.ndarray:
    """Returns the number of the value of each observation's condition, from 0, shape `[N]`."""
    rows = np.zeros([model.num_observations], np.int64)
    for leaf in tf.nest.flatten(model.condition(slice(0, model.num_observations))):
        if isinstance(leaf, tf.RaggedTensor):
            values = [tuple(row.flat_values.numpy().tolist()) if hasattr(row, "flat_values") else
                      tuple(row.numpy().tolist()) for row in leaf]  # fmt: skip
            numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
            own = np.array([numbers[value] for value in values])
        else:
            flat = leaf.numpy().reshape(model.num_observations, -1)
            _, own = np.unique(flat, axis=0, return_inverse=True)
        _, rows = np.unique(np.stack([rows, own.ravel()]), axis=1, return_inverse=True)
        rows = rows.ravel()
    return rows
