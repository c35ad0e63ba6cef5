"""AnnealedModel: decoder and prior, checked to be ones whose codes annealed chains can move."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.gradients import check_graph
from tfp_surgery.checks.networks import build_prior, check_prior, unwrap_output
from tfp_surgery.checks.takes_condition import call, check_condition_is_taken, joined
from tfp_surgery.components.batch_size import bytes_of_parameters, bytes_of_row
from tfp_surgery.components.flat_joint import CodeLayout, FlatJoint, flattened, layout_of
from tfp_surgery.components.one_by_one import needs_one_by_one
from tfp_surgery.evidence.code_space import check_code_space
from tfp_surgery.measurement.event_space import event_space_bijector
from tfp_surgery.measurement.log_likelihood import log_likelihood
from tfp_surgery.measurement.model_checks import check_decoder
from tfp_surgery.measurement.prepared_model import on_vectors
from tfp_surgery.observations import Observations

tfd = tfp.distributions

_PROBES = 8
_WAY_OUT = "log_evidence_by_importance_sampling takes the prior as it is"


@dataclasses.dataclass(frozen=True, eq=False)
class AnnealedModel:
    """p(x, z), or p(x, z|c), whose codes are real numbers after a bijection.

    Attributes:
      decoder: Callable from codes `[B, *code_shape]` to p(x|z) with batch shape `[B]`. Structured
        codes are vectors here.
      prior: p(z), or p(z|c) of the first condition, batch shape `[]`.
      prior_given: Callable from the conditions of B observations to p(z|c), batch shape `[B]`; None
        if the prior does not depend on them.
      conditions: The conditions of the observations, or None.
      is_decoder_conditional: Whether the decoder takes the condition.
      taking: What takes the condition, in words that follow the name of the data; empty if nothing
        does.
    """

    decoder: Callable[..., tfd.Distribution]
    prior: tfd.Distribution
    prior_given: Callable[[Any], tfd.Distribution] | None
    conditions: Observations | None
    is_decoder_conditional: bool
    taking: str

    def condition(self, rows: Any) -> Any:
        """Returns the conditions of some rows; None if there are none."""
        return None if self.conditions is None else self.conditions.rows(rows)

    def prior_at(self, condition: Any) -> tfd.Distribution:
        """Returns p(z), or p(z|c) of conditions with leading dimension `[B]`, batch shape `[B]`."""
        return self.prior if self.prior_given is None else self.prior_given(condition)

    def sample_codes(self, shape: list[int], condition: Any, seed: Any) -> tf.Tensor:
        """Draws codes from the prior.

        Args:
          shape: Shape of the draws; its last entry is B.
          condition: Conditions of B observations, or None.
          seed: Seed.

        Returns:
          Codes, shape `[*shape, *code_shape]`.
        """
        if self.prior_given is None:
            return self.prior.sample(shape, seed=seed)
        return self.prior_given(condition).sample(shape[:-1], seed=seed)


def annealed_model(
    decoder: Callable[..., tfd.Distribution], prior: Any, conditions: Observations | None
) -> AnnealedModel:
    """Builds the prior and checks that HMC can move its codes.

    Args:
      decoder: See `log_evidence_by_annealed_importance_sampling`.
      prior: See `log_evidence_by_annealed_importance_sampling`.
      conditions: Conditions of the observations, or None.

    Returns:
      The model.

    Raises:
      TypeError: If the decoder is not callable, the prior does not give a distribution, none of
        them takes the condition, or HMC cannot move the codes.
      ValueError: If the prior has another batch shape than the conditions.
    """
    if not callable(decoder):
        raise TypeError("decoder must be a callable that returns a tfd.Distribution.")
    taking = check_condition_is_taken(conditions, decoder=decoder, prior=prior)
    is_conditional = "prior" in taking
    built = _prior_of(prior, conditions, 1) if is_conditional else build_prior(prior)
    layout = _layout(built)

    def on_codes(prior: tfd.Distribution) -> tfd.Distribution:
        return prior if layout is None else flattened(prior, layout)

    def prior_given(condition: Any) -> tfd.Distribution:
        return on_codes(unwrap_output(call(prior, condition=condition), "prior"))

    prior_now = on_codes(built)
    if is_conditional:
        # Three conditions and one, since an event may have either shape too.
        _check_conditional(on_codes(_prior_of(prior, conditions, 3)), 3)
        _check_conditional(prior_now, 1)
        prior_now = build_prior(prior_now)  # a batch of one is that prior
    event_space_bijector(prior_now)
    if not is_conditional:
        check_prior(prior_now, prior_now)  # checks the batch shape
        probes = prior_now.sample(_PROBES, seed=tf.constant([0, 0], tf.int32))
        if needs_one_by_one(prior_now, probes):
            raise TypeError(
                f"the prior {prior_now.name} does not score several codes as it scores them one by "
                f"one, and HMC moves many together; {_WAY_OUT}."
            )
    parts = prior_now.distributions if isinstance(prior_now, FlatJoint) else None
    for part in parts or [prior_now]:
        check_code_space(part)
    return AnnealedModel(
        decoder=on_vectors(decoder, layout),
        prior=prior_now,
        prior_given=prior_given if is_conditional else None,
        conditions=conditions,
        is_decoder_conditional="decoder" in taking,
        taking=f", condition given to {joined(taking)}" if taking else "",
    )


def check_densities(observations: Observations, model: AnnealedModel, num_chains: int) -> float:
    """Checks decoder and prior on a few codes, before the actual work.

    Args:
      observations: The observations.
      model: The model.
      num_chains: Number of codes of each observation.

    Returns:
      The bytes of a code, with its observation and the parameters of likelihood and prior.

    Raises:
      TypeError: If the decoder does not return a distribution, a density does not consist of
        TensorFlow operations, or p(z|c) does not score several codes of each condition.
      ValueError: If shapes do not fit, or x lies outside the support of the likelihood.
    """
    one = slice(0, 1)
    condition, first = model.condition(one), observations.rows(one)
    code = model.sample_codes([1], condition, tf.constant([0, 0], tf.int32))
    of_decoder = model.conditions if model.is_decoder_conditional else None
    likelihood, _ = check_decoder(model.decoder, code, observations, of_decoder)
    check_graph(
        needs("the decoder"),
        lambda z: log_likelihood(model.decoder, z[tf.newaxis], first, condition),
        code,
    )
    check_graph(needs("the prior"), lambda z: model.prior_at(condition).log_prob(z), code)
    if model.prior_given is not None:
        _check_samples(model, num_chains)
    given = bytes_of_row((observations.parts, condition)) + bytes_of_row(code)
    densities = (likelihood, model.prior_at(condition))
    return given + sum(map(bytes_of_parameters, densities))


def _check_samples(model: AnnealedModel, num_chains: int) -> None:
    """Raises a TypeError unless p(z|c) scores `num_chains` codes a condition as one by one.

    A network in it may take the dimension of the chains for another one, such as that of time.
    """
    condition = model.condition(slice(0, 1))
    codes = model.sample_codes([num_chains, 1], condition, tf.constant([0, 0], tf.int32))
    prior = model.prior_at(condition)
    one_by_one = np.stack([prior.log_prob(codes[chain]) for chain in range(num_chains)])
    try:
        together = np.asarray(prior.log_prob(codes))
    except Exception:  # what a user's network raises at another rank
        together = np.zeros(0)
    if together.shape != one_by_one.shape or not np.allclose(
        together, one_by_one, rtol=1e-3, atol=1e-3, equal_nan=True
    ):
        raise TypeError(
            f"the prior {prior.name} given a condition does not score {num_chains} codes of each "
            "condition as it scores them one by one: HMC moves them together. "
            "log_evidence_by_importance_sampling takes it as it is."
        )


def needs(what: str) -> str:
    """Returns the start of the message where a density has no gradient, without a period."""
    return (
        f"annealed importance sampling moves codes by gradients of {what}, which must be made of "
        "TensorFlow operations; importance sampling (log_evidence_by_importance_sampling) takes it "
        "as it is"
    )


def _prior_of(prior: Any, conditions: Any, size: int) -> tfd.Distribution:
    """Returns p(z|c) of the first conditions, batch shape `[size]`."""
    rows = np.arange(size) % len(conditions)
    return unwrap_output(call(prior, condition=conditions.rows(rows)), "prior")


def _check_conditional(prior: tfd.Distribution, size: int) -> None:
    if prior.batch_shape != [size]:
        raise ValueError(
            f"prior(condition=...) of {size} conditions must give one distribution for each, with "
            f"batch shape [{size}], but {prior.name} has batch shape {prior.batch_shape} and event "
            f"shape {prior.event_shape}."
        )


def _layout(prior: tfd.Distribution) -> CodeLayout | None:
    """Returns the layout of structured codes; None for codes that are single tensors.

    Raises:
      TypeError: If a part is not of real numbers, or depends on others.
    """
    if not tf.nest.is_nested(prior.dtype):
        return None
    layout = layout_of(prior)
    for name, dtype in zip(layout.names, tf.nest.flatten(layout.dtypes), strict=True):
        if not dtype.is_floating:
            raise TypeError(
                f"HMC moves codes that are floating tensors, but part {name} of {prior.name} has "
                f"dtype {dtype.name}; {_WAY_OUT}."
            )
    if flattened(prior).distributions is None:
        raise TypeError(
            f"HMC moves structured codes whose parts are independent under the prior, each given "
            f"as a distribution of its own, but parts of {prior.name} depend on others; {_WAY_OUT}."
        )
    return layout
